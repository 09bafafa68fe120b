"""The pool when server and network misbehave: bounded, typed, whole again."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConnectionFailed,
    PoolTimeout,
    QueryTimeout,
    StorageError,
)
from fm_storage.postgres import Pool
from tests.support.cancelling import cancel_at_random
from tests.support.waiting import until

SLACK = 5.0
"""What a bounded call may take beyond its deadline on a busy machine.

The bar is 0.5 s; ``tests/bench/bench_postgres.py --only bounds`` measures it."""


_SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND wait_event = 'PgSleep'"
)


def pool_on(dsn, **settings):
    """Return a pool that is not open."""
    return Pool(PostgresConfig(dsn=dsn, **settings))


@contextlib.asynccontextmanager
async def within(limit):
    """Fail unless the block ends within *limit* and the slack."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit + SLACK


async def recovers(pool, limit=2.0):
    """Wait until the pool works again, and return how long that took."""
    started = time.monotonic()
    while True:
        try:
            if await pool.fetchval("SELECT 1", timeout=0.5) == 1:
                return time.monotonic() - started
        except StorageError:
            assert time.monotonic() - started < limit + SLACK


@pytest.mark.parametrize("weather", ["black_hole", "deaf", "refuse"])
async def test_every_call_is_bounded_in_bad_weather(empty_dsn, tcp_proxy, weather):
    """Acquire, query and close return by their deadlines; then all is well again."""
    proxy = tcp_proxy(empty_dsn)
    pool = pool_on(
        proxy.dsn(empty_dsn), max_size=3, check_after=0.05, check_timeout=0.3
    )
    await pool.open()
    async with pool.acquire() as connection:
        getattr(proxy, weather)()
        async with within(0.3):
            with pytest.raises((QueryTimeout, ConnectionFailed)):
                await connection.fetchval("SELECT 1", timeout=0.3)
    for _ in range(3):
        async with within(0.5):
            with pytest.raises((PoolTimeout, ConnectionFailed, QueryTimeout)):
                await pool.fetchval("SELECT 1", timeout=0.5)
        async with within(0.5):
            with pytest.raises((PoolTimeout, ConnectionFailed)):
                async with pool.acquire(timeout=0.5) as connection:
                    raise ConnectionFailed(str(connection))
    proxy.heal() if weather == "black_hole" else proxy.accept()
    assert await recovers(pool) < 2.0 + SLACK
    async with within(1.0):
        await pool.aclose()
    assert pool.statistics().busy == 0


async def test_closing_in_a_black_hole_is_bounded(empty_dsn, tcp_proxy):
    """aclose() with a borrower and a dead network returns at its deadline."""
    proxy = tcp_proxy(empty_dsn)
    pool = pool_on(proxy.dsn(empty_dsn), min_size=2)
    await pool.open()
    async with pool.acquire():
        proxy.black_hole()
        async with within(0.5):
            await pool.aclose(timeout=0.5)
    assert pool.statistics().size == 0


async def test_a_cut_line_costs_readers_nothing(empty_dsn, tcp_proxy):
    """Reading statements are repeated on a new connection, writing ones are not."""
    proxy = tcp_proxy(empty_dsn)
    async with (
        pool_on(proxy.dsn(empty_dsn), min_size=4, max_size=4) as pool,
        pool_on(empty_dsn) as watching,
    ):
        await pool.execute("CREATE TABLE t (n int)")
        await until(lambda: pool.statistics().idle == 4)
        reading = [
            asyncio.create_task(pool.fetchval("SELECT 1 FROM pg_sleep(3)"))
            for _ in range(3)
        ]
        writing = asyncio.create_task(
            pool.execute("INSERT INTO t SELECT 1 FROM pg_sleep(3)")
        )

        async def all_sleep():
            return await watching.fetchval(_SLEEPING) == 4

        await until(all_sleep)
        assert proxy.cut() >= 4
        assert await asyncio.gather(*reading) == [1, 1, 1]
        with pytest.raises(ConnectionFailed, match="unknown"):
            await writing
        assert pool.statistics().repeats == 3


async def test_a_slow_network_changes_nothing(empty_dsn, tcp_proxy):
    """20 ms each way: waits, no errors."""
    proxy = tcp_proxy(empty_dsn)
    async with pool_on(proxy.dsn(empty_dsn), max_size=2) as pool:
        proxy.delay(0.02)
        results = await asyncio.gather(
            *(pool.fetchval("SELECT $1::int", n) for n in range(10))
        )
        assert results == [*range(10)]


@pytest.mark.timeout(90)
async def test_an_outage_of_a_second_is_only_a_pause(cluster):
    """Ten reading workers see no error; the first success comes soon after."""
    async with pool_on(
        cluster.tcp_dsn, max_size=5, acquire_timeout=50, command_timeout=50
    ) as pool:
        errors, successes, stop = [], [], asyncio.Event()

        async def work():
            while not stop.is_set():
                try:
                    await pool.fetchval("SELECT 1 FROM pg_sleep(0.01)")
                    successes.append(time.monotonic())
                except StorageError as exc:
                    errors.append(exc)
                await asyncio.sleep(0.01)

        workers = [asyncio.create_task(work()) for _ in range(10)]
        await asyncio.sleep(0.3)
        await cluster.stop("immediate")
        await asyncio.sleep(1.0)
        await cluster.start()
        up = time.monotonic()
        await until(lambda: successes and successes[-1] >= up)
        stop.set()
        await asyncio.gather(*workers)
        assert errors == []
        assert min(s for s in successes if s >= up) - up < 0.3 + SLACK


async def test_a_frozen_server_is_survived(cluster):
    """SIGSTOP: each call returns by its deadline, and two seconds after all works."""
    pool = pool_on(cluster.tcp_dsn, max_size=3, check_after=0.05, check_timeout=0.3)
    await pool.open()
    try:
        async with pool.acquire() as connection:
            cluster.freeze()
            async with within(0.3):
                with pytest.raises(QueryTimeout):
                    await connection.fetchval("SELECT 1", timeout=0.3)
        async with within(0.3 + 0.4):
            with pytest.raises((QueryTimeout, ConnectionFailed, PoolTimeout)):
                async with pool.transaction(timeout=0.3) as tx:
                    await tx.fetchval("SELECT 1", timeout=0.3)
        for _ in range(2):
            async with within(0.5):
                with pytest.raises((PoolTimeout, ConnectionFailed, QueryTimeout)):
                    await pool.fetchval("SELECT 1", timeout=0.5)
    finally:
        cluster.thaw()
    assert await recovers(pool) < 2.0 + SLACK
    await pool.aclose()


@pytest.mark.timeout(90)
async def test_a_server_that_is_starting_is_waited_for(cluster):
    """A pool whose server restarts serves its waiters inside their deadlines."""
    async with pool_on(cluster.tcp_dsn, max_size=2) as pool:
        await cluster.stop("fast")
        waiting = asyncio.create_task(pool.fetchval("SELECT 1", timeout=60))
        await until(lambda: pool.statistics().connect_failures)
        with pytest.raises(ConnectionFailed, match="no connection within"):
            await pool.fetchval("SELECT 1", timeout=0.1)
        await cluster.start()
        assert await waiting == 1


async def test_random_cancellations_leak_nothing(empty_dsn):
    """150 cancelled at random instants: none lost, never above max_size."""
    await cancel_at_random(empty_dsn, 150)
