"""The service of one process: its lease, its reaper, its sessions.

Apart from a session because all sessions of a ``StorageManager`` share one owner
and one lease, and because refused views are retried after their session has
ended. One background task reaps what others left and retries what was refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Literal

from fm_storage.concurrency.shield import shielded
from fm_storage.config import SessionConfig
from fm_storage.errors import ForkedProcess, StorageClosed, StorageError, WrongLoop
from fm_storage.postgres import Connection
from fm_storage.sessions.lease import Lease, LeaseState
from fm_storage.sessions.listing import listed
from fm_storage.sessions.reaper import Reaper
from fm_storage.sessions.reports import CleanupReport, SessionInfo
from fm_storage.sessions.schema import ensure_schema
from fm_storage.sessions.source import Provider, Source, source_of

if TYPE_CHECKING:
    from fm_storage.sessions.session import PostgresSessionManager
    from fm_storage.sessions.tracked import TrackedViews

__all__ = ["SessionService", "SessionStatistics"]

logger = logging.getLogger("fm_storage.sessions")

_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Numbers since the service was opened.

    Attributes:
        sessions: Sessions open now.
        created: Views created.
        dropped: Views dropped by their session.
        reaped: Views of dead processes dropped here.
        refused: Drops refused and not yet made up for.
        lease: State of the lease (``closed`` before the first session).
    """

    sessions: int
    created: int
    dropped: int
    reaped: int
    refused: int
    lease: str


@dataclass(slots=True)
class _Leftover:
    """Views of a session that are still to be dropped."""

    session: TrackedViews
    at: float
    pause: float


class SessionService:
    """Sessions of one process, and the reaper of everybody's.

    Args:
        provider: A pool, or an async function that returns a connection.
        config: Graces, schema, limits.
        application_name: Shown to people in the registry.
    """

    def __init__(
        self,
        provider: Provider,
        config: SessionConfig | None = None,
        *,
        application_name: str = "fm_storage",
    ) -> None:
        self.config = config or SessionConfig()
        self.source: Source = source_of(provider)
        self._application_name = application_name
        self._state: Literal["new", "open", "closed"] = "new"  # by open(), aclose()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease: Lease | None = None  # by lease()
        self._leasing = asyncio.Lock()
        self._reaper = Reaper(self.source, self.config, self._own)
        self._task: asyncio.Task[None] | None = None
        self._sessions: list[TrackedViews] = []
        self._leftovers: list[_Leftover] = []
        self._schemas: set[str] = set()
        self._created = self._dropped = self._reaped = 0

    # -- life -------------------------------------------------------------------

    async def open(self) -> None:
        """Start to reap. No connection is made before it is needed."""
        if self._state == "open":
            return
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        if self.config.reap_interval:
            self._task = self._loop.create_task(
                self._run(), name="fm_storage session reaper"
            )

    async def aclose(self) -> None:
        """Close every session, try refused views a last time, end the lease.

        Idempotent. Bounded by ``cleanup_timeout`` per session; what is left has
        its registry row and goes to the reaper of another process. A cancellation
        is raised when this is done. Does nothing in a forked child.

        Raises:
            WrongLoop: Called on another event loop than it was opened on.
        """
        if self._state == "closed" or not self.at_home():
            return
        self._state = "closed"
        await shielded(self._close)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for session in reversed(self._sessions.copy()):
            try:
                await session.aclose()
            except StorageError:
                logger.exception("session: closing failed; a reaper sees to it")
        for leftover in self._leftovers:
            await leftover.session._cleanup()  # noqa: SLF001 - same room
        self._leftovers.clear()
        if self._lease is not None:
            await self._lease.aclose()

    # -- sessions -----------------------------------------------------------------

    def session(
        self, *, schema: str | None = None, auto_cleanup: bool = True
    ) -> PostgresSessionManager:
        """Return a new session: ``async with`` it, or await it and close it.

        Args:
            schema: Where its views live; the configured schema if None.
            auto_cleanup: Whether closing drops the views.
        """
        from fm_storage.sessions.session import (
            PostgresSessionManager,
        )

        return PostgresSessionManager(
            self, schema=schema, auto_cleanup=auto_cleanup, config=self.config
        )

    async def reap(self, *, dry_run: bool = False, kept: bool = False) -> CleanupReport:
        """Drop what dead processes left, now.

        Takes the grace (``grace`` seconds; ``restart_grace`` after a restart of the
        server) if there is anything to reap, because a lock must be free twice.

        Args:
            dry_run: Report as ``dropped`` what would be, and drop nothing.
            kept: Also views that were kept on purpose by sessions that have ended.

        Raises:
            SchemaOutOfDate: The registry's tables are missing.
            StorageError: The server could not be asked.
        """
        from fm_storage.sessions import registry

        # A reaper of its own: its looks must not be mixed with the background's.
        reaper = Reaper(self.source, self.config, self._own)
        try:
            report = await reaper.reap(dry_run=dry_run, kept=kept)
        except StorageError as exc:
            raise registry.explained(exc) from exc.__cause__
        if not dry_run:
            self._reaped += len(report.dropped)
        return report

    async def list(self) -> SessionInfo:
        """Return every registered view; ``own`` are those of this process."""
        own = set(self._own())
        return await listed(
            self.source, lambda row: row["owner_id"] in own, session=None
        )

    def statistics(self) -> SessionStatistics:
        """Return the numbers so far."""
        return SessionStatistics(
            sessions=len(self._sessions),
            created=self._created,
            dropped=self._dropped,
            reaped=self._reaped,
            refused=sum(
                len(each.session.last_cleanup.refused) for each in self._leftovers
            ),
            lease=self._lease.state.value if self._lease else "closed",
        )

    async def health(self) -> tuple[str, str]:
        """Return ``ok``, ``degraded`` or ``down``, and what that means."""
        numbers = self.statistics()
        if numbers.lease == LeaseState.LOST.value:
            return "degraded", "the lease's connection broke; it is taken again"
        if numbers.lease == LeaseState.GONE.value:
            return "degraded", "sessions were lost; new ones can be opened"
        if numbers.refused:
            return "degraded", f"{numbers.refused} view(s) could not be dropped yet"
        return "ok", f"{numbers.sessions} session(s), lease {numbers.lease}"

    # -- for the sessions -----------------------------------------------------------

    def at_home(self) -> bool:
        """Return whether this is the process that made the service.

        Raises:
            WrongLoop: This is not the event loop that the service was opened on.
        """
        if self._pid != os.getpid():
            return False
        if self._loop not in {None, asyncio.get_running_loop()}:
            raise WrongLoop("session")
        return True

    async def lease(self) -> Lease:
        """Return the lease, taken at the first session.

        Raises:
            StorageClosed: The service is closed.
            ConfigurationInvalid: A pooler lets no lease be held.
        """
        if self._state != "open":
            raise StorageClosed(
                f"sessions: the service is {self._state}; open the manager first"
            )
        self.at_home()
        async with self._leasing:
            lease = self._lease
            if lease is None or lease.state in {LeaseState.GONE, LeaseState.CLOSED}:
                lease = Lease(
                    self.source,
                    dsn=self.config.dsn,
                    application_name=self._application_name,
                )
                await lease.open()
                self._lease = lease
        return lease

    async def ensure_schema(
        self, connection: Connection, schema: str, *, again: bool = False
    ) -> None:
        """Make *schema* if need be; asked once, or *again* after it vanished."""
        if again or schema not in self._schemas:
            await ensure_schema(connection, schema)
            self._schemas.add(schema)

    def add(self, session: TrackedViews) -> None:
        """Remember an open session."""
        self._sessions.append(session)

    def remove(self, session: TrackedViews) -> None:
        """Forget a session that has ended."""
        if session in self._sessions:
            self._sessions.remove(session)

    def retry_later(self, session: TrackedViews) -> None:
        """Drop what is left of *session* later, until nothing is."""
        if all(each.session is not session for each in self._leftovers):
            self._leftovers.append(
                _Leftover(session, monotonic() + _FIRST_RETRY, _FIRST_RETRY)
            )

    def count(self, *, created: int = 0, dropped: int = 0) -> None:
        """Add to the statistics."""
        self._created += created
        self._dropped += dropped

    # -- background -----------------------------------------------------------------

    def _own(self) -> tuple[uuid.UUID, ...]:
        lease = self._lease
        if lease is None or lease.state in {LeaseState.GONE, LeaseState.CLOSED}:
            return ()
        return (lease.owner,)

    async def _run(self) -> None:
        while True:
            await self._quietly(self._reap_once)
            await self._quietly(self._retry)
            await asyncio.sleep(self.config.reap_interval)

    async def _quietly(self, job: Callable[[], object]) -> None:
        try:
            await job()  # type: ignore[misc]  # both are coroutine functions
        except ForkedProcess:
            raise
        except (StorageError, OSError) as exc:
            # The server is away, or migrations are missing: next time.
            logger.debug("session: reaper: %s", exc)
        except Exception:  # a fault of ours must not end the reaping for good
            logger.exception("session: reaper failed; it goes on")

    async def _reap_once(self) -> None:
        report = await self._reaper.look()
        self._reaped += len(report.dropped)

    async def _retry(self) -> None:
        for leftover in self._leftovers.copy():
            if monotonic() < leftover.at:
                continue
            report = await leftover.session._cleanup()  # noqa: SLF001 - same room
            if report.complete and not report.refused:
                self._leftovers.remove(leftover)
                continue
            leftover.pause = min(leftover.pause * 2, _LONGEST_RETRY)
            leftover.at = monotonic() + leftover.pause
