"""What the outbox does when the vector store fails, wholly or for one point."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig
from fm_storage.errors import (
    InvalidVector,
    NotSynced,
    StorageError,
    VectorStoreUnavailable,
)
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.vectors import LexicalVectorizer, Point, QdrantStore

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

QUICK = OutboxConfig(drain=False, max_backoff=0.02)


class Faulty(QdrantStore):
    """The real store, with one fault put before a write now and then."""

    def __init__(
        self, store: QdrantStore, fault: Callable[[list[Any]], BaseException | None]
    ) -> None:
        self.__dict__.update(store.__dict__)
        self.fault = fault
        self.calls = 0

    async def upsert_points(
        self, collection: str, points: Iterable[Any], **options: Any
    ) -> int:
        """Raise what the fault says, or write."""
        self.calls += 1
        batch = list(points)
        if (exc := self.fault(batch)) is not None:
            raise exc
        return await super().upsert_points(collection, batch, **options)


def away(operation: str = "upsert_points") -> VectorStoreUnavailable:
    """Give the error of a store that does not answer."""
    return VectorStoreUnavailable("gone fishing", operation=operation)


def points(numbers: Iterable[int]) -> list[Point]:
    """Give one point for each number."""
    return [Point(n, [1.0, float(n), 0.5, -1.0], {"n": n}) for n in numbers]


@pytest.fixture
async def things(qdrant: QdrantStore) -> QdrantStore:
    """Give the store with a collection of size 4."""
    await qdrant.ensure_collection_exists("things", 4)
    return qdrant


@pytest.mark.slow
async def test_hundred_failed_attempts_drop_nothing(pool: Pool, things: QdrantStore):
    """Whatever number of attempts fails, the first that may succeeds."""
    left = 100

    def fault(_: list[Any]) -> BaseException | None:
        nonlocal left
        left -= 1
        return away() if left >= 0 else None

    outbox = Outbox(pool, Faulty(things, fault), QUICK)
    await outbox.upsert("things", points(range(1, 51)))
    report = await outbox.drain(timeout=20)
    assert left == -1
    assert (report.delivered, report.remaining) == (50, 0)
    assert "gone fishing" in (report.problem or "")
    assert await things.count("things") == 50
    assert outbox.statistics().retried == 100 * 50


async def test_one_poison_point_is_set_aside_and_its_neighbours_land(
    pool: Pool, things: QdrantStore
):
    """A point refused at the far end, unnamed, is found by halving the batch."""

    def fault(batch: list[Any]) -> BaseException | None:
        poisoned = any(point.id == 357 for point in batch)
        return StorageError("something in here is wrong") if poisoned else None

    store = Faulty(things, fault)
    outbox = Outbox(pool, store, OutboxConfig(drain=False, batch_size=1000))
    await outbox.upsert("things", points(range(1, 1001)))
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.quarantined, report.remaining) == (999, 1, 0)
    assert store.calls < 30
    (held,) = await outbox.quarantine_list()
    assert (held.id, held.attempts) == (357, 1)
    assert "something in here" in held.error
    assert (await outbox.status()).quarantined == 1
    assert (await outbox.health())[0] == "degraded"


async def test_poison_named_by_validation_costs_one_call(
    pool: Pool, things: QdrantStore
):
    """A vector of the wrong length is named by the store; no search is needed."""
    store = Faulty(things, lambda _: None)
    outbox = Outbox(pool, store, QUICK)
    await outbox.upsert("things", [*points(range(1, 10)), Point(10, [1.0], {})])
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.quarantined, store.calls) == (9, 1, 2)
    with pytest.raises(NotSynced, match="set aside"):
        await outbox.wait_synced(10, timeout=1)


async def test_newer_version_of_a_poison_point_is_delivered(
    pool: Pool, things: QdrantStore
):
    """Correcting the record lifts the quarantine."""
    outbox = Outbox(pool, things, QUICK)
    await outbox.upsert("things", [Point(1, [1.0], {})])
    await outbox.drain(timeout=15)
    await outbox.upsert("things", points([1]))
    assert (await outbox.drain(timeout=15)).delivered == 1
    assert await outbox.quarantine_list() == []


async def test_quarantine_can_be_retried_or_given_up(pool: Pool, things: QdrantStore):
    """Retry delivers once the cause is gone; discard makes the point undesired."""
    broken = True

    def fault(batch: list[Any]) -> BaseException | None:
        bad = broken and any(point.id in {1, 2} for point in batch)
        return InvalidVector("no", collection="things") if bad else None

    outbox = Outbox(pool, Faulty(things, fault), QUICK)
    await outbox.upsert("things", points([1, 2, 3]))
    assert (await outbox.drain(timeout=15)).quarantined == 2
    broken = False
    assert await outbox.quarantine_retry(ids=[1]) == 1
    assert await outbox.quarantine_discard("things") == 1
    assert (await outbox.drain(timeout=15)).remaining == 0
    assert [p.id async for p in things.iter_points("things")] == [1, 3]
    assert (await outbox.verify()).agrees


async def test_missing_collection_waits_and_others_go_on(
    pool: Pool, things: QdrantStore
):
    """A collection that does not exist blocks its own points only."""
    outbox = Outbox(pool, things, QUICK)
    await outbox.upsert("nowhere", points([1]))
    await outbox.upsert("things", points([1]))
    report = await outbox.drain(timeout=0.5)
    assert (report.delivered, report.quarantined, report.remaining) == (1, 0, 1)
    assert "nowhere" in (report.problem or "")
    await things.ensure_collection_exists("nowhere", 4)
    assert (await outbox.drain(timeout=15)).remaining == 0


async def test_deletion_in_a_missing_collection_is_done(
    pool: Pool, things: QdrantStore
):
    """Where the collection is gone, its points are."""
    outbox = Outbox(pool, things, QUICK)
    await outbox.delete("nowhere", [1])
    assert (await outbox.drain(timeout=15)).remaining == 0


async def test_recording_goes_on_while_the_store_is_away(
    pool: Pool, things: QdrantStore
):
    """Away: degraded, with count and age. Back: it catches up by itself."""
    gone = True
    store = Faulty(things, lambda _: away() if gone else None)
    async with Outbox(pool, store, OutboxConfig(max_backoff=0.2)) as outbox:
        for n in range(1, 21):
            await outbox.upsert("things", points([n]))
        with pytest.raises(NotSynced):
            await outbox.wait_synced(20, timeout=0.3)
        state, detail = await outbox.health()
        assert state == "degraded"
        assert "20 pending" in detail
        assert "oldest" in detail
        gone = False
        await outbox.wait_synced(20, timeout=15)
    assert await things.count("things") == 20


async def test_failing_embedder_loses_nothing_and_poisons_nothing(
    pool: Pool, qdrant: QdrantStore
):
    """An embedder that is away is waited for; one bad text is set aside."""
    real = LexicalVectorizer()
    away_for = 3

    class Flaky:
        name = real.name
        spec = real.spec

        async def embed(self, texts: Sequence[str]) -> list[Any]:
            nonlocal away_for
            away_for -= 1
            if away_for >= 0:
                raise ConnectionError("model server")
            if any("BAD" in text for text in texts):
                raise RuntimeError("cannot tokenise")
            return await real.embed(texts)

    async def text_of(_: Executor, ids: list[str]) -> Mapping[str, str]:
        return {i: "BAD" if i == "5" else f"text {i}" for i in ids}

    outbox = Outbox(pool, qdrant, QUICK)
    outbox.register_vectorizer("notes", Flaky(), text_of)
    await outbox.upsert("notes", [Unembedded(n) for n in range(1, 11)])
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.quarantined, report.remaining) == (9, 1, 0)
    (held,) = await outbox.quarantine_list("notes")
    assert held.id == 5
    assert "cannot tokenise" in held.error


async def test_rows_without_a_vectorizer_wait_for_a_process_that_has_one(
    pool: Pool, qdrant: QdrantStore
):
    """A drainer that cannot embed leaves the points to one that can."""
    poor = Outbox(pool, qdrant, QUICK)
    await poor.upsert("notes", [Unembedded(1)])
    assert (await poor.drain(timeout=0.3)).remaining == 1
    rich = Outbox(pool, qdrant, QUICK)

    async def text_of(_: Executor, ids: list[str]) -> Mapping[str, str]:
        return dict.fromkeys(ids, "text")

    rich.register_vectorizer("notes", LexicalVectorizer(), text_of)
    assert (await rich.drain(timeout=15)).remaining == 0


async def test_writer_holding_a_row_does_not_hold_up_the_drainer(
    pool: Pool, things: QdrantStore
):
    """An open transaction on one point delays that point only."""
    outbox = Outbox(pool, things, QUICK)
    await outbox.upsert("things", points([1, 2, 3]))
    async with pool.transaction() as tx:
        await outbox.bind(tx).upsert("things", points([2]))
        async with asyncio.timeout(15):
            report = await outbox.drain(timeout=0.5)
        assert (report.delivered, report.remaining) == (2, 1)
    assert (await outbox.drain(timeout=15)).remaining == 0
    assert (await outbox.verify()).agrees
