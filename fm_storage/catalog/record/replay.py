"""Replay of the spool: its entries go into the database once that answers again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from fm_storage.catalog.record.row import Prepared
from fm_storage.catalog.record.spool import Segment, Spool
from fm_storage.catalog.record.store import write_each
from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import StorageClosed, StorageError

logger = logging.getLogger("fm_storage.catalog")

_BATCH = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
Write = Callable[[Sequence[Prepared]], Awaitable[int]]


class Replayer:
    """Writes what the spool holds, again and again until it is empty.

    Entries are written by id, so that one which had arrived before is not
    doubled. A file goes only when all of it is in the database.

    Args:
        spool: Where the entries are.
        write: Stores entries by id, returning how many were new.

    Attributes:
        away: Whether the database did not take the latest entry it was given. Not
            merely because entries wait: a burst of log records fills the spool
            while the database is well. Read before every error is stored.
    """

    def __init__(self, spool: Spool, write: Write) -> None:
        self._spool = spool
        self._write = write
        self._task: asyncio.Task[None] | None = None
        self.away = False

    @property
    def pending(self) -> bool:
        """Whether entries wait for the database."""
        return self._task is not None and not self._task.done()

    def wake(self, *, refused: bool = False) -> None:
        """Begin to replay, unless that is under way.

        Args:
            refused: The database has just failed to take an entry.
        """
        self.away = self.away or refused
        if not self.pending:
            self._task = asyncio.create_task(
                self._run(), name="fm_storage spool replay"
            )

    async def wait_empty(self, timeout: float | None = None) -> bool:
        """Wait until everything is replayed; return whether it is."""
        task = self._task
        if task is not None:
            await asyncio.wait({task}, timeout=timeout)
        return not self.pending

    async def aclose(self) -> None:
        """Stop; what is not replayed stays on disk for the next start."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                await self.replay_once()
            except StorageClosed:
                self.away = False  # nobody asks a closed storage again
                return
            except (StorageError, OSError) as exc:
                self.away = True
                logger.info("spool: replay waits (%s)", exc)
            else:
                self.away = False
                if not self._spool.has_own():
                    return
                backoff.reset()
            await backoff.sleep()

    async def replay_once(self) -> int:
        """Replay every file that nobody writes to; return how many entries were new.

        Raises:
            StorageError: The database does not take them now; nothing is lost.
        """
        added = 0
        segments = await asyncio.to_thread(lambda: list(self._spool.take()))
        try:
            while segments:
                segment = segments[-1]
                added += await self._replay(segment)
                await asyncio.to_thread(segment.remove)
                segments.pop()
        finally:
            for segment in segments:
                segment.close()
        return added

    async def _replay(self, segment: Segment) -> int:
        rows = await asyncio.to_thread(segment.entries)
        added = 0
        for start in range(0, len(rows), _BATCH):
            added += await self._write_some(rows[start : start + _BATCH])
        if added:
            logger.info("spool: %d error(s) brought into the database", added)
        return added

    async def _write_some(self, rows: Sequence[Prepared]) -> int:
        """Write a batch; an entry that is refused is set aside alone."""

        async def write(part: slice) -> int:
            added = await self._write(rows[part])
            self.away = False
            return added

        async def refuse(at: int, exc: StorageError) -> None:
            path = await asyncio.to_thread(self._spool.reject, rows[at], str(exc))
            logger.warning("spool: entry %s set aside in %s", rows[at].id, path)

        return await write_each(len(rows), write, refuse)
