"""Work that finishes although its caller is cancelled.

Two measures are needed, and each alone fails: an anyio shield does not stop
``task.cancel()``, and a waiting loop without it spins under a cancelled anyio scope
(110,000 turns a second, measured).
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import _unregister_task  # documented, see abandon()
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

logger = logging.getLogger("fm_storage.concurrency")

T = TypeVar("T")

# The loop keeps only weak references: a task left behind is kept until it ends.
_abandoned: set[asyncio.Task[Any]] = set()


async def wait_done(
    work: asyncio.Future[Any], timeout: float | None = None
) -> asyncio.CancelledError | None:
    """Wait until *work* is done, however often the caller is cancelled.

    Neither cancels *work* nor raises what it raised.

    Args:
        work: A future or task; nothing happens to it.
        timeout: Seconds to wait at most; *work* may not be done then.

    Returns:
        The first cancellation that arrived meanwhile, which the caller must raise
        again; None if there was none.
    """
    deadline = None if timeout is None else monotonic() + timeout
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not work.done():
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            try:
                # wait() neither cancels what it waits for nor, unlike
                # wait_for(), waits for a task that swallows its cancellation.
                await asyncio.wait({work}, timeout=left)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
    return cancelled


async def shielded(
    work: Callable[[], Coroutine[Any, Any, T]], *, timeout: float | None = None
) -> T:
    """Run *work* to its end, whatever cancels the caller meanwhile.

    *work* runs in a task of its own. A cancellation of the caller, of whatever
    kind and however often repeated, waits until *work* has ended or *timeout* is
    over, and is then raised again. If *work* itself is cancelled from outside
    (``asyncio.run`` cancels every task at its end) it is started once more, so it
    must be harmless to repeat.

    Args:
        work: Called to get the coroutine.
        timeout: Seconds until *work* is cancelled and left behind.

    Raises:
        TimeoutError: *work* did not end in time and was left behind.
        asyncio.CancelledError: The caller was cancelled meanwhile.
    """
    deadline = None if timeout is None else monotonic() + timeout
    task = asyncio.ensure_future(work())
    cancelled = await wait_done(task, timeout)
    if task.cancelled():
        left = None if deadline is None else deadline - monotonic()
        task = asyncio.ensure_future(work())
        cancelled = await wait_done(task, left) or cancelled
    if not task.done():
        abandon(task)
        if cancelled is not None:
            raise cancelled
        raise TimeoutError(f"not done within {timeout} s; left behind")
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("failed while its caller was cancelled", exc_info=failure)
        raise cancelled
    return task.result()


class Once(Generic[T]):
    """Work that is done once; every call waits for that one run.

    ``await once()`` starts it or joins it and returns its result. Cancelling a
    caller does not cancel the work; ``await shielded(once)`` waits for it as well.
    If the work itself is cancelled from outside, the next call starts it again.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None  # by __call__()

    async def __call__(self) -> T:
        """Start the work, or wait for the run that was started."""
        if self._task is None or self._task.cancelled():
            self._task = asyncio.ensure_future(self._work())
        return await asyncio.shield(self._task)


def consume(work: asyncio.Future[Any]) -> None:
    """Mark the failure of *work* as seen; for ``add_done_callback()``.

    asyncio reports an exception that nobody retrieved when the future is collected.
    """
    if not work.cancelled():
        work.exception()


def abandon(task: asyncio.Task[Any]) -> None:
    """Cancel *task* and wait for it no longer; what it raises is logged.

    ``asyncio.run()`` must not wait for it at its end either: it would, without end,
    if the task swallows its cancellation. So it is taken off asyncio's list.
    See https://docs.python.org/3/library/asyncio-extending.html.
    """
    task.cancel()
    _abandoned.add(task)
    _unregister_task(task)
    # Nor is its end with the interpreter worth a message: it was logged already.
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - as gather() does
    task.add_done_callback(_abandoned_ended)


def _abandoned_ended(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.warning("a task left behind failed later", exc_info=failure)
