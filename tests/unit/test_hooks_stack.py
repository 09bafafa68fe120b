"""Shutdown hooks: order, deadlines, failures, re-entrance."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import pytest

from fm_storage.errors import ConfigurationInvalid, StorageClosed, WrongLoop
from fm_storage.hooks import ShutdownHooks, triggers


async def test_hooks_run_last_in_first_out_with_their_arguments():
    """Sync and async, each with what it was registered with."""
    seen: list[object] = []

    async def note(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(0)
        seen.append((args, kwargs))

    hooks = ShutdownHooks()
    assert hooks.register(note, 1, key="value") is note
    hooks.register(seen.append, 2)

    @hooks.on_close(timeout=1)
    async def last() -> None:
        seen.append(3)

    assert callable(last)
    hooks.register(lambda: note(4))
    await hooks.aclose()
    await hooks.aclose()
    assert seen == [((4,), {}), 3, 2, ((1,), {"key": "value"})]


async def test_every_hook_is_tried_whatever_the_others_do():
    """Errors, cancellation, SystemExit, hanging, swallowing: the rest still run."""
    seen: list[str] = []
    hooks = ShutdownHooks(timeout=0.1, total_timeout=5)

    async def raises(exc: BaseException) -> None:
        raise exc

    async def swallows() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if seen == ["last", "first"]:
                    return

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    release = threading.Event()
    hooks.register(seen.append, "first")
    hooks.register(raises, ValueError("boom"))
    hooks.register(raises, SystemExit(3))
    hooks.register(raises, asyncio.CancelledError())
    hooks.register(raises, KeyboardInterrupt())
    hooks.register(cancels_itself)
    hooks.register(swallows)
    hooks.register(release.wait, 60)
    hooks.register(seen.append, "last")
    began = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        await hooks.aclose()
    assert time.monotonic() - began < 10  # of the minutes they would take
    release.set()
    assert seen == ["last", "first"]
    assert [type(exc).__name__ for exc in caught.value.exceptions] == [
        "TimeoutError",
        "TimeoutError",
        *["RuntimeError"] * 4,
        "ValueError",
    ]
    assert isinstance(caught.value.exceptions[-2].__cause__, SystemExit)
    await hooks.aclose()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_the_total_deadline_bounds_them_all():
    """When the time for all is over, the rest are still tried for a moment."""
    seen: list[int] = []
    hooks = ShutdownHooks(timeout=10, total_timeout=0.2)
    hooks.register(seen.append, 1)
    for _ in range(3):
        hooks.register(asyncio.sleep, 60)
    began = time.monotonic()
    failures = await hooks.run()
    assert time.monotonic() - began < 5  # one of them has 10 s of its own
    assert len(failures) == 3
    assert seen == [1]


async def test_a_hook_may_register_unregister_and_close():
    """Hooks change the stack while it runs; closing from inside does nothing."""
    seen: list[str] = []
    hooks = ShutdownHooks()

    def unwanted() -> None:
        seen.append("unwanted")

    async def outer() -> None:
        hooks.unregister(unwanted)
        hooks.register(seen.append, "inner")
        await hooks.aclose()
        seen.append("outer")

    hooks.register(unwanted)
    hooks.register(outer)
    hooks.register(unwanted)
    hooks.unregister(print)
    await hooks.aclose()
    assert seen == ["unwanted", "outer", "inner"]
    with pytest.raises(StorageClosed):
        hooks.register(unwanted)


async def test_two_closers_wait_for_one_run():
    """Concurrent closes join; only the first raises the failures."""
    hooks = ShutdownHooks()

    async def slow() -> None:
        await asyncio.sleep(0.05)
        raise ValueError

    hooks.register(slow)
    results = await asyncio.gather(
        hooks.aclose(), hooks.aclose(), return_exceptions=True
    )
    assert [type(result).__name__ for result in results] == [
        "ExceptionGroup",
        "NoneType",
    ]


async def test_a_cancelled_closer_finishes_first():
    """A cancelled close() runs the hooks; the cancellation is raised afterwards."""
    seen: list[int] = []

    async def slow(number: int) -> None:
        await asyncio.sleep(0.05)
        seen.append(number)

    hooks = ShutdownHooks()
    hooks.register(slow, 1)
    hooks.register(slow, 2)
    task = asyncio.ensure_future(hooks.aclose())
    for _ in range(4):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [2, 1]


async def test_the_block_raises_its_own_error_first(caplog: pytest.LogCaptureFixture):
    """An error of the block goes on; what hooks raise is logged, not lost."""

    def fail() -> None:
        raise ValueError("hook")

    with pytest.raises(KeyError):
        async with ShutdownHooks() as hooks:
            hooks.register(fail)
            raise KeyError
    assert "fail" in caplog.text
    with pytest.raises(ExceptionGroup):
        async with ShutdownHooks() as hooks:
            hooks.register(fail)


async def test_lifespan_and_closing_run_the_hooks():
    """The one-liners for ASGI hosts and for bare loops."""
    seen: list[str] = []
    hooks = ShutdownHooks()
    hooks.register(seen.append, "lifespan")
    async with hooks.lifespan(object()):
        assert seen == []
    hooks = ShutdownHooks()
    hooks.register(seen.append, "closing")
    assert await hooks.closing(asyncio.sleep(0, "result")) == "result"
    assert seen == ["lifespan", "closing"]


async def test_nothing_is_left_armed_after_closing():
    """Closed hooks leave no generator behind on the loop."""
    loop = asyncio.get_running_loop()
    hooks = ShutdownHooks()
    hooks.register(print)
    assert loop in triggers.masters
    hooks.unregister(print)
    await hooks.aclose()
    assert loop not in triggers.masters


def test_another_loop_is_refused_and_changes_nothing():
    """Hooks belong to the loop they are armed on; a closed one has no claim."""
    seen: list[int] = []
    hooks = ShutdownHooks()

    async def from_outside() -> None:
        for end in (hooks.run, hooks.aclose):
            with pytest.raises(WrongLoop, match=r"shutdown hooks: .*one per loop"):
                await end()

    async def main() -> None:
        hooks.register(seen.append, 1)
        await asyncio.to_thread(asyncio.run, from_outside())
        assert seen == []
        assert asyncio.get_running_loop() in triggers.masters
        await hooks.aclose()

    asyncio.run(main())
    assert seen == [1]

    loop = asyncio.new_event_loop()
    late = ShutdownHooks()

    async def register() -> None:
        late.register(seen.append, 2)

    loop.run_until_complete(register())
    loop.close()
    asyncio.run(late.aclose())
    assert seen == [1, 2]


@pytest.mark.parametrize("given", [5, None, "print"])
def test_what_cannot_be_called_is_refused_at_once(given: object):
    """As ``atexit`` does, not at the end, when nobody is left to correct it."""
    hooks = ShutdownHooks()
    with pytest.raises(TypeError, match="cannot be called; give the function"):
        hooks.register(given)
    with pytest.raises(TypeError, match="cannot be called"):
        hooks.on_close()(given)


def test_hooks_registered_before_the_loop_wait_for_their_owner():
    """Outside a loop nothing is armed; the first to open on a loop arms it."""
    seen: list[int] = []
    hooks = ShutdownHooks()
    hooks.register(seen.append, 1)

    async def main() -> None:
        hooks.arm(hooks.run)

    asyncio.run(main())
    assert seen == [1]


def test_a_forked_child_runs_no_hooks():
    """What the parent registered is the parent's, on every way out."""
    read, write = os.pipe()

    async def main() -> None:
        hooks = ShutdownHooks()
        hooks.register(os.write, write, b"ran")
        pid = os.fork()
        if pid == 0:
            await hooks.aclose()
            os._exit(0 if await hooks.run() == [] else 1)
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - the child ends at once
        hooks.unregister(os.write)
        await hooks.aclose()

    asyncio.run(main())
    os.close(write)
    assert os.read(read, 9) == b""
    os.close(read)


async def test_signals_are_taken_only_where_nobody_else_has_them():
    """SIG_DFL and the main thread only; given back at the end."""
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    hooks = ShutdownHooks()
    assert hooks.handle_signals(signal.SIGUSR1, signal.SIGINT) == (signal.SIGUSR1,)
    assert callable(signal.getsignal(signal.SIGUSR1))
    await hooks.aclose()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    def elsewhere() -> tuple[signal.Signals, ...]:
        async def take() -> tuple[signal.Signals, ...]:
            return ShutdownHooks().handle_signals(signal.SIGUSR1)

        return asyncio.run(take())

    assert await asyncio.to_thread(elsewhere) == ()


@pytest.mark.parametrize("wrong", ["5", 0, -1, float("nan"), True, None, 5j])
def test_a_deadline_that_is_none_is_refused_at_once(wrong: Any):
    """At the end it would keep the other hooks from being run."""
    with pytest.raises(ConfigurationInvalid, match="give seconds above 0"):
        ShutdownHooks(timeout=wrong)
    with pytest.raises(ConfigurationInvalid, match="give seconds above 0"):
        ShutdownHooks(total_timeout=wrong)
    if wrong is not None:
        with pytest.raises(ConfigurationInvalid, match="give seconds above 0"):
            ShutdownHooks().on_close(timeout=wrong)
