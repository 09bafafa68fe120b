"""verify() finds exactly what differs, repair() mends it, rebuild() replaces it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import CollectionConfig, OutboxConfig
from fm_storage.errors import CollectionNotFound
from fm_storage.outbox import Outbox
from fm_storage.vectors import Point

if TYPE_CHECKING:
    from fm_storage.postgres import Pool
    from fm_storage.vectors import QdrantStore


pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong


def points(numbers: Iterable[int], **payload: object) -> list[Point]:
    """Give one point for each number."""
    return [Point(n, [1.0, float(n), 0.5, -1.0], {"n": n, **payload}) for n in numbers]


@pytest.fixture
async def outbox(pool: Pool, qdrant: QdrantStore) -> Outbox:
    """Give an outbox with 50 points delivered."""
    await qdrant.ensure_collection_exists("things", 4)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False, lease=2.0))
    await outbox.upsert("things", points(range(1, 51)))
    await outbox.drain(timeout=15)
    return outbox


async def test_equal_stores_agree(outbox: Outbox):
    """Nothing is found where nothing differs."""
    found = await outbox.verify()
    assert found.agrees
    assert (found.checked, found.pending, found.foreign) == (50, 0, 0)


async def test_payloads_survive_the_journey_whatever_their_numbers(
    outbox: Outbox, qdrant: QdrantStore
):
    """Digests agree for numbers that PostgreSQL and Qdrant write differently."""
    payload = {
        "float": 0.1 + 0.2,
        "whole": 3.0,
        "large": 1e16,
        "huge": 1.5e300,
        "int": 2**60 + 1,
        "negative": -0.0,
        "text": "ünï\u2028 \U0001f600",
        "nested": {"list": [1.0, None, True, {"x": 1e-9}]},
    }
    await outbox.upsert("things", [Point(99, [1.0, 0, 0, 0], payload)])
    await outbox.drain(timeout=15)
    assert (await qdrant.retrieve("things", [99]))[0].payload["text"] == payload["text"]
    found = await outbox.verify()
    assert found.agrees, found.samples


async def test_each_kind_of_difference_is_found_and_repaired(
    outbox: Outbox, qdrant: QdrantStore, pool: Pool
):
    """Missing, orphan, stale, ahead and changed points are named, then repaired."""
    vector = [1.0, 0.0, 0.0, 0.0]
    await qdrant.delete_points("things", [1, 2])
    await qdrant.upsert_points("things", [Point(900, vector, {"_ver": 5})])
    await qdrant.upsert_points("things", [Point(3, vector, {"_ver": 1, "n": 3})])
    await qdrant.upsert_points("things", [Point(4, vector, {"_ver": 10**5, "n": 4})])
    await qdrant.set_payload("things", {"n": "tampered"}, [5])
    await qdrant.upsert_points("things", [Point(901, vector, {"mine": True})])
    found = await outbox.verify()
    expected = {"missing": 2, "orphan": 1, "stale": 1, "ahead": 1, "changed": 1}
    assert found.counts == expected
    assert found.foreign == 1
    assert {(d.id, d.kind) for d in found.samples} == {
        (1, "missing"),
        (2, "missing"),
        (900, "orphan"),
        (3, "stale"),
        (4, "ahead"),
        (5, "changed"),
    }
    report = await outbox.repair(drain=10)
    assert report.enqueued == 6
    assert report.drained is not None
    assert report.drained.delivered == 6
    assert (await outbox.verify()).agrees
    assert await qdrant.count("things") == 51
    assert (await qdrant.retrieve("things", [5]))[0].payload["n"] == 5
    # Versions given out from now on are beyond what the vector store has seen.
    assert await pool.fetchval("SELECT last_value FROM fm_storage.vector_version") > (
        10**5
    )


async def test_queued_version_that_the_store_would_refuse_is_renewed(
    outbox: Outbox, qdrant: QdrantStore
):
    """A write between a restore and its discovery has an old version, and survives."""
    ahead = Point(4, [1.0, 0.0, 0.0, 0.0], {"_ver": 10**5, "n": "from before"})
    await qdrant.upsert_points("things", [ahead])
    await outbox.upsert("things", points([4], late=True))
    assert (await outbox.verify()).counts == {"ahead": 1}
    await outbox.repair(drain=15)
    assert (await outbox.verify()).agrees
    assert (await qdrant.retrieve("things", [4]))[0].payload["late"] is True


async def test_point_that_came_back_after_its_deletion_is_an_orphan(
    outbox: Outbox, qdrant: QdrantStore
):
    """Its tombstone would remove it some day; repair does not wait for that."""
    await outbox.delete("things", [7])
    await outbox.drain(timeout=15)
    assert (await outbox.status()).tombstones == 1
    late = Point(7, [1.0, 0.0, 0.0, 0.0], {"_ver": 7})
    await qdrant.upsert_points("things", [late])
    assert (await outbox.verify()).counts == {"orphan": 1}
    await outbox.repair(drain=15)
    assert await qdrant.retrieve("things", [7]) == []


async def test_points_on_their_way_are_pending_and_not_different(outbox: Outbox):
    """What the queue still holds is not a difference."""
    await outbox.upsert("things", points(range(40, 61)))
    await outbox.delete("things", [1])
    found = await outbox.verify()
    assert not found.counts
    assert found.pending >= 22
    assert not found.agrees  # not yet


async def test_verify_is_exact_while_writers_and_drainers_go_on(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """No difference is reported that is only a point on the move."""
    stop = asyncio.Event()

    async def write() -> None:
        for n in itertools.count():
            await outbox.upsert("things", points([n % 70 + 1], turn=n))
            if n % 5 == 0:
                await outbox.delete("things", [n % 90 + 1])
            if stop.is_set():
                return

    async with Outbox(pool, qdrant, OutboxConfig(lease=2.0)):
        writer = asyncio.create_task(write())
        for _ in range(10):
            found = await outbox.verify()
            assert not found.counts, found.samples
        stop.set()
        await writer


async def test_emptied_collection_is_noticed_at_start(pool: Pool, qdrant: QdrantStore):
    """A collection that lost its points is filled again by the next drainer."""
    await qdrant.ensure_collection_exists("things", 4)
    first = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await first.upsert("things", points(range(1, 31)))
    await first.drain(timeout=15)
    await qdrant.delete_collection("things")
    await qdrant.ensure_collection_exists("things", 4)
    second = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await second.drain(timeout=15)
    assert await qdrant.count("things") == 30


async def test_rebuild_puts_a_fresh_collection_behind_the_name(
    outbox: Outbox, qdrant: QdrantStore
):
    """Rebuilt from PostgreSQL alone, twice: the first time the name was no alias."""
    await qdrant.set_payload("things", {"n": "tampered"}, [5])
    await qdrant.delete_points("things", [1])
    first = await outbox.rebuild("things")
    assert (first.copied, first.resumed) == (50, False)
    assert await qdrant.count("things") == 50
    assert (await qdrant.collection_info("things")).name == first.target
    second = await outbox.rebuild("things")
    assert (await qdrant.collection_info("things")).name == second.target
    assert await qdrant.list_collections() == [second.target]
    await outbox.drain(timeout=15)
    assert (await outbox.verify()).agrees


async def test_rebuild_with_another_definition(outbox: Outbox, qdrant: QdrantStore):
    """Vectors stay, what surrounds them may change."""
    spec = CollectionConfig(size=4, distance="Dot", payload_indexes={"n": "integer"})
    await outbox.rebuild("things", spec=spec)
    info = await qdrant.collection_info("things")
    assert info.vectors[""]["distance"] == "Dot"
    assert info.payload_indexes == {"n": "integer"}


async def test_rebuild_needs_a_definition_when_the_collection_is_gone(
    outbox: Outbox, qdrant: QdrantStore
):
    """Without a collection, somebody has to say what it should be."""
    await qdrant.delete_collection("things")
    with pytest.raises(CollectionNotFound):
        await outbox.rebuild("things")
    await outbox.rebuild("things", spec=CollectionConfig(size=4))
    assert await qdrant.count("things") == 50


@pytest.mark.lengthy
async def test_interrupted_rebuild_goes_on_where_it_was(
    outbox: Outbox, qdrant: QdrantStore
):
    """A rebuild that was cancelled while filling resumes with its target."""
    await outbox.upsert("things", points(range(100, 2100)))
    await outbox.drain(timeout=15)
    task: asyncio.Task[Any]

    def cancel(done: int, _: int | None) -> None:
        if done >= 1000:
            task.cancel()

    task = asyncio.create_task(outbox.rebuild("things", progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    seen: list[int] = []
    report = await outbox.rebuild("things", progress=lambda done, _: seen.append(done))
    assert report.resumed
    assert seen[0] > 1000
    assert report.copied == 2050
    assert len(await qdrant.list_collections()) == 1
    assert (await outbox.verify()).agrees


@pytest.mark.slow
async def test_rebuild_loses_no_write_made_meanwhile(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Writers and a drainer go on during three rebuilds; afterwards both agree."""
    stop = asyncio.Event()

    async def write() -> None:
        for n in itertools.count():
            await outbox.upsert("things", points([n % 200 + 1], turn=n))
            if n % 3 == 0:
                await outbox.delete("things", [n % 170 + 1])
            if stop.is_set():
                return

    async with Outbox(pool, qdrant, OutboxConfig(lease=2.0, max_backoff=0.1)) as live:
        writer = asyncio.create_task(write())
        for _ in range(3):
            await live.rebuild("things")
        stop.set()
        await writer
    await outbox.drain(timeout=15)
    found = await outbox.verify()
    assert found.agrees, found.samples
    assert found.pending == 0 or found.checked


async def test_agreement_is_not_claimed_for_what_failed_or_was_not_seen(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Points that wait after a failure; points of ours that PostgreSQL forgot."""
    await outbox.upsert("nowhere", points([1]))
    await outbox.drain(timeout=0.5)
    found = await outbox.verify()
    assert (found.pending, found.failing, found.agrees) == (1, 1, False)
    await outbox.delete("nowhere", [1])
    await outbox.drain(timeout=15)
    before = await qdrant.count("things")
    assert before > 0
    await pool.execute("TRUNCATE fm_storage.vector_state, fm_storage.vector_queue")
    found = await outbox.verify()
    assert (found.unknown, found.agrees) == ({"things": before}, False)
    report = await outbox.repair()
    assert report.enqueued == 0  # it may have been emptied by mistake
    assert report.verification.unknown == {"things": before}
    await qdrant.ensure_collection_exists("strange", 4)
    await qdrant.upsert_points("strange", points([1]))
    assert (await outbox.verify()).unknown == {"things": before}
