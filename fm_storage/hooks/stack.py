"""The hooks themselves: registered, run last-in first-out, each under a deadline."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from fm_storage.concurrency.lifecycle import Home
from fm_storage.concurrency.shield import Once, abandon, shielded, wait_done
from fm_storage.concurrency.threads import in_thread
from fm_storage.errors import ConfigurationInvalid, StorageClosed
from fm_storage.hooks import triggers
from fm_storage.hooks.hosts import Hosted
from fm_storage.hooks.signals import SignalGuard, held

logger = logging.getLogger("fm_storage.hooks")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_LAST_CHANCE = 0.05
"""Seconds a hook gets when the total deadline is already over: it is tried."""

_running_in: ContextVar[frozenset[int]] = ContextVar(
    "fm_storage_hooks_running", default=frozenset()
)


@dataclass(frozen=True, slots=True)
class _Hook:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timeout: float | None

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None)
        return str(name or repr(self.function))


def _seconds(value: float, name: str) -> float:
    # Found out at the end, it would keep the other hooks from being run.
    if isinstance(value, int | float) and value is not True and value > 0:
        return value
    raise ConfigurationInvalid(name, f"is {value!r}; give seconds above 0")


class ShutdownHooks(Hosted):
    """``atexit`` for coroutines: last in, first out, every hook tried.

    A hook is a function, sync or async. An async one runs on the loop, a sync one
    in a thread of its own (so that one that hangs can be left behind). Each has its
    own deadline and all together have one; a hook that is late is cancelled and
    left behind. Whatever a hook raises, ``CancelledError`` and ``SystemExit``
    included, the others still run.

    Registered inside a running loop, the hooks also run without ``aclose()``: at
    the end of ``asyncio.run()`` (``uvloop.run()``, ``anyio.run()``), else at the
    interpreter's exit. They are inert in a forked child.

    Args:
        timeout: Seconds for one hook that was given none of its own.
        total_timeout: Seconds for all of them together.
    """

    def __init__(self, *, timeout: float = 10.0, total_timeout: float = 30.0) -> None:
        self._timeout = _seconds(timeout, "timeout")
        self._total_timeout = _seconds(total_timeout, "total_timeout")
        self._hooks: list[_Hook] = []  # by register() and the run
        self._home = Home("shutdown hooks")  # its loop is the armed one, by arm()
        self._closed = False  # by the run
        self._raised = False  # whether aclose() was called, by aclose()
        self._running = Once(self._run_all)
        self._closer: Callable[[], Awaitable[None]] | None = None  # by arm()
        self._signals = SignalGuard()

    # -- registering ------------------------------------------------------------

    def register(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[P, R]:
        """Call ``fn(*args, **kwargs)`` at the end; return *fn*, as ``atexit`` does.

        The same function may be registered more than once. A hook may register
        another one, which runs next.

        Raises:
            StorageClosed: The hooks have already run.
            TypeError: *fn* cannot be called.
        """
        return self._add(_Hook(fn, args, kwargs, None), fn)

    def on_close(
        self, *, timeout: float | None = None
    ) -> Callable[[Callable[[], R]], Callable[[], R]]:
        """Register the decorated function, with a *timeout* of its own in seconds.

        Raises:
            ConfigurationInvalid: *timeout* is no number above 0.
        """
        if timeout is not None:
            _seconds(timeout, "timeout")

        def decorate(fn: Callable[[], R]) -> Callable[[], R]:
            return self._add(_Hook(fn, (), {}, timeout), fn)

        return decorate

    def unregister(self, fn: Callable[..., Any]) -> None:
        """Forget every registration of *fn*; an unknown one is ignored."""
        self._hooks = [hook for hook in self._hooks if hook.function != fn]

    def _add(self, hook: _Hook, fn: T) -> T:
        if not callable(fn):
            raise TypeError(
                f"shutdown hooks: {fn!r} cannot be called; give the function itself, "
                "and its arguments after it"
            )
        if self._closed:
            raise StorageClosed(
                f"shutdown hooks: {hook} was registered after the hooks had run; "
                "register it earlier"
            )
        self._hooks.append(hook)
        if self._closer is None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return fn  # the owner arms us when it opens on a loop
            self.arm(self._close_quietly)
        return fn

    # -- triggers ---------------------------------------------------------------

    def arm(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have the running loop's end call *closer*, which must run the hooks.

        For an owner that closes more than its hooks; without one the hooks arm
        themselves at the first registration inside a loop.
        """
        self.disarm()
        triggers.arm(closer)
        self._closer = closer
        self._home.loop = asyncio.get_running_loop()

    def disarm(self) -> None:
        """Take back what ``arm()`` and ``handle_signals()`` did."""
        if self._closer is not None:
            triggers.disarm(self._closer)
            self._closer = self._home.loop = None
        self._signals.give_back()

    def handle_signals(self, *signals: int) -> tuple[signal.Signals, ...]:
        """Let SIGTERM end the program in order; opt-in, for the program's owner.

        Call it from the main task. The first signal cancels that task, so that
        its ``async with`` blocks close and hooks run, and the program ends with
        exit code 143; a signal while hooks run waits for them; a second one leaves at
        once. Nothing is taken from a handler that is not ``SIG_DFL`` (a server such
        as uvicorn has its own), outside the main thread, or in a forked child.

        Args:
            *signals: Signals to handle; SIGTERM if none is named.

        Returns:
            The signals now handled here.
        """
        return self._signals.take(signals or (signal.SIGTERM,))

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Run the hooks when an ASGI application ends: ``FastAPI(lifespan=…)``.

        Needed under uvicorn, which after SIGTERM ends the process without
        closing generators and without ``atexit``.
        """
        del app
        try:
            yield
        finally:
            await (self._closer or self._close_quietly)()

    async def closing(self, main: Awaitable[T]) -> T:
        """Await *main*, then run the hooks: for runners that close no generators.

        ``loop.run_until_complete(hooks.closing(main()))``.
        """
        try:
            result = await main
        except GeneratorExit:
            raise  # thrown away with its loop: nothing can be awaited any more
        except BaseException:  # however it ended: close, then pass it on
            await (self._closer or self._close_quietly)()
            raise
        await (self._closer or self._close_quietly)()
        return result

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let a first signal wait until the block is done; a second one leaves.

        For an owner that closes more than its hooks. SIGINT is held back only
        where Python's own handler stands, SIGTERM only after ``handle_signals()``.
        """
        with self._signals.busy(), held():
            yield

    # -- running ----------------------------------------------------------------

    @property
    def running_here(self) -> bool:
        """Whether the caller is one of these hooks, or was called by one."""
        return id(self) in _running_in.get()

    async def run(self) -> list[Exception]:
        """Run every hook once, last in first out; return what failed.

        A second call returns the same list; a call from inside a hook returns at
        once. Cancelling the caller does not stop the hooks: the cancellation is
        raised when they are done or their deadline is over.

        Raises:
            WrongLoop: They are to run at the end of another loop, which is open.
        """
        home = self._home
        if home.forked or self.running_here:
            return []
        if home.loop is not None and not home.loop.is_closed():
            home.check()
        # A little more than the run allows itself: it always ends by itself.
        return await shielded(self._running, timeout=self._total_timeout * 2 + 5)

    async def aclose(self) -> None:
        """Run every hook, then raise what failed, together.

        Idempotent: failures are raised by the first call only.

        Raises:
            ExceptionGroup: One error for each hook that failed or was late.
            WrongLoop: See ``run()``.
        """
        failures = await self.run()
        first, self._raised = not self._raised, True
        self.disarm()
        if failures and first:
            raise ExceptionGroup("shutdown hooks failed", failures)

    async def __aenter__(self) -> Self:
        """Open nothing; the block's end runs the hooks."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Run the hooks; the block's own error goes first, failures are logged."""
        del kind, traceback
        if exc is None:
            await self.aclose()
        else:
            await self._close_quietly()

    async def _close_quietly(self) -> None:
        await self.run()
        self.disarm()

    async def _run_all(self) -> list[Exception]:
        _running_in.set(_running_in.get() | {id(self)})
        failures: list[Exception] = []
        deadline = monotonic() + self._total_timeout
        with self.guarded():
            while self._hooks:
                hook = self._hooks.pop()
                left = max(deadline - monotonic(), _LAST_CHANCE)
                allowed = min(hook.timeout or self._timeout, left)
                failure = await _attempt(hook, allowed)
                if failure is not None:
                    logger.error("shutdown hook %s failed", hook, exc_info=failure)
                    failures.append(failure)
            self._closed = True
        return failures


async def _attempt(hook: _Hook, timeout: float) -> Exception | None:
    """Run one hook in a task of its own; return its failure, raise nothing."""
    task = asyncio.ensure_future(_outcome(hook))
    # asyncio.run() cancels every task at its end, also this one; the hooks go on.
    await wait_done(task, timeout)
    if task.cancelled():
        return RuntimeError(f"shutdown hook {hook}: it was cancelled")
    if task.done():
        return task.result()
    abandon(task)
    return TimeoutError(
        f"shutdown hook {hook}: not done within {timeout:.2f} s; left behind"
    )


async def _outcome(hook: _Hook) -> Exception | None:
    """Call the hook; a SystemExit must not travel through the loop."""
    try:
        if inspect.iscoroutinefunction(hook.function):
            result: Any = hook.function(*hook.args, **hook.kwargs)
        else:
            # Not in the default executor: asyncio.run() waits for that one without
            # end, and a hook that hangs must be left behind.
            call = partial(hook.function, *hook.args, **hook.kwargs)
            result = await in_thread(call, name=f"shutdown hook {hook}")
        if inspect.isawaitable(result):
            await result
    except Exception as exc:  # returned, not lost
        return exc
    except BaseException as exc:  # as an error that a group can hold
        failure = RuntimeError(f"shutdown hook {hook}: it raised {exc!r}")
        failure.__cause__ = exc
        return failure
    return None
