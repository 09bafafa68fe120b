"""Nothing that one borrower did reaches the next."""

from __future__ import annotations

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import QueryFailed
from fm_storage.postgres import Pool, Sql

STATE = Sql(
    "SELECT nullif(current_setting('app.tenant', true), '') AS tenant, "
    "current_user AS role, "
    "session_user AS login, current_setting('search_path') AS path, "
    "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') AS locks, "
    "(SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS temp, "
    "(SELECT count(*) FROM pg_cursors) AS cursors, "
    "(SELECT count(*) FROM pg_listening_channels()) AS channels, "
    "pg_backend_pid() AS pid"
)
DEEDS = [
    "SET app.tenant = 'seven'",
    "SELECT set_config('app.tenant', 'seven', false)",
    "SET ROLE fm_reset_other",
    "SELECT become_other()",
    "SET SESSION AUTHORIZATION fm_reset_other",
    "SELECT pg_advisory_lock(42)",
    "SELECT count(*) FROM (SELECT pg_advisory_lock(43)) x",
    "CREATE TEMP TABLE mine (a int)",
    "SELECT 1 AS a INTO TEMP mine",
    "CREATE TEMP VIEW my_view AS SELECT 1",
    "LISTEN somewhere",
    "SET search_path = pg_catalog",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "DO $$ BEGIN PERFORM set_config('app.tenant', 'seven', false); END $$",
    "BEGIN; SET LOCAL app.tenant = 'seven'; SELECT pg_advisory_xact_lock(44)",
]


@pytest.fixture
async def one(empty_dsn):
    """Give a pool of a single connection, with a role and a deceitful function."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        await pool.execute(
            "DO $$ BEGIN CREATE ROLE fm_reset_other; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
            "CREATE FUNCTION become_other() RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN SET ROLE fm_reset_other; END $$"
        )
        yield pool


@pytest.mark.parametrize("deed", DEEDS)
async def test_what_a_borrower_did_is_gone_for_the_next(one, deed):
    """Settings, roles, locks, temporary objects, LISTEN, cursors, transactions."""
    before = dict(await one.fetchrow(STATE))
    if "DECLARE" in deed or "BEGIN;" in deed:
        async with one.acquire() as connection:
            await connection.execute(deed)
    else:
        await one.execute(deed)
    assert dict(await one.fetchrow(STATE)) == before
    async with one.acquire() as connection:
        await connection.execute(deed)
    assert dict(await one.fetchrow(STATE)) == before


async def test_touching_the_raw_connection_is_not_trusted(one):
    """connection.raw marks the connection dirty, whatever is done with it."""
    async with one.acquire() as connection:
        await connection.raw.execute("SET app.tenant = 'seven'")
        await connection.raw.add_listener("c", lambda *_: None)
    assert (await one.fetchrow(STATE))["tenant"] is None


async def test_lean_statements_cost_no_reset(one):
    """Reading and writing rows never causes the reset round trip."""
    await one.execute("CREATE TABLE t (id int)")
    await one.fetchval("SELECT 1")
    resets = one.statistics().resets
    await one.execute("INSERT INTO t VALUES ($1)", 1)
    await one.fetch("SELECT count(*), max(id) FROM t")
    async with one.transaction() as tx:
        await tx.execute("UPDATE t SET id = 2")
    await one.copy_records("t", columns=["id"], records=[(3,)])
    async with one.stream("SELECT * FROM t") as rows:
        assert len([row async for row in rows]) == 2
    with pytest.raises(QueryFailed):
        await one.fetchval("SELECT id / 0 FROM t")
    assert one.statistics().resets == resets


async def test_a_transaction_left_open_is_rolled_back(one):
    """BEGIN without an end does not reach the next borrower, nor commit."""
    await one.execute("CREATE TABLE t (id int)")
    async with one.acquire() as connection:
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO t VALUES (1)")
    assert await one.fetchval("SELECT count(*) FROM t") == 0
    await one.execute("BEGIN")
    assert await one.fetchval("SELECT count(*) FROM t") == 0


async def test_our_own_sql_is_trusted(one):
    """Sql is a promise of its author: nothing is reset after it."""
    resets = one.statistics().resets
    await one.fetch(Sql("SELECT set_config('synchronous_commit', 'on', true)"))
    async with one.acquire() as connection:
        await connection.fetch(Sql("SELECT set_config('lock_timeout', '0', true)"))
    assert one.statistics().resets == resets
