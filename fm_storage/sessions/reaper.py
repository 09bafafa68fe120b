"""The reaper: drops what dead processes left, and only that.

A dead owner is one whose
lock was free in two looks, a grace apart on this process's own monotonic clock;
no times of different machines are compared. Then, for good: the lock is taken,
the owner's row is locked (a CREATE in flight makes that impossible: next time),
and the owner is condemned, which an owner that comes back finds out.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from time import monotonic

from fm_storage.concurrency.backoff import Backoff
from fm_storage.config import SessionConfig
from fm_storage.postgres import Record, Sql, Transaction
from fm_storage.sessions import registry
from fm_storage.sessions.dropping import Claim, drop_all
from fm_storage.sessions.names import shown_qualified
from fm_storage.sessions.reports import CleanupReport
from fm_storage.sessions.source import Source

logger = logging.getLogger("fm_storage.sessions")

# Owners that nobody seems to hold and that have something to be reaped: views, or
# nothing but their row. $1 our own, $2 whether kept views are to go as well.
_ORPHANS = Sql(
    "SELECT o.id, o.lock_key, o.leases, o.condemned_at IS NOT NULL AS condemned,"
    f" o.incarnation = {registry.INCARNATION} AS same_server"
    " FROM fm_storage.session_owners o"
    f" WHERE NOT o.id = ANY($1::uuid[]) AND NOT {registry.LOCK_IS_HELD}"
    " AND ($2 OR NOT EXISTS (SELECT FROM fm_storage.session_objects k"
    " WHERE k.owner_id = o.id) OR EXISTS (SELECT FROM fm_storage.session_objects b"
    " WHERE b.owner_id = o.id AND NOT b.keep))"
)
_TRY_LOCK = Sql("SELECT pg_catalog.pg_try_advisory_xact_lock($1)")
_CLAIM_OWNER = Sql(
    "SELECT id FROM fm_storage.session_owners"
    " WHERE id = $1 AND leases = $2 FOR UPDATE SKIP LOCKED"
)
_CONDEMN = Sql(
    "UPDATE fm_storage.session_owners SET condemned_at = now()"
    " WHERE id = $1 AND condemned_at IS NULL"
)
_NAMES = Sql(
    "SELECT b.schema_name::text AS schema_name, b.name::text AS name"
    " FROM fm_storage.session_objects b WHERE b.owner_id = $1"
    " AND ($2 OR NOT b.keep) ORDER BY b.id DESC"
)


@dataclass(slots=True)
class _Suspect:
    """An owner whose lock was free."""

    since: float
    leases: int


@dataclass(slots=True)
class _Retry:
    """An owner of whose views some could not be dropped."""

    pause: Backoff = field(default_factory=lambda: Backoff(1.0, 60.0))
    at: float = 0.0


class Reaper:
    """Looks for dead owners, remembers since when, and drops their views.

    Args:
        source: Where connections come from.
        config: Graces, batch size, lock timeout.
        own: Gives the owners of this process, which are never looked at.
    """

    def __init__(
        self,
        source: Source,
        config: SessionConfig,
        own: Callable[[], Collection[uuid.UUID]],
    ) -> None:
        self._source = source
        self._config = config
        self._own = own
        self._suspects: dict[uuid.UUID, _Suspect] = {}
        self._retries: dict[uuid.UUID, _Retry] = {}

    async def look(self, *, kept: bool = False) -> CleanupReport:
        """Look once, and reap what was free a grace ago, too.

        Raises:
            StorageError: The server could not be asked. What was seen so far is
                forgotten: a server that went away for a while freed every lock.
        """
        try:
            orphans = await self._orphans(kept=kept)
            reports = [await self._reap(row, kept=kept) for row in self._due(orphans)]
        except BaseException:  # forget what was seen, then pass it on
            self._suspects.clear()
            raise
        return CleanupReport.sum(reports)

    async def reap(self, *, dry_run: bool = False, kept: bool = False) -> CleanupReport:
        """Look twice, a grace apart, and reap; on demand.

        Args:
            dry_run: Drop nothing; report as ``dropped`` what would be.
            kept: Also what sessions kept on purpose.
        """
        self._retries.clear()
        orphans = await self._orphans(kept=kept)
        self._due(orphans)
        if wait := max((self._grace(row) for row in orphans), default=0.0):
            await asyncio.sleep(wait)
        if dry_run:
            names: list[str] = []
            for row in self._due(await self._orphans(kept=kept)):
                names += await self._names(row["id"], kept=kept)
            return CleanupReport(dropped=tuple(names))
        report = await self.look(kept=kept)
        return report + await self._reap_released() if kept else report

    async def _orphans(self, *, kept: bool) -> list[Record]:
        async with self._source.acquire() as connection:
            return await connection.fetch(_ORPHANS, list(self._own()), kept)

    def _grace(self, row: Record) -> float:
        if row["condemned"]:
            return 0.0
        config = self._config
        return config.grace if row["same_server"] else config.restart_grace

    def _due(self, orphans: Collection[Record]) -> list[Record]:
        """Remember whose lock is free; return those free for a grace."""
        now = monotonic()
        before, self._suspects = self._suspects, {}
        self._retries = {
            row["id"]: self._retries[row["id"]]
            for row in orphans
            if row["id"] in self._retries
        }
        due = []
        for row in orphans:
            suspect = before.get(row["id"])
            if suspect is None or suspect.leases != row["leases"]:
                suspect = _Suspect(now, row["leases"])
            self._suspects[row["id"]] = suspect
            retry = self._retries.get(row["id"])
            if now - suspect.since >= self._grace(row) and (
                retry is None or now >= retry.at
            ):
                due.append(row)
        return due

    async def _reap(self, row: Record, *, kept: bool) -> CleanupReport:
        owner: uuid.UUID = row["id"]
        if not await self._condemn(row):
            return CleanupReport()

        async def lock_is_free(transaction: Transaction) -> bool:
            # Held until this batch commits: two reapers never meet.
            return bool(await transaction.fetchval(_TRY_LOCK, row["lock_key"]))

        done: list[CleanupReport] = []
        which = "b.owner_id = $1" if kept else "b.owner_id = $1 AND NOT b.keep"
        await drop_all(
            self._source,
            Claim(which, owner, own=False, guard=lock_is_free),
            self._config,
            report=done.append,
        )
        report = CleanupReport.sum(done)
        async with self._source.acquire() as connection:
            await connection.execute(registry.REMOVE_OWNER, owner)
        self._schedule(owner, report)
        if report.dropped:
            logger.info("session: reaped %d view(s) of %s", len(report.dropped), owner)
        return report

    async def _condemn(self, row: Record) -> bool:
        """Take the lock and mark the owner; False if it is not ours to reap.

        Several reapers may do this; the owner, coming back, does it or they do.
        """
        async with (
            self._source.acquire() as connection,
            connection.transaction() as transaction,
        ):
            if not await transaction.fetchval(_TRY_LOCK, row["lock_key"]):
                return False
            claimed = await transaction.fetch(_CLAIM_OWNER, row["id"], row["leases"])
            if not claimed:
                return False
            await transaction.execute(_CONDEMN, row["id"])
        return True

    async def _reap_released(self) -> CleanupReport:
        """Drop kept views of sessions that ended in processes that live on."""
        done: list[CleanupReport] = []
        await drop_all(
            self._source,
            Claim("b.keep AND b.released AND $1", key=True, own=False),
            self._config,
            report=done.append,
        )
        return CleanupReport.sum(done)

    async def _names(self, owner: uuid.UUID, *, kept: bool) -> list[str]:
        async with self._source.acquire() as connection:
            rows = await connection.fetch(_NAMES, owner, kept)
        return [shown_qualified(row["schema_name"], row["name"]) for row in rows]

    def _schedule(self, owner: uuid.UUID, report: CleanupReport) -> None:
        """Try refused views again, ever more rarely."""
        if not report.refused:
            self._retries.pop(owner, None)
            return
        retry = self._retries.setdefault(owner, _Retry())
        retry.at = monotonic() + retry.pause.next()
