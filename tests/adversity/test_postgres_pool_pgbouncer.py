"""Behind PgBouncer: found out by itself, and everything but sessions works."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConfigurationInvalid, QueryTimeout
from fm_storage.postgres import Pool


async def test_transaction_mode_is_detected_and_everything_works(empty_dsn, pgbouncer):
    """Many statements, transactions, COPY and streams over shared servers."""
    through = pgbouncer(empty_dsn, default_pool_size="2")
    async with Pool(PostgresConfig(dsn=through, max_size=6)) as pool:
        assert pool.transaction_pooler
        await pool.execute("CREATE TABLE t (id int PRIMARY KEY, j jsonb)")

        async def work(number):
            await pool.execute("INSERT INTO t VALUES ($1, $2)", number, {"n": number})
            row = await pool.fetchrow("SELECT * FROM t WHERE id = $1", number)
            assert row is not None
            assert row["j"] == {"n": number}
            async with pool.transaction() as tx:
                await tx.execute("UPDATE t SET j = NULL WHERE id = $1", number)
            async with pool.stream("SELECT * FROM t", prefetch=2) as rows:
                async for _ in rows:
                    break

        await asyncio.gather(*(work(number) for number in range(30)))
        copied = await pool.copy_records(
            "t", columns=["id", "j"], records=[(100, {"a": 1}), (101, None)]
        )
        assert copied == 2
        await pool.executemany("DELETE FROM t WHERE id = $1", [(100,), (101,)])
        assert await pool.fetchval("SELECT count(*) FROM t") == 30
        await pool.execute("ALTER TABLE t ADD COLUMN more text")
        assert len(await pool.fetch("SELECT * FROM t")) == 30
        with pytest.raises(QueryTimeout):
            await pool.fetchval("SELECT pg_sleep(5)", timeout=0.1)
        assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(ConfigurationInvalid, match="pooler"):
            async with pool.listen("c"):
                pass


async def test_settings_that_the_pooler_refuses_are_left_out(
    empty_dsn, pgbouncer, caplog
):
    """The connection is made without them, and the log says which."""
    through = pgbouncer(empty_dsn)
    config = PostgresConfig(dsn=through, server_settings={"work_mem": "5MB"})
    async with Pool(config) as pool:
        assert pool.transaction_pooler
        assert await pool.fetchval("SELECT 1") == 1
    assert "work_mem" in caplog.text


async def test_session_mode_is_as_good_as_direct_when_it_is_stated(
    empty_dsn, pgbouncer
):
    """Our server process stays ours, so nothing is switched off."""
    through = pgbouncer(empty_dsn, mode="session")
    async with Pool(PostgresConfig(dsn=through, max_size=2, pooler="none")) as pool:
        assert not pool.transaction_pooler
        assert await pool.fetchval("SELECT $1::int", 3) == 3


async def test_transaction_mode_is_detected_however_servers_are_chosen(
    empty_dsn, pgbouncer
):
    """Round robin over two idle servers looks like a server of one's own."""
    through = pgbouncer(empty_dsn, server_round_robin="1")
    for _ in range(2):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                warm = await asyncpg.connect(through, statement_cache_size=0)
                stack.push_async_callback(warm.close)
                await warm.execute("BEGIN")
    async with Pool(PostgresConfig(dsn=through, max_size=6)) as pool:
        assert pool.transaction_pooler
        found = await asyncio.gather(
            *(pool.fetchval("SELECT $1::int", n) for n in range(60))
        )
        assert found == list(range(60))


async def test_a_cancelled_call_keeps_no_server_of_the_pooler(empty_dsn, pgbouncer):
    """Prepared without Sync, a server connection would be taken from everybody."""
    through = pgbouncer(empty_dsn, default_pool_size="2")
    async with Pool(PostgresConfig(dsn=through, max_size=4)) as pool:
        for number in range(60):
            call = asyncio.ensure_future(pool.fetch(f"SELECT {number} FROM pg_class"))
            for _ in range(number % 20):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
        other = await asyncpg.connect(through, statement_cache_size=0)
        async with asyncio.timeout(5):
            for _ in range(4):
                assert await other.fetchval("SELECT 1") == 1
        await other.close()


async def test_the_mode_can_be_configured(empty_dsn):
    """pooler="transaction" is believed without a look."""
    async with Pool(PostgresConfig(dsn=empty_dsn, pooler="transaction")) as pool:
        assert pool.transaction_pooler
        assert await pool.fetchval("SELECT $1::int", 3) == 3
        assert await pool.fetchval("SELECT $1::int", 4) == 4
    async with Pool(PostgresConfig(dsn=empty_dsn, pooler="none")) as pool:
        assert not pool.transaction_pooler
