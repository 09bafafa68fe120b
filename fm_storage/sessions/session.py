"""A session: temporary views that go when it ends, whatever ends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

from fm_storage.concurrency.lifecycle import Lifecycle
from fm_storage.config import SessionConfig
from fm_storage.errors import PermissionDenied
from fm_storage.postgres.arguments import function
from fm_storage.sessions.creating import (
    CreateProgress,
    ViewPlan,
    as_indexes,
    in_time,
)
from fm_storage.sessions.listing import listed
from fm_storage.sessions.names import Kind, TempView, generated_name
from fm_storage.sessions.owner import Owner
from fm_storage.sessions.reports import CleanupReport, SessionInfo
from fm_storage.sessions.schema import drop_schema_if_empty
from fm_storage.sessions.source import Provider
from fm_storage.sessions.views import ViewSet

logger = logging.getLogger("fm_storage.sessions")


class PostgresSessionManager(Lifecycle):
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
    """Schema of the views: the default, and on a session its own."""
    VIEW_PREFIX = "fm_view_"
    """Start of each generated name: the default, and on a session its own."""

    def __init__(
        self,
        provider: Provider | Owner | None = None,
        *,
        schema: str | None = None,
        auto_cleanup: bool = True,
        private: bool = False,
        config: SessionConfig | None = None,
        application_name: str = "fm_storage",
    ) -> None:
        config = config or SessionConfig()
        self.FILTERMATE_SCHEMA = config.schema_name if schema is None else schema
        self.VIEW_PREFIX = config.prefix
        self._provider = provider
        self._views = ViewSet(
            provider,
            schema=self.FILTERMATE_SCHEMA,
            keep=not auto_cleanup,
            private=private,
            config=config,
            application_name=application_name,
        )
        self.id = self._views.id

    @property
    def is_available(self) -> bool:
        """Whether there is a PostgreSQL to work on."""
        return self._provider is not None

    @property
    def is_lost(self) -> bool:
        """Whether the views were reaped while the lease was lost."""
        return self._views.is_lost

    @property
    def schema(self) -> str:
        """Schema of the views."""
        return self._views.schema

    @property
    def last_cleanup(self) -> CleanupReport:
        """What the last clean-up, or ``drop_view()``, did."""
        return self._views.last_cleanup

    @property
    def _auto_cleanup_enabled(self) -> bool:
        return not self._views.keep

    def __repr__(self) -> str:
        views = self._views
        state = "closed" if views.closed else "lost" if self.is_lost else "open"
        return (
            f"<{type(self).__name__} {self.id}: {state}, {len(views.views)} view(s) in "
            f"{self.schema}>"
        )

    # -- life -------------------------------------------------------------------

    async def _opened(self) -> Self:
        """Take the lease, if no session of this process has it yet.

        Raises:
            ConfigurationInvalid: Behind a pooler that lets no lease be held.
            SchemaOutOfDate: The registry's tables are missing.
        """
        if self._provider is not None:
            await self._views.ready()
        return self

    async def aclose(self) -> None:
        """Drop the views (or mark them as kept) and end the session; idempotent.

        A cancellation is raised when the clean-up is done or its deadline over.
        Does nothing in a forked child: the views are the parent's.

        Raises:
            WrongLoop: Called on another event loop than the session's.
        """
        await self._views.aclose()

    # -- views ------------------------------------------------------------------------

    async def create_view(
        self,
        sql: str,
        /,
        *args: Any,
        name: str | None = None,
        materialized: bool = False,
        indexes: Sequence[str] = (),
        with_data: bool = True,
        timeout: float | None = None,
        progress: Callable[[CreateProgress], None] | None = None,
    ) -> TempView:
        """Create a view that every application can read until the session ends.

        Members of the group role ``fm_storage_app`` may read it, unless the session
        is private; what its query reads is read with this role's rights.

        The view, its indexes and its registry row are made in one transaction. If
        cancelled, the query is cancelled on the server, and closing drops the view
        if it was made after all. A name that a dead session still holds is waited
        for.

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
            progress: Called when a stage begins, and every second while it lasts.

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
        return await self._create(
            kind,
            sql,
            args,
            name=name,
            indexes=indexes,
            with_data=with_data,
            timeout=timeout,
            progress=progress,
        )

    async def create_table(
        self,
        sql: str,
        /,
        *args: Any,
        name: str | None = None,
        indexes: Sequence[str] = (),
        with_data: bool = True,
        timeout: float | None = None,
        progress: Callable[[CreateProgress], None] | None = None,
    ) -> TempView:
        """Create a table of a query's rows, to be written by every application.

        Otherwise like ``create_view(materialized=True)``. Unlogged: fast to fill,
        not replicated, empty after a crash of the server.

        Raises:
            SchemaOutOfDate: The registry is of a release without such tables.
        """
        return await self._create(
            "table",
            sql,
            args,
            name=name,
            indexes=indexes,
            with_data=with_data,
            timeout=timeout,
            progress=progress,
        )

    async def _create(
        self,
        kind: Kind,
        sql: str,
        args: tuple[Any, ...],
        *,
        name: str | None,
        indexes: Sequence[str],
        with_data: bool,
        timeout: float | None,
        progress: Callable[[CreateProgress], None] | None,
    ) -> TempView:
        if self._provider is None:
            return TempView(self.schema, name or "", kind, 0)
        if progress is not None:
            function(progress, "progress")
        given = generated_name(self.VIEW_PREFIX) if name is None else name
        plan = ViewPlan(
            *(self.schema, given, kind, sql, args), *(as_indexes(indexes), with_data)
        )
        async with in_time(timeout, f"{plan.target} was not created"):
            return await self._views.create(plan, progress)

    async def refresh_view(
        self,
        view: TempView | str,
        *,
        concurrently: bool | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Fill a materialized view anew; return whether readers were let in.

        CONCURRENTLY needs a unique index on plain columns of all rows and a view
        that holds data; without, readers wait, and the log gives the reason. If
        cancelled, the view keeps its old rows.

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
        target = self._views.own(view)
        async with in_time(timeout, f"{target} was not refreshed"):
            let_in, why = await self._views.refresh(target, concurrently=concurrently)
        if not let_in:
            logger.info("session: %s refreshed, readers had to wait: %s", target, why)
        return let_in

    async def drop_view(self, view: TempView | str, *, cascade: bool = False) -> bool:
        """Drop one view now; return whether it was dropped.

        False if it had gone already, or the server refused; see ``last_cleanup``;
        a refused view is tried again when the session closes.

        Args:
            view: The view, or its name.
            cascade: Whether what depends on it goes, too, also of other sessions.
        """
        if self._provider is None:
            return False
        return await self._views.drop(view, cascade=cascade)

    def add_reference(self, view: TempView | str, holder: Hashable) -> None:
        """Note that *holder* uses the view; no I/O. Adding it twice counts once.

        Raises:
            InvalidName: The session has no such view.
        """
        if self._provider is not None:
            self._views.add_holder(view, holder)

    async def release_reference(self, view: TempView | str, holder: Hashable) -> bool:
        """Note that *holder* is done; the last one drops the view.

        A holder that was never added, or a view that is gone, is ignored.

        Returns:
            Whether the view was dropped now; False also if that was refused, see
            ``last_cleanup``.
        """
        if self._provider is None:
            return False
        unused = self._views.last_left(view, holder)
        return unused is not None and await self.drop_view(unused)

    async def info(self) -> SessionInfo:
        """Return every registered view of the database; ``own`` are this session's."""
        if self._provider is None:
            return SessionInfo(session=str(self.id))
        return await listed(
            self._views.owner().source,
            lambda row: bool(row["session_id"] == self.id),
            session=self.id,
        )

    # -- the seed's methods: their names, and what they return, are given -----------

    async def toggle_auto_cleanup(self, enabled: bool) -> None:
        """Switch whether closing drops the views.

        Off, their rows are marked *keep*: reapers leave them alone until somebody
        runs ``fm-storage sessions reap --kept``. The switch itself takes effect
        at once; if marking fails or is cancelled, closing marks them.

        Raises:
            StorageError: The rows could not be marked.
        """
        await self._views.set_keep(keep=not enabled)

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
        if self._provider is not None:
            await self._views.adopt(view_name)

    async def unregister_temp_view(self, view_name: str | TempView) -> None:
        """Stop tracking a view, which then stays for ever.

        If cancelled, the view is still tracked here, and its row may be gone.

        Raises:
            StorageError: The row could not be removed; the view is still tracked.
        """
        if self._provider is not None:
            await self._views.disown(view_name)

    def get_session_views(self) -> list[str]:
        """Return the tracked views as SQL names, oldest first; no I/O."""
        return [str(view) for view in self._views.views.values()]

    async def cleanup_session_views(self) -> int:
        """Drop every tracked view; return how many were really dropped.

        What the server refuses stays tracked, is in ``last_cleanup`` and is
        tried again. Never CASCADE. Not stopped by a cancellation, which is raised
        when the views are gone or ``cleanup_timeout`` is over.

        Raises:
            WrongLoop: Called on another event loop than the session's.
            ForkedProcess: Called in a forked child; the views are the parent's.
        """
        return len((await self._views.clean_up()).dropped)

    async def cleanup_schema_if_empty(self, schema: str | None = None) -> bool:
        """Drop the schema if nothing at all is in it; return whether it was dropped.

        False also if it does not exist, is another role's, is in use, or was not
        made by a session.
        """
        if self._provider is None:
            return False
        return await drop_schema_if_empty(
            self._views.owner().source, self.schema if schema is None else schema
        )

    async def cleanup_on_close(self) -> int:
        """Drop the views and then the schema, if it is empty; return how many.

        0 at once if automatic clean-up is off. A session that stands alone gives
        its lease back as well.

        Raises:
            WrongLoop: Called on another event loop than the session's.
            ForkedProcess: Called in a forked child; the views are the parent's.
        """
        if self._views.keep or self._provider is None:
            return 0
        return await self._views.finish()

    async def ensure_schema_exists(self) -> bool:
        """Make the schema if it is missing; return whether it is there now.

        False if this role may not make it, or not create views in it;
        ``create_view()`` then raises the reason.
        """
        if self._provider is None:
            return False
        owner = self._views.owner()
        async with owner.source.acquire() as connection:
            try:
                await owner.ensure_schema(connection, self.schema)
            except PermissionDenied as exc:
                logger.warning("session: %s", exc)
                return False
        return True
