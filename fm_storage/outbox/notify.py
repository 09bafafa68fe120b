"""NOTIFY and LISTEN between the processes that share one queue.

NOTIFY takes a lock of the whole cluster at commit (one per commit cuts 7,200 rows
a second to 2,800), so one statement announces all that was written within an
interval. A notification that is missed only delays: every drainer also polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fm_storage.errors import ConfigurationInvalid, StorageError
from fm_storage.postgres import Pool, Sql

_log = logging.getLogger("fm_storage.outbox")

CHANNEL = "fm_storage_outbox"
"""On which what waits is announced, also by the triggers of tracked tables."""
_NOTIFY = Sql(f"SELECT pg_notify('{CHANNEL}', '')")


class Notifier:
    """NOTIFY and LISTEN of the outbox; closed by ``aclose()``."""

    def __init__(self, pool: Pool, *, interval: float) -> None:
        self._pool = pool
        self._interval = interval
        self._notifying: asyncio.Task[None] | None = None  # by notify() and aclose()
        self._listening: asyncio.Task[None] | None = None  # by listen() and stop()

    def notify(self) -> None:
        """Wake other processes soon; calls within the interval share one NOTIFY."""
        if self._notifying is None or self._notifying.done():
            self._notifying = asyncio.create_task(
                self._notify(), name="fm_storage outbox notifier"
            )

    def listen(self, wake: Callable[[], None]) -> None:
        """Call *wake* on every NOTIFY until ``stop()``."""
        if self._listening is None:
            self._listening = asyncio.create_task(
                self._listen(wake), name="fm_storage outbox listener"
            )

    async def stop(self) -> None:
        """Stop listening; harmless when repeated."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])

    async def aclose(self) -> None:
        """Stop listening; let a last NOTIFY go out, for a bounded time."""
        await self.stop()
        notifying, self._notifying = self._notifying, None
        if notifying is not None:
            await asyncio.wait([notifying], timeout=self._interval + 1.0)
            notifying.cancel()

    async def _notify(self) -> None:
        await asyncio.sleep(self._interval)
        try:
            await self._pool.execute(_NOTIFY)
        except StorageError as exc:
            _log.debug("others were not notified, they will poll: %s", exc)

    async def _listen(self, wake: Callable[[], None]) -> None:
        try:
            async for _ in self._pool.listen(CHANNEL):
                wake()
        except ConfigurationInvalid as exc:
            _log.debug("the outbox polls only: %s", exc)
        except StorageError as exc:
            _log.debug("the outbox polls from now on: %s", exc)
