"""What a session knows of its views, and how it gets rid of them.

Apart from what users call, because cleaning up is reached in many ways (a block's
end, a cancellation, the service's retries, the manager's closing) and must do the
same in all of them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Hashable

from fm_storage.concurrency.lifecycle import Lifecycle
from fm_storage.concurrency.shield import shielded
from fm_storage.config import SessionConfig
from fm_storage.errors import (
    ForkedProcess,
    InvalidName,
    StorageClosed,
    StorageError,
)
from fm_storage.postgres import quote_ident
from fm_storage.sessions import registry
from fm_storage.sessions.dropping import Claim, drop_all
from fm_storage.sessions.lease import Lease, LeaseState
from fm_storage.sessions.names import TempView
from fm_storage.sessions.reports import CleanupReport
from fm_storage.sessions.schema import drop_schema_if_empty
from fm_storage.sessions.service import SessionService
from fm_storage.sessions.source import Provider

__all__ = ["Key", "TrackedViews"]

logger = logging.getLogger("fm_storage.sessions")

Key = tuple[str, str]
"""Schema and name of a view."""


class TrackedViews(Lifecycle):
    """The views of one session, with the lease that keeps them alive."""

    def __init__(
        self,
        provider: Provider | SessionService | None = None,
        *,
        schema: str | None = None,
        auto_cleanup: bool = True,
        config: SessionConfig | None = None,
        application_name: str = "fm_storage",
    ) -> None:
        self.id = uuid.uuid4()
        self._config = config or SessionConfig()
        self._schema = self._config.schema_name if schema is None else schema
        self._provider = provider
        self._application_name = application_name
        self._shared = provider if isinstance(provider, SessionService) else None
        self._service = self._shared  # by _ready() and _end_service(), if not shared
        self._lease: Lease | None = None  # by _ready()
        self._auto_cleanup_enabled = auto_cleanup
        self._closed = False  # by aclose() and open
        self._views: dict[Key, TempView] = {}  # by create, register, drop, clean-up
        self._numbers: dict[Key, int] = {}  # registry rows of the views
        self._holders: dict[Key, set[Hashable]] = {}  # by add_, release_reference()
        self._uncertain: set[Key] = set()  # creations nobody saw the end of
        self._touched = False  # whether there may be anything in the registry
        self._cleaning = asyncio.Lock()
        self._opening = asyncio.Lock()
        self.last_cleanup = CleanupReport()
        self._done = False  # whether the last clean-up reached its end, by it

    @property
    def is_available(self) -> bool:
        """Whether there is a PostgreSQL to work on."""
        return self._provider is not None

    @property
    def is_lost(self) -> bool:
        """Whether the views were reaped while the lease was lost."""
        return self._lease is not None and self._lease.state is LeaseState.GONE

    @property
    def schema(self) -> str:
        """Schema of the views."""
        return self._schema

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self.is_lost else "open"
        return (
            f"<{type(self).__name__} {self.id}: {state}, {len(self._views)} view(s) in "
            f"{self._schema}>"
        )

    # -- common -----------------------------------------------------------------------

    def _key(self, view: TempView | str) -> Key:
        """Return schema and name of what the caller means."""
        if isinstance(view, TempView):
            return view.schema, view.name
        for key, known in self._views.items():
            if view in {known.name, str(known), known.sql}:
                return key
        quote_ident(view)
        return self._schema, view

    def _own(self, view: TempView | str) -> TempView:
        found = self._views.get(self._key(view))
        if found is None:
            if self._lease is not None:
                self._lease.check()
            raise InvalidName(
                f"session: {view} is not one of its views; see get_session_views()"
            )
        return found

    def _make_service(self) -> SessionService:
        """Return the service; one of our own if we stand alone."""
        if self._service is None:
            if self._provider is None or isinstance(self._provider, SessionService):
                raise StorageClosed("session: PostgreSQL is not available")
            self._service = SessionService(
                self._provider,
                self._config,
                application_name=self._application_name,
            )
        return self._service

    async def _ready(self) -> tuple[SessionService, Lease]:
        """Return service and lease, opened at the first operation.

        Raises:
            SessionLost: The views were reaped.
            StorageClosed: The session is closed.
        """
        if self._closed:
            raise StorageClosed(
                f"session {self.id}: it is closed; open a new one for more views"
            )
        async with self._opening:
            service = self._make_service()
            if self._lease is None or (self.is_lost and not self._touched):
                # Lost without any view, nothing was lost: a new owner will do.
                if self._shared is None:
                    await service.open()
                self._lease = await service.lease()
                service.remove(self)
                service.add(self)
        self._lease.check()
        return service, self._lease

    def _check_home(self) -> None:
        """Refuse another loop or process before anything of theirs is awaited."""
        if self._service is not None and not self._service.at_home():
            raise ForkedProcess("session")

    async def _end_service(self) -> None:
        """Give back the lease of a session that stands alone."""
        if self._shared is not None:
            return
        service, self._service, self._lease = self._service, None, None
        if service is not None:
            service.remove(self)
            await service.aclose()

    # -- dropping ---------------------------------------------------------------------

    async def _cleanup(self) -> CleanupReport:
        """Drop everything of this session; the report tells what came of it."""
        service = self._service
        self._check_home()
        if service is None or not self._touched or self.is_lost:
            return CleanupReport()
        done: list[CleanupReport] = []
        complete = False

        async def work() -> None:
            async with self._cleaning:
                await self._drop_all(service, done)

        try:
            await shielded(work, timeout=self._config.cleanup_timeout)
            complete = True
        except TimeoutError:
            logger.warning(
                "session: clean-up not done within %.1f s; the rest is tried again",
                self._config.cleanup_timeout,
            )
        except StorageError as exc:
            logger.warning("session: clean-up failed, it is tried again: %s", exc)
        finally:
            report = CleanupReport.sum(done)
            # Cancelled, yet done: shielded() raises only when it is.
            complete = complete or self._done
            if not complete:
                report += CleanupReport(complete=False)
            self.last_cleanup = report
            self._note(report)
            if report.refused or not complete:
                service.retry_later(self)
        return report

    async def _drop_all(
        self, service: SessionService, done: list[CleanupReport]
    ) -> None:
        """Drop until nothing is left, also across a server's restart."""
        self._done = False
        pause = 0.05
        claim = Claim(
            "b.session_id = $1",
            self.id,
            own=True,
            trusted={view.oid for view in self._views.values()},
        )
        while True:
            try:
                for key in list(self._uncertain):
                    await self._resolve(service, key)
                await self._drop(service, claim, done)
            except StorageError as exc:
                if not exc.retryable:
                    raise
                logger.debug("session: clean-up interrupted (%s)", exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                continue
            self._done = True
            return

    async def _drop(
        self, service: SessionService, claim: Claim, done: list[CleanupReport]
    ) -> None:
        await drop_all(
            service.source,
            claim,
            batch_size=self._config.batch_size,
            lock_timeout=self._config.lock_timeout,
            report=done.append,
        )

    async def _resolve(self, service: SessionService, key: Key) -> None:
        """Wait for the end of a creation whose outcome nobody saw."""
        if self._lease is None:
            return
        async with (
            service.source.acquire() as connection,
            connection.transaction() as transaction,
        ):
            await transaction.execute(registry.PROBE, self._lease.owner, self.id, *key)
            await transaction.execute(registry.REMOVE_PROBE, self.id, *key)
        self._uncertain.discard(key)

    async def _release(self) -> None:
        """Leave the kept views to ``sessions reap --kept``."""
        if self._service is None:
            return
        async with self._service.source.acquire() as connection:
            await connection.execute(registry.SET_KEEP, self.id, True)
            await connection.execute(registry.RELEASE, self.id)

    async def _drop_schema(self) -> None:
        if self._service is not None and not self._views:
            try:
                await drop_schema_if_empty(self._service.source, self._schema)
            except StorageError as exc:
                logger.debug("session: schema not dropped (%s)", exc)

    def _note(self, report: CleanupReport) -> None:
        """Forget what is gone."""
        gone = {*report.dropped, *report.already_gone, *report.forgotten}
        for key, view in list(self._views.items()):
            if str(view) in gone:
                self._forget(key)
        if self._service is not None:
            self._service.count(dropped=len(report.dropped))

    def _forget(self, key: Key) -> None:
        self._views.pop(key, None)
        self._numbers.pop(key, None)
        self._holders.pop(key, None)
