"""What runs hooks when nobody calls ``aclose()``: the loop's end, or the exit.

One *master* per loop holds every closer of that loop, so that they run last-in
first-out: several suspended generators would be closed at once, in any order.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio

from fm_storage.concurrency.lifecycle import Home
from fm_storage.hooks.signals import held

logger = logging.getLogger("fm_storage.hooks")

Closer = Callable[[], Awaitable[None]]

_EXIT_TIMEOUT = 30.0
"""How long ``atexit`` waits for a loop that runs in another thread."""

# Strong references: the garbage collector would finalise a suspended generator.
masters: dict[asyncio.AbstractEventLoop, _Master] = {}


class _Master:
    """The closers of one loop and the generator whose end runs them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.home = Home("shutdown")
        self.closers: list[Closer] = []
        self.closing = False
        self._generator = self._suspend()
        # Runs up to the yield without a real await; the running loop's hooks
        # see this first step and will close the generator at the loop's end.
        step(self._generator.__anext__())

    async def _suspend(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            async with _ClosingGenerators():
                await self.close()

    async def close(self) -> None:
        """Run every closer, last first; a failure is logged, the rest go on."""
        if self.home.forked:
            return
        self.closing = True
        try:
            with held():
                while self.closers:
                    await _attempt(self.closers.pop())
        finally:
            self.closing = False
            masters.pop(self.loop, None)

    def retire(self) -> None:
        """Forget the generator, which has nothing left to do."""
        masters.pop(self.loop, None)
        if not self.closing:
            step(self._generator.aclose())


class _ClosingGenerators:
    """A block that closes the asynchronous generators begun in it, and only those.

    The loop is closing its own by now; it would not close later ones, and warns of
    each (an error under ``-W error``). Every ``@asynccontextmanager`` is a generator,
    so this block is a class. The hooks set here are this thread's, which is this
    loop's.
    See https://docs.python.org/3/library/sys.html#sys.set_asyncgen_hooks.
    """

    def __init__(self) -> None:
        self._begun: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._loops = sys.get_asyncgen_hooks()
        self._ours = self._begun.add

    async def __aenter__(self) -> None:
        sys.set_asyncgen_hooks(firstiter=self._ours, finalizer=self._loops.finalizer)

    async def __aexit__(self, *_: object) -> None:
        for generator in list(self._begun):
            with contextlib.suppress(Exception):  # it is being thrown away
                await generator.aclose()
        if sys.get_asyncgen_hooks().firstiter == self._ours:
            sys.set_asyncgen_hooks(*self._loops)


async def _attempt(closer: Closer) -> None:
    try:
        await closer()
    except Exception:  # the others are tried whatever this one does
        logger.exception("shutdown: %r failed", closer)


def step(awaitable: Awaitable[Any]) -> None:
    """Advance *awaitable*, which is known not to wait, to its end."""
    iterator = awaitable.__await__()
    try:
        next(iterator)
    except (StopIteration, StopAsyncIteration):
        return
    raise RuntimeError("shutdown: the generator waited where it may not")


def arm(closer: Closer) -> None:
    """Run *closer* at the end of the running loop, or at exit.

    Call it from inside the loop. It is called at most once.
    """
    loop = asyncio.get_running_loop()
    # Loads anyio's backend now: at exit it is too late for imports, and one that
    # calls exec() makes Python forget that a KeyboardInterrupt ended the program.
    anyio.get_cancelled_exc_class()
    master = masters.get(loop)
    if master is None or master.home.forked:
        master = masters[loop] = _Master(loop)
    master.closers.append(closer)


def disarm(closer: Closer) -> None:
    """Take *closer* back; one that is not armed is ignored."""
    for master in list(masters.values()):
        if closer in master.closers and not master.home.forked:
            master.closers.remove(closer)
            if not master.closers and not master.closing:
                master.retire()
            return


def at_exit() -> None:
    """Close what is left on loops that were never closed properly."""
    for master in reversed(list(masters.values())):
        if master.home.forked or not master.closers:
            continue
        loop = master.loop
        if loop.is_closed():
            logger.warning(
                "shutdown: %d closer(s) not run, their loop is closed; use "
                "'async with', or await aclose() before loop.close()",
                len(master.closers),
            )
            continue
        try:
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(master.close(), loop).result(
                    _EXIT_TIMEOUT
                )
            else:
                # The loop, its sockets and transports still work; only its
                # default executor has gone.
                loop.run_until_complete(master.close())
        except Exception:  # nobody is left to raise it to; other loops follow
            logger.exception("shutdown: closing at exit failed")
        except KeyboardInterrupt:
            leave(128 + signal.SIGINT)
        except SystemExit as exc:
            leave(exc.code if isinstance(exc.code, int) else 1)


def leave(code: int) -> None:
    """End the process with *code*, which atexit has no other way to set."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


atexit.register(at_exit)
