"""A blocking function in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from fm_storage.concurrency.threads import in_thread, run_in_thread

_mark = contextvars.ContextVar("mark", default="none")


async def test_a_result_and_a_failure_come_back():
    """In the caller's context, from another thread."""
    _mark.set("ours")
    here = threading.get_ident()
    mark, ident, name = await in_thread(
        lambda: (_mark.get(), threading.get_ident(), threading.current_thread().name),
        name="a job",
    )
    assert (mark, name) == ("ours", "a job")
    assert ident != here

    def fail() -> None:
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        await in_thread(fail, name="a job")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_thread(lambda: next(iter(())), name="a job")


async def test_an_unawaited_failure_is_no_noise():
    """What nobody awaits was abandoned on purpose."""
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: noise.append(context)
    )
    done = in_thread(lambda: int("x"), name="a job")
    await asyncio.wait({done})
    del done
    await asyncio.sleep(0)
    assert noise == []


async def test_without_threads_the_function_runs_here(monkeypatch: pytest.MonkeyPatch):
    """At interpreter exit no thread can be started any more."""

    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await in_thread(threading.get_ident, name="a job") == threading.get_ident()


def test_a_function_that_outlives_its_loop_is_logged(caplog: pytest.LogCaptureFixture):
    """Its result has nowhere to go."""
    go = threading.Event()

    def work() -> None:
        go.wait(10)

    async def main() -> threading.Thread:
        in_thread(work, name="the slow job")
        return next(t for t in threading.enumerate() if t.name == "the slow job")

    thread = asyncio.run(main())
    go.set()
    thread.join(10)
    assert "the slow job ended after its event loop had" in caplog.text


async def test_a_cancelled_run_is_interrupted_and_waited_for():
    """The function ends by itself, and the cancellation goes on."""
    begun, stop, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        stop.wait(10)
        ended.set()

    task = asyncio.ensure_future(
        run_in_thread(work, name="a job", interrupt=stop.set, patience=10.0)
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_run_that_does_not_end_is_abandoned():
    """After *patience* seconds, whatever holds it."""
    begun, stop = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        stop.wait(10)

    task = asyncio.ensure_future(
        run_in_thread(work, name="a job", interrupt=lambda: None, patience=0.01)
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stop.set()
