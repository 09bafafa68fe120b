"""A collection gets another definition while the outbox is open, which follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import CollectionConfig, OutboxConfig, QdrantConfig
from fm_storage.errors import CollectionMismatch, DimensionMismatch, InvalidVector
from fm_storage.outbox import Outbox
from fm_storage.repositories import Repository
from fm_storage.testing import QdrantTestServer
from fm_storage.vectors import Point, QdrantStore, ScoredPoint

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

TWO, THREE = CollectionConfig(size=2), CollectionConfig(size=3)


@pytest.fixture(params=["embedded", "server"])
async def store(
    request: pytest.FixtureRequest, vector_folder: Path
) -> AsyncIterator[QdrantStore]:
    """Give a store whose configuration defines a collection."""
    async with AsyncExitStack() as stack:
        url = "embedded:"
        if request.param == "server":
            url = (await stack.enter_async_context(QdrantTestServer())).url
        config = QdrantConfig(
            url=url, durability="process", collections={"things": TWO}
        )
        store = QdrantStore(config, folder=vector_folder)
        yield await stack.enter_async_context(store)


async def longer(points: Sequence[ScoredPoint]) -> list[list[float]]:
    """Give vectors of the new size."""
    return [[1.0, 2.0, 3.0] for _ in points]


@dataclass(slots=True)
class Thing:
    """A record with a point."""

    id: int
    name: str


async def test_writers_are_held_to_the_new_size_after_a_reindex(
    pool: Pool, store: QdrantStore
):
    """The outbox, a transaction's half and repositories; nothing is reopened."""
    await pool.execute("CREATE TABLE thing (id BIGINT PRIMARY KEY, name TEXT NOT NULL)")
    async with Outbox(pool, store, OutboxConfig(lease=5)) as outbox:
        things = Repository(
            pool,
            Thing,
            table="thing",
            collection="things",
            wake=outbox.wake,
            shapes=outbox.shapes,
        )
        await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
        await outbox.wait_synced(1)
        with pytest.raises(DimensionMismatch):
            await things.create(Thing(2, "too early"), vector=[1.0, 2.0, 3.0])
        await store.reindex("things", THREE, longer)
        await things.create(Thing(2, "new"), vector=[1.0, 2.0, 3.0])
        await outbox.upsert("things", [Point(3, [1.0, 2.0, 3.0], {})])
        async with pool.transaction() as tx:
            await outbox.bind(tx).upsert("things", [Point(4, [1.0, 2.0, 3.0], {})])
        for number in (2, 3, 4):
            await outbox.wait_synced(number)
        with pytest.raises(DimensionMismatch) as info:
            await outbox.upsert("things", [Point(5, [1.0, 2.0], {})])
        assert (info.value.expected, info.value.got) == (3, 2)
        with pytest.raises(DimensionMismatch):
            await things.create(Thing(5, "old"), vector=[1.0, 2.0])
        assert await store.count("things") == 4
        assert (await outbox.status()).quarantined == 0


async def test_reindex_cancelled_after_the_exchange_has_been_told_of(
    pool: Pool, store: QdrantStore
):
    """The name means the new collection from then on, whatever follows."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    await store.upsert_points("things", [Point(1, [1.0, 2.0], {})])

    def cancel(name: str, _: CollectionConfig) -> None:
        if name == "things":  # the target is ensured under a name of its own before
            reindexing.cancel()

    store.when_defined(cancel)
    reindexing = asyncio.create_task(store.reindex("things", THREE, longer))
    with pytest.raises(asyncio.CancelledError):
        await reindexing
    assert await outbox.upsert("things", [Point(3, [1.0, 2.0, 3.0], {})]) == 1


async def test_collection_made_anew_with_another_size_is_known(
    pool: Pool, store: QdrantStore
):
    """Deleted and ensured again; a collection nobody knew stays unknown."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    await store.delete_collection("things")
    await store.ensure_collection_exists("things", THREE)
    assert await outbox.upsert("things", [Point(1, [1.0, 2.0, 3.0], {})]) == 1
    with pytest.raises(DimensionMismatch):
        await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
    await store.ensure_collection_exists("others", THREE)
    assert outbox.shapes.get("others") is None  # the vector store has the last word


@pytest.mark.lengthy
async def test_rebuild_does_not_replace_what_a_reindex_made_by_what_fits_no_longer(
    pool: Pool, store: QdrantStore
):
    """PostgreSQL has the vectors of before: refused by name, and nothing is lost."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    await store.ensure_collection_exists("plain", TWO)
    await outbox.upsert("plain", [Point(n, [1.0, float(n)], {}) for n in range(1, 21)])
    await outbox.drain(timeout=30)
    await store.reindex("plain", THREE, longer)
    before = await store.list_collections()
    for _ in range(2):
        with pytest.raises(InvalidVector, match=r"'plain': point 1 was delivered, but"):
            await outbox.rebuild("plain")
        assert await store.count("plain") == 20
        assert await store.list_collections() == before
        assert (await outbox.status()).rebuilds == ()
    report = await outbox.rebuild("plain", spec=TWO)
    assert (report.copied, report.resumed) == (20, False)
    assert (await outbox.verify()).agrees


async def test_rebuild_does_not_undo_a_reindex_for_the_configuration(
    pool: Pool, store: QdrantStore
):
    """The configured size is the one of before; who wants it back has to say so."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
    await outbox.drain(timeout=30)
    await store.reindex("things", THREE, longer)
    with pytest.raises(
        CollectionMismatch, match=r"size is \{'': 3\} but \{'': 2\} was"
    ):
        await outbox.rebuild("things")
    assert (await outbox.status()).rebuilds == ()
    assert (await store.collection_info("things")).vectors[""]["size"] == 3
    assert (await outbox.rebuild("things", spec=TWO)).copied == 1
    assert await outbox.upsert("things", [Point(2, [1.0, 2.0], {})]) == 1


async def test_interrupted_rebuild_goes_on_with_its_own_definition_only(
    pool: Pool, store: QdrantStore
):
    """Another one is refused by name, not ignored."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    await outbox.upsert(
        "things", [Point(n, [1.0, float(n)], {}) for n in range(1, 1201)]
    )
    await outbox.drain(timeout=30)
    dot = CollectionConfig(size=2, distance="Dot")

    def cancel(*_: object) -> None:
        rebuilding.cancel()

    rebuilding = asyncio.create_task(
        outbox.rebuild("things", spec=dot, progress=cancel)
    )
    with pytest.raises(asyncio.CancelledError):
        await rebuilding
    with pytest.raises(CollectionMismatch, match="distance"):
        await outbox.rebuild("things", spec=TWO)
    report = await outbox.rebuild("things")
    assert (report.resumed, report.copied) == (True, 1200)
    assert (await store.collection_info("things")).vectors[""]["distance"] == "Dot"
