"""The default timeout of statements, kept by one coarse timer for all of them.

Apart because a timer of the driver's own costs 5 to 7 µs per statement, more
than all the rest of a checkout, and ``command_timeout`` (60 s) does not need
its precision. Every statement notes its deadline on the link, and one look now
and then cancels what has passed it: late by less than half a second. A timeout
that the caller gave is the driver's, and exact.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["GRACE", "StatementTimeouts"]

GRACE = 0.1
"""How long after the driver's own timer the watch steps in."""

_SHORTEST, _LONGEST, _SHARE = 0.02, 0.35, 0.1


class StatementTimeouts:
    """Looks after the deadlines of a pool's statements."""

    def __init__(self, lender: PoolCore) -> None:
        self._lender = lender
        limit = lender.config.command_timeout
        share = _LONGEST if limit is None else limit * _SHARE
        self._interval = min(_LONGEST, max(_SHORTEST, share))
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look again after each interval, until ``end()``."""
        loop = self._lender.home
        if loop is not None:
            self._timer = loop.call_later(self._interval, self._look)

    def end(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = monotonic()
        for link in self._lender.lent:
            if now >= link.deadline and link.task is not None and not link.overdue:
                link.overdue = True
                link.cancelling = link.task.cancelling()
                link.task.cancel()
        self.begin()
