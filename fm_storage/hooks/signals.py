"""Signals: SIGINT while hooks run, and SIGTERM where the application agrees.

* While hooks run, the first SIGINT waits until they are done and the second
  leaves at once. Only Python's own reaction is held back (the default
  ``KeyboardInterrupt``, or the one ``asyncio.run()`` puts in its place); a handler
  of the application's is never touched.
* ``take()`` (``ShutdownHooks.handle_signals()``) makes SIGTERM end the program as
  SIGINT does: it cancels the task, and ends with exit code 143. Only over
  ``SIG_DFL``, only in the main thread.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fm_storage.concurrency.lifecycle import Home

_EXIT = 128


def _leave(signum: int) -> None:
    """End the process now; nothing more is run."""
    os._exit(_EXIT + signum)


def _is_pythons_own(handler: object) -> bool:
    """Whether *handler* is what Python itself puts on SIGINT."""
    if handler is signal.default_int_handler:
        return True
    function = handler.func if isinstance(handler, functools.partial) else handler
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)


@contextmanager
def held() -> Iterator[None]:
    """Hold a first SIGINT back until the block ends; a second one leaves.

    Does nothing outside the main thread, or if SIGINT is the application's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not _is_pythons_own(before):
        yield
        return
    home = Home("signals")
    seen = 0

    def on_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        del frame
        seen += 1
        if seen > 1 or home.forked:
            _leave(signum)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is on_signal:
            signal.signal(signal.SIGINT, before)
    if seen:
        signal.raise_signal(signal.SIGINT)


class SignalGuard:
    """SIGTERM as an orderly end, if nobody else handles it."""

    def __init__(self) -> None:
        self._taken: dict[int, Any] = {}
        self._home = Home("signals")  # by take()
        self._busy = 0  # by busy()
        self._count = 0  # signals outside hooks, by the handler
        self._waiting = 0  # a signal that came while hooks ran, by the handler
        self._task: asyncio.Task[Any] | None = None

    def take(self, signals: tuple[int, ...]) -> tuple[signal.Signals, ...]:
        """Handle *signals* that nobody handles; return which they are.

        The first one cancels the calling task and, when that has ended, raises
        ``SystemExit(128 + number)`` out of the loop. The second one leaves at once.
        """
        if threading.current_thread() is not threading.main_thread():
            return ()
        self._home = Home("signals")
        self._home.enter()
        self._task = asyncio.current_task()
        for signum in signals:
            if signum in self._taken or signal.getsignal(signum) is not signal.SIG_DFL:
                continue
            # One bound method for all: getsignal() must find it again by identity.
            self._taken[signum] = handler = self._on_signal
            signal.signal(signum, handler)
        return tuple(signal.Signals(signum) for signum in self._taken)

    def give_back(self) -> None:
        """Put ``SIG_DFL`` back where our handler still is.

        Kept while a signal is being answered: its exit code is still to come.
        """
        if (
            self._count
            or self._waiting
            or self._home.forked
            or threading.current_thread() is not threading.main_thread()
        ):
            return
        for signum, handler in self._taken.items():
            if signal.getsignal(signum) is handler:
                signal.signal(signum, signal.SIG_DFL)
        self._taken.clear()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark that hooks run: a signal now waits for the block's end."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
        if self._waiting and not self._busy:
            self._begin(self._waiting)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._home.forked:
            # A forked child: the parent's hooks are none of its business.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if self._busy:
            if self._waiting:
                _leave(signum)
            self._waiting = signum
            return
        self._count += 1
        if self._count > 1:
            _leave(signum)
        loop = self._home.loop
        if loop is None or not loop.is_running():
            raise SystemExit(_EXIT + signum)
        loop.call_soon_threadsafe(self._begin, signum)

    def _begin(self, signum: int) -> None:
        """Cancel the task; leave the loop with the exit code once it is done."""
        loop, task = self._home.loop, self._task
        if loop is None or loop.is_closed():
            return

        def leave(_: object = None) -> None:
            raise SystemExit(_EXIT + signum)

        if task is None or task.done():
            loop.call_soon(leave)
            return
        # Called after run_until_complete()'s own callback, which was added
        # first: the loop is stopping when this ends it with the exit code.
        task.add_done_callback(leave)
        task.cancel()
