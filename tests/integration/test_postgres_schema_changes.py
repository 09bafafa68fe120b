"""Connections that are warm when somebody else changes the schema under them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple

import asyncpg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Connection, Pool


class Spot(NamedTuple):
    """A composite type, registered."""

    x: int
    y: int


class Change(NamedTuple):
    """A change of the schema; a value of column ``v`` before and after, as text too."""

    setup: str
    change: str
    before: Any
    after: Any
    texts: tuple[str, str]
    cast: str = ""


ENUM = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int, v mood)"
RENAMED = "ALTER TYPE mood RENAME TO old; CREATE TYPE mood AS ENUM ('ok', 'fine')"
SPOT = "CREATE TYPE spot AS (x int, y int)"
PLACE = "CREATE TYPE place AS (x int, y int); CREATE TABLE t (id int, v place)"
CHANGES = {
    "enum made anew by renaming": Change(
        ENUM,
        f"{RENAMED}; ALTER TABLE t ALTER v TYPE mood USING v::text::mood; "
        "DROP TYPE old",
        "ok",
        "fine",
        ("ok", "fine"),
    ),
    "enum in an array made anew": Change(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int, v mood[])",
        f"{RENAMED}; ALTER TABLE t ALTER v TYPE mood[] USING v::text[]::mood[]; "
        "DROP TYPE old",
        ["ok"],
        ["fine", "ok"],
        ("{ok}", "{fine,ok}"),
    ),
    "value added to an enum": Change(
        ENUM, "ALTER TYPE mood ADD VALUE 'fine'", "ok", "fine", ("ok", "fine")
    ),
    "extension dropped and made again": Change(
        "CREATE EXTENSION hstore; CREATE TABLE t (id int, v hstore)",
        "DROP EXTENSION hstore CASCADE; CREATE EXTENSION hstore;"
        "ALTER TABLE t ADD v hstore",
        {"a": "1"},
        {"b": "2"},
        ("a=>1", "b=>2"),
    ),
    "schema dropped and made again": Change(
        "CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('sad', 'ok');"
        "CREATE TABLE s.t (id int, v s.mood)",
        "DROP SCHEMA s CASCADE; CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('fine');"
        "CREATE TABLE s.t (id int, v s.mood)",
        "ok",
        "fine",
        ("ok", "fine"),
    ),
    "registered composite made anew": Change(
        f"{SPOT}; CREATE TABLE t (id int, v spot)",
        f"DROP TYPE spot CASCADE; {SPOT}; ALTER TABLE t ADD v spot",
        Spot(1, 2),
        Spot(3, 4),
        ("(1,2)", "(3,4)"),
        "::spot",
    ),
    "array of a registered composite made anew": Change(
        f"{SPOT}; CREATE TABLE t (id int, v spot[])",
        f"DROP TYPE spot CASCADE; {SPOT}; ALTER TABLE t ADD v spot[]",
        [Spot(1, 2)],
        [Spot(3, 4), Spot(5, 6)],
        ('{"(1,2)"}', '{"(3,4)","(5,6)"}'),
        "::spot[]",
    ),
    "registered composite replaced by renaming": Change(
        f"{SPOT}; CREATE TABLE t (id int, v spot)",
        f"ALTER TYPE spot RENAME TO old; {SPOT}; ALTER TABLE t ALTER v TYPE spot "
        "USING v::text::spot",
        Spot(1, 2),
        Spot(3, 4),
        ("(1,2)", "(3,4)"),
        "::spot",
    ),
    "composite that nobody registered made anew": Change(
        PLACE,
        "DROP TYPE place CASCADE; CREATE TYPE place AS (x int, y int, z int);"
        "ALTER TABLE t ADD v place",
        (1, 2),
        (3, 4, 5),
        ("(1,2)", "(3,4,5)"),
        "::place",
    ),
    "attribute added to a composite": Change(
        PLACE,
        "ALTER TYPE place ADD ATTRIBUTE z int",
        (1, 2),
        (3, 4, 5),
        ("(1,2)", "(3,4,5)"),
        "::place",
    ),
    "attribute added to a composite in an array": Change(
        "CREATE TYPE place AS (x int, y int); CREATE TABLE t (id int, v place[])",
        "ALTER TYPE place ADD ATTRIBUTE z text",
        [(1, 2)],
        [(3, 4, "five")],
        ('{"(1,2)"}', '{"(3,4,five)"}'),
        "::place[]",
    ),
    "domain made anew": Change(
        "CREATE DOMAIN code AS int CHECK (VALUE < 5); CREATE TABLE t (id int, v code)",
        "DROP DOMAIN code CASCADE; CREATE DOMAIN code AS text;ALTER TABLE t ADD v code",
        1,
        "nine",
        ("1", "nine"),
    ),
    "range made anew": Change(
        "CREATE TYPE span AS RANGE (subtype = int4); CREATE TABLE t (id int, v span)",
        "DROP TYPE span CASCADE; CREATE TYPE span AS RANGE (subtype = int8);"
        "ALTER TABLE t ADD v span",
        asyncpg.Range(1, 2),
        asyncpg.Range(1, 2**40),
        ("[1,2)", f"[1,{2**40})"),
    ),
    "int to bigint": Change(
        "CREATE TABLE t (id int, v int)",
        "ALTER TABLE t ALTER v TYPE bigint",
        1,
        2**40,
        ("1", f"{2**40}"),
    ),
    "int to text": Change(
        "CREATE TABLE t (id int, v int)",
        "ALTER TABLE t ALTER v TYPE text",
        1,
        "nine",
        ("1", "nine"),
    ),
    "text to int": Change(
        "CREATE TABLE t (id int, v text)",
        "ALTER TABLE t ALTER v TYPE int USING v::int",
        "1",
        9,
        ("1", "9"),
    ),
    "text to jsonb": Change(
        "CREATE TABLE t (id int, v text)",
        "ALTER TABLE t ALTER v TYPE jsonb USING v::jsonb",
        "[1]",
        {"a": 1},
        ("[1]", '{"a":1}'),
    ),
    "int to an array": Change(
        "CREATE TABLE t (id int, v int)",
        "ALTER TABLE t ALTER v TYPE int[] USING ARRAY[v]",
        1,
        [1, 2],
        ("1", "{1,2}"),
    ),
    "text to an enum": Change(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int, v text)",
        "ALTER TABLE t ALTER v TYPE mood USING v::mood",
        "ok",
        "sad",
        ("ok", "sad"),
    ),
    "table made anew": Change(
        "CREATE TABLE t (id int, v int)",
        "DROP TABLE t; CREATE TABLE t (v text, id int, extra text DEFAULT 'x')",
        1,
        "nine",
        ("1", "nine"),
    ),
}


def to_hstore(value: dict[str, str]) -> str:
    """Return pairs as hstore reads them."""
    return ",".join(f'"{key}"=>"{one}"' for key, one in value.items())


def from_hstore(text: str) -> dict[str, str]:
    """Return the pairs that hstore writes."""
    pairs = (pair.split("=>") for pair in text.split(", ") if pair)
    return {key.strip('"'): one.strip('"') for key, one in pairs}


# Each verb writes or reads one value, and returns what it got.

INSERT = "INSERT INTO {t} (id, v) VALUES (1, $1)"


async def fetch(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by the verb fetch."""
    return (await on.fetch(INSERT.format(t=t) + " RETURNING v", value))[0]["v"]


async def fetchrow(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by the verb fetchrow."""
    return (await on.fetchrow(INSERT.format(t=t) + " RETURNING v", value))["v"]


async def fetchval(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by the verb fetchval."""
    return await on.fetchval(INSERT.format(t=t) + " RETURNING v", value)


async def execute(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by the verb execute."""
    assert await on.execute(INSERT.format(t=t), value) == "INSERT 0 1"
    return value


async def executemany(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by the verb executemany."""
    await on.executemany(INSERT.format(t=t), [(value,), (value,)])
    return value


async def executemany_once(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by executemany(), of rows that can be had once."""
    await on.executemany(INSERT.format(t=t), iter([(value,), (value,)]))
    return value


async def select_all(on: Any, t: str, _value: Any, _: str) -> Any:
    """Read what another connection wrote, whatever columns there are."""
    return (await on.fetch(f"SELECT * FROM {t}"))[-1]["v"]


async def select_equal(on: Any, t: str, value: Any, cast: str) -> Any:
    """Read by the value as a parameter."""
    return (await on.fetchrow(f"SELECT v FROM {t} WHERE v = $1{cast}", value))["v"]


async def stream(on: Any, t: str, value: Any, cast: str) -> Any:
    """Read through a cursor."""
    async with on.stream(f"SELECT * FROM {t} WHERE v = $1{cast}", value) as rows:
        return [row["v"] async for row in rows][-1]


async def copy_records(on: Any, t: str, value: Any, _: str) -> Any:
    """Write by COPY."""
    schema, _, table = t.rpartition(".")
    done = await on.copy_records(
        table, columns=["id", "v"], records=[(1, value)], schema=schema or None
    )
    assert done == 1
    return value


async def copy_there_and_back(on: Any, t: str, value: Any, cast: str) -> Any:
    """Write a file of rows that a parameter selects, and the table of that file."""
    schema, _, table = t.rpartition(".")
    file = io.BytesIO()
    sql = f"SELECT id, v FROM {t} WHERE v = $1{cast}"
    assert await on.copy_to(file, query=sql, args=(value,)) > 0
    file.seek(0)
    options: Any = {"columns": ["id", "v"], "schema": schema or None}
    assert await on.copy_from(table, file, **options) > 0
    return value


Verb = Callable[[Any, str, Any, str], Awaitable[Any]]
VERBS: tuple[Verb, ...] = (
    fetch,
    fetchrow,
    fetchval,
    execute,
    executemany,
    executemany_once,
    select_all,
    select_equal,
    stream,
    copy_records,
    copy_there_and_back,
)


@asynccontextmanager
async def warm(dsn: str, change: Change) -> AsyncIterator[tuple[Pool, Any]]:
    """Give a pool of one connection, and a connection of another process."""
    raw = await asyncpg.connect(dsn)
    await raw.execute(
        "DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS s CASCADE; "
        f"CREATE SCHEMA public; {change.setup}"
    )
    try:
        async with Pool(PostgresConfig(dsn=dsn, max_size=1)) as pool:
            if "hstore" in change.setup:
                await pool.register_type(
                    "hstore", encoder=to_hstore, decoder=from_hstore
                )
            if SPOT in change.setup:
                await pool.register_composite("spot", Spot)
            yield pool, raw
    finally:
        await raw.close()


async def survives(on: Any, run: Any, raw: Any, verb: Verb, change: Change) -> None:
    """Call *verb* twice, change the schema, and call it twice again."""
    table = "s.t" if "s.t" in change.setup else "t"
    for changed, value in enumerate((change.before, change.after)):

        async def twice(executor: Any, value: Any = value) -> None:
            for _ in range(2):
                got = await verb(executor, table, value, change.cast)
                assert got == value
                assert type(got) is type(value) or not isinstance(value, Spot)
                if isinstance(value, list):
                    assert isinstance(got[0], Spot) == isinstance(value[0], Spot)

        if changed:
            await raw.execute(change.change)
        text = change.texts[changed]
        await raw.execute(f"INSERT INTO {table} (id, v) VALUES (1, '{text}')")
        await run(on, twice)


async def alone(on: Any, body: Callable[[Any], Awaitable[None]]) -> None:
    """Run *body* without a transaction."""
    await body(on)


async def together(pool: Pool, body: Callable[[Any], Awaitable[None]]) -> None:
    """Run *body* in a transaction that may be repeated."""
    await pool.run_in_transaction(body)


@pytest.mark.parametrize("where", ["pool", "connection", "transaction"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.lengthy
async def test_every_verb_survives_a_change(empty_dsn, name, where):
    """Statements prepared before it work after it, with the value as it is now."""
    change, failed = CHANGES[name], []
    for verb in VERBS:
        if verb is copy_records and "hstore" in change.setup:
            continue  # text has no place in a binary COPY
        async with warm(empty_dsn, change) as (pool, raw):
            try:
                if where == "connection":
                    async with pool.acquire() as connection:
                        await survives(connection, alone, raw, verb, change)
                else:
                    run = alone if where == "pool" else together
                    await survives(pool, run, raw, verb, change)
            except Exception as exc:
                failed.append(f"{verb.__name__}: {type(exc).__name__}: {exc}")
    assert not failed, "\n".join(failed)


# A parameter that was widened: no error shows that it is sent as what it was.

TENTH = "INSERT INTO measured VALUES ($1) RETURNING v::double precision"
CHANNEL = "some channel of the application's"


@pytest.fixture
async def measured(empty_dsn, migrations):
    """Give the address of a database with a column of type real."""
    migrations.write("0001_measured", "CREATE TABLE measured (v real)", "")
    await migrations.migrator(empty_dsn).apply()
    migrations.write(
        "0002_widen",
        "ALTER TABLE measured ALTER v TYPE double precision",
        "ALTER TABLE measured ALTER v TYPE real",
    )
    return empty_dsn


async def settled(on: Any, wanted: float) -> float:
    """Return the seconds until *on* stores a tenth as *wanted*."""
    began = monotonic()
    while await on.fetchval(TENTH, 0.1) != wanted:
        assert monotonic() - began < 5
        await asyncio.sleep(0.01)
    return monotonic() - began


@asynccontextmanager
async def dedicated(pool: Pool) -> AsyncIterator[Connection]:
    """Give a connection outside the pool."""
    connection = await pool.connect("test")
    try:
        yield connection
    finally:
        await connection.aclose()


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_pool_that_listens_hears_of_a_migration(
    measured, migrations, in_pieces
):
    """Idle, borrowed and dedicated ones prepare anew within a second, back as well."""
    if in_pieces:
        migrations.in_pieces(
            "0002_widen",
            "ALTER TABLE measured ALTER v TYPE double precision",
            "ALTER TABLE measured ALTER v TYPE real",
        )
    migrator = migrations.migrator(measured)
    real = 0.10000000149011612
    async with (
        Pool(PostgresConfig(dsn=measured, check_after=3600)) as pool,
        pool.listen(CHANNEL),
        pool.acquire() as held,
        dedicated(pool) as own,
    ):
        for on in (pool, held, own):
            assert await on.fetchval(TENTH, 0.1) == real
        connects = pool.statistics().connects
        await migrator.apply()
        for on in (pool, held, own):
            assert await settled(on, 0.1) < 1
        await migrator.rollback()
        for on in (own, held, pool):
            assert await settled(on, real) < 1
        assert pool.statistics().connects == connects


async def test_connections_that_drain_does_not_replace_prepare_anew(empty_dsn):
    """After DDL of other origin, which nobody announces."""
    async with (
        Pool(PostgresConfig(dsn=empty_dsn, check_after=3600)) as pool,
        pool.acquire() as held,
        dedicated(pool) as own,
    ):
        await pool.execute("CREATE TABLE measured (v real)")
        for on in (pool, held, own):
            assert await on.fetchval(TENTH, 0.1) != 0.1
        await pool.execute("ALTER TABLE measured ALTER v TYPE double precision")
        await pool.drain()
        for on in (pool, held, own):
            assert await on.fetchval(TENTH, 0.1) == 0.1


async def test_a_pool_that_does_not_listen_compares_the_record(measured, migrations):
    """At the check of a connection that was idle, whichever one is checked."""
    migrator = migrations.migrator(measured)
    config = PostgresConfig(dsn=measured, check_after=0.05, max_size=1)
    async with Pool(config) as pool:
        real = await pool.fetchval(TENTH, 0.1)
        for wanted, change in (
            (0.1, migrator.apply),
            (real, migrator.rollback),
            (0.1, migrator.apply),
        ):
            assert await pool.fetchval(TENTH, 0.1) != wanted
            await change()
            await asyncio.sleep(0.1)
            assert await pool.fetchval(TENTH, 0.1) == wanted
        assert pool.statistics().connects == 1


@pytest.mark.lengthy
async def test_the_check_needs_no_record_and_no_right_to_read_it(empty_dsn, migrations):
    """A database without migrations, then one, then no right to read its record."""
    migrations.write("0001_t", "CREATE TABLE t (id int)", "DROP TABLE t")
    config = PostgresConfig(dsn=empty_dsn, check_after=0.001, max_size=1)
    async with Pool(config) as pool:

        async def checked() -> None:
            for _ in range(3):
                await asyncio.sleep(0.01)
                assert await pool.fetchval("SELECT 1") == 1

        await checked()
        await migrations.migrator(empty_dsn).apply()
        await checked()
        await pool.execute("DROP SCHEMA fm_storage CASCADE")
        await checked()
        assert pool.statistics().checks_failed == 0
        assert pool.statistics().connects == 1


async def test_a_type_made_anew_is_known_behind_a_pooler(empty_dsn, pgbouncer):
    """Without a statement cache, on a server connection that others use as well."""
    change = CHANGES["registered composite made anew"]
    raw = await asyncpg.connect(empty_dsn)
    await raw.execute(change.setup)
    async with Pool(PostgresConfig(dsn=pgbouncer(empty_dsn), max_size=1)) as pool:
        await pool.register_composite("spot", Spot)
        for verb in (fetchval, execute, executemany, select_all, stream, copy_records):
            await survives(pool, alone, raw, verb, change)
    await raw.close()


async def test_many_rows_in_a_transaction_are_not_written_twice(pool):
    """Where only a later one shows the change, those before it stand already."""
    await pool.execute("CREATE TABLE t (v int)")
    insert = "INSERT INTO t VALUES ($1)"
    async with pool.acquire() as connection:
        await connection.executemany(insert, [(0,)])
        await pool.execute("ALTER TABLE t ALTER v TYPE bigint")
        async with connection.transaction() as transaction:
            with pytest.raises(InvalidRecord):
                await transaction.executemany(insert, [(1,)] * 9999 + [(2**31,)])
            assert await transaction.fetchval("SELECT count(*) FROM t") < 10000
