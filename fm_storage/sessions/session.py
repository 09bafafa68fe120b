"""A session: temporary views that go when it ends, whatever ends it.

Apart because this is what users hold. The order of every operation is the same:
decide and record the intent without I/O, then act, then note the outcome; so a
cancellation at any await leaves nothing that the session does not know of.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Self

from fm_storage.config import SessionConfig
from fm_storage.errors import (
    DuplicateRecord,
    InvalidName,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    StorageClosed,
    StorageError,
)
from fm_storage.hooks import outlast
from fm_storage.postgres import quote_ident, quote_qualified
from fm_storage.sessions import registry
from fm_storage.sessions.creating import CreateProgress, ViewPlan, create, refresh
from fm_storage.sessions.dropping import Claim, drop_all
from fm_storage.sessions.lease import Lease, LeaseState
from fm_storage.sessions.listing import listed
from fm_storage.sessions.names import Kind, TempView, generated_name
from fm_storage.sessions.reports import CleanupReport, SessionInfo
from fm_storage.sessions.schema import drop_schema_if_empty
from fm_storage.sessions.service import SessionService
from fm_storage.sessions.source import Provider

__all__ = ["PostgresSessionManager"]

logger = logging.getLogger("fm_storage.sessions")

_NO_SCHEMA = "3F000"
_RELKINDS: dict[str, Kind] = {"v": "view", "m": "materialized view"}
_WAIT_FOR_NAME = 120.0
_Key = tuple[str, str]


class PostgresSessionManager:
    """Temporary views in a schema of their own, tracked and cleaned up.

    ``async with storage.session() as session``, or ``await`` it and ``aclose()``
    it. ``PostgresSessionManager(provider)`` stands alone: with a pool, with an async
    function that returns a connection (which is closed after use), or with None,
    when PostgreSQL is not available and every operation answers 0, False or [].

    Closing drops the views (see ``toggle_auto_cleanup()``), under every kind of
    cancellation, within ``cleanup_timeout`` seconds. What the server refuses stays
    registered and is tried again. If the process dies, the reaper of another one
    (or of the next) drops them.
    """

    FILTERMATE_SCHEMA = "filtermate_temp"
    VIEW_PREFIX = "fm_view_"

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
        self._schema = schema or self._config.schema_name
        self._provider = provider
        self._application_name = application_name
        self._shared = provider if isinstance(provider, SessionService) else None
        self._service = self._shared  # by _ready() and _end_service(), if not shared
        self._lease: Lease | None = None  # by _ready()
        self._auto_cleanup_enabled = auto_cleanup
        self._closed = False  # by aclose() and open
        self._views: dict[_Key, TempView] = {}  # by create, register, drop, clean-up
        self._numbers: dict[_Key, int] = {}  # registry rows of the views
        self._uncertain: set[_Key] = set()  # creations nobody saw the end of
        self._touched = False  # whether there may be anything in the registry
        self._cleaning = asyncio.Lock()
        self._opening = asyncio.Lock()
        self.last_cleanup = CleanupReport()

    # -- life -------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the session outside a block; close it with ``aclose()``."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Take the lease, if no session of this process has it yet.

        Raises:
            ConfigurationInvalid: Behind a pooler that lets no lease be held.
            SchemaOutOfDate: The registry's tables are missing.
        """
        if self._provider is not None:
            await self._ready()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session, whatever ended the block."""
        del kind, exc, traceback
        await self.aclose()

    async def aclose(self) -> None:
        """Drop the views (or mark them as kept) and end the session; idempotent.

        A cancellation is raised when the clean-up is done or its deadline over.
        """
        if self._closed:
            return
        self._closed = True
        service = self._service
        if service is None:
            return
        try:
            if self._auto_cleanup_enabled:
                await self.cleanup_on_close()
            elif self._touched:
                await outlast(self._release, timeout=self._config.cleanup_timeout)
        except TimeoutError:
            logger.warning("session: %s not released in time", self.id)
        finally:
            service.remove(self)
            await self._end_service()

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

    # -- the seed's methods ---------------------------------------------------------

    async def toggle_auto_cleanup(self, enabled: bool) -> None:  # noqa: FBT001 - the seed's signature
        """Switch whether closing drops the views.

        Off, their rows are marked *keep*: reapers leave them alone until somebody
        says ``fm-storage sessions reap --kept``. The switch itself is thrown at
        once; if marking fails or is cancelled, closing marks them.

        Raises:
            StorageError: The rows could not be marked.
        """
        self._auto_cleanup_enabled = enabled
        if self._touched and not self._closed:
            service, _ = await self._ready()
            async with service.source.acquire() as connection:
                await connection.execute(registry.SET_KEEP, self.id, not enabled)

    async def register_temp_view(self, view_name: str | TempView) -> None:
        """Track a view that somebody else made; this session will drop it.

        Only this session: a reaper leaves it alone. A second registration by the
        same session changes nothing.

        Args:
            view_name: Name of a view or materialized view of the caller's own, in
                the session's schema.

        Raises:
            InvalidName: There is no such view, or it is no view.
            PermissionDenied: It belongs to another role.
            DuplicateRecord: It belongs to another session.
        """
        if self._provider is None:
            return
        key = self._key(view_name)
        if key in self._views:
            return
        service, lease = await self._ready()
        shown = quote_qualified(*key)
        async with service.source.acquire() as connection:
            found = await connection.fetchrow(registry.FIND_RELATION, *key)
            if found is None or found["relkind"] not in _RELKINDS:
                raise InvalidName(
                    f"session: {shown} is not a view; create it first, or use "
                    "create_view()"
                )
            if not found["mine"]:
                raise PermissionDenied(
                    f"session: {shown} belongs to another role; let that role's own "
                    "session register it",
                    sqlstate="42501",
                )
            kind = _RELKINDS[found["relkind"]]
            self._uncertain.add(key)
            self._touched = True
            number = await connection.fetchval(
                registry.ADOPT,
                *(lease.owner, self.id, *key, kind),
                *(not self._auto_cleanup_enabled, found["oid"]),
            )
        self._uncertain.discard(key)
        if number is None:
            lease.check()
            raise StorageClosed("session: its owner's row is gone; open it again")
        self._views[key] = TempView(*key, kind, found["oid"])
        self._numbers[key] = number

    async def unregister_temp_view(self, view_name: str | TempView) -> None:
        """Stop tracking a view, which then stays for ever.

        If cancelled, the view is still tracked here, and its row may be gone.

        Raises:
            StorageError: The row could not be removed; the view is still tracked.
        """
        if self._provider is None:
            return
        key = self._key(view_name)
        service, _ = await self._ready()
        async with (
            service.source.acquire() as connection,
            connection.transaction() as transaction,
        ):
            row = await transaction.fetchrow(registry.FORGET_OBJECT, self.id, *key)
            if row is not None and not row["adopted"]:
                # Without its mark it is an ordinary view of its owner's.
                await transaction.execute(
                    f"COMMENT ON {row['kind'].upper()} {quote_qualified(*key)} IS NULL"
                )
        self._forget(key)

    def get_session_views(self) -> list[str]:
        """Return the tracked views as SQL names, oldest first; no I/O."""
        return [str(view) for view in self._views.values()]

    async def cleanup_session_views(self) -> int:
        """Drop every tracked view; return how many were really dropped.

        What the server refuses stays tracked, is told by ``last_cleanup`` and is
        tried again. Never CASCADE. Not stopped by a cancellation, which is raised
        when the views are gone or ``cleanup_timeout`` is over.
        """
        report = await self._cleanup()
        return len(report.dropped)

    async def cleanup_schema_if_empty(self, schema: str | None = None) -> bool:
        """Drop the schema if nothing at all is in it; return whether it was dropped.

        False also if it does not exist, is another role's, or is in use.
        """
        if self._provider is None:
            return False
        return await drop_schema_if_empty(
            self._make_service().source, schema or self._schema
        )

    async def cleanup_on_close(self) -> int:
        """Drop the views and then the schema, if it is empty; return how many.

        0 at once if automatic clean-up is off. A session that stands alone gives
        its lease back as well.
        """
        if not self._auto_cleanup_enabled or self._provider is None:
            return 0
        if not self._touched:
            await self._end_service()
            return 0
        try:
            report = await self._cleanup()
            await outlast(self._drop_schema, timeout=5.0)
        except TimeoutError:
            return len(self.last_cleanup.dropped)
        finally:
            await self._end_service()
        return len(report.dropped)

    async def ensure_schema_exists(self) -> bool:
        """Make the schema if it is missing; return whether it is there now.

        False if this role may not make it; ``create_view()`` then says so.
        """
        if self._provider is None:
            return False
        service = self._make_service()
        async with service.source.acquire() as connection:
            try:
                await service.ensure_schema(connection, self._schema, again=True)
            except PermissionDenied as exc:
                logger.warning("session: %s", exc)
                return False
        return True

    # -- views ------------------------------------------------------------------------

    async def create_view(
        self,
        sql: str,
        /,
        *args: Any,  # noqa: ANN401 - values of any SQL type
        name: str | None = None,
        materialized: bool = False,
        indexes: Sequence[str] = (),
        with_data: bool = True,
        timeout: float | None = None,
        progress: Callable[[CreateProgress], None] | None = None,
    ) -> TempView:
        """Create a view that every connection can read until the session ends.

        The view, its indexes and its registry row are made in one transaction. If
        cancelled, the server is told to stop, and closing drops the view if it was
        made after all. A name that a dead session still holds is waited for.

        Args:
            sql: One SELECT (or VALUES, TABLE), with ``$1`` … for values.
            *args: The values; the server writes them into the view as literals of
                the types it infers.
            name: Name of the view; by default one that is never used again.
            materialized: Whether the rows are kept, rather than the query.
            indexes: What stands behind ``CREATE INDEX ON view``: ``id``,
                ``UNIQUE (id)``, ``USING gin (payload)``, ``lower(module)``.
            with_data: Whether a materialized view is filled at once.
            timeout: Seconds; None is for ever.
            progress: Called when a stage begins.

        Raises:
            SessionLost: The lease was lost for too long.
            InvalidRecord: The values do not fit ``sql``, or it is not one statement.
            InvalidName: *name* cannot be a name, or this session has it already.
            DuplicateRecord: A live session has a view of that name.
            PermissionDenied: No right to make the schema or the view.
            QueryFailed: The server refused the query.
            QueryTimeout: Not done within *timeout*.
        """
        kind: Kind = "materialized view" if materialized else "view"
        if self._provider is None:
            return TempView(self._schema, name or "", kind, 0)
        given = name or generated_name(self._config.prefix)
        plan = ViewPlan(
            *(self._schema, given, kind, sql, args),
            *(tuple(indexes), with_data),
        )
        key = (plan.schema, plan.name)
        if key in self._views or key in self._uncertain:
            raise InvalidName(
                f"session: it has a view {plan.target} already; drop that first, or "
                "give another name"
            )
        try:
            async with asyncio.timeout(timeout):
                return await self._create(plan, key, progress)
        except TimeoutError as exc:
            if isinstance(exc, StorageError):
                raise
            raise QueryTimeout(
                f"session: {plan.target} was not created within {timeout} s; raise "
                "timeout, or make the query cheaper",
                sqlstate="57014",
            ) from exc

    async def refresh_view(
        self,
        view: TempView | str,
        *,
        concurrently: bool | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Fill a materialized view anew; return whether readers were let in.

        CONCURRENTLY needs a unique index on plain columns of all rows and a view
        that holds data; without, readers wait, and the log says why. If cancelled,
        the view keeps its old rows.

        Args:
            view: The view, or its name.
            concurrently: None uses it where possible; True demands it.
            timeout: Seconds; None is for ever.

        Raises:
            SessionLost: The view was reaped while the lease was lost.
            QueryFailed: Demanded and not possible (55000), or the query failed.
            QueryTimeout: Not done within *timeout*.
        """
        if self._provider is None:
            return False
        target = self._own(view)
        service, _ = await self._ready()
        try:
            async with asyncio.timeout(timeout), service.source.acquire() as connection:
                let_in, why = await refresh(
                    connection, target, session=self.id, concurrently=concurrently
                )
        except TimeoutError as exc:
            if isinstance(exc, StorageError):
                raise
            raise QueryTimeout(
                f"session: {target} was not refreshed within {timeout} s; "
                "raise timeout",
                sqlstate="57014",
            ) from exc
        if not let_in:
            logger.info("session: %s refreshed, readers had to wait: %s", target, why)
        return let_in

    async def drop_view(self, view: TempView | str, *, cascade: bool = False) -> bool:
        """Drop one view now; return whether it was dropped.

        False if it had gone already, or the server refused; ``last_cleanup`` tells,
        and a refused view is tried again when the session closes.

        Args:
            view: The view, or its name.
            cascade: Whether what depends on it goes, too, whoever made it.
        """
        if self._provider is None:
            return False
        target = self._own(view)
        key = (target.schema, target.name)
        service, _ = await self._ready()
        done: list[CleanupReport] = []
        claim = Claim(
            "b.id = $1",
            self._numbers[key],
            own=True,
            trusted={target.oid},
            cascade=cascade,
        )
        await self._drop(service, claim, done)
        self.last_cleanup = report = CleanupReport.sum(done)
        self._note(report)
        if not report.refused:
            self._forget(key)
        return bool(report.dropped)

    async def info(self) -> SessionInfo:
        """Return every registered view of the database; ``own`` are this session's."""
        if self._provider is None:
            return SessionInfo(session=str(self.id))
        return await listed(
            self._make_service().source,
            lambda row: bool(row["session_id"] == self.id),
            session=self.id,
        )

    # -- creating ---------------------------------------------------------------------

    async def _create(
        self,
        plan: ViewPlan,
        key: _Key,
        progress: Callable[[CreateProgress], None] | None,
    ) -> TempView:
        service, lease = await self._ready()
        give_up = monotonic() + _WAIT_FOR_NAME
        lost_schema = False
        while True:
            # The intent, before any await that could make the view exist.
            self._uncertain.add(key)
            self._touched = True
            try:
                async with service.source.acquire() as connection:
                    await service.ensure_schema(
                        connection, plan.schema, again=lost_schema
                    )
                    view, number = await create(
                        connection,
                        plan,
                        owner=lease.owner,
                        session=self.id,
                        keep=not self._auto_cleanup_enabled,
                        progress=progress,
                    )
            except DuplicateRecord as exc:
                self._uncertain.discard(key)
                if exc.constraint != "session_objects_name_key":
                    raise
                await self._wait_for_name(service, plan, key, exc, give_up)
                continue
            except QueryFailed as exc:
                # A definite answer of the server: it was rolled back.
                self._uncertain.discard(key)
                if exc.sqlstate != _NO_SCHEMA or lost_schema:
                    raise
                lost_schema = True  # dropped as empty by another session
                continue
            self._uncertain.discard(key)
            self._views[key] = view
            self._numbers[key] = number
            service.count(created=1)
            return view

    async def _wait_for_name(
        self,
        service: SessionService,
        plan: ViewPlan,
        key: _Key,
        exc: DuplicateRecord,
        give_up: float,
    ) -> None:
        """Return when the name may be free; raise *exc* if its holder lives."""
        async with service.source.acquire() as connection:
            holder = await connection.fetchrow(registry.HOLDER, *key)
        if holder is None:
            return
        if holder["alive"] or holder["keep"] or monotonic() > give_up:
            raise DuplicateRecord(
                f"session: {plan.target} belongs to another session "
                f"{'that lives' if holder['alive'] else 'that kept it'}; give another "
                "name, or none",
                sqlstate=exc.sqlstate,
                constraint=exc.constraint,
            ) from exc
        # Its owner is dead: reap it here and now, should nobody else do so.
        await service.reap()

    # -- dropping ---------------------------------------------------------------------

    async def _cleanup(self) -> CleanupReport:
        """Drop everything of this session; the report tells what came of it."""
        service = self._service
        if service is None or not self._touched or self.is_lost:
            return CleanupReport()
        done: list[CleanupReport] = []
        complete = False

        async def work() -> None:
            async with self._cleaning:
                await self._drop_all(service, done)

        try:
            await outlast(work, timeout=self._config.cleanup_timeout)
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
            # Cancelled, yet done: outlast() raises only when it is.
            complete = complete or self._done
            if not complete:
                report += CleanupReport(complete=False)
            self.last_cleanup = report
            self._note(report)
            if report.refused or not complete:
                service.retry_later(self)
        return report

    _done = False

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

    async def _resolve(self, service: SessionService, key: _Key) -> None:
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
            await connection.execute(registry.SET_KEEP, self.id, True)  # noqa: FBT003 - a parameter of SQL
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

    def _forget(self, key: _Key) -> None:
        self._views.pop(key, None)
        self._numbers.pop(key, None)

    # -- common -----------------------------------------------------------------------

    def _key(self, view: TempView | str) -> _Key:
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
            if self._lease is None:
                if self._shared is None:
                    await service.open()
                self._lease = await service.lease()
                service.add(self)
        self._lease.check()
        return service, self._lease

    async def _end_service(self) -> None:
        """Give back the lease of a session that stands alone."""
        if self._shared is not None:
            return
        service, self._service, self._lease = self._service, None, None
        if service is not None:
            service.remove(self)
            await service.aclose()
