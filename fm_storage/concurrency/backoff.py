"""Pauses between attempts: doubled after each failure, with jitter."""

from __future__ import annotations

import asyncio
import random

_MAX_DOUBLINGS = 60  # beyond it 2.0**n would be slow to compute, and then overflow


class Backoff:
    """Pauses that double from *first* to *longest* seconds.

    Keep one per series of attempts and call ``sleep()`` after each failure; or keep
    one for many series and ask ``after(failures)``, which changes nothing.

    Args:
        first: Seconds of the first pause, before jitter.
        longest: Seconds that no pause exceeds.
        jitter: Share of each pause that is random: 1.0 is full jitter (0 to the
            whole pause), 0.0 none. Without it, processes that failed together
            come back together.

    Attributes:
        failures: Pauses taken since the start or the last ``reset()``.
    """

    __slots__ = ("failures", "first", "jitter", "longest")

    def __init__(self, first: float, longest: float, *, jitter: float = 0.5) -> None:
        self.first = first
        self.longest = longest
        self.jitter = jitter
        self.failures = 0

    def after(self, failures: int) -> float:
        """Return a pause for an attempt that has failed *failures* times before."""
        doubled = self.first * 2.0 ** min(failures, _MAX_DOUBLINGS)
        return min(doubled, self.longest) * (1.0 - self.jitter * random.random())

    def next(self) -> float:
        """Return the next pause of this series."""
        pause = self.after(self.failures)
        self.failures += 1
        return pause

    async def sleep(self) -> None:
        """Sleep for the next pause of this series."""
        await asyncio.sleep(self.next())

    def reset(self) -> None:
        """Begin again with the first pause, after a success."""
        self.failures = 0
