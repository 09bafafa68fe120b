"""The service of a process: its sessions, and the reaper of everybody's."""

from __future__ import annotations

from dataclasses import dataclass

from fm_storage.config import SessionConfig
from fm_storage.sessions.lease import LeaseState
from fm_storage.sessions.listing import listed
from fm_storage.sessions.owner import Owner
from fm_storage.sessions.reports import CleanupReport, SessionInfo
from fm_storage.sessions.session import PostgresSessionManager
from fm_storage.sessions.source import Provider


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
        self._owner = Owner(
            provider, config or SessionConfig(), application_name=application_name
        )

    async def open(self) -> None:
        """Start to reap. No connection is made before it is needed."""
        await self._owner.open()

    async def aclose(self) -> None:
        """Close every session, try refused views a last time, end the lease.

        Idempotent. Bounded by ``cleanup_timeout`` per session; what is left has
        its registry row and goes to the reaper of another process. A cancellation
        is raised when this is done. Does nothing in a forked child.

        Raises:
            WrongLoop: Called on another event loop than it was opened on.
        """
        await self._owner.aclose()

    def session(
        self,
        *,
        schema: str | None = None,
        auto_cleanup: bool = True,
        private: bool = False,
    ) -> PostgresSessionManager:
        """Return a new session: ``async with`` it, or await it and close it.

        Args:
            schema: Where its views live; the configured schema if None.
            auto_cleanup: Whether closing drops the views.
            private: Whether only the role that makes them may read them; otherwise
                members of the group role ``fm_storage_app`` may.
        """
        return PostgresSessionManager(
            self._owner,
            schema=schema,
            auto_cleanup=auto_cleanup,
            private=private,
            config=self._owner.config,
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
        return await self._owner.reap(dry_run=dry_run, kept=kept)

    async def list(self) -> SessionInfo:
        """Return every registered view; ``own`` are those of this process."""
        own = self._owner.ids()
        return await listed(
            self._owner.source, lambda row: row["owner_id"] in own, session=None
        )

    def statistics(self) -> SessionStatistics:
        """Return the numbers so far."""
        owner = self._owner
        return SessionStatistics(
            sessions=len(owner.open_sets),
            created=owner.tally.created,
            dropped=owner.tally.dropped,
            reaped=owner.tally.reaped,
            refused=sum(len(e.views.last_cleanup.refused) for e in owner.leftovers),
            lease=owner.lease.state.value if owner.lease else "closed",
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
