"""Numbers about a pool: what it counts, and the frozen snapshot it returns.

Counting is a few additions on the hot path; sums and percentiles are computed
only when somebody asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHORTEST = 1e-5
_STEP = math.log(1.1)
_BUCKETS = 180
"""10 µs × 1.1^180 is about 280 s: longer waits share the last bucket."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of a pool. Times in seconds, counts since it opened.

    Attributes:
        name: The pool's name.
        size: Connections that exist or are being made.
        idle: Connections nobody uses.
        busy: Connections in use.
        resetting: Connections being reset or closed.
        connecting: Connections being made.
        waiting: Callers in the queue.
        acquired: How often a connection was acquired.
        acquire_p50: Median wait for a connection (exact to 10 %).
        acquire_p99: 99th percentile of it.
        acquire_max: Longest wait.
        timeouts: Callers who left the queue at their deadline.
        cancels: Callers who were cancelled in the queue.
        checks_failed: Idle connections found dead when acquired.
        resets: Connections reset because a statement may have left something.
        connects: Connections made.
        connect_failures: Attempts to connect that failed.
        reconnects: Connections lost and noticed while idle or in use.
        lifetimes: Connections replaced because of their age.
        shrinks: Connections closed because nobody used them.
        repeats: Reading statements run again after a connection broke.
        leaks: Borrowers reported for holding a connection too long.
        generation: How often all connections were replaced.
        lag: Seconds that a replica is behind; None if unknown, or if it is none.
        fallbacks: Reads that the primary answered in the replica's place.
    """

    name: str
    size: int
    idle: int
    busy: int
    resetting: int
    connecting: int
    waiting: int
    acquired: int
    acquire_p50: float
    acquire_p99: float
    acquire_max: float
    timeouts: int
    cancels: int
    checks_failed: int
    resets: int
    connects: int
    connect_failures: int
    reconnects: int
    lifetimes: int
    shrinks: int
    repeats: int
    leaks: int
    generation: int
    lag: float | None = None
    fallbacks: int = 0


class Counters:
    """What a pool counts while it works."""

    def __init__(self) -> None:
        self.at_once = 0
        """Acquired without waiting; the hot path adds only here."""
        self.timeouts = 0
        self.cancels = 0
        self.checks_failed = 0
        self.resets = 0
        self.connects = 0
        self.connect_failures = 0
        self.reconnects = 0
        self.lifetimes = 0
        self.shrinks = 0
        self.repeats = 0
        self.leaks = 0
        self.longest = 0.0
        self.waited = 0
        self._buckets = [0] * (_BUCKETS + 1)

    def add_wait(self, seconds: float) -> None:
        """Count one wait for a connection that was not served at once."""
        self.waited += 1
        self.longest = max(self.longest, seconds)
        at = 0
        if seconds > _SHORTEST:
            at = min(_BUCKETS, math.ceil(math.log(seconds / _SHORTEST) / _STEP))
        self._buckets[at] += 1

    def percentile(self, share: float) -> float:
        """Return the wait that *share* of all callers stayed below."""
        wanted = share * (self.at_once + self.waited)
        below = self.at_once
        if below >= wanted:
            return 0.0
        for at, count in enumerate(self._buckets):
            below += count
            if below >= wanted:
                return min(self.longest, _SHORTEST * math.exp(at * _STEP))
        return self.longest
