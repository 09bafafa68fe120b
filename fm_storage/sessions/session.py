"""A session: temporary views that go when it ends, whatever ends it.

Apart because this is what users hold. The order of every operation is the same:
decide and record the intent without I/O, then act, then note the outcome; so a
cancellation at any await leaves nothing that the session does not know of.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, Self

from fm_storage.concurrency.shield import shielded
from fm_storage.errors import (
    DuplicateRecord,
    InvalidName,
    QueryFailed,
)
from fm_storage.sessions import registry
from fm_storage.sessions.creating import (
    CreateProgress,
    ViewPlan,
    as_indexes,
    create,
    in_time,
    refresh,
)
from fm_storage.sessions.dropping import Claim
from fm_storage.sessions.listing import listed
from fm_storage.sessions.names import Kind, TempView, generated_name
from fm_storage.sessions.reports import CleanupReport, SessionInfo
from fm_storage.sessions.seed import SeedMethods
from fm_storage.sessions.tracked import Key

__all__ = ["PostgresSessionManager"]

logger = logging.getLogger("fm_storage.sessions")

_NO_SCHEMA = "3F000"
_WAIT_FOR_NAME = 120.0
_LOOK_AGAIN = 1.0  # in which a name's holder may still turn out to be dead


class PostgresSessionManager(SeedMethods):
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

    # -- life -------------------------------------------------------------------

    async def _opened(self) -> Self:
        """Take the lease, if no session of this process has it yet.

        Raises:
            ConfigurationInvalid: Behind a pooler that lets no lease be held.
            SchemaOutOfDate: The registry's tables are missing.
        """
        if self._provider is not None:
            await self._ready()
        return self

    async def aclose(self) -> None:
        """Drop the views (or mark them as kept) and end the session; idempotent.

        A cancellation is raised when the clean-up is done or its deadline over.
        Does nothing in a forked child: the views are the parent's.

        Raises:
            WrongLoop: Called on another event loop than the session's.
        """
        service = self._service
        if self._closed or (service is not None and not service.at_home()):
            return
        self._closed = True
        if service is None:
            return
        try:
            if self._auto_cleanup_enabled:
                await self.cleanup_on_close()
            elif self._touched:
                await shielded(self._release, timeout=self._config.cleanup_timeout)
        except TimeoutError:
            logger.warning("session: %s not released in time", self.id)
        finally:
            service.remove(self)
            await self._end_service()

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
        return await self._make(
            kind, sql, args, name, indexes, timeout, progress, with_data=with_data
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
        """Create a table of a query's rows, to be written by every connection.

        Otherwise like ``create_view(materialized=True)``. Unlogged: fast to fill,
        not replicated, empty after a crash of the server.

        Raises:
            SchemaOutOfDate: The registry is of a release without such tables.
        """
        return await self._make(
            "table", sql, args, name, indexes, timeout, progress, with_data=with_data
        )

    async def _make(  # noqa: PLR0917 - what two methods were given
        self,
        kind: Kind,
        sql: str,
        args: tuple[Any, ...],
        name: str | None,
        indexes: Sequence[str],
        timeout: float | None,
        progress: Callable[[CreateProgress], None] | None,
        *,
        with_data: bool,
    ) -> TempView:
        if self._provider is None:
            return TempView(self._schema, name or "", kind, 0)
        given = generated_name(self._config.prefix) if name is None else name
        plan = ViewPlan(
            *(self._schema, given, kind, sql, args),
            *(as_indexes(indexes), with_data),
        )
        key = (plan.schema, plan.name)
        if key in self._views or key in self._uncertain:
            raise InvalidName(
                f"session: it has a view {plan.target} already; drop that first, or "
                "give another name"
            )
        async with in_time(timeout, f"{plan.target} was not created"):
            return await self._create(plan, key, progress)

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
        async with (
            in_time(timeout, f"{target} was not refreshed"),
            service.source.acquire() as connection,
        ):
            let_in, why = await refresh(
                connection, target, session=self.id, concurrently=concurrently
            )
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

    def add_reference(self, view: TempView | str, holder: Hashable) -> None:
        """Note that *holder* uses the view; no I/O. Adding it twice counts once.

        Raises:
            InvalidName: The session has no such view.
        """
        if self._provider is not None:
            target = self._own(view)
            self._holders.setdefault((target.schema, target.name), set()).add(holder)

    async def release_reference(self, view: TempView | str, holder: Hashable) -> bool:
        """Note that *holder* is done; the last one drops the view.

        A holder that was never added, or a view that is gone, is ignored.

        Returns:
            Whether the view was dropped now; False also if that was refused, of
            which ``last_cleanup`` tells.
        """
        if self._provider is None:
            return False
        key = self._key(view)
        holders = self._holders.get(key)
        if holders is None or holder not in holders:
            return False
        holders.discard(holder)
        if holders or key not in self._views:
            return False
        return await self.drop_view(self._views[key])

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
        key: Key,
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
                await self._wait_for_name(lease.owner, plan, key, exc, give_up)
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
        owner: uuid.UUID,
        plan: ViewPlan,
        key: Key,
        exc: DuplicateRecord,
        give_up: float,
    ) -> None:
        """Return when the name may be free; raise *exc* if its holder lives.

        The server frees a killed process's lock when it sees the socket closed: a
        moment later than the kill, and later still on a busy machine. So a holder
        that seems to live is looked at again before its name is refused.
        """
        service = self._make_service()
        sure = min(give_up, monotonic() + _LOOK_AGAIN)
        while True:
            async with service.source.acquire() as connection:
                holder = await connection.fetchrow(registry.HOLDER, *key)
            if holder is None:
                return
            if (
                not holder["alive"]
                or holder["keep"]
                or holder["owner_id"] == owner
                or monotonic() >= sure
            ):
                break
            await asyncio.sleep(_LOOK_AGAIN / 5)
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
