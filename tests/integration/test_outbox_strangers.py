"""Points that somebody else wrote, or tampered with: named, repaired, or left alone.

On the embedded engine and on a server, whose conditions treat a version that is
no number in different ways.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig, QdrantConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.outbox import Outbox
from fm_storage.testing import QdrantTestServer
from fm_storage.vectors import Point, QdrantStore

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

IMPOSSIBLE: list[Any] = [
    2**53 - 1,
    2**53 - 500_000,
    2**63 - 1,
    1_700_000_000_000,  # somebody's milliseconds
    1.5e300,
    7.0,
    "7",
    True,
    [10**12],
    {"a": 1},
]
LAST = "SELECT last_value FROM fm_storage.vector_version"


def points(numbers: Iterable[int], **payload: object) -> list[Point]:
    """Give one point for each number."""
    return [Point(n, [1.0, float(n)], {"n": n, **payload}) for n in numbers]


@pytest.fixture(params=["embedded", "server"])
async def store(
    request: pytest.FixtureRequest, vector_folder: Path
) -> AsyncIterator[QdrantStore]:
    """Give a store with a collection, on either kind of engine."""
    async with AsyncExitStack() as stack:
        config = QdrantConfig(durability="process")
        if request.param == "server":
            server = await stack.enter_async_context(QdrantTestServer())
            config = QdrantConfig(url=server.url)
        store = QdrantStore(config, folder=vector_folder)
        await stack.enter_async_context(store)
        await store.ensure_collection_exists("things", 2)
        yield store


@pytest.fixture
async def outbox(pool: Pool, store: QdrantStore) -> Outbox:
    """Give an outbox with 20 points delivered."""
    outbox = Outbox(pool, store, OutboxConfig(drain=False, lease=2.0, max_backoff=0.1))
    await outbox.upsert("things", points(range(1, 21)))
    await outbox.drain(timeout=30)
    return outbox


async def test_versions_never_given_out_are_named_and_rewritten(
    outbox: Outbox, store: QdrantStore, pool: Pool
):
    """Whatever a stranger writes as a version: repaired, and the sequence stays."""
    for n, version in enumerate(IMPOSSIBLE, 1):
        await store.upsert_points(
            "things", [Point(n, [9.0, 9.0], {"_ver": version, "n": "theirs"})]
        )
    before: int = await pool.fetchval(LAST)
    found = await outbox.verify()
    assert found.counts == {"impossible": len(IMPOSSIBLE)}
    assert found.greatest <= before
    assert {d.found for d in found.samples} == {
        None,
        *(v for v in IMPOSSIBLE if type(v) is int),
    }
    report = await outbox.repair(drain=30)
    assert report.enqueued == len(IMPOSSIBLE)
    assert report.drained is not None
    assert report.drained.remaining == 0
    assert await pool.fetchval(LAST) == before + len(IMPOSSIBLE)
    found = await outbox.verify()
    assert found.agrees, found.samples
    there = await store.retrieve("things", range(1, 21))
    assert {point.payload["n"] for point in there} == set(range(1, 21))
    # Written again and deleted as ever.
    await outbox.upsert("things", points(range(1, 6), again=True))
    await outbox.delete("things", range(6, 11))
    await outbox.drain(timeout=30)
    assert (await outbox.verify()).agrees
    assert await store.count("things", {"again": True}) == 5
    assert await store.count("things") == 15


@pytest.mark.parametrize("version", [2**53 - 1, "7"], ids=str)
async def test_deleted_point_with_a_version_never_given_out_goes(
    outbox: Outbox, store: QdrantStore, version: object
):
    """The store would keep it for ever: no deletion is newer."""
    await store.set_payload("things", {"_ver": version}, [3])
    await outbox.delete("things", [3])
    await outbox.drain(timeout=30)
    await outbox.repair(drain=30)
    assert await store.retrieve("things", [3]) == []
    assert (await outbox.verify()).agrees


@pytest.mark.parametrize("version", [2**53 - 1, "7"], ids=str)
async def test_newer_state_that_the_store_refused_arrives_after_a_repair(
    outbox: Outbox, store: QdrantStore, version: object
):
    """Refused in silence or set aside by name: verify() tells, repair() mends."""
    await store.set_payload("things", {"_ver": version}, [3])
    await outbox.upsert("things", points([3, 4], newer=True))
    await outbox.drain(timeout=30)
    assert (await outbox.verify()).counts == {"impossible": 1}
    await outbox.repair(drain=30)
    found = await outbox.verify()
    assert found.agrees, found.samples
    assert await store.count("things", {"newer": True}) == 2


async def test_points_that_the_outbox_never_wrote_are_left_alone(
    outbox: Outbox, store: QdrantStore
):
    """Unknown ids without a version of ours: counted, and kept."""
    theirs = [
        Point(900, [1.0, 1.0], {"mine": True}),
        Point(901, [1.0, 1.0], {"_ver": 1_700_000_000_000}),
        Point(902, [1.0, 1.0], {"_ver": "v2"}),
    ]
    await store.upsert_points("things", theirs)
    found = await outbox.verify()
    assert found.agrees
    assert (found.foreign, found.checked) == (3, 20)
    assert (await outbox.repair(drain=30)).enqueued == 0
    assert await store.count("things") == 23


async def test_point_that_somebody_wrote_over_without_a_version_is_rewritten(
    outbox: Outbox, store: QdrantStore
):
    """It is at its place, and yet not the point that PostgreSQL says."""
    await store.upsert_points("things", [Point(3, [9.0, 9.0], {"n": "theirs"})])
    found = await outbox.verify()
    assert found.counts == {"stale": 1}
    assert found.foreign == 0
    await outbox.repair(drain=30)
    assert (await outbox.verify()).agrees
    assert (await store.retrieve("things", [3]))[0].payload["n"] == 3


@pytest.mark.parametrize("version", [2**53 - 1, 2**53, -1, "7", True, None], ids=str)
async def test_marker_that_cannot_be_ours_moves_nothing(
    pool: Pool, outbox: Outbox, store: QdrantStore, version: object
):
    """It counts as none: what is desired is delivered again, the sequence stays."""
    await outbox.aclose()
    await store.set_marker({**await store.get_marker(), "version": version})
    before: int = await pool.fetchval(LAST)
    after = Outbox(pool, store, OutboxConfig(drain=False))
    await after.upsert("things", points([3], newer=True))
    assert (await after.drain(timeout=30)).remaining == 0
    assert (await after.verify()).agrees
    assert await pool.fetchval(LAST) < before + 10


async def test_store_of_another_database_is_neither_compared_nor_repaired(
    pool: Pool, outbox: Outbox, store: QdrantStore
):
    """Its points would all be orphans here, and repairing would delete them."""
    del outbox
    await pool.execute(
        "UPDATE fm_storage.vector_store"
        " SET installation = gen_random_uuid(), identity = NULL"
    )
    stranger = Outbox(pool, store, OutboxConfig(drain=False))
    with pytest.raises(ConfigurationInvalid, match="belongs to another database"):
        await stranger.verify()
    with pytest.raises(ConfigurationInvalid, match="belongs to another database"):
        await stranger.repair()
    assert await stranger.pending() == 0
