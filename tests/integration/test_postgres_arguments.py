"""Arguments of a wrong kind are refused before anything is taken."""

from __future__ import annotations

import asyncio
import decimal
import io
import math
from datetime import timedelta

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, StorageError
from fm_storage.postgres import Pool

WRONG = [timedelta(seconds=5), "5", math.nan, True, [1], decimal.Decimal(5)]


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool of two connections and a table."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=2)) as pool:
        await pool.execute("CREATE TABLE t (a int)")
        yield pool


def _calls(executor, wrong):
    yield lambda: executor.fetch("SELECT 1", timeout=wrong)
    yield lambda: executor.fetchrow("SELECT 1", timeout=wrong)
    yield lambda: executor.fetchval("SELECT 1", timeout=wrong)
    yield lambda: executor.execute("SELECT 1", timeout=wrong)
    yield lambda: executor.executemany("SELECT $1::int", [(1,)], timeout=wrong)
    yield lambda: executor.copy_records(
        "t", columns=["a"], records=[(1,)], timeout=wrong
    )
    yield lambda: executor.copy_from("t", io.BytesIO(), timeout=wrong)
    yield lambda: executor.copy_to(io.BytesIO(), table="t", timeout=wrong)


async def _enter(manager):
    async with manager:
        pass


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
async def test_a_timeout_of_a_wrong_kind_costs_no_connection(pool, wrong):
    """Every verb says so with a typed error, and the pool is whole."""
    calls = [
        *_calls(pool, wrong),
        lambda: _enter(pool.acquire(wrong)),
        lambda: _enter(pool.transaction(timeout=wrong)),
        lambda: pool.aclose(wrong),
        lambda: pool.run_in_transaction(lambda _: None, attempts=wrong),
    ]
    for call in calls[: len(calls) if wrong is not True else -1]:
        with pytest.raises(StorageError):
            await call()
    async with pool.acquire() as connection:
        for call in _calls(connection, wrong):
            with pytest.raises(StorageError):
                await call()
        with pytest.raises(StorageError):
            await _enter(connection.stream("SELECT 1", prefetch="many"))
    assert pool.statistics().busy == 0
    assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(9)))


@pytest.mark.parametrize("timeout", [5, 1e300, 10**12, math.inf])
async def test_long_timeouts_are_taken(pool, timeout):
    """An int is seconds as well; what no timer can hold is for ever."""
    assert await pool.fetchval("SELECT 1", timeout=timeout) == 1
    async with pool.acquire(timeout) as connection:
        assert await connection.fetchval("SELECT 1", timeout=timeout) == 1


async def test_more_parameters_than_the_protocol_has_room_for(pool):
    """The error says what to do instead."""
    many = ", ".join(f"${number}::int" for number in range(1, 40_001))
    with pytest.raises(InvalidRecord, match="pass an array"):
        await pool.fetchval(f"SELECT 1 WHERE 1 IN ({many})", *range(40_000))
    assert await pool.fetchval("SELECT 1") == 1


NO_TEXT = [None, 5, b"SELECT 1", ["SELECT 1"], object()]


@pytest.mark.parametrize("wrong", NO_TEXT, ids=lambda wrong: type(wrong).__name__)
async def test_what_is_no_statement_is_refused(pool, wrong):
    """By every verb, straight from the pool and on a connection."""
    async with pool.acquire() as connection:
        for executor in (pool, connection):
            for verb in ("fetch", "fetchrow", "fetchval", "execute"):
                with pytest.raises(InvalidRecord, match="give its text as a str"):
                    await getattr(executor, verb)(wrong)
            with pytest.raises(InvalidRecord):
                await executor.executemany(wrong, [(1,)])
            with pytest.raises(InvalidRecord):
                await _enter(executor.stream(wrong))
    assert pool.statistics().busy == 0


async def test_other_arguments_of_a_wrong_kind_are_named(pool):
    """The error says which one, and what to give."""
    for call in (
        lambda: pool.fetchval("SELECT 1", column=7),
        lambda: pool.fetchval("SELECT 1", column="no such"),
        lambda: pool.executemany("SELECT $1::int", None),
        lambda: pool.copy_records("t", columns="a", records=[(1,)]),
        lambda: pool.copy_records("t", columns=None, records=[(1,)]),
        lambda: pool.copy_records("t", columns=["a"], records=None),
        lambda: pool.copy_from("t", 5.5),
        lambda: pool.copy_from("t", "a\0path"),
        lambda: pool.copy_from("t", io.BytesIO(), delimiter=5),
        lambda: pool.copy_from("t", io.BytesIO(), columns="a"),
        lambda: pool.copy_to(None, table="t"),
        lambda: pool.copy_to(io.BytesIO(), query="SELECT 1", args=None),
        lambda: pool.run_in_transaction(None),
        lambda: pool.register_composite("t", None),
        lambda: _enter(pool.transaction(isolation=5)),
    ):
        with pytest.raises(ConfigurationInvalid):
            await call()
    with pytest.raises(InvalidRecord):
        await pool.copy_records("t", columns=["a"], records=[{}])
    assert pool.statistics().busy == 0


@pytest.mark.parametrize("sql", ["", " ", ";", "-- nothing"])
async def test_a_text_without_a_statement_does_nothing(pool, sql):
    """As the server has it; there is no tag."""
    assert await pool.execute(sql) == ""
    assert await pool.fetchval("SELECT 1") == 1
