"""A limit for errors of one group, beyond which they are only counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from fm_storage.errors import StorageError
from fm_storage.postgres import Sql
from fm_storage.repositories import uuid7

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

_logger = logging.getLogger("fm_storage.catalog")

_INTERVAL = 1.0
_MINUTE = 60

# A writer's count is written as a whole: that it was written before does no harm.
_WRITE = Sql("""
INSERT INTO fm_storage.error_counts AS c (fingerprint, minute, writer, counted)
SELECT fingerprint, to_timestamp(minute), $4::uuid, counted
FROM unnest($1::bigint[], $2::float8[], $3::bigint[])
  AS made (fingerprint, minute, counted) ORDER BY fingerprint, minute
ON CONFLICT (fingerprint, minute, writer) DO UPDATE
SET counted = greatest(c.counted, EXCLUDED.counted)""")

_COUNTED = Sql("""
SELECT coalesce(m.group_id, c.fingerprint), sum(c.counted)::bigint
FROM fm_storage.error_counts AS c
LEFT JOIN fm_storage.group_members AS m ON m.fingerprint = c.fingerprint
WHERE c.minute >= coalesce($1, '-infinity'::timestamptz) GROUP BY 1""")


async def fetch_counted(executor: Executor, since: datetime | None) -> dict[str, int]:
    """Return how many errors were only counted, by group."""
    rows = await executor.fetch(_COUNTED, since)
    return {f"{group & 0xFFFF_FFFF_FFFF_FFFF:016x}": count for group, count in rows}


class GroupLimit:
    """Admits so many errors of a group in a minute, and counts the others.

    Counts are written once a second. While PostgreSQL is away they wait in memory;
    a process that is killed takes with it those of its last second.

    Args:
        limit: Errors of a group that are admitted in a minute.
        executor: Called for what the counts are written with.
    """

    def __init__(self, limit: int, executor: Callable[[], Executor]) -> None:
        self._limit = limit
        self._executor = executor
        self._writer = uuid7()
        self._minute = 0
        self._seen: dict[int, int] = {}  # in this minute, by group
        self._counts: dict[tuple[int, int], int] = {}  # not written yet
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def admits(self, fingerprint: int) -> bool:
        """Return whether to store one more of a group; if not, it is counted."""
        minute = int(time.time()) // _MINUTE
        if minute != self._minute:
            self._minute = minute
            self._seen.clear()
        seen = self._seen[fingerprint] = self._seen.get(fingerprint, 0) + 1
        if seen <= self._limit:
            return True
        self._counts[fingerprint, minute] = seen - self._limit
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="fm_storage counts")
        return False

    async def write(self) -> None:
        """Write the counts that have not been; what cannot be stays for later.

        Waits for a write that is under way.
        """
        async with self._writing:
            await self._write()

    async def _write(self) -> None:
        counts, self._counts = self._counts, {}
        if not counts:
            return
        groups, minutes = zip(*counts, strict=True)
        begun = [float(minute * _MINUTE) for minute in minutes]
        values = (groups, begun, list(counts.values()), self._writer)
        try:
            await self._executor().execute(_WRITE, *values)
        except BaseException as exc:  # kept, then passed on unless it will pass
            self._counts = {**counts, **self._counts}
            if not isinstance(exc, StorageError | OSError):
                raise
            _logger.debug("counts of errors wait (%s)", exc)

    async def _run(self) -> None:
        while self._counts:
            await asyncio.sleep(_INTERVAL)
            await self.write()

    async def aclose(self) -> None:
        """Write what is left, once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StorageError):
            await self.write()
