"""A session lock that is held while a drainer lives, and what follows from its end.

PostgreSQL frees the lock with the connection, a killed process's at once. Rows on
lease name their drainer, so those of one that is gone are taken over within
seconds instead of when the lease ends; a live one keeps its lease however slow it
is. A drainer that only lost its connection may go on with its batch: versions and
the repeated deletions make that harmless, as after a lease that ended.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from fm_storage.errors import StorageError
from fm_storage.outbox.delivery.queue import Queue
from fm_storage.postgres import Connection, Pool, Sql

_log = logging.getLogger("fm_storage.outbox")

EVERY = 2.0
"""Seconds between two looks for drainers that are gone."""

_AGAIN = 30.0
"""Seconds until a lock that could not be had is tried for again."""

# The server must not end a connection that only holds a lock.
_SETTINGS = {"idle_session_timeout": "0"}

_HOLD = Sql("""
WITH held AS (
  SELECT pg_advisory_lock(hashtext('fm_storage.drainer'), $1)
)
INSERT INTO fm_storage.vector_drainer (holder) SELECT $1 FROM held""")

_TAKE_OVER = Sql("""
WITH gone AS MATERIALIZED (
  SELECT d.holder FROM fm_storage.vector_drainer AS d
  WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2
      AND l.database = (
        SELECT o.oid FROM pg_catalog.pg_database AS o
        WHERE o.datname = current_database())
      AND l.classid::bigint = hashtext('fm_storage.drainer')::bigint & 4294967295
      AND l.objid::bigint = d.holder)
  FOR UPDATE SKIP LOCKED
), freed AS (
  UPDATE fm_storage.vector_queue AS q
  SET leased = FALSE, due_at = now()
  FROM gone WHERE q.holder = gone.holder AND q.leased
  RETURNING 1
), forgotten AS (
  DELETE FROM fm_storage.vector_drainer AS d USING gone WHERE d.holder = gone.holder
)
SELECT count(*) FROM freed""")


class Presence:
    """This drainer's lock, and the leases of drainers whose lock is free.

    Behind a transaction pooler no session lock can be held; without *dsn*, a direct
    address, leases then end by their time only.
    """

    def __init__(self, pool: Pool, queue: Queue, dsn: str | None) -> None:
        self._pool = pool
        self._queue = queue
        self._dsn = dsn
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None  # by hold() and aclose()
        self._next_try = self._next_look = 0.0

    async def hold(self) -> None:
        """Have the lock, anew if the connection was lost; without it, go on."""
        async with self._lock:
            if self._connection is not None and not self._connection.is_closed:
                return
            await self.aclose()
            now = time.monotonic()
            if now < self._next_try or (
                self._pool.transaction_pooler and not self._dsn
            ):
                return
            self._next_try = now + _AGAIN
            try:
                await self._connect()
            except StorageError as exc:
                _log.warning("leases end by their time only, no lock is held: %s", exc)

    async def _connect(self) -> None:
        connection = await self._pool.connect(
            "outbox", dsn=self._dsn, settings=_SETTINGS
        )
        holder = secrets.randbelow(2**31)
        try:
            await connection.execute(_HOLD, holder)
        except BaseException:  # close, then pass it on
            await connection.aclose()
            raise
        self._connection, self._queue.holder = connection, holder
        self._next_try = 0.0

    async def take_over(self) -> int:
        """Free the leases of drainers that are gone, every few seconds.

        Returns how many points are due by that.

        Raises:
            StorageError: PostgreSQL did not answer.
        """
        now = time.monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + EVERY
        freed: int = await self._pool.fetchval(_TAKE_OVER)
        if freed:
            _log.warning("a drainer is gone; %d points of its batches go on", freed)
        return freed

    async def aclose(self) -> None:
        """Give the lock up; leases that are left are taken over by others."""
        connection, self._connection = self._connection, None
        self._queue.holder = None
        if connection is not None:
            await connection.aclose()
