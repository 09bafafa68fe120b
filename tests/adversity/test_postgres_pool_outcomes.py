"""What is known after a call that failed: nothing twice, nothing lost, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools

import asyncpg
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    QueryFailed,
    StorageError,
)
from fm_storage.postgres import Pool
from tests.support.ledger import write_in_a_storm
from tests.support.waiting import until

MINE = """
CREATE TABLE journal (x text);
CREATE TABLE queue AS SELECT generate_series(1, 9) AS id;
CREATE FUNCTION log(text) RETURNS void LANGUAGE sql AS
  'INSERT INTO journal VALUES ($1)';
CREATE FUNCTION take() RETURNS int LANGUAGE sql AS
  'DELETE FROM queue WHERE id = (SELECT min(id) FROM queue) RETURNING id';
CREATE VIEW next_job AS SELECT take() AS id;
CREATE PROCEDURE pay(v text, fails bool) LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO journal VALUES (v);
  COMMIT;
  IF fails THEN PERFORM not_deployed_yet(v); END IF;
END $$;
CREATE PROCEDURE pay_wrongly(v text) LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO journal VALUES (v);
  COMMIT;
  PERFORM 1 WHERE 'x'::text = 1::int::regclass::oid;
END $$
"""


@pytest.fixture
async def outside(empty_dsn):
    """Give a connection of another process, with functions that write."""
    raw = await asyncpg.connect(empty_dsn)
    await raw.execute(MINE)
    yield raw
    await raw.close()


@pytest.fixture
async def proxied(empty_dsn, outside, tcp_proxy):
    """Give a pool of one connection, and the proxy before its server."""
    del outside  # it made functions
    proxy = tcp_proxy(empty_dsn)
    config = PostgresConfig(dsn=proxy.dsn(empty_dsn), pooler="none", max_size=1)
    async with Pool(config) as pool:
        yield pool, proxy


# -- a statement runs once -------------------------------------------------------


@pytest.mark.parametrize("verb", ["fetch", "fetchrow", "fetchval", "execute"])
@pytest.mark.parametrize("sql", ["SELECT log('paid')", "SELECT id FROM next_job"])
async def test_what_reads_by_its_text_alone_is_not_repeated(
    proxied, outside, sql, verb
):
    """A function or view may write: after a lost answer the server refuses that."""
    pool, proxy = proxied
    await pool.fetchval("SELECT 1")
    proxy.lose_next_answer()
    with pytest.raises(ConnectionFailed):
        await getattr(pool, verb)(sql)
    assert proxy.lost == 1
    left = await outside.fetchval("SELECT count(*) FROM queue")
    written = await outside.fetchval("SELECT count(*) FROM journal")
    assert written + 9 - left <= 1
    assert pool.statistics().generation == 0


@pytest.mark.parametrize("verb", ["fetch", "fetchrow", "fetchval"])
async def test_what_only_reads_is_answered_although_its_answer_got_lost(proxied, verb):
    """It is run again on another connection, and leaves no transaction open."""
    pool, proxy = proxied
    await pool.fetchval("SELECT count(*) FROM queue")
    proxy.lose_next_answer()
    assert await getattr(pool, verb)("SELECT count(*) FROM queue")
    assert proxy.lost == 1
    assert pool.statistics().repeats == 1
    async with pool.acquire() as connection:
        assert not connection.in_transaction


@pytest.mark.parametrize(
    ("sql", "args"),
    [("CALL pay($1, $2)", (True,)), ("CALL pay_wrongly($1)", ())],
    ids=["undefined function", "no such operator"],
)
async def test_a_procedure_that_committed_is_not_called_again(
    pool_of_one, outside, sql, args
):
    """Its error may look like that of a statement that was prepared too long ago."""
    if args:
        await pool_of_one.execute(sql, "before", False)
    with pytest.raises(QueryFailed):
        await pool_of_one.execute(sql, "paid", *args)
    with pytest.raises(QueryFailed):
        await pool_of_one.execute(sql, "twice", *args)
    rows = await outside.fetch("SELECT x FROM journal WHERE x <> 'before' ORDER BY x")
    assert [row["x"] for row in rows] == ["paid", "twice"]


@pytest.fixture
async def pool_of_one(empty_dsn, outside):
    """Give a pool of one connection."""
    del outside  # it made functions
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        yield pool


async def test_writes_in_a_storm_happen_once_or_not_at_all(empty_dsn, tcp_proxy):
    """Backends are terminated and answers get lost; what is acknowledged is there."""
    assert await write_in_a_storm(empty_dsn, tcp_proxy(empty_dsn), 150) > 20


# -- a cancelled call is over ----------------------------------------------------


async def _open_transactions(outside):
    return await outside.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND xact_start IS NOT NULL "
        "AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("how", ["pool", "acquired", "dedicated"])
async def test_a_call_cancelled_while_it_prepares_leaves_nothing_open(
    pool_of_one, outside, how
):
    """The driver prepares without Sync: locks would stay until the next statement."""
    async with contextlib.AsyncExitStack() as stack:
        executor = pool_of_one
        if how == "acquired":
            executor = await stack.enter_async_context(pool_of_one.acquire())
        elif how == "dedicated":
            executor = await pool_of_one.connect("test")
            stack.push_async_callback(executor.aclose)
        for number in range(100):
            call = asyncio.ensure_future(executor.fetch(f"SELECT {number} FROM queue"))
            for _ in range(number % 20):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
        async with asyncio.timeout(5):
            while await _open_transactions(outside):
                await asyncio.sleep(0.01)
        assert await executor.fetchval("SELECT count(*) FROM queue") == 9


async def test_a_parameter_that_does_not_fit_leaves_nothing_open(pool_of_one, outside):
    """It is refused on our side, after the statement was prepared."""
    with pytest.raises(StorageError):
        await pool_of_one.fetch("SELECT id + 1 FROM queue WHERE id = $1", "seven")
    async with asyncio.timeout(5):
        while await _open_transactions(outside):
            await asyncio.sleep(0.01)


# -- an acknowledged write is there ----------------------------------------------


@pytest.mark.parametrize("block", ["transaction", "savepoint", "stream"])
async def test_after_a_begin_that_was_given_up_nothing_is_lost(proxied, outside, block):
    """What is acknowledged afterwards is stored, or the connection refuses it."""
    pool, proxy = proxied
    stored = []

    async def held(executor):
        with contextlib.suppress(TimeoutError, StorageError):
            async with asyncio.timeout(0.3):
                if block == "stream":
                    async with executor.stream("SELECT 1"):
                        pass
                else:
                    async with executor.transaction():
                        pass
        proxy.heal()
        with contextlib.suppress(StorageError):
            await executor.execute("INSERT INTO journal VALUES ('after')")
            stored.append("after")

    with contextlib.suppress(StorageError):
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 1")
            if block == "savepoint":
                async with connection.transaction() as tx:
                    proxy.black_hole()
                    await held(tx)
            else:
                proxy.black_hole()
                await held(connection)
            stored.append("block")
    if "block" not in stored and block == "savepoint":
        stored.clear()  # its transaction was reported as failed
    await pool.execute("INSERT INTO journal VALUES ('later')")
    found = {row["x"] for row in await outside.fetch("SELECT x FROM journal")}
    assert {"later", *(x for x in stored if x == "after")} <= found


async def test_a_transaction_of_the_text_is_never_joined(pool_of_one):
    """A block in a transaction that nobody commits would be lost in silence."""
    async with pool_of_one.acquire() as connection:
        await connection.execute("BEGIN")
        with pytest.raises(ConfigurationInvalid, match="no block opened"):
            connection.transaction()
        await connection.execute("ROLLBACK")
        async with connection.transaction() as tx, tx.transaction():
            pass
        async with connection.transaction(), connection.transaction():
            pass  # a savepoint in a transaction of ours


async def test_a_joined_connection_is_never_closed(pool_of_one, outside):
    """A block that cannot be undone on it says so instead."""
    transaction = outside.transaction()
    await transaction.start()
    with pytest.raises(QueryFailed, match="could not be undone"):
        async with pool_of_one.transaction(connection=outside) as tx:
            await tx.execute("INSERT INTO journal VALUES ('x')")
            await transaction.rollback()  # the savepoint with it
            raise KeyError
    assert not outside.is_closed()
    assert await outside.fetchval("SELECT count(*) FROM journal") == 0


# -- the caller's exceptions stay the caller's ------------------------------------


class GaveUp(BaseException):
    """No Exception."""


RAISED = [
    ConnectionResetError("the download"),
    TimeoutError("the download"),
    FileNotFoundError(2, "part-2.csv"),
    asyncpg.PostgresConnectionError("of another server"),
    ConnectionFailed("of another pool"),
    TypeError("mine"),
    GeneratorExit(),
    GaveUp(),
]


class Source:
    """Everything that a COPY calls, each raising *error*."""

    def __init__(self, error):
        self.error = error

    def rows(self):
        """Yield a record first."""
        yield ("1",)
        raise self.error

    async def later(self):
        """Yield a record first, as an async source."""
        yield ("1",)
        raise self.error

    async def blocks(self):
        """Yield a line first."""
        yield b"1\n"
        raise self.error

    def write(self, _):
        """Be the progress callback and the file."""
        raise self.error


COPIES = {
    "records": lambda executor, source: executor.copy_records(
        "journal", columns=["x"], records=source.rows()
    ),
    "async records": lambda executor, source: executor.copy_records(
        "journal", columns=["x"], records=source.later()
    ),
    "blocks": lambda executor, source: executor.copy_from(
        "journal", source.blocks(), header=False
    ),
    "progress": lambda executor, source: executor.copy_to(
        io.BytesIO(), table="queue", progress=source.write
    ),
    "file": lambda executor, source: executor.copy_to(source, table="queue"),
    "parameters": lambda executor, source: executor.executemany(
        "INSERT INTO journal VALUES ($1)", source.rows()
    ),
    "many parameters": lambda executor, source: executor.executemany(
        "INSERT INTO journal VALUES ($1)",
        itertools.chain(itertools.repeat(("1" * 1000,), 1000), source.rows()),
    ),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
async def test_what_a_source_raises_comes_out_as_it_was_raised(
    pool_of_one, outside, error, copy
):
    """It says nothing about the server, and is not a reason to run anything again."""
    pool, runs = pool_of_one, 0
    with pytest.raises(type(error)) as caught:
        await copy(pool, Source(error))
    assert caught.value is error
    assert await pool.fetchval("SELECT 1") == 1

    async def body(tx):
        nonlocal runs
        runs += 1
        await copy(tx, Source(error))

    if not isinstance(error, GeneratorExit):  # which no async generator survives
        with pytest.raises(type(error)):
            await pool.run_in_transaction(body)
        assert runs == 1
    assert pool.statistics().generation == 0
    assert await outside.fetchval("SELECT count(*) FROM journal") == 0


@pytest.mark.parametrize("locked", [False, True])
async def test_many_rows_that_are_cancelled_on_their_way_are_over(
    pool_of_one, outside, locked
):
    """Also while the server waits for a lock and takes no more of them."""
    pool, rows = pool_of_one, [(1000 * "1",)] * 100_000
    insert = "INSERT INTO journal VALUES ($1)"
    async with pool.acquire() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        for after in (0.005, 0.02, 0.1):
            async with outside.transaction():
                if locked:
                    await outside.execute("LOCK TABLE journal")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(after):
                        await connection.executemany(insert, rows)
            async with asyncio.timeout(5):
                assert await connection.fetchval("SELECT count(*) FROM journal") == 0
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid


async def _copied_in(on):
    await on.copy_from("journal", io.BytesIO(b"1\n" * 99), header=False)


async def _copied_out(on):
    await on.copy_to(io.BytesIO(), query="SELECT generate_series(1, 20000)")


async def _many(on):
    await on.executemany("INSERT INTO journal VALUES ($1)", [("1",)] * 99)


async def _in_savepoints(on):
    async with on.transaction() as tx, tx.savepoint() as inner:
        await _many(inner)


@pytest.mark.parametrize("call", [_copied_in, _copied_out, _many, _in_savepoints])
async def test_a_call_cancelled_at_any_turn_leaves_the_connection_sound(
    pool_of_one, outside, call
):
    """Held or joined: what follows runs at once, and all of it happened or nothing."""
    held = await pool_of_one.connect("test")
    for turn in range(40):
        task = asyncio.create_task(call(held))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if held.is_closed:  # the outcome of a BEGIN or SAVEPOINT was not known
            assert call is _in_savepoints
            held = await pool_of_one.connect("test")
        async with asyncio.timeout(5):
            assert await held.fetchval("SELECT count(*) FROM journal") % 99 == 0
        assert not held.in_transaction
        task = asyncio.create_task(_joined(pool_of_one, outside, call))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        async with asyncio.timeout(5):
            assert await outside.fetchval("SELECT count(*) FROM journal") % 99 == 0
        assert not outside.is_in_transaction()
    await held.aclose()


async def _joined(pool, raw, call):
    async with pool.transaction(connection=raw) as tx:
        await call(tx)


# -- listening ends only when its block does ---------------------------------------


async def test_a_listener_outlives_silence_and_refusals(
    empty_dsn, proxied, outside, monkeypatch
):
    """A frozen connection, then a database that takes nobody: it listens again."""
    monkeypatch.setattr("fm_storage.postgres.pool.listen._ALIVE_EVERY", 0.2)
    monkeypatch.setattr("fm_storage.postgres.pool.listen._ALIVE_WITHIN", 0.2)
    pool, proxy = proxied
    name = await outside.fetchval("SELECT current_database()")
    heard = []

    async def listen():
        async for notification in subscription:
            heard.append(notification)  # noqa: PERF401 - each as it arrives

    async with pool.listen("jobs") as subscription:
        reader = asyncio.create_task(listen())
        await outside.execute("NOTIFY jobs, 'first'")
        await until(lambda: heard)
        proxy.black_hole()
        await asyncio.sleep(1)
        admin = await asyncpg.connect(empty_dsn, database="postgres")
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        proxy.heal()
        proxy.cut()
        await asyncio.sleep(0.5)
        assert not reader.done()
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
        await until(lambda: any(n.missed for n in heard))
        await outside.execute("NOTIFY jobs, 'last'")
        await until(lambda: heard[-1].payload == "last")
        reader.cancel()


async def test_a_subscription_can_be_entered_again(pool_of_one, outside):
    """Also inside its block: it listens until the outermost block ends."""
    subscription = pool_of_one.listen("jobs")
    for _ in range(2):
        async with subscription:
            async with subscription:
                pass
            await outside.execute("NOTIFY jobs, 'x'")
            async with asyncio.timeout(5):
                async for notification in subscription:
                    assert notification.payload == "x"
                    break


async def in_a_transaction(pool):
    """Write in a transaction, and go on while it is open."""
    async with pool.transaction() as tx:
        await tx.execute("INSERT INTO journal VALUES ('x')")
        yield


async def in_a_savepoint(pool):
    """Write in a savepoint."""
    async with (
        pool.acquire() as held,
        held.transaction() as tx,
        tx.savepoint() as inner,
    ):
        await inner.execute("INSERT INTO journal VALUES ('x')")
        yield


async def in_a_stream(pool):
    """Read through a cursor."""
    async with pool.stream("SELECT generate_series(1, 99)", prefetch=9) as rows:
        async for _ in rows:
            yield


async def in_a_stream_of_a_transaction(pool):
    """Read through a cursor of a transaction that writes."""
    async with pool.transaction() as tx:
        await tx.execute("INSERT INTO journal VALUES ('x')")
        async with tx.stream("SELECT generate_series(1, 99)", prefetch=9) as rows:
            async for _ in rows:
                yield


BLOCKS = [
    in_a_transaction,
    in_a_savepoint,
    in_a_stream,
    in_a_stream_of_a_transaction,
]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("how", ["left", "closed", "coroutine closed"])
async def test_a_generator_given_up_in_its_block_is_undone(
    pool_of_one, outside, block, how
):
    """Whether it may wait or not; the connection serves the next caller."""
    generator = block(pool_of_one)
    if how == "left":
        async for _ in generator:
            break
        del generator
        await asyncio.sleep(0.01)
    elif how == "closed":
        await anext(generator)
        await generator.aclose()
    else:

        async def work() -> None:
            async for _ in generator:
                await asyncio.sleep(60)

        body = work()
        task = asyncio.create_task(body)
        await until(lambda: generator.ag_frame and not generator.ag_running)
        body.close()
        task.cancel()
        await asyncio.wait({task})
        await generator.aclose()
    assert await pool_of_one.fetchval("SELECT 1", timeout=5) == 1
    assert await outside.fetchval("SELECT count(*) FROM journal") == 0
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
    assert await outside.fetchval(idle) == 0


async def test_a_closed_block_on_a_held_connection_ends_before_what_follows(
    pool_of_one, outside
):
    """Its transaction alone is undone, and its cursor closed; the connection stays."""

    async def block(held):
        async with held.transaction() as tx:
            await tx.execute("INSERT INTO journal VALUES ('undone')")
            yield

    async def rows_of(tx):
        async with tx.stream("SELECT generate_series(1, 99)", prefetch=9) as rows:
            async for _ in rows:
                yield

    async with pool_of_one.acquire() as held:
        pid = await held.fetchval("SELECT pg_backend_pid()")
        generator = block(held)
        await anext(generator)
        await generator.aclose()
        await held.execute("INSERT INTO journal VALUES ('kept')")
        async with held.transaction() as tx:
            generator = rows_of(tx)
            await anext(generator)
            await generator.aclose()
            cursors = "SELECT count(*) FROM pg_cursors WHERE name <> ''"
            assert await tx.fetchval(cursors) == 0
            await tx.execute("INSERT INTO journal VALUES ('kept, too')")
        assert await held.fetchval("SELECT pg_backend_pid()") == pid
    kept = await outside.fetch("SELECT x FROM journal ORDER BY x")
    assert [row["x"] for row in kept] == ["kept", "kept, too"]


def test_a_loop_that_ends_with_generators_in_their_blocks_says_nothing(
    empty_dsn, caplog
):
    """Python closes all generators at once then, in no order."""

    async def main() -> None:
        async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
            await pool.execute("CREATE TABLE journal (x text)")
            generators = [block(pool) for block in BLOCKS]
            for generator in generators:
                await anext(generator)
            await asyncio.get_running_loop().shutdown_asyncgens()
            assert await pool.fetchval("SELECT count(*) FROM journal") == 0
            await until(lambda: pool.statistics().busy == 0)

    asyncio.run(main())
    assert not caplog.records
