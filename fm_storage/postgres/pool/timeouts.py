"""The default timeout of statements, enforced by one coarse timer for all of them.

A timer of the driver's own costs 5 to 7 µs per statement, more than all the rest
of a checkout, and ``command_timeout`` (60 s) does not need its precision. Every
statement notes its deadline on its entry, and one look now and then cancels what
has passed it: late by less than half a second. A timeout that the caller gave is
the driver's, and exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_SHORTEST, _LONGEST, _SHARE = 0.02, 0.35, 0.1


def timeout_interval(command_timeout: float | None) -> float:
    """Return the seconds between two looks at the deadlines."""
    if command_timeout is None:
        return _LONGEST
    return min(_LONGEST, max(_SHORTEST, command_timeout * _SHARE))


class Ticker:
    """Calls a function after each interval: a timer leaves no task pending."""

    def __init__(self, interval: float, look: Callable[[], None]) -> None:
        self._interval = interval
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call it after each interval, until ``end()``."""
        self._timer = loop.call_later(self._interval, self._tick, loop)

    def end(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.begin(loop)
        self._look()
