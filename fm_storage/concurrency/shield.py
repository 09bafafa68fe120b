"""Work that goes on although its caller is cancelled.

Apart because hooks, sessions and everything else that cleans up needs the same
few lines, and each half of them alone fails: an anyio shield does not stop
``task.cancel()``, and a shield loop without it spins under a cancelled anyio
scope (110,000 turns a second, measured).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

import anyio

__all__ = ["abandon", "shielded"]

logger = logging.getLogger("fm_storage.hooks")

T = TypeVar("T")

# The loop keeps only weak references: a task left behind is kept until it ends.
_abandoned: set[asyncio.Task[Any]] = set()


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
    cancelled: asyncio.CancelledError | None = None
    task = asyncio.ensure_future(work())
    again = True
    with anyio.CancelScope(shield=True):
        while True:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            try:
                # wait() neither cancels what it waits for nor, unlike
                # wait_for(), waits for a task that swallows its cancellation.
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
            if not task.done():
                continue
            if task.cancelled() and again:
                again = False
                task = asyncio.ensure_future(work())
                continue
            break
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


def abandon(task: asyncio.Task[Any]) -> None:
    """Cancel *task* and wait for it no longer; what it raises is logged.

    ``asyncio.run()`` must not wait for it at its end either: it would, without end,
    if the task swallows its cancellation. So it is taken off asyncio's list.
    See https://docs.python.org/3/library/asyncio-extending.html.
    """
    task.cancel()
    _abandoned.add(task)
    asyncio._unregister_task(task)  # noqa: SLF001 - documented there, underscore and all
    # Nor is its end with the interpreter worth a message: it was logged already.
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as gather() does
    task.add_done_callback(_buried)


def _buried(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.warning("a task left behind failed later", exc_info=failure)
