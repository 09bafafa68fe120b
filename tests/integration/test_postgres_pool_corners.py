"""The rarer ways through the pool: each once, on a real server."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import psycopg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConnectionFailed,
    ConnectionReleased,
    InvalidRecord,
    PoolTimeout,
    QueryFailed,
    QueryTimeout,
)
from fm_storage.postgres import Encoded, Pool, Sql
from tests.support.waiting import sleeping_on_server


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool of two on a database with one table."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=2)) as opened:
        await opened.execute("CREATE TABLE t (id int PRIMARY KEY, j jsonb)")
        yield opened


async def test_a_cancelled_rollback_still_ends_the_transaction(pool):
    """Two cancellations in a row leave neither lock nor transaction."""

    async def work():
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            inserted.set()
            await asyncio.sleep(10)

    for _ in range(10):
        inserted = asyncio.Event()
        task = asyncio.create_task(work())
        await inserted.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await pool.execute("INSERT INTO t VALUES (1)", timeout=5)


async def test_a_connection_that_dies_in_a_transaction_is_not_lent_again(pool):
    """The error is ConnectionFailed; the body of run_in_transaction is repeated."""
    calls = []

    async def body(tx):
        calls.append(1)
        pid = await tx.fetchval("SELECT pg_backend_pid()")
        if len(calls) == 1:
            await pool.execute("SELECT pg_terminate_backend($1)", pid)
        return await tx.fetchval("SELECT 1 FROM pg_sleep(0.05)")

    assert await pool.run_in_transaction(body) == 1
    assert len(calls) == 2


@pytest.mark.lengthy
async def test_the_default_timeout_holds_inside_a_transaction(empty_dsn):
    """The coarse timer cancels a borrowed connection's statement too."""
    config = PostgresConfig(dsn=empty_dsn, command_timeout=0.2)
    async with Pool(config) as pool:
        with pytest.raises(QueryTimeout):
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(5)")
        with pytest.raises(QueryTimeout):
            await pool.execute("SELECT pg_sleep(5)")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        dedicated = await pool.connect("own")
        with pytest.raises(QueryTimeout):
            await dedicated.execute("SELECT pg_sleep(5)")
        await dedicated.aclose()
    async with (
        Pool(PostgresConfig(dsn=empty_dsn, command_timeout=None)) as pool,
        pool.acquire() as connection,
    ):
        slept = await connection.execute("SELECT pg_sleep(0.1)", timeout=float("inf"))
        assert slept == "SELECT 1"


@pytest.mark.parametrize(
    ("text", "what"), [("SELECT 1 -- \0", "a NUL"), ("SELECT '\ud800'", "surrogate")]
)
async def test_text_that_cannot_be_sent_is_refused_before(empty_dsn, text, what):
    """On the wire a statement ends at its NUL: it is never sent, nothing is lost."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        backend = await pool.fetchval("SELECT pg_backend_pid()")

        async def stream():
            async with pool.stream(text):
                pass

        calls = (
            lambda: pool.fetch(text),
            lambda: pool.fetchrow(text),
            lambda: pool.fetchval(text),
            lambda: pool.execute(text),
            lambda: pool.executemany(text, [()]),
            lambda: pool.execute(text + " " * 30_000),
            stream,
        )
        for call in calls:
            with pytest.raises(InvalidRecord, match=what) as caught:
                await call()
            assert caught.value.field == "sql"
        async with pool.acquire() as connection:
            await connection.execute("CREATE TEMP TABLE mine (n int)")
            with pytest.raises(InvalidRecord, match=what):
                await connection.fetch(text)
        with pytest.raises(InvalidRecord, match=what):
            Sql(text)
        with pytest.raises(TypeError):
            await pool.fetch(b"SELECT 1")
        assert pool.statistics().busy == 0
        assert await pool.fetchval("SELECT pg_backend_pid()") == backend


async def test_a_repeated_statement_is_reset_like_any_other(empty_dsn):
    """Repeated because nothing had been sent, what it set reaches nobody else."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        backend = await pool.fetchval("SELECT pg_backend_pid()")
        # All at once, as the loop sees it; then it has time for one read: the
        # server's goodbye, not yet the end.
        with psycopg.connect(empty_dsn, autocommit=True) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await pool.execute("SELECT set_config('app.tenant', 'seven', false)")
        assert pool.statistics().repeats == 1
        assert not await pool.fetchval("SELECT current_setting('app.tenant', true)")


async def test_records_may_be_encoded_by_the_caller(pool):
    """Encoded rows go to the driver as they are, JSON as text."""
    rows = Encoded([(1, '{"a": 1}'), (2, None)])
    assert len(list(rows)) == 2
    assert await pool.copy_records("t", columns=["id", "j"], records=rows) == 2
    assert await pool.fetchval("SELECT j FROM t WHERE id = 1") == {"a": 1}


async def test_a_changed_type_is_a_retryable_error(pool):
    """Rows of a composite type that changed are refused once, then read."""
    await pool.execute(
        "CREATE TYPE pair AS (a int, b int); CREATE TABLE p (v pair);"
        "INSERT INTO p VALUES (ROW(1, 2))"
    )
    async with pool.acquire() as connection:
        assert tuple((await connection.fetchval("SELECT v FROM p")) or ()) == (1, 2)
        await pool.execute("ALTER TYPE pair ADD ATTRIBUTE c int")
        again = True  # whether it fails is the driver's affair
        try:
            await connection.fetchval("SELECT v FROM p")
        except QueryFailed as exc:
            again = exc.retryable
        assert again
        assert len((await connection.fetchval("SELECT v FROM p")) or ()) == 3


async def test_a_stream_used_after_its_block_is_refused(pool):
    """The iterator ends with the block."""
    async with pool.stream("SELECT generate_series(1, 5)", prefetch=2) as rows:
        assert (await anext(rows))[0] == 1
        await anext(rows)
    with pytest.raises(ConnectionReleased):
        await anext(rows)
    with pytest.raises(QueryFailed):
        async with pool.stream("SELECT * FROM nowhere"):
            pass
    with pytest.raises(InvalidRecord):
        async with pool.stream("SELECT $1::int", "x"):
            pass


async def test_a_stream_whose_connection_dies_says_so(pool):
    """ConnectionFailed while reading; the pool is whole afterwards."""
    with pytest.raises(ConnectionFailed):
        async with pool.stream(
            "SELECT pg_backend_pid(), generate_series(1, 50000)", prefetch=10
        ) as rows:
            async for row in rows:
                await pool.execute("SELECT pg_terminate_backend($1)", row[0])
    assert await pool.fetchval("SELECT 1") == 1


async def test_two_lost_connections_start_a_new_generation(pool):
    """Repeated 57P01 means the server, not one connection."""
    for _ in range(2):
        async with pool.acquire() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            work = asyncio.ensure_future(connection.execute("SELECT pg_sleep(5)"))
            await sleeping_on_server(pool)
            await pool.execute("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(ConnectionFailed):
                await work
    assert pool.statistics().generation >= 1
    assert await pool.fetchval("SELECT 1") == 1


async def test_the_queue_is_measured(pool, caplog):
    """Waits show in the percentiles; a timeout shows as one."""
    caplog.set_level(logging.INFO, "fm_storage.postgres")

    async def hold():
        async with pool.acquire() as connection:
            await connection.execute(Sql("SELECT pg_sleep(0.1)"))

    await asyncio.gather(*(hold() for _ in range(6)))
    numbers = pool.statistics()
    assert numbers.acquire_max > 0.05
    assert numbers.acquire_p99 > 0.05
    async with pool.acquire(), pool.acquire():
        with pytest.raises(PoolTimeout):
            await asyncio.create_task(pool.execute("SELECT 1", timeout=0.05))


async def test_a_raw_connection_with_its_own_codec_keeps_it(pool, empty_dsn):
    """Joining changes nothing that was set before."""
    theirs = await asyncpg.connect(empty_dsn)
    await theirs.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=str, decoder=lambda text: ("mine", text)
    )
    async with pool.transaction(connection=theirs) as tx:
        assert (await tx.fetchval("SELECT '1'::jsonb"))[0] == "mine"
    assert (await theirs.fetchval("SELECT '1'::jsonb"))[0] == "mine"
    await theirs.close()
