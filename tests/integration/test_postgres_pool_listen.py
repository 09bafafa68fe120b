"""LISTEN outlives its connection and admits what it may have missed."""

from __future__ import annotations

import asyncio

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import InvalidName, PoolClosed
from fm_storage.postgres import Notification, Pool


@pytest.fixture
async def pool(empty_dsn):
    """Give an open pool."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as opened:
        yield opened


async def next_of(rows):
    """Return the next notification, soon."""
    async with asyncio.timeout(20):
        return await anext(rows)


async def test_notifications_arrive_in_order(pool):
    """Each reader of a channel gets all, others nothing."""
    async with (
        pool.listen("Some Channel") as first,
        pool.listen("Some Channel") as second,
        pool.listen("other") as other,
    ):
        for number in range(3):
            await pool.execute("SELECT pg_notify('Some Channel', $1)", str(number))
        await pool.execute("NOTIFY other, 'x'")
        for reader in (aiter(first), aiter(second)):
            got = [await next_of(reader) for _ in range(3)]
            assert [n.payload for n in got] == ["0", "1", "2"]
            assert all(n.pid and not n.missed for n in got)
        assert (await next_of(aiter(other))).channel == "other"
        assert pool.statistics().size >= 1


async def test_a_lost_connection_is_replaced_and_the_gap_is_reported(pool):
    """After the loss the first notification has missed=True."""
    async with pool.listen("c") as reader:
        rows = aiter(reader)
        await pool.execute("NOTIFY c, 'one'")
        assert (await next_of(rows)).payload == "one"
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE '%/listen'"
        )
        assert await next_of(rows) == Notification("c", "", 0, missed=True)
        await pool.execute("NOTIFY c, 'two'")
        assert (await next_of(rows)).payload == "two"


async def test_iterating_alone_listens_and_stops(pool):
    """Async for without a block works too; leaving it ends the connection."""
    got = []

    async def read():
        async for notification in pool.listen("c"):
            got.append(notification.payload)
            if len(got) == 2:
                break

    task = asyncio.create_task(read())
    async with asyncio.timeout(20):
        while not task.done():
            await pool.execute("NOTIFY c, 'x'")
            await asyncio.sleep(0.02)
    assert got == ["x", "x"]


async def test_closing_the_pool_ends_the_iteration(empty_dsn):
    """PoolClosed comes out of the iterator, at once."""
    pool = Pool(PostgresConfig(dsn=empty_dsn))
    await pool.open()
    async with pool.listen("c") as reader:
        waiting = asyncio.ensure_future(anext(aiter(reader)))
        await asyncio.sleep(0.01)
        await pool.aclose()
        with pytest.raises(PoolClosed):
            await waiting
    with pytest.raises(PoolClosed):
        async with pool.listen("c"):
            pass
    with pytest.raises(InvalidName):
        pool.listen("")
