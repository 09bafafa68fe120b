"""A restored database, an emptied store, another's store: noticed at start, by name."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import (
    MigrationsConfig,
    OutboxConfig,
    PostgresConfig,
    QdrantConfig,
)
from fm_storage.errors import ConfigurationInvalid
from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import drainer_of

if TYPE_CHECKING:
    from tests.fix_cluster import TestCluster

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

QUIET = OutboxConfig(drain=False, max_backoff=0.1)


def points(numbers: Iterable[int], **payload: object) -> list[Point]:
    """Give one point for each number."""
    return [Point(n, [1.0, float(n), 0.5, -1.0], {"n": n, **payload}) for n in numbers]


@pytest.fixture
async def migrated(cluster: TestCluster) -> TestCluster:
    """Give a cluster of the test's own with all migrations applied."""
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    return cluster


@pytest.fixture
async def another(tmp_path: Path) -> AsyncIterator[QdrantStore]:
    """Give a second, empty vector store."""
    folder = tmp_path / "another"
    folder.mkdir()
    async with QdrantStore(QdrantConfig(durability="process"), folder=folder) as store:
        await store.ensure_collection_exists("things", 4)
        yield store


async def test_restored_base_backup_leaves_no_divergence(
    migrated: TestCluster, qdrant: QdrantStore
):
    """After a restore the next start finds what the store knows better, and mends it.

    The store holds newer versions, points that are gone again, and lacks points
    deleted after the backup; new versions must not collide with those given out.
    """
    await qdrant.ensure_collection_exists("things", 4)
    async with Pool(PostgresConfig(dsn=migrated.dsn)) as pool:
        outbox = Outbox(pool, qdrant, QUIET)
        await outbox.upsert("things", points(range(1, 41)))
        await outbox.drain(timeout=15)
    await migrated.backup(migrated.base / "backup")
    async with Pool(PostgresConfig(dsn=migrated.dsn)) as pool:
        outbox = Outbox(pool, qdrant, QUIET)
        for turn in range(5):
            await outbox.upsert("things", points(range(11, 61), turn=turn))
        await outbox.delete("things", range(1, 6))
        await outbox.drain(timeout=15)
        await outbox.aclose()
    await migrated.stop("immediate")
    await migrated.restore(migrated.base / "backup")
    await migrated.start()
    async with Pool(PostgresConfig(dsn=migrated.dsn)) as pool:
        outbox = Outbox(pool, qdrant, OutboxConfig(max_backoff=0.1))
        await outbox.open()
        # A write before the comparison has ended gets an old version.
        await outbox.upsert("things", points([20], new=True))
        await outbox.wait_synced(20, timeout=15)
        await outbox.drain(timeout=15)
        await outbox.aclose()
        found = await outbox.verify()
        assert found.agrees, found.samples
        assert found.checked == 40
        assert (await qdrant.retrieve("things", [20]))[0].payload["new"] is True


async def test_promoted_standby_is_compared_and_drains_on(
    migrated: TestCluster, qdrant: QdrantStore
):
    """A failover is another timeline: compared once, nothing lost, nothing refused."""
    await qdrant.ensure_collection_exists("things", 4)
    async with Pool(PostgresConfig(dsn=migrated.dsn)) as pool:
        outbox = Outbox(pool, qdrant, QUIET)
        await outbox.upsert("things", points(range(1, 21)))
        await outbox.drain(timeout=15)
        standby = await migrated.standby()
    await migrated.kill()
    await standby.promote()
    async with Pool(PostgresConfig(dsn=standby.dsn)) as pool:
        outbox = Outbox(pool, qdrant, QUIET)
        await outbox.upsert("things", points(range(5, 31)))
        await outbox.drain(timeout=15)
        assert (await outbox.verify()).agrees
        assert await qdrant.count("things") == 30


async def test_another_store_is_refused_until_it_is_adopted(
    pool: Pool, qdrant: QdrantStore, another: QdrantStore
):
    """A drainer with another store refuses by name; adopting moves everything."""
    await qdrant.ensure_collection_exists("things", 4)
    first = Outbox(pool, qdrant, QUIET)
    await first.upsert("things", points(range(1, 11)))
    await first.drain(timeout=15)
    second = Outbox(pool, another, QUIET)
    with pytest.raises(ConfigurationInvalid, match="not the one this database") as info:
        await second.drain(timeout=15)
    assert info.value.key == "qdrant.url"
    assert await another.count("things") == 0
    await second.adopt()
    assert (await second.drain(timeout=15)).delivered == 10
    assert await another.count("things") == 10
    third = Outbox(pool, qdrant, QUIET)
    await third.upsert("things", points([99]))
    with pytest.raises(ConfigurationInvalid):
        await third.drain(timeout=15)


async def test_refused_drainer_says_so_and_writing_goes_on(
    pool: Pool, qdrant: QdrantStore, another: QdrantStore
):
    """The application starts and records; health names the problem."""
    await qdrant.ensure_collection_exists("things", 4)
    first = Outbox(pool, qdrant, QUIET)
    await first.upsert("things", points([1]))
    await first.drain(timeout=15)
    async with Outbox(pool, another, OutboxConfig(flush_timeout=0)) as second:
        await second.upsert("things", points([2]))
        drainer = drainer_of(second)
        while drainer.alive:
            await drainer.progress.wait()
        state, detail = await second.health()
        assert state == "degraded"
        assert "not the one this database writes to" in detail
        assert (await second.status()).drainer == "refused"
        await second.adopt()
        await second.wait_synced(2, timeout=15)
        assert await another.count("things") == 2


async def test_store_of_another_database_is_refused(pool: Pool, qdrant: QdrantStore):
    """Repairing it would delete the other database's points."""
    await qdrant.ensure_collection_exists("things", 4)
    first = Outbox(pool, qdrant, QUIET)
    await first.upsert("things", points([1]))
    await first.drain(timeout=15)
    # What a database of another installation looks like.
    await pool.execute(
        "UPDATE fm_storage.vector_store"
        " SET installation = gen_random_uuid(), identity = NULL"
    )
    with pytest.raises(ConfigurationInvalid, match="belongs to another database"):
        await Outbox(pool, qdrant, QUIET).drain(timeout=15)
    assert await qdrant.count("things") == 1


async def test_workers_that_start_together_see_no_emptied_store(
    pool: Pool, qdrant: QdrantStore, caplog: pytest.LogCaptureFixture
):
    """The first makes the store the database's; its marker is not lost, but to come."""
    await qdrant.ensure_collection_exists("things", 4)
    workers = [Outbox(pool, qdrant, QUIET) for _ in range(4)]

    async def start(worker: Outbox, number: int) -> None:
        for n in range(5):
            await worker.upsert("things", points([10 * number + n]))
            await worker.drain(timeout=15)

    await asyncio.gather(*(start(one, n) for n, one in enumerate(workers)))
    assert await qdrant.count("things") == 20
    warned = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert warned == []


async def test_emptied_store_in_the_same_place_is_filled_again(
    pool: Pool, vector_folder: Path
):
    """The folder's content is gone: another identity, no marker, the same place."""
    config = QdrantConfig(durability="process")
    for _ in range(2):
        async with QdrantStore(config, folder=vector_folder) as store:
            await store.ensure_collection_exists("things", 4)
            outbox = Outbox(pool, store, QUIET)
            if not await pool.fetchval("SELECT count(*) FROM fm_storage.vector_state"):
                await outbox.upsert("things", points(range(1, 21)))
            assert (await outbox.drain(timeout=15)).delivered == 20
            assert await store.count("things") == 20
            pid = store.statistics().engine_pid
        assert pid is not None
        async with asyncio.timeout(60):
            while _lives(pid):
                await asyncio.sleep(0.02)
        await asyncio.to_thread(shutil.rmtree, vector_folder / "qdrant")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
