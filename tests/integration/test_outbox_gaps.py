"""The application's loop goes on while a large batch is made ready."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING

import pytest

from fm_storage.concurrency.pacing import in_chunks
from fm_storage.config import OutboxConfig
from fm_storage.outbox import Outbox
from fm_storage.outbox.delivery.points import points_of
from fm_storage.vector_state import encode_vectors
from fm_storage.vectors import Point

if TYPE_CHECKING:
    from fm_storage.postgres import Pool
    from fm_storage.vectors import QdrantStore

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong


async def test_others_have_their_turn_between_the_slices():
    """Counted in turns of the loop, not in time: a batch of 1,000 gives 15."""
    turns = 0
    over = False

    async def other() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    seen: list[int] = []
    async for some in in_chunks(range(1000)):
        seen += some
    over = True
    await task
    assert seen == list(range(1000))
    assert turns >= 15


async def test_equal_vectors_are_decoded_once_and_shared():
    """A burst of one error costs one vector, and every point has its own payload."""
    data, other = encode_vectors([1.0, 2.0]), encode_vectors([3.0, 4.0])
    payload = {"n": 1}
    first, second, third = await points_of(
        [("1", 5, data, payload), ("2", 6, bytes(data), payload), ("3", 7, other, None)]
    )
    assert first.vector is second.vector
    assert third.vector == array("f", [3.0, 4.0])
    assert (first.payload, second.payload) == ({"n": 1, "_ver": 5}, {"n": 1, "_ver": 6})
    assert payload == {"n": 1}


async def test_points_with_equal_vectors_arrive_as_they_are(
    pool: Pool, qdrant: QdrantStore
):
    """Shared or not, named or sparse: each point has its vectors in the store."""
    await qdrant.ensure_collection_exists("things", 2, distance="Dot")
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await outbox.upsert(
        "things", [Point(n, [1.0, float(n % 2)], {"n": n}) for n in range(1, 301)]
    )
    await outbox.drain(timeout=30)
    found = await qdrant.retrieve("things", range(1, 301), with_vectors=True)
    assert {point.id: point.vector for point in found} == {
        n: [1.0, float(n % 2)] for n in range(1, 301)
    }
    assert (await outbox.verify()).agrees
