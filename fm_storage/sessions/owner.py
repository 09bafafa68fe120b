"""The owner of temporary views: one process, with its lease and its reaper.

All sessions of a ``StorageManager`` share one owner and so one lease; a session
that stands alone has an owner to itself. One background task reaps what others
left and drops what was refused when a session ended.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.lifecycle import Home, Life
from fm_storage.concurrency.shield import shielded
from fm_storage.config import SessionConfig
from fm_storage.errors import ForkedProcess, StorageError
from fm_storage.postgres import Connection
from fm_storage.sessions import registry
from fm_storage.sessions.lease import Lease, LeaseState
from fm_storage.sessions.reaper import Reaper
from fm_storage.sessions.reports import CleanupReport
from fm_storage.sessions.schema import ensure_schema
from fm_storage.sessions.source import Provider, Source, source_of

logger = logging.getLogger("fm_storage.sessions")


class OwnedViews(Protocol):
    """The views of one session, as far as their owner is concerned."""

    last_cleanup: CleanupReport

    async def clean_up(self) -> CleanupReport:
        """Drop them."""
        ...

    async def aclose(self) -> None:
        """End their session."""


@dataclass(slots=True)
class Tally:
    """Views since the owner was made; every part counts its own."""

    created: int = 0
    dropped: int = 0
    reaped: int = 0


@dataclass(slots=True)
class _Leftover:
    """Views of an ended session that are still to be dropped."""

    views: OwnedViews
    pause: Backoff = field(default_factory=lambda: Backoff(1.0, 60.0))
    at: float = 0.0

    def __post_init__(self) -> None:
        self.postpone()

    def postpone(self) -> None:
        """Wait longer than the last time."""
        self.at = monotonic() + self.pause.next()


class Owner:
    """One process as the owner of temporary views.

    Args:
        provider: A pool, or an async function that returns a connection.
        config: Graces, schema, limits.
        application_name: Shown to people in the registry.
    """

    def __init__(
        self, provider: Provider, config: SessionConfig, *, application_name: str
    ) -> None:
        self.config = config
        self.source: Source = source_of(provider)
        self.home = Home("session", usage="open the manager first")
        self.lease: Lease | None = None  # by take_lease()
        self.schemas: set[str] = set()  # known to exist, by ensure_schema()
        self.tally = Tally()
        self.open_sets: list[OwnedViews] = []  # by add() and remove()
        self.leftovers: list[_Leftover] = []  # by retry_later() and retry()
        self._application_name = application_name
        self._leasing = asyncio.Lock()
        self._reaper = Reaper(self.source, config, self.ids)
        self._task: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------

    async def open(self) -> None:
        """Start to reap. No connection is made before it is needed."""
        if self.home.life is Life.OPEN:
            return
        loop = self.home.enter()
        self.home.life = Life.OPEN
        if self.config.reap_interval:
            self._task = loop.create_task(self._run(), name="fm_storage session reaper")

    async def aclose(self) -> None:
        """Close every session, try refused views a last time, end the lease."""
        if self.home.life is Life.CLOSED or self.home.forked:
            return
        self.home.check()
        self.home.life = Life.CLOSED
        await shielded(self._close)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for views in reversed(self.open_sets.copy()):
            try:
                await views.aclose()
            except StorageError:
                logger.exception("session: closing failed; a reaper sees to it")
        for leftover in self.leftovers:
            await leftover.views.clean_up()
        self.leftovers.clear()
        if self.lease is not None:
            await self.lease.aclose()

    # -- for the sessions -------------------------------------------------------

    def ids(self) -> tuple[uuid.UUID, ...]:
        """Return the owner's id in the registry, if it has a row there."""
        lease = self.lease
        if lease is None or lease.state in {LeaseState.GONE, LeaseState.CLOSED}:
            return ()
        return (lease.owner,)

    async def take_lease(self) -> Lease:
        """Return the lease, taken at the first session.

        Raises:
            StorageClosed: The owner is not open.
            ConfigurationInvalid: A pooler lets no lease be held.
        """
        self.home.require_open()
        async with self._leasing:
            lease = self.lease
            if lease is None or not self.ids():
                lease = Lease(
                    self.source,
                    dsn=self.config.dsn,
                    application_name=self._application_name,
                )
                await lease.open()
                self.lease = lease
        return lease

    async def ensure_schema(self, connection: Connection, schema: str) -> None:
        """Make *schema* if it is missing, and remember that it is there."""
        await ensure_schema(connection, schema)
        self.schemas.add(schema)

    def add(self, views: OwnedViews) -> None:
        """Remember the views of an open session; adding them twice is fine."""
        if views not in self.open_sets:
            self.open_sets.append(views)

    def remove(self, views: OwnedViews) -> None:
        """Forget the views of a session that has ended."""
        if views in self.open_sets:
            self.open_sets.remove(views)

    def retry_later(self, views: OwnedViews) -> None:
        """Drop what is left of *views* later, until nothing is."""
        if all(each.views is not views for each in self.leftovers):
            self.leftovers.append(_Leftover(views))

    async def reap(self, *, dry_run: bool = False, kept: bool = False) -> CleanupReport:
        """Drop what dead processes left, now; see ``SessionService.reap()``."""
        # A reaper of its own: its looks must not be mixed with the background's.
        reaper = Reaper(self.source, self.config, self.ids)
        try:
            report = await reaper.reap(dry_run=dry_run, kept=kept)
        except StorageError as exc:
            raise registry.explained(exc) from exc.__cause__
        if not dry_run:
            self.tally.reaped += len(report.dropped)
        return report

    # -- background -------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._quietly(self._reap_once)
            await self._quietly(self.retry)
            await asyncio.sleep(self.config.reap_interval)

    async def _quietly(self, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except ForkedProcess:
            raise
        except (StorageError, OSError) as exc:
            # The server is away, or migrations are missing: next time.
            logger.debug("session: reaper: %s", exc)
        except Exception:  # a fault of ours must not end the reaping for good
            logger.exception("session: reaper failed; it goes on")

    async def _reap_once(self) -> None:
        report = await self._reaper.look()
        self.tally.reaped += len(report.dropped)

    async def retry(self) -> None:
        """Drop what was refused before, where it is due."""
        for leftover in self.leftovers.copy():
            if monotonic() < leftover.at:
                continue
            report = await leftover.views.clean_up()
            if report.complete and not report.refused:
                self.leftovers.remove(leftover)
            else:
                leftover.postpone()
