"""What the outbox promises while all is well: what commits arrives, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from fm_storage.config import CollectionConfig, OutboxConfig, QdrantConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    DimensionMismatch,
    InvalidRecord,
    InvalidVector,
    NotSynced,
    StorageError,
)
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.vectors import LexicalVectorizer, Point, QdrantStore

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong


def point(number: int, **payload: object) -> Point:
    """Give a point that differs from the others."""
    return Point(number, [1.0, float(number), 0.5, -1.0], payload)


@pytest.fixture
async def outbox(pool: Pool, qdrant: QdrantStore) -> AsyncIterator[Outbox]:
    """Give an open outbox with its drainer, and a collection of size 4."""
    await qdrant.ensure_collection_exists("things", 4)
    async with Outbox(pool, qdrant, OutboxConfig(max_backoff=0.2)) as opened:
        yield opened


@pytest.fixture
async def still(pool: Pool, qdrant: QdrantStore) -> Outbox:
    """Give an outbox that delivers only on request."""
    await qdrant.ensure_collection_exists("things", 4)
    return Outbox(pool, qdrant, OutboxConfig(drain=False, max_backoff=0.2))


async def test_committed_point_arrives(outbox: Outbox, qdrant: QdrantStore):
    """A point upserted through the outbox is in the vector store soon after."""
    await outbox.upsert("things", [point(1, colour="red")])
    await outbox.wait_synced(1, timeout=15)
    (found,) = await qdrant.retrieve("things", [1])
    assert found.payload["colour"] == "red"


async def test_rolled_back_point_never_arrives(
    outbox: Outbox, pool: Pool, qdrant: QdrantStore
):
    """What a transaction takes back was never desired."""

    async def take_back() -> None:
        async with pool.transaction() as tx:
            await outbox.bind(tx).upsert("things", [point(1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await take_back()
    await outbox.upsert("things", [point(2)])
    await outbox.wait_synced(2, timeout=15)
    assert await qdrant.count("things") == 1


async def test_deleted_point_goes(outbox: Outbox, qdrant: QdrantStore):
    """A deletion arrives, and what it leaves behind is a tombstone."""
    await outbox.upsert("things", [point(1), point(2)])
    await outbox.wait_synced(2, timeout=15)
    await outbox.delete("things", [1])
    await outbox.wait_synced(1, timeout=15)
    assert await qdrant.retrieve("things", [1]) == []
    status = await outbox.status()
    assert (status.pending, status.tombstones) == (0, 1)


async def test_many_points_arrive_in_batches(still: Outbox, qdrant: QdrantStore):
    """A backlog is delivered in batches, not one by one."""
    await still.upsert("things", [point(n) for n in range(1, 1202)])
    report = await still.drain(timeout=15)
    assert (report.delivered, report.remaining) == (1201, 0)
    assert await qdrant.count("things") == 1201
    assert still.statistics().batches == 3


async def test_every_kind_of_id_arrives(still: Outbox, qdrant: QdrantStore):
    """Integers, UUIDs and any other text are ids."""
    ids: list[int | str | UUID] = [7, uuid4(), "invoice 12/7"]
    await still.upsert("things", [Point(i, [1.0, 0, 0, 0], {}) for i in ids])
    await still.drain(timeout=15)
    found = await qdrant.retrieve("things", ids)
    assert [p.id for p in found] == [7, str(ids[1]), "invoice 12/7"]


async def test_a_lone_text_is_one_id(still: Outbox, qdrant: QdrantStore):
    """As in the store; it was the ids of its letters. What is no list is refused."""
    await still.upsert("things", [Point(i, [1.0, 0, 0, 0], {}) for i in "ab"])
    nothing: Any = 1.5
    assert await still.delete("things", "ab") == 1
    assert await still.quarantine_discard("things", "ab") == 0
    with pytest.raises(InvalidRecord, match="ids: it is a float; give a list"):
        await still.delete("things", nothing)
    nothing = "15"
    with pytest.raises(ConfigurationInvalid, match="timeout: is a str; give"):
        await still.drain(timeout=nothing)
    with pytest.raises(ConfigurationInvalid, match="timeout: is a str; give"):
        await still.wait_synced("a", timeout=nothing)
    await still.drain(timeout=15)
    assert await qdrant.count("things") == 2


async def test_last_of_several_with_one_id_counts(still: Outbox, qdrant: QdrantStore):
    """One call may name a point twice; the last state is desired."""
    await still.upsert("things", [point(1, n=1), point(1, n=2)])
    await still.upsert("things", [point(1, n=3)])
    report = await still.drain(timeout=15)
    assert report.delivered == 1
    (found,) = await qdrant.retrieve("things", [1])
    assert found.payload["n"] == 3


async def test_hostile_values_are_refused_before_anything_is_written(still: Outbox):
    """A vector with NaN, an id that is none, a payload that is no JSON: typed."""
    nan = Point(1, [1.0, float("nan"), 0, 0], {})
    with pytest.raises(InvalidVector, match="NaN"):
        await still.upsert("things", [point(2), nan])
    with pytest.raises(InvalidRecord, match="no id"):
        await still.upsert("things", [Point(-1, [1.0], {})])
    with pytest.raises(InvalidRecord, match="payload"):
        await still.upsert("things", [Point(1, [1.0], {"x": object()})])
    assert await still.pending() == 0


async def test_vector_that_cannot_fit_is_refused_before_it_is_written(
    pool: Pool, vector_folder: Path
):
    """Where the definition is known: outside and inside a transaction, by name."""
    collections = {"things": CollectionConfig(size=4)}
    config = QdrantConfig(durability="process", collections=collections)
    store = QdrantStore(config, folder=vector_folder)  # not opened: nothing is asked
    outbox = Outbox(pool, store, OutboxConfig(drain=False))
    outbox.register_vectorizer("notes", LexicalVectorizer(), _no_text)
    short = Point(2, [1.0, 2.0], {})
    with pytest.raises(DimensionMismatch, match=r"'things'.* point 1 has 2") as info:
        await outbox.upsert("things", [point(1), short])
    assert (info.value.expected, info.value.got, info.value.index) == (4, 2, 1)
    async with pool.transaction() as tx:
        with pytest.raises(DimensionMismatch):
            await outbox.bind(tx).upsert("things", [short])
        with pytest.raises(InvalidVector, match="is not defined"):
            await outbox.bind(tx).upsert("things", [Point(1, {"text": [1.0]}, {})])
    with pytest.raises(InvalidVector, match="'notes'"):
        await outbox.upsert("notes", [short])
    assert await outbox.pending() == 0
    await outbox.upsert("unknown", [short])  # the vector store has the last word
    outbox.shapes.learn("things", CollectionConfig(size=2))
    assert await outbox.upsert("things", [short]) == 1


async def _no_text(_: Executor, __: list[str]) -> Mapping[str, str]:
    return {}


async def test_unembedded_points_get_their_vectors_while_draining(
    pool: Pool, qdrant: QdrantStore
):
    """Points without vectors are embedded in one batch, and the vectors are kept."""
    vectorizer = LexicalVectorizer()
    asked: list[list[str]] = []

    async def text_of(executor: Executor, ids: list[str]) -> Mapping[str, str]:
        asked.append(ids)
        assert executor is pool
        return {i: f"disk {i} is full" for i in ids if i != "3"}

    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    outbox.register_vectorizer("errors", vectorizer, text_of)
    await outbox.upsert("errors", [Unembedded(n, {"n": n}) for n in (1, 2, 3)])
    await outbox.drain(timeout=15)
    assert sorted(asked[0]) == ["1", "2", "3"]
    assert await qdrant.count("errors") == 2
    (embedding,) = await vectorizer.embed(["disk 2 is full"])
    hits = await qdrant.search_hybrid("errors", embedding, 1)
    assert hits[0].id == 2
    kept = await pool.fetchval(
        "SELECT count(vectors) FROM fm_storage.vector_state WHERE op = 'u'"
    )
    assert kept == 2
    assert outbox.statistics().embedded == 2


async def test_wait_synced_says_why_not(still: Outbox):
    """Waiting for a point that nobody delivers ends in a typed error."""
    await still.upsert("things", [point(1)])
    with pytest.raises(NotSynced, match="not delivered within"):
        await still.wait_synced(1, timeout=0.05)


async def test_drainer_sees_what_another_process_wrote(
    outbox: Outbox, still: Outbox, qdrant: QdrantStore
):
    """A process that does not drain wakes one that does."""
    await outbox.upsert("things", [point(1)])
    await outbox.wait_synced(1, timeout=15)
    await still.upsert("things", [point(2)])
    await still.wait_synced(2, timeout=15)
    assert await qdrant.count("things") == 2
    await still.aclose()


async def test_versions_end_where_json_readers_stop_counting(
    still: Outbox, pool: Pool, qdrant: QdrantStore
):
    """The last version below 2**53 arrives exactly; a greater one is never given."""
    last = 2**53 - 1
    await pool.fetchval("SELECT setval('fm_storage.vector_version', $1)", last - 1)
    await still.upsert("things", [point(1)])
    await still.drain(timeout=15)
    (found,) = await qdrant.retrieve("things", [1])
    assert found.marks == {"_ver": last}
    assert (await still.verify()).agrees
    with pytest.raises(StorageError, match="maximum value"):
        await still.upsert("things", [point(2)])
