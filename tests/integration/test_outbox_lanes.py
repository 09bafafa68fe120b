"""Collections drain independently: none waits for another's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig
from fm_storage.errors import StorageError, VectorStoreUnavailable
from fm_storage.outbox import Outbox
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import queue_of

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong


class Troubled(QdrantStore):
    """The real store, one collection of which is slow or fails."""

    def __init__(self, store: QdrantStore, trouble: str) -> None:
        self.__dict__.update(store.__dict__)
        self.trouble = trouble
        self.over = asyncio.Event()

    async def upsert_points(
        self, collection: str, points: Iterable[Any], **options: Any
    ) -> int:
        """Write, unless it is the troubled collection and its trouble is not over."""
        if collection == "hurt" and not self.over.is_set():
            if self.trouble == "slow":
                await self.over.wait()
            elif self.trouble == "away":
                raise VectorStoreUnavailable("cannot open", operation="upsert_points")
            else:
                raise StorageError("something in here is wrong")
        return await super().upsert_points(collection, points, **options)


def points(count: int) -> list[Point]:
    """Give *count* points."""
    return [Point(n, [1.0, float(n)], {"n": n}) for n in range(count)]


async def ready(qdrant: QdrantStore, trouble: str) -> Troubled:
    """Give the store with both collections, one of them missing if that is meant."""
    await qdrant.ensure_collection_exists("well", 2)
    if trouble != "missing":
        await qdrant.ensure_collection_exists("hurt", 2)
    return Troubled(qdrant, trouble)


TROUBLES = ["slow", "away", "refusing", "missing"]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.lengthy
async def test_drainer_delivers_beside_trouble(
    pool: Pool, qdrant: QdrantStore, trouble: str
):
    """More points than batches at once could hold wait for the other collection."""
    store = await ready(qdrant, trouble)
    if trouble == "missing":
        store.over.set()
    config = OutboxConfig(batch_size=10, max_backoff=30.0, flush_timeout=0.1)
    async with Outbox(pool, store, config) as outbox:
        await outbox.upsert("hurt", points(200))
        await asyncio.sleep(0.2)  # its batches are under way, or have failed
        for turn in range(3):
            await outbox.upsert("well", [Point(turn, [1.0, 2.0], {})])
            await outbox.wait_synced(turn, collection="well", timeout=10)
        assert await qdrant.count("well") == 3
        assert await outbox.pending("hurt") + len(await outbox.quarantine_list()) > 100
        store.over.set()


@pytest.mark.parametrize("trouble", ["slow", "away"])
async def test_drain_delivers_beside_trouble(
    pool: Pool, qdrant: QdrantStore, trouble: str
):
    """Also in the one call that ends; afterwards the other goes on where it was."""
    store = await ready(qdrant, trouble)
    outbox = Outbox(pool, store, OutboxConfig(drain=False, batch_size=10))
    await outbox.upsert("hurt", points(50))
    await outbox.upsert("well", points(50))
    draining = asyncio.create_task(outbox.drain(timeout=60))
    async with asyncio.timeout(20):
        while await outbox.pending("well"):
            await asyncio.sleep(0.02)
    assert await qdrant.count("well") == 50
    assert not draining.done()
    store.over.set()
    report = await draining
    assert (report.delivered, report.remaining) == (100, 0)


async def test_many_collections_are_drained_in_few_statements(
    pool: Pool, qdrant: QdrantStore
):
    """One claim takes from several; the one that has waited longest comes first."""
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False, batch_size=5))
    for number in range(30):
        await outbox.upsert(f"c{number:02}", points(7))
    rows = await queue_of(outbox).claim(5)
    assert [row.collection for row in rows] == sorted(row.collection for row in rows)
    assert {row.collection for row in rows} == {f"c{number:02}" for number in range(8)}
    assert len(rows) == 40
