"""Behind PgBouncer: found out by itself, and everything but sessions works."""

from __future__ import annotations

import asyncio

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


async def test_session_mode_is_as_good_as_direct(empty_dsn, pgbouncer):
    """Our server process stays ours, so nothing is switched off."""
    through = pgbouncer(empty_dsn, mode="session")
    async with Pool(PostgresConfig(dsn=through, max_size=2)) as pool:
        assert not pool.transaction_pooler
        assert await pool.fetchval("SELECT $1::int", 3) == 3


async def test_the_mode_can_be_configured(empty_dsn):
    """pooler="transaction" is believed without a look."""
    async with Pool(PostgresConfig(dsn=empty_dsn, pooler="transaction")) as pool:
        assert pool.transaction_pooler
        assert await pool.fetchval("SELECT $1::int", 3) == 3
        assert await pool.fetchval("SELECT $1::int", 4) == 4
    async with Pool(PostgresConfig(dsn=empty_dsn, pooler="none")) as pool:
        assert not pool.transaction_pooler
