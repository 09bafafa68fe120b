"""Clean-up under every kind of cancellation, and under a deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from fm_storage.config import SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import SessionService

QUIET = SessionConfig(reap_interval=0)
COUNT = (
    "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = 'filtermate_temp'"
)

Work = Callable[[], Awaitable[None]]
When = Callable[[], Awaitable[None]]


async def native(work: Work, when: When) -> None:
    """Cancel *work* natively, one to five times."""
    task = asyncio.ensure_future(work())
    await when()
    for _ in range(random.randint(1, 5)):
        task.cancel()
        await asyncio.sleep(random.uniform(0, 0.01))
    with pytest.raises(asyncio.CancelledError):
        await task


async def timed(work: Work, when: When) -> None:
    """Cancel *work* by asyncio.timeout()."""
    loop = asyncio.get_running_loop()

    async def expire() -> None:
        await when()
        timeout.reschedule(loop.time())

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            expiry = asyncio.ensure_future(expire())
            await work()
    await expiry


async def sibling(work: Work, when: When) -> None:
    """Cancel *work* by a failing sibling in a TaskGroup."""

    async def fail() -> None:
        await when()
        raise KeyError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            group.create_task(fail())


async def scoped(work: Work, when: When) -> None:
    """Cancel *work* by an anyio scope."""

    async def expire() -> None:
        await when()
        scope.cancel()

    with anyio.CancelScope() as scope:
        expiry = asyncio.ensure_future(expire())
        await work()
    assert scope.cancelled_caught
    await expiry


KINDS = [native, timed, sibling, scoped]


async def storm(pool: Pool, rounds: int) -> tuple[float, float]:
    """Run sessions that are cancelled in every way; return wall and CPU seconds.

    Each is cancelled about when it has created some of its views, or is creating
    the next. After every block no view may be left.
    """
    service = SessionService(pool, QUIET)
    await service.open()
    wall = cpu = 0.0
    for number in range(rounds):
        ready = asyncio.Event()
        views = random.randint(0, 5)

        async def when(ready: asyncio.Event = ready) -> None:
            await ready.wait()
            await asyncio.sleep(random.choice((0, random.uniform(0, 0.02))))

        async def work(ready: asyncio.Event = ready, views: int = views) -> None:
            nonlocal wall, cpu
            session = service.session()
            began, used = time.monotonic(), time.process_time()
            try:
                async with session:
                    try:
                        for made in range(7):
                            if made == views:
                                ready.set()
                            await session.create_view("SELECT 1", materialized=True)
                        await asyncio.sleep(10)
                    finally:
                        began, used = time.monotonic(), time.process_time()
            finally:
                wall += time.monotonic() - began
                cpu += time.process_time() - used
                left = await asyncio.shield(asyncio.ensure_future(count()))
                assert left == 0, session.last_cleanup

        async def count() -> int:
            found: int = await pool.fetchval(COUNT)
            return found

        await KINDS[number % len(KINDS)](work, when)
        assert await count() == 0
    assert service.statistics().refused == 0
    assert service.statistics().dropped > rounds
    await service.aclose()
    return wall, cpu


@pytest.mark.timeout(60)
async def test_no_view_is_left_when_a_cancelled_block_returns(pool: Pool):
    """Native (repeated), timeout, TaskGroup, anyio scope: 0 left, and cancelled."""
    await storm(pool, 40)
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_objects") == 0


async def test_cleanup_waits_without_burning_the_processor(pool: Pool):
    """A clean-up held up for a second by a reader sleeps meanwhile.

    A loop that spins would take a second of CPU, ours takes a few hundredths: the
    bar of 0.1 s is in the torture sweeps, where coverage does not count as well.
    """
    config = SessionConfig(reap_interval=0, lock_timeout=25)
    service = SessionService(pool, config)
    await service.open()
    used = 0.0
    async with pool.acquire() as reader:
        with anyio.CancelScope() as scope:
            async with service.session() as session:
                view = await session.create_view("SELECT 1 AS n")
                await reader.execute("BEGIN")
                await reader.fetch(f"SELECT * FROM {view}")
                used = time.process_time()
                loop = asyncio.get_running_loop()
                loop.call_later(0.2, scope.cancel)
                loop.call_later(
                    1.2,
                    lambda: asyncio.ensure_future(reader.execute("ROLLBACK")),
                )
                await asyncio.sleep(60)
        used = time.process_time() - used
    assert session.last_cleanup.dropped == (str(view),)
    assert used < 0.5
    await service.aclose()


async def test_cleanup_is_bounded_and_the_rest_is_retried(pool: Pool):
    """A clean-up past its deadline is left behind, reported, and retried."""
    config = SessionConfig(reap_interval=0.05, lock_timeout=30, cleanup_timeout=0.3)
    service = SessionService(pool, config)
    await service.open()
    async with pool.acquire() as reader:
        session = await service.session()
        view = await session.create_view("SELECT 1 AS n")
        await reader.execute("BEGIN")
        await reader.fetch(f"SELECT * FROM {view}")
        began = time.monotonic()
        await session.aclose()
        assert 0.2 < time.monotonic() - began < 15  # not the 30 s of the lock
        assert not session.last_cleanup.complete
        await reader.execute("ROLLBACK")
    rows = "SELECT count(*) FROM fm_storage.session_objects"
    while await pool.fetchval(rows):
        await asyncio.sleep(0.05)
    await service.aclose()
    assert await pool.fetchval(COUNT) == 0


async def test_a_creation_cancelled_at_any_moment_is_known(pool: Pool):
    """Of many cancelled CREATEs those that happened are dropped all the same."""
    service = SessionService(pool, QUIET)
    await service.open()
    async with service.session() as session:
        began = time.monotonic()
        await session.create_view("SELECT 1 AS n")
        took = time.monotonic() - began
        for number in range(60):
            task = asyncio.ensure_future(session.create_view("SELECT 1 AS n"))
            await asyncio.sleep(took * number / 40)
            task.cancel()
            await asyncio.wait({task})
        await session.cleanup_session_views()
        assert await pool.fetchval(COUNT) == 0
        assert (await session.info()).views == ()
    await service.aclose()
