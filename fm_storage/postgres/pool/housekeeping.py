"""What a pool does by itself now and then, without I/O of its own.

Apart because it is the only part that acts unasked: it closes connections that
are too old or unused, keeps ``min_size``, and reports borrowers that hold one
for too long. A timer, not a task: nothing is left pending when a loop ends.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["Housekeeping"]

_log = logging.getLogger("fm_storage.postgres")
_SHORTEST, _LONGEST = 0.02, 15.0


class Housekeeping:
    """The pool's timer."""

    def __init__(self, lender: PoolCore) -> None:
        self._lender = lender
        config = lender.config
        bounds = (config.max_idle, config.max_lifetime, config.leak_after or _LONGEST)
        self._interval = min(_LONGEST, max(_SHORTEST, min(bounds) / 4))
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look again after each interval, until ``end()``."""
        if self._lender.home is not None:
            self._timer = self._lender.home.call_later(self._interval, self._tick)

    def end(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        if self._lender.loop is None:
            return
        now = monotonic()
        self._close_idle(now)
        self._report_leaks(now)
        self._lender.growth.wake()
        self.begin()

    def _close_idle(self, now: float) -> None:
        lender = self._lender
        config = lender.config
        for link in [*lender.idle]:
            if now >= link.expires:
                lender.counters.lifetimes += 1
            elif (
                now - link.idle_since > config.max_idle
                and lender.size - len(lender.mending) > config.min_size
            ):
                lender.counters.shrinks += 1
            else:
                continue
            lender.idle.remove(link)
            lender.retire(link)

    def _report_leaks(self, now: float) -> None:
        lender = self._lender
        after = lender.config.leak_after
        if after is None:
            return
        for link in lender.lent:
            lease = link.lease
            if lease is None or lease.reported or now - link.taken_at < after:
                continue
            lease.reported = True
            lender.counters.leaks += 1
            _log.warning(
                "%s: a connection has been borrowed for %.1f s by %s; leave the "
                "block sooner, or raise leak_after",
                lender.owner,
                now - link.taken_at,
                lease,
            )
