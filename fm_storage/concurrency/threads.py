"""A blocking function in a thread of its own.

Neither ``asyncio.to_thread`` nor its executor will do where the end must be bounded:
their threads are joined when the interpreter exits, so that a driver stuck on a frozen
server keeps the process alive for ever; and they refuse work once the interpreter is
on its way out, which is when an ``atexit`` hook closes what is still open.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from fm_storage.concurrency.shield import consume, wait_done

logger = logging.getLogger("fm_storage.concurrency")

T = TypeVar("T")


def in_thread(
    function: Callable[[], T], *, name: str, daemon: bool = True
) -> asyncio.Future[T]:
    """Start *function* in a thread of its own; return the future of its result.

    It runs in a copy of the caller's context. Cancelling the future does not stop
    it. Where no thread can be started any more (interpreter exit, 3.12) it runs
    here.

    Args:
        function: Takes no arguments.
        name: Of the thread.
        daemon: Whether the interpreter may end before it does.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    done.add_done_callback(consume)
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(cast("T", result))
        elif isinstance(error, StopIteration):  # a future refuses it
            done.set_exception(RuntimeError(repr(error)))
        else:
            done.set_exception(error)

    def body() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as exc:  # carried to the awaiting task
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop was closed meanwhile
            logger.warning("%s ended after its event loop had", name)

    try:
        threading.Thread(target=body, name=name, daemon=daemon).start()
    except RuntimeError:
        body()
    return done


async def run_in_thread(
    function: Callable[[], T],
    *,
    name: str,
    interrupt: Callable[[], None],
    patience: float,
) -> T:
    """Run *function* in a daemon thread and return what it returns.

    If cancelled, *interrupt* is called, in another thread; *function* then has
    *patience* seconds to end before it is abandoned, and the cancellation goes on.
    """
    done = in_thread(function, name=name)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        in_thread(interrupt, name=f"{name} (interrupt)")
        await wait_done(done, patience)
        raise
