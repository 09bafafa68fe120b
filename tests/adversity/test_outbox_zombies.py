"""Drainers that lost their lease and do not know it, step by step.

The long form, with stopped processes, is in tests/torture; here each layer that
protects against a late call is shown to be needed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig
from fm_storage.outbox import Outbox
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import queue_of, side_of

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

LEASE = 0.3


class Stopped(QdrantStore):
    """The real store as a drainer sees it that is stopped right before its call."""

    def __init__(self, store: QdrantStore) -> None:
        self.__dict__.update(store.__dict__)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.landed = asyncio.Event()
        self.answer = asyncio.Event()

    async def upsert_points(self, *arguments: Any, **options: Any) -> int:
        """Stop before the call, and once more before its answer."""
        self.reached.set()
        await self.go_on.wait()
        written = await super().upsert_points(*arguments, **options)
        self.landed.set()
        await self.answer.wait()
        return written


def outbox_on(pool: Pool, store: QdrantStore) -> Outbox:
    """Give an outbox with a short lease that delivers on request."""
    return Outbox(pool, store, OutboxConfig(drain=False, lease=LEASE, max_backoff=0.05))


async def settled(outbox: Outbox, pool: Pool) -> None:
    """Deliver until the queue is empty, tombstones included."""
    async with asyncio.timeout(60):
        while await pool.fetchval("SELECT count(*) FROM fm_storage.vector_queue"):
            await outbox.drain(timeout=1)
            await asyncio.sleep(0.05)


@pytest.fixture
async def zombie(pool: Pool, qdrant: QdrantStore) -> tuple[Stopped, asyncio.Task[Any]]:
    """Give a drainer that has taken point 1 and is stopped before writing it."""
    await qdrant.ensure_collection_exists("things", 2)
    stopped = Stopped(qdrant)
    outbox = outbox_on(pool, stopped)
    await outbox.upsert("things", [Point(1, [1.0, 1.0], {"turn": 1})])
    task = asyncio.create_task(outbox.drain(timeout=15))
    await stopped.reached.wait()
    await asyncio.sleep(LEASE)
    return stopped, task


async def test_late_upsert_does_not_replace_a_newer_one(
    pool: Pool, qdrant: QdrantStore, zombie: tuple[Stopped, asyncio.Task[Any]]
):
    """The write is conditional on the version, in the store itself."""
    stopped, task = zombie
    live = outbox_on(pool, qdrant)
    await live.upsert("things", [Point(1, [1.0, 2.0], {"turn": 2})])
    await settled(live, pool)
    stopped.go_on.set()
    stopped.answer.set()
    await task
    (found,) = await qdrant.retrieve("things", [1])
    assert found.payload["turn"] == 2
    assert (await live.verify()).agrees


async def test_late_upsert_after_a_deletion_is_undone_by_the_tombstone(
    pool: Pool, qdrant: QdrantStore, zombie: tuple[Stopped, asyncio.Task[Any]]
):
    """The drainer dies with its late write done; the repeated deletion mends it."""
    stopped, task = zombie
    live = outbox_on(pool, qdrant)
    await live.delete("things", [1])
    await live.drain(timeout=15)
    stopped.go_on.set()
    await stopped.landed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await qdrant.count("things") == 1
    await settled(live, pool)
    assert await qdrant.count("things") == 0
    assert (await live.verify()).agrees


async def test_upsert_later_than_the_tombstone_is_noticed_by_its_own_drainer(
    pool: Pool, qdrant: QdrantStore, zombie: tuple[Stopped, asyncio.Task[Any]]
):
    """Stopped for longer than any grace: it sees that, and asks for repair."""
    stopped, task = zombie
    live = outbox_on(pool, qdrant)
    await live.delete("things", [1])
    await settled(live, pool)
    stopped.go_on.set()
    await stopped.landed.wait()
    assert await qdrant.count("things") == 1
    stopped.answer.set()
    await task
    await settled(live, pool)
    assert await qdrant.count("things") == 0
    assert (await live.verify()).agrees


async def test_late_deletion_does_not_delete_a_newer_point(
    pool: Pool, qdrant: QdrantStore
):
    """A deletion goes only as far as the version it was meant for."""
    await qdrant.ensure_collection_exists("things", 2)
    live = outbox_on(pool, qdrant)
    await live.upsert("things", [Point(1, [1.0, 1.0], {"turn": 1})])
    await live.delete("things", [1])
    late = await queue_of(live).claim(10)
    await asyncio.sleep(LEASE)
    await live.upsert("things", [Point(1, [1.0, 2.0], {"turn": 2})])
    await settled(live, pool)
    await side_of(live).delivery.send("things", late)
    await queue_of(live).finish(late)
    assert await qdrant.count("things") == 1
    assert (await live.verify()).agrees
