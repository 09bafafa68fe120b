"""Counters of one process and the lag of its last deliveries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fm_storage.outbox.results import OutboxStatistics

_KEPT = 4096


class Counters:
    """Numbers that only grow; written by every delivery on one loop."""

    def __init__(self) -> None:
        self.delivered = 0
        self.batches = 0
        self.retried = 0
        self.quarantined = 0
        self.embedded = 0
        self.healed = 0
        self._lags: deque[float] = deque(maxlen=_KEPT)

    def landed(self, lags: Iterable[float]) -> None:
        """Count points whose delivery was recorded, with their lags."""
        new = list(lags)
        self._lags.extend(new)
        self.delivered += len(new)

    def snapshot(self) -> OutboxStatistics:
        """Return the numbers as they are now."""
        lags = sorted(self._lags)
        return OutboxStatistics(
            delivered=self.delivered,
            batches=self.batches,
            retried=self.retried,
            quarantined=self.quarantined,
            embedded=self.embedded,
            healed=self.healed,
            lag_p50=lags[len(lags) // 2] if lags else None,
            lag_p99=lags[min(len(lags) - 1, len(lags) * 99 // 100)] if lags else None,
        )
