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
    "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND pid = pg_backend_pid()) AS locks, "
    "(SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS temp, "
    "(SELECT count(*) FROM pg_cursors) AS cursors, "
    "(SELECT count(*) FROM pg_prepared_statements WHERE from_sql) AS prepared, "
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
    "SELECT 1 AS insert INTO TEMP mine",
    "SELECT count(*) merge INTO TEMP mine FROM pg_class",
    "PREPARE report AS SELECT 1",
    "SELECT log('seven')",
    "SELECT set('app.tenant', 'seven')",
    "SELECT insert(45)",
    "SELECT 'seven'::text + 'eight'",
    "SELECT (p).tenant FROM person p",
    "SELECT p.tenant FROM person p",
    "CREATE TEMP VIEW my_view AS SELECT 1",
    "LISTEN somewhere",
    "SET search_path = pg_catalog",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "DO $$ BEGIN PERFORM set_config('app.tenant', 'seven', false); END $$",
    "BEGIN; SET LOCAL app.tenant = 'seven'; SELECT pg_advisory_xact_lock(44)",
]


OWN = """
CREATE FUNCTION set(text, text) RETURNS text LANGUAGE sql AS
  $$ SELECT set_config($1, $2, false) $$;
CREATE FUNCTION log(text) RETURNS text LANGUAGE sql AS
  $$ SELECT set_config('app.tenant', $1, false) $$;
CREATE FUNCTION insert(int) RETURNS text LANGUAGE sql AS
  $$ SELECT pg_advisory_lock($1)::text $$;
CREATE FUNCTION plus(text, text) RETURNS text LANGUAGE sql AS
  $$ SELECT set_config('app.tenant', $1, false) $$;
CREATE OPERATOR + (LEFTARG = text, RIGHTARG = text, FUNCTION = plus);
CREATE TABLE person (id int);
INSERT INTO person VALUES (1);
CREATE FUNCTION tenant(person) RETURNS text LANGUAGE sql AS
  $$ SELECT set_config('app.tenant', 'seven', false) $$
"""


@pytest.fixture
async def one(empty_dsn):
    """Give a pool of a single connection, with a role and a deceitful function."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        await pool.execute(
            "DO $$ BEGIN CREATE ROLE fm_reset_other; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
            "CREATE FUNCTION become_other() RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN SET ROLE fm_reset_other; END $$;" + OWN
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


async def test_a_codec_or_a_logger_of_the_raw_connection_goes_with_it(one):
    """No reset undoes them: the connection is closed."""
    heard = []
    before = await one.fetchval("SELECT '{}'::json")
    pid = await one.fetchval("SELECT pg_backend_pid()")
    async with one.acquire() as connection:
        await connection.raw.set_type_codec(
            "json", schema="pg_catalog", encoder=str, decoder=lambda _: "mine"
        )
        connection.raw.add_query_logger(heard.append)
    assert await one.fetchval("SELECT '{}'::json") == before
    assert await one.fetchval("SELECT pg_backend_pid()") != pid
    assert not [record for record in heard if "json" in record.query]


async def test_members_of_extensions_in_c_cost_no_reset(one):
    """Their functions and operators count as the server's own."""
    available = await one.fetch("SELECT name::text FROM pg_available_extensions")
    wanted = {"citext", "hstore", "pg_trgm", "vector", "ltree"}
    for name in sorted(wanted & {row["name"] for row in available}):
        await one.execute(f"CREATE EXTENSION {name}")
    await one.fetchval("SELECT 1")
    resets = one.statistics().resets
    await one.fetch(
        "SELECT lower(relname::text), max(oid::int), 'a' || 'b', 1 - 2 FROM pg_class "
        "WHERE relname = ANY($1) AND relname LIKE 'p%' AND oid > 7 GROUP BY 1",
        ["pg_class"],
    )
    await one.execute("INSERT INTO person SELECT abs($1::int) - 3 * 2", -7)
    await one.fetchval("SELECT replace(regexp_replace('a', 'b', 'c'), 'd', 'e')")
    assert one.statistics().resets == resets


async def test_what_random_gives_is_not_known_to_a_former_borrower(one):
    """setseed() ends with its borrower."""
    async with one.acquire() as connection:
        await connection.execute("SELECT setseed(0.5)")
        first, second = [await connection.fetchval("SELECT random()") for _ in "12"]
        await connection.execute("SELECT setseed(0.5)")
        assert await connection.fetchval("SELECT random()") == first
    assert await one.fetchval("SELECT random()") not in {first, second}


@pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS"])
async def test_what_a_borrower_has_the_server_forget_is_prepared_anew(one, forget):
    """By the borrower and by the next one, also in a transaction."""
    for _ in range(2):
        assert await one.fetchval("SELECT $1::int", 1) == 1
        async with one.acquire() as connection:
            await connection.execute(forget)
            assert await connection.fetchval("SELECT $1::int", 1) == 1
            await connection.execute(forget)
        async with one.transaction() as transaction:
            assert await transaction.fetchval("SELECT $1::int", 1) == 1
        await one.execute(forget)
        await one.executemany("SELECT $1::int", [(1,)])
