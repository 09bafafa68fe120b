"""A primary that is demoted: writes find the new one without a restart.

Separate from the pool's other weather because two clusters and a promotion take
longer than the normal suite may.
"""

from __future__ import annotations

import asyncio

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConnectionFailed, QueryFailed, StorageError
from fm_storage.postgres import Pool, Sql


def pool_on(dsn, **settings):
    """Return a pool that is not open."""
    return Pool(PostgresConfig(dsn=dsn, **settings))


@pytest.mark.timeout(90)
async def test_a_demoted_primary_costs_one_error_at_most(cluster):
    """After a failover writes reach the new primary without a restart."""
    standby = await cluster.standby()
    dsn = (
        f"postgresql://postgres@127.0.0.1:{cluster.port},127.0.0.1:{standby.port}"
        "/postgres"
    )
    async with pool_on(
        dsn, max_size=3, target_session_attrs="read-write", acquire_timeout=20
    ) as pool:
        await pool.execute("CREATE TABLE t (n int)")
        write = Sql("INSERT INTO t VALUES (1)")
        await pool.execute(write)
        async with asyncio.timeout(10):
            while not await _has_table(standby.tcp_dsn):
                await asyncio.sleep(0.05)
        async with pool.acquire() as held:
            await standby.promote()
            # The old primary comes back as a standby: up, and read only.
            await cluster.stop("immediate")
            (cluster.data / "standby.signal").touch()
            await cluster.start()
            errors = 0
            for _ in range(6):
                try:
                    await pool.execute(write)
                except StorageError:
                    errors += 1
            assert errors <= 3
            with pytest.raises(ConnectionFailed):
                await held.execute(write)
        await pool.execute(write)
        assert await pool.fetchval("SELECT pg_is_in_recovery()") is False
        assert await pool.fetchval("SELECT inet_server_port()") == standby.port


@pytest.mark.timeout(90)
async def test_a_server_demoted_in_place_is_left(cluster):
    """25006 from a server in recovery replaces the connections."""
    async with pool_on(cluster.tcp_dsn, max_size=2) as pool:
        await pool.execute("CREATE TABLE t (n int)")
        with pytest.raises(QueryFailed) as caught:
            async with pool.transaction(readonly=True) as tx:
                await tx.execute(Sql("INSERT INTO t VALUES (1)"))
        assert caught.value.sqlstate == "25006"
        await pool.fetchval("SELECT 1")
        assert pool.statistics().generation == 0
    standby = await cluster.standby()
    async with pool_on(standby.tcp_dsn, max_size=2) as pool:
        with pytest.raises(QueryFailed):
            await pool.execute(Sql("CREATE TABLE u (n int)"))
        async with asyncio.timeout(3):
            while pool.statistics().generation == 0:
                await asyncio.sleep(0.01)
        assert await pool.fetchval("SELECT 1") == 1


async def _has_table(dsn):
    async with pool_on(dsn) as pool:
        return await pool.fetchval("SELECT to_regclass('t') IS NOT NULL")
