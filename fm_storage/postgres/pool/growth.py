"""How the pool gets new connections, in good times and in bad.

Apart because patience is a subject of its own. While connecting works, as many
attempts run at once as there are callers waiting. After a failure a single one
runs, with pauses that grow with the outage (a twentieth of it, 10 ms to 2 s, so
that a short outage is noticed to be over at once); callers wait inside their
own deadlines, and nobody sees the failures in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import StorageError
from fm_storage.postgres.connection.entry import PoolEntry
from fm_storage.postgres.telemetry import metrics

if TYPE_CHECKING:
    import asyncpg

    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["Growth"]

_log = logging.getLogger("fm_storage.postgres")
_SHORTEST_PAUSE, _LONGEST_PAUSE, _SHARE = 0.01, 2.0, 0.05
_SHORTEST_ATTEMPT = 1.0
_FIRST_PAUSE = 0.1
_SOON = frozenset({"57P03", "53300"})
"""Starting up, too many connections: worth waiting for at the very start."""


class Growth:
    """Makes links for the lender's queue and for ``min_size``."""

    def __init__(self, lender: PoolCore) -> None:
        self._lender = lender
        self.connecting = 0
        self._failing_since: float | None = None
        self._last_error: StorageError | None = None
        self._usual = lender.config.connect_timeout
        """How long the last success took; an attempt gets four times as long."""
        self._timeouts = 0

    def trouble(self) -> str | None:
        """Say why connections do not come, or None while they do."""
        if self._failing_since is None:
            return None
        return (
            f"for {monotonic() - self._failing_since:.1f} s no connection could be "
            f"made, last: {self._last_error}"
        )

    def wake(self) -> None:
        """Start as many attempts as are needed, allowed and sensible."""
        lender = self._lender
        if lender.loop is None:
            return
        room = lender.config.max_size - lender.size
        need = min(room, self._wanted())
        for _ in range(need):
            if self._failing_since is not None and self.connecting:
                return
            lender.size += 1
            self.connecting += 1
            lender.spawn(self._grow())

    def _wanted(self) -> int:
        lender = self._lender
        for_queue = lender.waiting - self.connecting
        return max(for_queue, lender.config.min_size - lender.size)

    async def first(self) -> PoolEntry:
        """Make the first link; a server that is just starting is waited for."""
        config = self._lender.config
        deadline = monotonic() + config.connect_timeout
        while True:
            started = monotonic()
            try:
                raw = await self._lender.connector.connect(
                    timeout=max(0.001, deadline - started)
                )
            except StorageError as error:
                if error.sqlstate not in _SOON or monotonic() > deadline:
                    raise
                await asyncio.sleep(_FIRST_PAUSE)
            else:
                return self.note_success(raw, started)

    async def _grow(self) -> None:
        """Make one link; while that fails, keep trying for whoever waits."""
        lender = self._lender
        link: PoolEntry | None = None
        try:
            while link is None:
                started = monotonic()
                try:
                    raw = await lender.connector.connect(timeout=self._patience())
                except StorageError as error:
                    self._note_failure(error, started)
                    if not error.retryable:
                        lender.refuse_waiters(error)
                        return
                else:
                    link = self.note_success(raw, started)
                    break
                if self.connecting > 1 or not self._is_needed():
                    return
                await asyncio.sleep(self._pause())
                if not self._is_needed():
                    return
        finally:
            self.connecting -= 1
            if link is None:
                lender.size -= 1
        if lender.loop is None:
            lender.retire(link)
        else:
            lender.hand(link)
            self.wake()

    def _is_needed(self) -> bool:
        lender = self._lender
        return lender.loop is not None and (
            lender.waiting > 0 or lender.size <= lender.config.min_size
        )

    def note_success(self, raw: asyncpg.Connection[Any], started: float) -> PoolEntry:
        """Wrap a new connection, and learn that the server is there."""
        lender = self._lender
        if self._failing_since is not None:
            _log.info(
                "%s: connected again after %.1f s",
                lender.owner,
                monotonic() - self._failing_since,
            )
        self._failing_since = self._last_error = None
        self._timeouts = 0
        self._usual = monotonic() - started
        lender.counters.connects += 1
        metrics.connected(lender.name, self._usual)
        lifetime = lender.config.max_lifetime * random.uniform(0.9, 1.0)
        link = PoolEntry(
            raw,
            lender=lender,
            generation=lender.generation,
            expires=monotonic() + lifetime,
        )
        raw.add_termination_listener(lambda _: lender.on_end(link))
        return link

    def _note_failure(self, error: StorageError, started: float) -> None:
        lender = self._lender
        lender.counters.connect_failures += 1
        self._last_error = error
        if monotonic() - started >= _SHORTEST_ATTEMPT:
            self._timeouts += 1
        if self._failing_since is None:
            self._failing_since = started
            _log.warning("%s: cannot connect: %s", lender.owner, error)

    def _pause(self) -> float:
        since = self._failing_since
        outage = 0.0 if since is None else monotonic() - since
        pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, _SHARE * outage))
        return pause * random.uniform(0.8, 1.0)

    def _patience(self) -> float:
        """Return how long one attempt may take.

        A black hole swallows an attempt without a word, and one started just
        before the network came back would wait out the full timeout. So an
        attempt gets a multiple of the usual time, doubled after each that was
        swallowed, up to ``connect_timeout``.
        """
        usual = max(_SHORTEST_ATTEMPT, 4 * self._usual)
        allowed = usual * float(2 ** min(self._timeouts, 10))
        return min(self._lender.config.connect_timeout, allowed)
