"""A standby that lacks the last deliveries is promoted under a living manager."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from fm_storage.config import MigrationsConfig, OutboxConfig, PostgresConfig
from fm_storage.errors import StorageError
from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.fix_cluster import TestCluster
from tests.support.inside import pool_of

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


def address(servers: Sequence[TestCluster]) -> str:
    """Give one DSN for all servers, of which the primary answers."""
    hosts = ",".join(f"127.0.0.1:{one.port}" for one in servers)
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"


def points(numbers: range, turn: int) -> list[Point]:
    """Give points whose payload says which turn wrote them.

    They are large: a frozen standby still finds in its socket what it had not read.
    """
    pad = random.Random(turn).randbytes(2000).hex()
    return [Point(n, [1.0, float(n)], {"turn": turn, "pad": pad}) for n in numbers]


async def caught_up(primary: TestCluster) -> None:
    """Wait until the standby has received all that was written so far."""
    async with Pool(PostgresConfig(dsn=primary.dsn)) as pool, asyncio.timeout(60):
        written = await pool.fetchval("SELECT pg_current_wal_lsn()::text")
        while not await pool.fetchval(
            "SELECT bool_or(flush_lsn >= $1::text::pg_lsn) FROM pg_stat_replication",
            written,
        ):
            await asyncio.sleep(0.05)


@asynccontextmanager
async def delivering(dsn: str, qdrant: QdrantStore) -> AsyncIterator[Outbox]:
    """Open a pool and an outbox on it that outlive the primary."""
    config = PostgresConfig(dsn=dsn, connect_timeout=2)
    async with (
        Pool(config) as pool,
        Outbox(pool, qdrant, OutboxConfig(max_backoff=0.2)) as outbox,
    ):
        yield outbox


async def written(outbox: Outbox, numbers: range, turn: int) -> None:
    """Write points, again as often as the server is away."""
    async with asyncio.timeout(60):
        while True:
            try:
                await outbox.upsert("things", points(numbers, turn))
            except StorageError:
                await asyncio.sleep(0.1)
            else:
                return


async def fail_over(old: TestCluster, new: TestCluster, outbox: Outbox) -> None:
    """Deliver four batches that the standby never gets, and promote it."""
    await caught_up(old)
    new.freeze()
    for turn in range(1, 5):
        await outbox.upsert("things", points(range(turn * 100, turn * 100 + 150), turn))
        await outbox.wait_synced(turn * 100 + 149, timeout=30)
    await asyncio.sleep(1.1)  # the marker is as far as it gets
    await old.kill()  # its last writes are nowhere else
    new.thaw()
    await new.promote()


async def agreeing(outbox: Outbox, qdrant: QdrantStore) -> None:
    """Both stores are equal without anybody's hand."""
    found = None
    async with asyncio.timeout(60):
        while found is None or not found.agrees:
            try:
                found = await outbox.verify()
            except StorageError:
                found = None
            await asyncio.sleep(0.1)
    desired = await pool_of(outbox).fetchval(
        "SELECT count(*) FROM fm_storage.vector_state WHERE op = 'u'"
    )
    assert 120 <= await qdrant.count("things") == desired < 550


async def test_store_that_is_ahead_of_a_promoted_standby_is_repaired(
    cluster: TestCluster, qdrant: QdrantStore, caplog: pytest.LogCaptureFixture
):
    """States written after the failover are delivered, lost ones go; and back again."""
    caplog.set_level(logging.WARNING, "fm_storage.outbox")
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    await qdrant.ensure_collection_exists("things", 2)
    standby = await cluster.standby()
    async with delivering(address([cluster, standby]), qdrant) as outbox:
        await outbox.upsert("things", points(range(100), 0))
        await outbox.wait_synced(99, timeout=30)
        await fail_over(cluster, standby, outbox)
        # Points that the store has in a version of which this server knows nothing.
        await written(outbox, range(50, 120), 5)
        await outbox.wait_synced(119, timeout=60)
        await agreeing(outbox, qdrant)
        (one,) = await qdrant.retrieve("things", [110])
        assert one.payload["turn"] == 5
        assert "orphan" in caplog.text

        # Back: the old primary is rewound, follows, falls behind, and is promoted.
        await cluster.rewind(standby)
        await cluster.start()
        await fail_over(standby, cluster, outbox)
        await written(outbox, range(60, 130), 6)
        await outbox.wait_synced(129, timeout=60)
        await agreeing(outbox, qdrant)
        (one,) = await qdrant.retrieve("things", [110])
        assert one.payload["turn"] == 6


async def test_marker_that_is_ahead_is_never_overwritten(
    pool: Pool, qdrant: QdrantStore
):
    """As of a server whose snapshot was brought back while the manager lived."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, OutboxConfig()) as outbox:
        await outbox.upsert("things", points(range(10), 0))
        await outbox.wait_synced(9, timeout=30)
        await outbox.drain(timeout=10)
        marker = await qdrant.get_marker()
        assert marker is not None
        ahead = {**marker, "version": marker["version"] + 500}
        await asyncio.sleep(1.1)
        await qdrant.set_marker(ahead)
        await outbox.upsert("things", points(range(5), 1))
        await outbox.wait_synced(4, timeout=30)
        async with asyncio.timeout(30):
            while (now := await qdrant.get_marker()) == ahead:
                await outbox.upsert("things", points(range(1), 2))
                await asyncio.sleep(0.1)
        assert now is not None
        assert now["version"] > ahead["version"]  # the sequence was moved past it
        await outbox.drain(timeout=10)
        assert (await outbox.verify()).agrees
