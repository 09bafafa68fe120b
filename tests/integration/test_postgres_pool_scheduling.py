"""Who gets a connection, when, and what happens to it: the pool's daily life."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionBusy,
    ConnectionFailed,
    ConnectionReleased,
    ForkedProcess,
    InvalidRecord,
    PermissionDenied,
    PoolClosed,
    PoolTimeout,
    QueryTimeout,
    WrongLoop,
)
from fm_storage.postgres import Connection, Executor, Pool, Record, Sql
from tests.support.waiting import until


def pool_on(dsn, **settings):
    """Return a pool that is not open."""
    return Pool(PostgresConfig(dsn=dsn, **settings))


async def backends(pool):
    """Count the server processes of this pool's database, but our own."""
    return await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )


async def test_the_verbs_of_the_pool(empty_dsn):
    """Each verb borrows a connection for itself and gives it back."""
    async with pool_on(empty_dsn, max_size=1) as pool:
        executor: Executor = pool
        assert isinstance(executor, Executor)
        tag = await pool.execute("CREATE TABLE t (id int PRIMARY KEY, j jsonb)")
        assert tag == "CREATE TABLE"
        assert await pool.execute("INSERT INTO t VALUES ($1, $2)", 1, {"a": 1}) == (
            "INSERT 0 1"
        )
        await pool.executemany("INSERT INTO t VALUES ($1, $2)", [(2, None), (3, [])])
        copied = await pool.copy_records(
            "t", columns=["id", "j"], records=[(4, {"b": [1]}), (5, None)]
        )
        assert copied == 2
        row = await pool.fetchrow(Sql("SELECT * FROM t WHERE id = $1"), 4)
        assert isinstance(row, Record)
        assert row["j"] == {"b": [1]}
        assert await pool.fetchrow("SELECT * FROM t WHERE id = 9") is None
        assert await pool.fetchval("SELECT id, 7 FROM t ORDER BY id", column=1) == 7
        assert await pool.fetchval("SELECT id FROM t WHERE id = 9") is None
        assert [r[0] for r in await pool.fetch("SELECT id FROM t ORDER BY 1")] == [
            *range(1, 6)
        ]
        async with pool.stream("SELECT id FROM t ORDER BY 1", prefetch=2) as rows:
            assert [r["id"] async for r in rows] == [*range(1, 6)]
        assert pool.statistics().busy == 0
        assert pool.server_version >= 140_000
        assert pool.transaction_pooler is False


async def test_the_connection_of_a_block_has_the_same_verbs(empty_dsn):
    """acquire() yields a Connection, used by one task."""
    async with pool_on(empty_dsn) as pool:
        async with pool.acquire() as connection:
            assert isinstance(connection, Connection)
            assert isinstance(connection, Executor)
            await connection.execute("CREATE TEMP TABLE x (a int)")
            await connection.executemany("INSERT INTO x VALUES ($1)", [(1,), (2,)])
            assert await connection.fetchval("SELECT sum(a) FROM x") == 3
            assert len(await connection.fetch("SELECT * FROM x")) == 2
            assert await connection.copy_records("x", columns=["a"], records=[(3,)])
            async with connection.stream("SELECT a FROM x") as rows:
                assert [r["a"] async for r in rows] == [1, 2, 3]
            assert not connection.is_closed
        assert connection.is_closed
        with pytest.raises(ConnectionReleased, match="already given back"):
            await connection.fetchval("SELECT 1")
        with pytest.raises(ConnectionReleased):
            _ = connection.raw
        with pytest.raises(ConnectionReleased):
            connection.transaction()
        with pytest.raises(ConnectionReleased):
            async with connection.stream("SELECT 1"):
                pass
        with pytest.raises(ConnectionReleased):
            connection.add_termination_listener(lambda: None)


async def test_a_reported_setting_costs_neither_io_nor_a_reset(empty_dsn):
    """As it is now; None for what the server does not report."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=1)) as pool:
        async with pool.acquire() as connection:
            assert connection.reported("standard_conforming_strings") == "on"
            assert connection.reported("work_mem") is None
        assert pool.statistics().resets == 0
        async with pool.acquire() as connection:
            await connection.execute("SET standard_conforming_strings = off")
            assert connection.reported("standard_conforming_strings") == "off"


async def test_waiters_are_served_first_come_first_served(empty_dsn):
    """40 tasks on 4 connections: the order of asking is the order of getting."""
    async with pool_on(empty_dsn, max_size=4) as pool:
        order = []

        async def ask(number):
            async with pool.acquire() as connection:
                order.append(number)
                await connection.execute(Sql("SELECT pg_sleep(0.002)"))

        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(ask(number))
        assert order[4:] == sorted(order[4:])
        assert pool.statistics().size <= 4


async def test_a_waiter_cancelled_after_the_hand_off_gives_the_connection_back(
    empty_dsn,
):
    """The hand-off is acknowledged: nothing is lost between release and taking."""
    async with pool_on(empty_dsn, max_size=1) as pool:
        for _ in range(20):
            async with pool.acquire():
                waiter = asyncio.ensure_future(pool.fetchval("SELECT 1"))
                await until(lambda: pool.statistics().waiting == 1)
            waiter.cancel()  # handed over in the line above, not yet taken
            with pytest.raises(asyncio.CancelledError):
                await waiter
        assert await pool.fetchval("SELECT 1", timeout=1) == 1
        assert pool.statistics().cancels == 20


async def test_a_caller_without_a_connection_in_time_gets_the_numbers(empty_dsn):
    """PoolTimeout comes at the deadline, with a snapshot and a remedy."""
    async with pool_on(empty_dsn, max_size=1) as pool, pool.acquire():
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match="1 of 1 in use") as caught:
            waiting = asyncio.create_task(pool.fetchval("SELECT 1", timeout=0.1))
            await asyncio.wait({waiting})
            await waiting
        assert 0.09 < time.monotonic() - started < 10  # not the default, 30 s
        assert caught.value.retryable
        assert isinstance(caught.value, TimeoutError)
        assert pool.statistics().timeouts == 1


async def test_a_nested_acquire_that_cannot_succeed_is_refused_at_once(empty_dsn):
    """A task that holds every connection gets an error instead of waiting."""
    async with pool_on(empty_dsn, max_size=1) as pool, pool.acquire():
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match="already holds 1"):
            await pool.fetchval("SELECT 1")
        assert time.monotonic() - started < 10  # not the 30 s of the default


async def in_a_group(child):
    """Wait for the end of a group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(child)


async def in_a_gathering(child):
    """Wait for several."""
    await asyncio.gather(child, asyncio.sleep(0))


async def in_a_grandchild(child):
    """Wait for a task that waits for one."""
    await asyncio.create_task(in_a_gathering(child))


@pytest.mark.parametrize("wait", [in_a_group, in_a_gathering, in_a_grandchild])
async def test_a_child_of_the_task_that_holds_the_last_connection_is_refused(
    empty_dsn, wait
):
    """Its parent cannot give the connection back before the child has ended."""
    async with pool_on(empty_dsn, max_size=1) as pool:
        started = time.monotonic()
        async with pool.transaction() as tx:
            with pytest.raises((PoolTimeout, ExceptionGroup)) as caught:
                await wait(pool.fetchval("SELECT 1"))
            errors = getattr(caught.value, "exceptions", [caught.value])
            assert "waits for this task" in str(errors[0])
            assert await tx.fetchval("SELECT 1") == 1
        assert time.monotonic() - started < 10  # not the 30 s of the default
        # One that the holder does not wait for is served when it gives it back.
        async with pool.acquire():
            later = asyncio.create_task(pool.fetchval("SELECT 2"))
            await asyncio.sleep(0.05)
        assert await later == 2


async def test_tasks_that_wait_for_each_other_are_refused(empty_dsn):
    """The last of a circle of tasks that all hold and all wait is refused."""
    async with pool_on(empty_dsn, max_size=2) as pool:
        both = asyncio.Barrier(2)

        async def greedy():
            async with pool.acquire():
                await both.wait()
                return await pool.fetchval("SELECT 1")

        results = await asyncio.gather(greedy(), greedy(), return_exceptions=True)
        assert sorted(map(str, map(type, results))) == sorted(
            map(str, [int, PoolTimeout])
        )


async def test_two_tasks_on_one_connection_are_named(empty_dsn):
    """ConnectionBusy names both tasks, and the first goes on unharmed."""
    async with pool_on(empty_dsn) as pool, pool.acquire() as connection:
        first = asyncio.create_task(
            connection.fetchval("SELECT 1 FROM pg_sleep(0.1)"), name="slow-one"
        )
        await asyncio.sleep(0)
        with pytest.raises(ConnectionBusy, match="slow-one"):
            await connection.fetchval("SELECT 2")
        assert await first == 1


async def test_use_outside_its_life_names_the_pool(empty_dsn):
    """Before opening and after closing: PoolClosed; opening twice is fine."""
    pool = pool_on(empty_dsn)
    with pytest.raises(PoolClosed, match="not open"):
        await pool.fetchval("SELECT 1")
    await pool.open()
    await pool.open()
    await pool.aclose()
    await pool.aclose()
    with pytest.raises(PoolClosed, match="closed"):
        await pool.fetchval("SELECT 1")
    with pytest.raises(PoolClosed):
        await pool.open()
    with pytest.raises(PoolClosed):
        await pool.drain()
    never = pool_on(empty_dsn)
    await never.aclose()


async def test_use_on_another_loop_is_refused(empty_dsn):
    """WrongLoop names the remedy, for the pool and for a borrowed connection."""
    async with pool_on(empty_dsn) as pool, pool.acquire() as connection:
        failures = []

        async def foreign():
            for use in (
                pool.fetchval("SELECT 1"),
                connection.fetchval("SELECT 1"),
                pool.aclose(),
            ):
                try:
                    await use
                except WrongLoop as exc:
                    failures.append(exc)

        thread = threading.Thread(target=lambda: asyncio.run(foreign()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(failures) == 3
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_is_refused_and_the_parent_unharmed(empty_dsn):
    """In the child every use is ForkedProcess without I/O; the parent goes on."""
    async with pool_on(empty_dsn) as pool, pool.acquire() as connection:
        dedicated = await pool.connect("own")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = asyncio.run(_child_of_fork(pool, connection, dedicated))
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await connection.fetchval("SELECT 1") == 1
        assert await pool.fetchval("SELECT 2") == 2
        assert await dedicated.fetchval("SELECT 3") == 3
        await dedicated.aclose()


async def _child_of_fork(pool, connection, dedicated):
    refused = 0
    for use in (pool, connection, dedicated):
        try:
            await use.fetchval("SELECT 1")
        except ForkedProcess:
            refused += 1
    await pool.aclose()
    await dedicated.aclose()
    return 3 - refused


async def test_the_old_are_replaced(empty_dsn):
    """A connection older than max_lifetime is not used again."""
    async with pool_on(empty_dsn, max_lifetime=0.1, max_size=1) as pool:
        first = await pool.fetchval("SELECT pg_backend_pid()")

        async def replaced():
            return await pool.fetchval("SELECT pg_backend_pid()") != first

        await until(replaced)
        assert pool.statistics().lifetimes >= 1


async def test_the_unused_go_and_min_size_stays(empty_dsn):
    """Idle connections above min_size are closed after max_idle."""
    async with pool_on(empty_dsn, min_size=1, max_size=4, max_idle=0.1) as pool:
        everyone = asyncio.Barrier(4)

        async def hold():
            async with pool.acquire():
                await everyone.wait()

        await asyncio.gather(*(hold() for _ in range(4)))
        await until(lambda: pool.statistics().size == 1)
        assert pool.statistics().shrinks == 3


async def test_min_size_is_made_at_opening_and_kept(empty_dsn):
    """Connections that end are replaced up to min_size."""
    async with pool_on(empty_dsn, min_size=3, max_size=4) as pool:
        await until(lambda: pool.statistics().idle == 3)
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until(lambda: pool.statistics().reconnects >= 2)
        await until(lambda: pool.statistics().idle == 3)
        assert await backends(pool) <= 4


async def test_terminated_idle_connections_cost_no_errors(empty_dsn):
    """All idle backends ended, then 20 queries: none fails."""
    async with pool_on(empty_dsn, min_size=5, max_size=5) as pool:
        await until(lambda: pool.statistics().idle == 5)
        killer = await pool.connect("killer")
        await killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for _ in range(20):
            assert await pool.fetchval("SELECT 1") == 1
        await killer.aclose()


async def test_drain_replaces_every_connection(empty_dsn):
    """Idle ones go at once, those in use when they come back."""
    async with pool_on(empty_dsn, max_size=2) as pool:
        async with pool.acquire() as connection:
            held = await connection.fetchval("SELECT pg_backend_pid()")
            other = await pool.fetchval("SELECT pg_backend_pid()")
            await pool.drain()
            assert await connection.fetchval("SELECT pg_backend_pid()") == held
            assert await pool.fetchval("SELECT pg_backend_pid()") not in {held, other}
        await until(lambda: pool.statistics().resetting == 0)
        assert await pool.fetchval("SELECT pg_backend_pid()") not in {held, other}
        assert pool.statistics().generation == 1


async def test_an_idle_connection_is_checked_before_it_is_used(empty_dsn):
    """check_after=0 checks each time; a dead connection is replaced unseen."""
    async with pool_on(empty_dsn, check_after=0, max_size=2) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.statistics().checks_failed == 0


async def test_a_leak_is_reported_once_with_the_borrower(empty_dsn, caplog):
    """Past leak_after the log names the task and the place."""
    caplog.set_level(logging.WARNING, "fm_storage.postgres")
    async with pool_on(empty_dsn, leak_after=0.08) as pool:
        async with pool.acquire():
            await until(lambda: pool.statistics().leaks == 1)
            await asyncio.sleep(0.1)
        assert pool.statistics().leaks == 1
    (message,) = [r.message for r in caplog.records if "has been borrowed" in r.message]
    assert "test_postgres_pool_scheduling.py" in message
    assert "test_a_leak_is_reported" in message


async def test_closing_is_bounded_and_names_who_still_holds(empty_dsn, caplog):
    """aclose() returns at its deadline and says whose connection it cut."""
    pool = pool_on(empty_dsn)
    await pool.open()
    async with pool.acquire() as connection:
        started = time.monotonic()
        await pool.aclose(timeout=0.2)
        assert time.monotonic() - started < 5  # the default is 10 s
        assert "still borrowed by task" in caplog.text
        assert "test_closing_is_bounded" in caplog.text
        with pytest.raises(ConnectionFailed):
            await connection.fetchval("SELECT 1")


async def test_closing_waits_for_borrowers_and_fails_the_queue(empty_dsn):
    """A borrower may finish; those who wait get PoolClosed at once."""
    pool = pool_on(empty_dsn, max_size=1)
    await pool.open()
    done = []

    async def borrow():
        async with pool.acquire() as connection:
            await connection.execute(Sql("SELECT pg_sleep(0.1)"))
            done.append(1)

    borrower = asyncio.create_task(borrow())
    await until(lambda: pool.statistics().busy == 1)
    waiter = asyncio.create_task(pool.fetchval("SELECT 1"))
    await until(lambda: pool.statistics().waiting == 1)
    await asyncio.gather(pool.aclose(), pool.aclose())
    assert done == [1]
    with pytest.raises(PoolClosed):
        await waiter
    await borrower


async def test_closing_finishes_although_it_is_cancelled(empty_dsn):
    """The cancellation comes out only after everything is closed."""
    pool = pool_on(empty_dsn, min_size=2)
    await pool.open()
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pool.statistics().size == 0
    with pytest.raises(PoolClosed):
        await pool.fetchval("SELECT 1")


@pytest.mark.lengthy
async def test_closing_while_the_pool_still_grows_frees_every_slot(empty_dsn):
    """A connection that arrives late is ended too; its slot used to stay taken."""
    for turn in range(30):
        pool = pool_on(empty_dsn, min_size=3)
        await pool.open()
        await asyncio.sleep(turn * 0.0007)
        await pool.aclose()
        assert pool.statistics().size == 0


async def test_a_statement_past_its_timeout_is_cancelled_on_the_server(empty_dsn):
    """QueryTimeout at the deadline; the connection is used again afterwards."""
    async with pool_on(empty_dsn, max_size=1) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        started = time.monotonic()
        with pytest.raises(QueryTimeout):
            await pool.fetchval("SELECT pg_sleep(25)", timeout=0.1)
        assert time.monotonic() - started < 10
        assert await pool.fetchval("SELECT pg_backend_pid()") == pid
    async with pool_on(empty_dsn, command_timeout=0.1) as pool:
        with pytest.raises(QueryTimeout):
            await pool.execute("SELECT pg_sleep(5)")
        slept = await pool.execute("SELECT pg_sleep(0.2)", timeout=float("inf"))
        assert slept == "SELECT 1"


async def test_a_dedicated_connection_belongs_to_the_caller(empty_dsn):
    """connect() is outside the pool, with its own name and settings."""
    async with pool_on(empty_dsn, application_name="app") as pool:
        ended = asyncio.Event()
        one = await pool.connect("lease", settings={"idle_session_timeout": "0"})
        one.add_termination_listener(ended.set)
        assert await one.fetchval("SHOW application_name") == "app/lease"
        assert pool.statistics().size == 1
        async with one.transaction() as tx:
            assert await tx.fetchval("SELECT 1") == 1
        await one.aclose()
        await one.aclose()
        await asyncio.wait_for(ended.wait(), 10)
        assert one.is_closed
    async with pool_on(empty_dsn) as pool, pool.acquire() as borrowed:
        await borrowed.aclose()  # given back by its block, not by this
        assert await borrowed.fetchval("SELECT 1") == 1


async def test_a_server_that_is_not_there_is_named(empty_dsn):
    """open() fails at once, typed, and can be called again."""
    pool = pool_on("postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1") as caught:
        await pool.open()
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert pool.statistics().size == 0
    with pytest.raises(ConnectionFailed, match="create the database"):
        await pool_on(empty_dsn.replace("/fm_test", "/no_such_fm_test")).open()


async def test_a_wrong_password_is_refused_for_good(server):
    """PermissionDenied is not retryable; a right one may come from a coroutine."""
    right = server.tcp_dsn
    with pytest.raises(PermissionDenied) as caught:
        await Pool(PostgresConfig(dsn=right, password="wrong-secret")).open()
    assert not caught.value.retryable
    assert "wrong-secret" not in str(caught.value)
    password = right.split(":")[2].split("@")[0]
    asked = []

    async def give():
        asked.append(1)
        return password

    bare = right.replace(f":{password}@", "@")
    async with Pool(PostgresConfig(dsn=bare, password=give)) as pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert asked

    async def fail():
        raise KeyError("vault")

    with pytest.raises(ConnectionFailed, match="password"):
        await Pool(PostgresConfig(dsn=bare, password=fail)).open()


async def test_libpq_parameters_in_the_dsn_are_understood(empty_dsn):
    """One DSN serves asyncpg and libpq alike."""
    joined = "&" if "?" in empty_dsn else "?"
    dsn = f"{empty_dsn}{joined}connect_timeout=3&keepalives=1&application_name=x"
    async with pool_on(dsn, server_settings={"work_mem": "5MB"}) as pool:
        assert await pool.fetchval("SHOW work_mem") == "5MB"


async def test_a_dsn_that_is_none_is_a_wrong_setting(empty_dsn):
    """What the driver cannot read is ConfigurationInvalid."""
    with pytest.raises(ConfigurationInvalid, match=r"postgres\.dsn"):
        await pool_on("postgresql://host:abc/x").open()
    async with pool_on(empty_dsn) as pool:
        with pytest.raises(ConfigurationInvalid):
            pool.stream("SELECT 1", prefetch=0).__aenter__().send(None)


async def test_slow_calls_are_logged_without_parameters(empty_dsn, caplog):
    """Past the thresholds one line each: the wait, and the statement."""
    async with pool_on(
        empty_dsn, max_size=1, slow_query=0.05, slow_acquire=0.05
    ) as pool:
        slow = "SELECT pg_sleep($1), $2::text"
        await asyncio.gather(
            pool.execute(slow, 0.1, "s3cret"), pool.execute(slow, 0.1, "s3cret")
        )
        async with pool.acquire() as connection:
            await connection.execute(slow, 0.1, "s3cret")
    assert caplog.text.count("a statement took") == 3
    assert caplog.text.count("waited") == 1
    assert "s3cret" not in caplog.text


async def test_statistics_are_a_frozen_snapshot(empty_dsn):
    """Numbers of this moment, counts since opening."""
    async with pool_on(empty_dsn, max_size=2) as pool:
        for _ in range(10):
            await pool.fetchval("SELECT 1")
        async with pool.acquire():
            numbers = pool.statistics()
        assert (numbers.name, numbers.busy, numbers.acquired) == ("postgres", 1, 11)
        assert numbers.acquire_p50 == 0.0
        with pytest.raises(AttributeError):
            numbers.size = 3


async def test_reset_always_resets_every_time(empty_dsn):
    """reset="always" trusts no statement."""
    async with pool_on(empty_dsn, reset="always", max_size=1) as pool:
        await pool.fetchval("SELECT 1")
        await pool.fetchval(Sql("SELECT 1"))
        async with pool.acquire():
            pass
        await until(lambda: pool.statistics().resetting == 0)
        assert pool.statistics().resets == 3


async def test_wrong_parameters_are_named_and_nothing_is_sent(empty_dsn):
    """InvalidRecord says which $n, whatever is wrong with it, without its value."""
    async with pool_on(empty_dsn) as pool:
        for sql, args, field in (
            ("SELECT $1::int, $2::text", (1, "a\0b"), "$2"),
            ("SELECT $1::text", ("\ud800",), "$1"),
            ("SELECT $1::int, $2::int", (1, "s3cret"), "$2"),
            ("SELECT $1::jsonb", ({"s3cret": float("nan")},), "$1"),
            ("SELECT $1::jsonb", ({"s3cret\0": 1},), "$1"),
            ("SELECT $1::int", (2**40,), "$1"),
            ("SELECT $1::int", (), None),
        ):
            with pytest.raises(InvalidRecord) as caught:
                await pool.fetchval(sql, *args)
            assert caught.value.field == field
            assert "s3cret" not in str(caught.value)
            assert not caught.value.retryable
        with pytest.raises(InvalidRecord) as caught:
            await pool.executemany("SELECT $1::int", [(1,), (2,), ("x",)])
        assert (caught.value.field, caught.value.index) == ("$1", 2)
        assert await pool.fetchval("SELECT 1") == 1
