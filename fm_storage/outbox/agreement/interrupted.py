"""Rebuilds that have not ended: listing them, and ending those that cannot wait.

A rebuild that was killed while it filled its target is harmless; it is logged, and
goes on at the next ``rebuild()``. One that was killed while it exchanged the name
is ended by the next drainer: a server cannot rename a collection, so the name may
mean nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fm_storage.errors import LockTimeout, StorageError
from fm_storage.outbox.agreement.rebuild import Rebuilder
from fm_storage.outbox.results import Rebuilding
from fm_storage.postgres import Executor, Pool, Sql

if TYPE_CHECKING:
    from fm_storage.config import CollectionConfig

_log = logging.getLogger("fm_storage.outbox")

# The lock is the one that a rebuild holds: its numbers are shown unsigned.
_UNFINISHED = Sql("""
SELECT r.collection, r.target, r.copied,
  CASE WHEN $1 THEN (
    SELECT count(*) FROM fm_storage.vector_state AS s
    WHERE s.collection = r.collection AND s.op = 'u' AND s.vectors IS NOT NULL
  ) END AS total,
  r.started_at,
  EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.database = (
        SELECT d.oid FROM pg_catalog.pg_database AS d
        WHERE d.datname = current_database())
      AND l.classid::bigint = hashtext('fm_storage.rebuild')::bigint & 4294967295
      AND l.objid::bigint = hashtext(r.collection)::bigint & 4294967295
  ) AS under_way,
  EXISTS (
    SELECT FROM fm_storage.vector_exchange AS e
    WHERE e.collection = r.collection AND e.target = r.target
      AND e.previous IS NOT NULL
  ) AS exchanging
FROM fm_storage.vector_rebuild AS r WHERE r.filling ORDER BY r.collection""")


async def unfinished(
    executor: Executor, *, count: bool = False
) -> tuple[Rebuilding, ...]:
    """Return the rebuilds that have not ended, by name of the collection.

    Args:
        executor: Where to ask.
        count: Count the points there are to copy, which takes time.
    """
    records = await executor.fetch(_UNFINISHED, count)
    return tuple(Rebuilding(*record) for record in records)


class Interrupted:
    """Ends exchanges of names that were interrupted; names the other rebuilds."""

    def __init__(
        self,
        pool: Pool,
        rebuilder: Rebuilder,
        spec_of: Callable[[str], CollectionConfig | None],
    ) -> None:
        self._pool = pool
        self._rebuilder = rebuilder
        self._spec_of = spec_of
        self._failed: set[str] = set()  # by _end(), logged once

    async def exchanges(self) -> set[str]:
        """Return the names whose exchange has begun and not ended."""
        return {
            one.collection for one in await unfinished(self._pool) if one.exchanging
        }

    async def at_start(self) -> None:
        """End what cannot wait, and log what can.

        Raises:
            StorageError: A store did not answer; nothing is lost by that.
        """
        for one in await unfinished(self._pool):
            if one.under_way:
                continue
            if one.exchanging:
                await self._end(one)
            else:
                _log.warning(
                    "the rebuild of %s was interrupted after %d points; "
                    "'fm-storage outbox rebuild %s' goes on with it",
                    one.collection,
                    one.copied,
                    one.collection,
                )

    async def missing(self, collection: str) -> bool:
        """End the exchange because of which a name means nothing, if there is one.

        Returns whether the name means a complete collection again.
        """
        if collection in self._failed:
            return False
        for one in await unfinished(self._pool):
            if one.collection == collection and one.exchanging and not one.under_way:
                return await self._end(one)
        return False

    async def _end(self, one: Rebuilding) -> bool:
        _log.warning(
            "a rebuild of %s was interrupted while the name was exchanged; "
            "going on with it",
            one.collection,
        )
        try:
            spec = self._spec_of(one.collection)
            await self._rebuilder.rebuild(one.collection, spec)
        except LockTimeout:
            return False  # another process has begun it since we looked
        except StorageError as exc:
            if exc.retryable:
                raise
            self._failed.add(one.collection)
            _log.warning(
                "%s is not rebuilt: %s; 'fm-storage outbox rebuild %s' goes on",
                one.collection,
                exc,
                one.collection,
            )
            return False
        return True
