"""A blocking function beside the event loop, with an end that is bounded.

Apart because neither ``asyncio.to_thread`` nor its executor will do: their
threads are joined when the interpreter exits, and a driver stuck on a frozen
server would keep the process alive for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_beside_the_loop"]

T = TypeVar("T")


async def run_beside_the_loop(
    function: Callable[[], T],
    *,
    interrupt: Callable[[], None],
    patience: float,
) -> T:
    """Run *function* in a thread of its own and await what it returns.

    If cancelled, *interrupt* is called, in another thread; *function* then has
    *patience* seconds to end before it is abandoned, and the cancellation goes on.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    # Looked at, so that the failure of an abandoned call is not logged as forgotten.
    done.add_done_callback(lambda future: future.cancelled() or future.exception())

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # a T whenever error is None
        else:
            done.set_exception(error)

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name="fm_storage migrate", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        threading.Thread(target=interrupt, daemon=True).start()
        await _wait_through_cancellation(done, patience)
        raise


async def _wait_through_cancellation(done: asyncio.Future[T], patience: float) -> None:
    """Wait for *done*, however often the waiting task is cancelled."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not done.done() and (left := deadline - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({done}, timeout=left)
