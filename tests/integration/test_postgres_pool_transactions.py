"""Transactions end on every path; savepoints undo only themselves."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionReleased,
    DeadlockDetected,
    DuplicateRecord,
    QueryFailed,
    QueryTimeout,
    SerializationFailed,
)
from fm_storage.postgres import Executor, Pool, Transaction
from tests.support.waiting import sleeping_on_server, until


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool on a database with one table."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=4)) as opened:
        await opened.execute("CREATE TABLE t (id int PRIMARY KEY, n int DEFAULT 0)")
        yield opened


async def ids(executor):
    """Return the ids in the table."""
    return [row["id"] for row in await executor.fetch("SELECT id FROM t ORDER BY 1")]


async def test_a_block_commits_and_its_handle_ends(pool):
    """After the block the transaction is over and says so."""
    async with pool.transaction() as tx:
        assert isinstance(tx, Transaction)
        assert isinstance(tx, Executor)
        await tx.execute("INSERT INTO t VALUES (1)")
        assert await ids(pool) == []
        async with tx.stream("SELECT id FROM t") as rows:
            assert [row["id"] async for row in rows] == [1]
        async with tx.stream("SELECT generate_series(1, 100)", prefetch=10) as rows:
            async for _ in rows:
                break
        assert await tx.copy_records("t", columns=["id"], records=[(2,)]) == 1
    assert await ids(pool) == [1, 2]
    with pytest.raises(ConnectionReleased, match="transaction"):
        await tx.fetchval("SELECT 1")
    with pytest.raises(ConnectionReleased):
        tx.savepoint()


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_error_rolls_back_and_comes_out(pool, error):
    """Nothing of the block stays."""
    with pytest.raises(error):
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            raise error
    assert await ids(pool) == []
    assert pool.statistics().busy == 0


async def test_a_cancelled_statement_rolls_the_transaction_back(pool):
    """A cancellation while the server works leaves no lock and no row."""

    async def work():
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            await tx.execute("SELECT pg_sleep(10)")

    task = asyncio.create_task(work())
    await sleeping_on_server(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.execute("INSERT INTO t VALUES (1)", timeout=8)


async def test_a_statement_past_its_timeout_ends_the_transaction(pool):
    """QueryTimeout leaves the block at once; the row is gone."""
    with pytest.raises(QueryTimeout):
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            await tx.execute("SELECT pg_sleep(10)", timeout=0.1)
    assert await ids(pool) == []


async def test_a_savepoint_undoes_only_itself(pool):
    """An error inside a savepoint leaves the outer transaction usable."""
    async with pool.transaction() as tx:
        await tx.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(DuplicateRecord):
            async with tx.savepoint() as inner:
                await inner.execute("INSERT INTO t VALUES (2)")
                await inner.execute("INSERT INTO t VALUES (1)")
        async with tx.transaction() as inner, inner.savepoint() as deepest:
            await deepest.execute("INSERT INTO t VALUES (3)")
        with pytest.raises(ConfigurationInvalid, match="outermost"):
            tx.transaction(isolation="serializable")
    assert await ids(pool) == [1, 3]


async def test_a_savepoint_with_a_failure_that_its_block_kept_is_undone(pool):
    """The block's end says so, and the outer transaction can go on."""
    async with pool.transaction() as tx:
        await tx.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(QueryFailed) as found:
            async with tx.savepoint() as inner:
                await inner.execute("INSERT INTO t VALUES (2)")
                with suppress(DuplicateRecord):
                    await inner.execute("INSERT INTO t VALUES (1)")
        assert found.value.sqlstate == "25P02"
        await tx.execute("INSERT INTO t VALUES (3)")
    assert await ids(pool) == [1, 3]


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ("COMMIT", [1, 2]),
        ("ROLLBACK", [2]),
        ("SELECT 1; ABORT", [2]),
        ("COMMIT AND CHAIN", [1]),
        ("ROLLBACK WORK AND CHAIN", []),
        ("/* a */ END; BEGIN", [1]),
    ],
)
async def test_a_block_whose_transaction_the_text_ended_says_so(pool, end, kept):
    """What followed was no part of it: nobody takes the block for all or nothing."""
    with pytest.raises(QueryFailed, match="ended it") as found:
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            await tx.execute(end)
            await tx.execute("INSERT INTO t VALUES (2)")
    assert found.value.sqlstate == "25P01"
    assert await ids(pool) == kept


async def test_a_savepoint_in_a_transaction_that_the_text_ended_says_so(pool):
    """So does the block around it, whatever becomes of the savepoint's error."""
    with pytest.raises(QueryFailed, match="ended it"):
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(QueryFailed, match="ended it"):
                async with tx.savepoint() as inner:
                    await inner.execute("COMMIT AND CHAIN")
                    await inner.execute("INSERT INTO t VALUES (2)")
    assert await ids(pool) == [1]
    async with pool.transaction() as tx:  # nothing is remembered
        await tx.execute("INSERT INTO t VALUES (3)")
    assert await ids(pool) == [1, 3]


@pytest.mark.parametrize("text", ["SELECT $1::int; COMMIT", "COMMIT nonsense"])
async def test_a_text_that_the_server_refused_has_ended_nothing(pool, text):
    """The savepoint is undone, and the transaction goes on to its end."""
    async with pool.transaction() as tx:
        await tx.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(QueryFailed) as found:
            async with tx.savepoint() as inner:
                await inner.fetch(text, *([1] if "$1" in text else []))
        assert found.value.sqlstate == "42601"
    assert await ids(pool) == [1]


async def test_a_body_that_ended_its_transaction_is_not_repeated(pool):
    """A part of it is committed, and would be done twice."""
    begun = []

    async def body(tx):
        begun.append(1)
        await tx.execute("INSERT INTO t SELECT count(*) FROM t")
        await tx.execute("COMMIT AND CHAIN")
        await tx.execute("DO $$ BEGIN RAISE 'again' USING ERRCODE = '40001'; END $$")

    with pytest.raises(QueryFailed, match="ended it"):
        await pool.run_in_transaction(body)
    assert await ids(pool) == [0]
    assert len(begun) == 1


async def test_the_options_reach_the_server(pool):
    """Isolation, readonly and deferrable are those of BEGIN."""
    async with pool.transaction(
        isolation="serializable", readonly=True, deferrable=True
    ) as tx:
        assert await tx.fetchval("SHOW transaction_isolation") == "serializable"
        assert await tx.fetchval("SHOW transaction_read_only") == "on"
        assert await tx.fetchval("SHOW transaction_deferrable") == "on"
    with pytest.raises(ConfigurationInvalid, match="snapshot"):
        async with pool.transaction(isolation="snapshot"):
            pass


async def test_a_commit_that_rolled_back_is_an_error(pool):
    """Swallowing a failed statement must not look like success."""
    with pytest.raises(QueryFailed, match="rolled it back") as caught:
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(QueryFailed):
                await tx.execute("SELECT 1/0")
    assert caught.value.sqlstate == "25P02"


async def test_a_connections_transaction_inside_its_transaction_is_a_savepoint(pool):
    """connection.transaction() nests."""
    async with pool.acquire() as connection:
        async with connection.transaction():
            with pytest.raises(RuntimeError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (1)")
                    raise RuntimeError
            await connection.execute("INSERT INTO t VALUES (2)")
            assert connection.in_transaction
        assert not connection.in_transaction
    assert await ids(pool) == [2]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_concurrent_increments_are_all_counted(pool):
    """32 SERIALIZABLE tasks of 20 increments end at 640: the body is repeated."""
    await pool.execute("INSERT INTO t VALUES (1, 0)")

    async def increment(tx):
        n = await tx.fetchval("SELECT n FROM t WHERE id = 1")
        await tx.execute("UPDATE t SET n = $1 WHERE id = 1", n + 1)

    async def work():
        for _ in range(20):
            await pool.run_in_transaction(
                increment, isolation="serializable", attempts=200
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(work())
    assert await pool.fetchval("SELECT n FROM t WHERE id = 1") == 640


async def test_a_deadlock_is_run_again(pool):
    """40P01 repeats the body, so that both transactions succeed."""
    await pool.executemany("INSERT INTO t VALUES ($1, 0)", [(1,), (2,)])
    both = asyncio.Barrier(2)
    met: list[int] = []

    async def swap(first, second):
        async def body(tx):
            await tx.execute("SET LOCAL deadlock_timeout = '20ms'")
            await tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", first)
            if len(met) < 2:
                met.append(1)
                await both.wait()
            await tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", second)

        await pool.run_in_transaction(body, isolation=None)

    await asyncio.gather(swap(1, 2), swap(2, 1))
    assert await pool.fetchval("SELECT sum(n) FROM t") == 4


async def test_a_body_that_is_not_async_is_refused_and_undone(pool):
    """With the remedy; what it is given is a transaction."""
    begun = []

    def body(tx):
        begun.append(tx)

    with pytest.raises(ConfigurationInvalid, match="give an async function"):
        await pool.run_in_transaction(body)
    assert len(begun) == 1


async def test_a_connection_lost_before_commit_is_sent_repeats_the_body(pool):
    """Nothing of COMMIT was sent: the body runs again, and counts once."""
    await pool.execute("CREATE TABLE once (attempt int)")
    attempts = []

    async def body(tx):
        attempts.append(len(attempts))
        await tx.execute("INSERT INTO once VALUES ($1)", attempts[-1])
        pid = await tx.fetchval("SELECT pg_backend_pid()")
        if len(attempts) < 3:
            await pool.execute("SELECT pg_terminate_backend($1)", pid)
            wait = "SELECT 1 FROM pg_stat_activity WHERE pid = $1"
            await until(lambda: is_gone(wait, pid))
            await asyncio.sleep(0.05)  # and its last word is here
        return attempts[-1]

    async def is_gone(sql, pid):
        return await pool.fetchval(sql, pid) is None

    assert await pool.run_in_transaction(body) == 2
    assert await pool.fetch("SELECT attempt FROM once") == [(2,)]


async def test_the_last_attempts_error_comes_out(pool):
    """After `attempts` the body's own error is raised, others at once."""
    calls = []

    async def conflict(tx):
        calls.append(1)
        await tx.execute(
            "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"
        )

    with pytest.raises(SerializationFailed) as caught:
        await pool.run_in_transaction(conflict, attempts=3)
    assert caught.value.retryable
    assert len(calls) == 3
    calls.clear()

    async def duplicate(tx):
        calls.append(1)
        await tx.execute("INSERT INTO t VALUES (1), (1)")

    with pytest.raises(DuplicateRecord):
        await pool.run_in_transaction(duplicate)
    assert len(calls) == 1
    with pytest.raises(ConfigurationInvalid):
        await pool.run_in_transaction(duplicate, attempts=0)
    assert DeadlockDetected.default_retryable


async def test_a_changed_table_never_surfaces_as_a_stale_plan(pool):
    """Outside a transaction it is prepared anew; inside, the body is repeated."""
    for _ in range(3):
        await asyncio.gather(*(pool.fetch("SELECT * FROM t") for _ in range(4)))
    await pool.execute("ALTER TABLE t ADD COLUMN extra text")
    for _ in range(4):
        await asyncio.gather(*(pool.fetch("SELECT * FROM t") for _ in range(4)))
    async with pool.acquire() as connection:
        await connection.fetch("SELECT * FROM t")
        await pool.execute("ALTER TABLE t ADD COLUMN more text")
        await connection.fetch("SELECT * FROM t")
    for number in range(4):
        await asyncio.gather(*(pool.fetch("SELECT * FROM t") for _ in range(4)))
        await pool.execute(f"ALTER TABLE t ADD COLUMN again_{number} text")

        async def body(tx):
            return await tx.fetch("SELECT * FROM t")

        await asyncio.gather(*(pool.run_in_transaction(body) for _ in range(4)))
    with pytest.raises(QueryFailed) as caught:
        async with pool.transaction() as tx:
            await tx.fetch("SELECT * FROM t")
            await tx.execute("ALTER TABLE t ADD COLUMN last text")
            await tx.fetch("SELECT * FROM t")
    assert caught.value.retryable
    assert caught.value.sqlstate == "0A000"


async def test_a_borrowed_asyncpg_connection_is_joined(pool, empty_dsn):
    """transaction(connection=theirs): ours inside, theirs as it was afterwards."""
    theirs = await asyncpg.connect(empty_dsn)
    try:
        async with pool.transaction(connection=theirs) as tx:
            await tx.execute("INSERT INTO t VALUES (1)")
            assert await tx.fetchval("SELECT $1::jsonb", {"a": 1}) == {"a": 1}
        assert await ids(pool) == [1]
        assert await theirs.fetchval("""SELECT '{"a": 1}'::jsonb""") == '{"a": 1}'
        async with theirs.transaction():
            with pytest.raises(RuntimeError):
                async with pool.transaction(connection=theirs) as tx:
                    await tx.execute("INSERT INTO t VALUES (2)")
                    raise RuntimeError
            await theirs.execute("INSERT INTO t VALUES (3)")
            with pytest.raises(ConfigurationInvalid, match="already in"):
                async with pool.transaction(connection=theirs, readonly=True):
                    pass
        assert await ids(pool) == [1, 3]
        assert not theirs.is_closed()
    finally:
        await theirs.close()
    async with asyncpg.create_pool(empty_dsn, min_size=1, max_size=1) as other:
        async with (
            other.acquire() as proxy,
            pool.transaction(connection=proxy) as tx,
        ):
            await tx.execute("INSERT INTO t VALUES (4)")
        assert await ids(pool) == [1, 3, 4]


async def test_what_is_no_connection_cannot_be_joined(pool):
    """The refusal names what was given, before anything is sent."""
    with pytest.raises(ConfigurationInvalid, match="connection: is a int"):
        async with pool.transaction(connection=5):
            pass
