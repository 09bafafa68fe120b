"""A storage manager for code without an event loop: plug-ins, scripts, notebooks."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from fm_storage.errors import ForkedProcess, StorageClosed, StorageError
from fm_storage.manager.storage import StorageManager

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from fm_storage.config import StorageConfig


@contextmanager
def blocking(config: StorageConfig | None = None) -> Iterator[Any]:
    """Open a ``StorageManager`` in a thread of its own; use it without ``await``.

    ``with fm_storage.blocking(config) as storage:`` gives the manager with every
    method as a plain function: ``storage.pool.fetchval("SELECT $1::int", 1)``. What
    is used with ``async with`` is used with ``with`` (``storage.transaction()``,
    ``storage.session()``), what is iterated with ``async for`` with ``for``. It may
    be used from several threads at once. Interrupted (Ctrl-C), the call under way is
    cancelled and the manager is closed.

    Args:
        config: The settings; None reads the environment.

    Raises:
        StorageError: As the manager's own methods do.
    """
    with (
        start_blocking_portal(name="fm_storage blocking") as portal,
        portal.wrap_async_context_manager(StorageManager(config)) as storage,
    ):
        loop = _Loop(portal)
        try:
            yield Blocking(storage, loop)
        finally:
            loop.ended = True


class _Loop:
    """The event loop in its thread, while the block lasts."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._thread = portal.call(threading.get_ident)
        self._pid = os.getpid()
        self.ended = False

    def portal(self) -> BlockingPortal:
        """Return the way into the loop.

        Raises:
            StorageError: It would not answer: the block has ended, or this is a
                forked child, or the loop's own thread.
        """
        if self.ended:
            raise StorageClosed(
                "blocking storage: its block has ended; use it inside 'with "
                "fm_storage.blocking(…)'"
            )
        if os.getpid() != self._pid:
            raise ForkedProcess("blocking storage")
        if threading.get_ident() == self._thread:
            raise StorageError(
                "blocking storage: used inside a function that its own event loop "
                "runs, which would wait for itself; await what the function was given"
            )
        return self._portal


class Blocking:
    """An object of the event loop's thread, for use from other threads."""

    def __init__(self, inner: Any, loop: _Loop) -> None:
        self._inner = inner
        self._loop = loop
        self._context: Any = None  # by __enter__()

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    def __getattr__(self, name: str) -> Any:
        """Return a method as a plain function, a part as another of these."""
        if name.startswith("_"):
            raise AttributeError(name)
        # Looked up on the loop's thread: a part may compare the running loop.
        found = self._loop.portal().call(getattr, self._inner, name)
        return self._function(found) if callable(found) else self._given(found)

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                result = function(*args, **kwargs)
                return await result if inspect.iscoroutine(result) else result

            return self._given(self._loop.portal().call(run))

        return call

    def _given(self, value: Any) -> Any:
        kind: Any = type(value)
        return Blocking(value, self._loop) if _waits(kind) else value

    def __enter__(self) -> Any:
        """Enter the object's own block."""
        self._context = self._loop.portal().wrap_async_context_manager(self._inner)
        entered = self._context.__enter__()
        return self if entered is self._inner else self._given(entered)

    def __exit__(self, *exc: object) -> bool | None:
        """Leave the object's own block."""
        ended: bool | None = self._context.__exit__(*exc)
        return ended

    def __iter__(self) -> Iterator[Any]:
        """Iterate as ``async for`` does."""
        if not hasattr(self._inner, "__aiter__"):
            raise TypeError(f"{self!r} has no items; enter it: with … as rows")
        iterator = self._loop.portal().call(self._inner.__aiter__)

        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(iterator)
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self._loop.portal().call(following)
            if not more:
                return
            yield self._given(item)


@cache
def _waits(kind: type[Any]) -> bool:
    """Whether something of *kind* has to be awaited: a method, a block, a loop."""
    if any(hasattr(kind, name) for name in ("__aenter__", "__aiter__")):
        return True
    return any(
        inspect.iscoroutinefunction(getattr(kind, name, None))
        for name in dir(kind)
        if not name.startswith("_")
    )
