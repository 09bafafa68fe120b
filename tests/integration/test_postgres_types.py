"""Values come back as they were given; streams are bounded and leave nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import resource
import uuid

import asyncpg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Pool
from tests.support.waiting import until

NOW = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)
VALUES = [
    ("jsonb", {"a": [1, 2.5, None, "é"], "b": {"c": True}}),
    ("json", {"a": 1}),
    ("jsonb", []),
    ("jsonb", "text"),
    ("jsonb[]", [{"a": 1}, {"b": None}]),
    ("uuid", uuid.UUID(int=7)),
    ("text[]", ["a", None, "b,c"]),
    ("int[][]", [[1, 2], [3, 4]]),
    ("int4range", asyncpg.Range(1, 5)),
    ("tstzrange", asyncpg.Range(NOW, None)),
    ("numeric", decimal.Decimal("123456789.000000000000000001")),
    ("timestamptz", NOW),
    ("date", dt.date(2026, 2, 3)),
    ("interval", dt.timedelta(days=1, seconds=2)),
    ("bytea", b"\0\xff"),
    ("bool", True),
    ("float8", 1.5),
    ("bigint", 2**62),
    ("mood", "happy"),
]


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool on a database with an enum."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as opened:
        await opened.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
        yield opened


@pytest.mark.parametrize(("kind", "value"), VALUES)
async def test_a_value_comes_back_equal(pool, kind, value):
    """Through a parameter, and through COPY."""
    back = await pool.fetchval(f"SELECT $1::{kind}", value)
    assert back == value
    if kind == "jsonb[]":
        return  # the driver has no binary form of it
    await pool.execute(f"CREATE TABLE c (v {kind})")
    await pool.copy_records("c", columns=["v"], records=[(value,), (None,)])
    assert [row["v"] for row in await pool.fetch("SELECT v FROM c")] == [value, None]


async def test_timestamps_are_aware(pool):
    """Timestamptz is UTC-aware, a naive one is the driver's to refuse."""
    back = await pool.fetchval("SELECT $1::timestamptz", NOW)
    assert back.tzinfo is not None


async def test_copy_takes_an_asynchronous_source(pool):
    """Rows may come one by one; nothing is held in memory."""
    await pool.execute("CREATE TABLE c (id int, j jsonb)")

    async def rows():
        for number in range(100):
            yield (number, {"n": number})

    assert await pool.copy_records("c", columns=["id", "j"], records=rows()) == 100
    assert await pool.fetchval("SELECT j FROM c WHERE id = 99") == {"n": 99}
    with pytest.raises(InvalidRecord) as caught:
        await pool.copy_records(
            "c", columns=["id", "j"], records=[(1, {"x": float("nan")})]
        )
    assert caught.value.index == 0


async def test_copy_quotes_names(pool):
    """Table, schema and columns are identifiers, not SQL."""
    await pool.execute('CREATE SCHEMA "S x"; CREATE TABLE "S x"."T;" ("a b" int)')
    assert (
        await pool.copy_records("T;", schema="S x", columns=["a b"], records=[(1,)])
        == 1
    )


async def test_leaving_a_stream_early_leaves_nothing_open(pool):
    """Break, error and cancellation close cursor and transaction."""
    reached = asyncio.Event()

    async def read(how):
        async with pool.stream("SELECT generate_series(1, 100000)") as rows:
            async for row in rows:
                if row[0] == 5:
                    if how == "break":
                        break
                    if how == "error":
                        raise LookupError
                    reached.set()
                    await asyncio.sleep(10)

    await read("break")
    with pytest.raises(LookupError):
        await read("error")
    task = asyncio.create_task(read("cancel"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.statistics().busy == 0

    async def none_is_open():
        return not await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND state LIKE 'idle in%'"
        )

    await until(none_is_open)  # a cancelled one is ended off the caller's path


@pytest.mark.slow
async def test_a_million_rows_stream_in_bounded_memory(pool):
    """Peak memory grows by less than 50 MB."""
    await pool.fetchval("SELECT 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    async with pool.stream(
        "SELECT i, repeat('x', 100) AS t FROM generate_series(1, 1000000) i"
    ) as rows:
        async for _ in rows:
            count += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert count == 1_000_000
    assert after - before < 50 * 1024
