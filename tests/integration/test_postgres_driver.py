"""The short way past the driver's public methods, held to their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from fm_storage.postgres.connection import driver

STATEMENTS: list[tuple[str, tuple[object, ...]]] = [
    ("SELECT g, g::text FROM generate_series(1, $1::int) AS g", (5,)),
    ("SELECT $1::int WHERE false", (1,)),
    ("INSERT INTO pair VALUES ($1, $2) RETURNING a", (1, "x")),
    ("UPDATE pair SET b = $1", ("y",)),
    ("DELETE FROM pair WHERE a > $1", (0,)),
]


@pytest.fixture
async def raw(empty_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Give a connection of the driver with a table to write to."""
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute("CREATE TABLE pair (a int, b text)")
    yield connection
    await connection.close()


@pytest.mark.parametrize(("sql", "args"), STATEMENTS)
async def test_both_ways_answer_alike(
    sql: str, args: tuple[object, ...], raw: asyncpg.Connection[Any]
):
    """Rows, first row and tag, prepared or not, are those of the public methods."""
    for _ in range(3):  # the first call prepares, the others take the short way
        async with _undone(raw):
            expected = await raw.fetch(sql, *args)
        async with _undone(raw):
            assert await driver.fetch(raw, sql, *args, timeout=None) == expected
        async with _undone(raw):
            first = await driver.fetchrow(raw, sql, *args, timeout=None)
            assert first == (expected[0] if expected else None)
        async with _undone(raw):
            tag = await raw.execute(sql, *args)
        async with _undone(raw):
            assert await driver.execute(raw, sql, *args, timeout=None) == tag


@asynccontextmanager
async def _undone(raw: asyncpg.Connection[Any]) -> AsyncIterator[None]:
    """Roll the block's work back."""
    transaction = raw.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def test_both_ways_fail_alike(raw: asyncpg.Connection[Any]):
    """The server's refusal is the same error; the connection stays usable."""
    sql = "SELECT 10 / $1::int"
    await driver.fetch(raw, sql, 2, timeout=None)

    for call in (driver.fetch, driver.fetchrow, driver.execute):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await call(raw, sql, 0, timeout=None)
        with pytest.raises(asyncpg.DataError, match="invalid input"):
            await call(raw, sql, "two", timeout=None)
    row = await driver.fetchrow(raw, sql, 5, timeout=None)
    assert row is not None
    assert row[0] == 2


async def test_a_changed_table_is_prepared_anew(raw: asyncpg.Connection[Any]):
    """Outside a transaction a changed result type is nobody's error."""
    for call in (driver.fetch, driver.fetchrow, driver.execute):
        sql = f"SELECT *, $1::int AS {call.__name__} FROM pair"
        await call(raw, sql, 1, timeout=None)
        await raw.execute(f"ALTER TABLE pair ADD COLUMN {call.__name__}_x int")
        await call(raw, sql, 1, timeout=None)


async def test_inside_a_transaction_the_change_is_reported(
    raw: asyncpg.Connection[Any],
):
    """There the statement cannot run again: the block must."""
    sql = "SELECT *, $1::int AS n FROM pair"
    await driver.fetch(raw, sql, 1, timeout=None)
    await raw.execute("ALTER TABLE pair ADD COLUMN c int")

    async with _undone(raw):
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            await driver.fetch(raw, sql, 1, timeout=None)


async def test_the_deadline_holds_both_ways(raw: asyncpg.Connection[Any]):
    """A prepared statement that is late is cancelled on the server."""
    sql = "SELECT pg_sleep($1)"
    await driver.fetch(raw, sql, 0, timeout=None)

    for call in (driver.fetch, driver.fetchrow, driver.execute):
        with pytest.raises(TimeoutError):
            await call(raw, sql, 20, timeout=0.05)
    assert await raw.fetchval("SELECT 1") == 1
