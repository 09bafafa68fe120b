"""Work that finishes although its caller is cancelled."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from fm_storage.concurrency.shield import Once, abandon, shielded, wait_done


async def test_shielded_gives_the_result_or_the_failure():
    """Without a cancellation it is a plain await."""
    assert await shielded(lambda: asyncio.sleep(0, 7)) == 7

    async def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await shielded(fail)
    with pytest.raises(TimeoutError):
        await shielded(lambda: asyncio.sleep(60), timeout=0.01)


async def test_shielded_starts_again_work_that_was_cancelled_from_outside():
    """As asyncio.run() does to every task at its end."""
    runs: list[asyncio.Task[None] | None] = []

    async def work() -> str:
        runs.append(asyncio.current_task())
        await asyncio.sleep(0.02)
        return "done"

    async def assassin() -> None:
        await asyncio.sleep(0.01)
        assert runs[0] is not None
        runs[0].cancel()

    task = asyncio.ensure_future(assassin())
    assert await shielded(work) == "done"
    assert len(runs) == 2
    await task


@pytest.mark.parametrize("scoped", [False, True], ids=["task", "anyio"])
async def test_shielded_finishes_and_then_lets_the_cancellation_through(scoped: bool):
    """Of either kind, and however often it is repeated."""
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        ended.set()

    async def caller() -> None:
        if not scoped:
            await shielded(work)
            return
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await shielded(work)

    task = asyncio.ensure_future(caller())
    await begun.wait()
    for _ in range(3):
        if not scoped:
            task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    if scoped:
        await task
    else:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended.is_set()


async def test_a_failure_under_cancellation_is_logged(
    caplog: pytest.LogCaptureFixture,
):
    """The caller gets its cancellation; the failure is not lost."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        raise KeyError("of the work")

    task = asyncio.ensure_future(shielded(work))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "failed while its caller was cancelled" in caplog.text
    assert "of the work" in caplog.text


async def test_wait_done_returns_the_cancellation_and_touches_nothing():
    """The work goes on, and its failure is still there to be read."""
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(wait_done(work))
    await asyncio.sleep(0)
    waiting.cancel("first")
    await asyncio.sleep(0)
    waiting.cancel("second")
    await asyncio.sleep(0)
    assert not waiting.done()
    work.set_exception(KeyError("kept"))
    cancelled = await waiting
    assert cancelled is not None
    assert cancelled.args == ("first",)
    with pytest.raises(KeyError, match="kept"):
        await work
    assert await wait_done(work) is None
    endless: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert await wait_done(endless, 0.01) is None
    assert not endless.done()


async def test_once_runs_once_for_all_who_call():
    """Together or one after another; a cancelled caller stops nothing."""
    runs = 0
    go = asyncio.Event()

    async def work() -> int:
        nonlocal runs
        runs += 1
        await go.wait()
        return runs

    once = Once(work)
    first, second = asyncio.ensure_future(once()), asyncio.ensure_future(once())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert await second == 1
    assert await once() == 1
    assert first.cancelled()


async def test_once_starts_again_what_was_cancelled_from_outside():
    """As asyncio.run() does to every task at its end."""
    tasks: list[asyncio.Task[None] | None] = []

    async def work() -> str:
        tasks.append(asyncio.current_task())
        if len(tasks) == 1:
            await asyncio.sleep(60)
        return "done"

    once = Once(work)
    waiting = asyncio.ensure_future(shielded(once))
    while not tasks:
        await asyncio.sleep(0)
    assert tasks[0] is not None
    tasks[0].cancel()
    assert await waiting == "done"
    assert len(tasks) == 2


async def test_what_is_left_behind_says_how_it_failed(
    caplog: pytest.LogCaptureFixture,
):
    """Nobody awaits it any more, so the log has it."""
    stuck = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await stuck.wait()
            raise KeyError("too late") from None

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    abandon(task)
    await asyncio.sleep(0)
    assert task not in asyncio.all_tasks()
    stuck.set()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError):
        await task
    assert "a task left behind failed later" in caplog.text
