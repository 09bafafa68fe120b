"""The last rung: what ``atexit`` does for loops that were never closed properly."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from fm_storage.concurrency.lifecycle import Home
from fm_storage.hooks import ShutdownHooks, triggers


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "masters", {})


async def register(hooks: ShutdownHooks, fn: object, *args: object) -> None:
    """Register on the running loop, as an application does."""
    hooks.register(fn, *args)


def test_a_loop_that_was_left_open_runs_its_hooks_at_exit():
    """On the old loop, which still works; once."""
    seen: list[int] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(register(ShutdownHooks(), seen.append, 1))
    triggers.at_exit()
    triggers.at_exit()
    assert seen == [1]
    loop.close()


def test_a_closed_loop_is_reported_in_the_log(caplog: pytest.LogCaptureFixture):
    """Too late for it; the log says what to do next time."""
    loop = asyncio.new_event_loop()
    hooks = ShutdownHooks()
    loop.run_until_complete(register(hooks, print))
    loop.close()
    triggers.at_exit()
    assert "1 closer(s) not run, their loop is closed" in caplog.text


def test_a_loop_that_runs_in_a_thread_is_asked_from_outside():
    """A daemon thread's loop is still running when the interpreter ends."""
    seen: list[str] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    hooks = ShutdownHooks()
    asyncio.run_coroutine_threadsafe(
        register(hooks, lambda: seen.append(threading.current_thread().name)), loop
    ).result(20)
    triggers.at_exit()
    assert len(seen) == 1
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_hooks_may_use_generators_when_the_loop_ends(run: Callable[..., object]):
    """Asyncio counts them as late (a warning, here an error): ours are seen to."""
    seen: list[str] = []

    @asynccontextmanager
    async def block() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            seen.append("block")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            seen.append("left behind")

    kept: list[AsyncIterator[int]] = []

    async def hook() -> None:
        async with block():
            kept.append(numbers())
            assert await anext(kept[0]) == 1

    async def main() -> None:
        await register(ShutdownHooks(), hook)

    before = sys.get_asyncgen_hooks()
    run(main())
    assert seen == ["block", "left behind"]
    assert sys.get_asyncgen_hooks() == before


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(7), 7), (SystemExit("words"), 1)],
)
def test_an_interruption_at_exit_is_the_exit_code(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
):
    """``atexit`` would swallow it."""
    left: list[int] = []
    monkeypatch.setattr(triggers, "leave", left.append)

    class Master:
        home = Home("shutdown")
        closers = (1,)
        loop = asyncio.new_event_loop()

        async def close(self) -> None:
            raise raised

    triggers.masters[Master.loop] = Master()  # type: ignore[assignment]  # a stand-in
    triggers.at_exit()
    assert left == [code]
    Master.loop.close()


def test_what_fails_at_exit_is_logged_and_the_other_loops_follow(
    caplog: pytest.LogCaptureFixture,
):
    """Closers of one loop and of the other are each tried."""
    seen: list[int] = []
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def fail() -> None:
        raise ValueError("boom")

    async def arm(closer: object) -> None:
        triggers.arm(closer)

    async def fine() -> None:
        seen.append(1)

    first.run_until_complete(arm(fine))
    second.run_until_complete(arm(fail))
    triggers.disarm(register)
    triggers.at_exit()
    assert seen == [1]
    assert "fail" in caplog.text
    assert "boom" in caplog.text
    first.close()
    second.close()


def test_a_generator_that_waits_is_a_fault_of_ours():
    """Advancing by hand is only for what does not wait."""
    loop = asyncio.new_event_loop()
    waiting = loop.create_future()

    async def wait() -> None:
        await waiting

    work = wait()
    with pytest.raises(RuntimeError, match="waited where it may not"):
        triggers.step(work)
    work.close()
    loop.close()
