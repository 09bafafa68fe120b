"""The methods that the seed asked for, by their names and with its answers.

Apart because their signatures are given: what they answer without PostgreSQL, and
what they count, is what programs written for the seed rely on.
"""

from __future__ import annotations

import logging

from fm_storage.concurrency.shield import shielded
from fm_storage.errors import InvalidName, PermissionDenied, StorageClosed
from fm_storage.postgres import quote_qualified
from fm_storage.sessions import registry
from fm_storage.sessions.names import Kind, TempView
from fm_storage.sessions.schema import drop_schema_if_empty
from fm_storage.sessions.tracked import TrackedViews

__all__ = ["SeedMethods"]

logger = logging.getLogger("fm_storage.sessions")

_RELKINDS: dict[str, Kind] = {"v": "view", "m": "materialized view"}


class SeedMethods(TrackedViews):
    """Registering, cleaning up, and the schema."""

    async def toggle_auto_cleanup(self, enabled: bool) -> None:
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

        Raises:
            WrongLoop: Called on another event loop than the session's.
            ForkedProcess: Called in a forked child; the views are the parent's.
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
            self._make_service().source, self._schema if schema is None else schema
        )

    async def cleanup_on_close(self) -> int:
        """Drop the views and then the schema, if it is empty; return how many.

        0 at once if automatic clean-up is off. A session that stands alone gives
        its lease back as well.

        Raises:
            WrongLoop: Called on another event loop than the session's.
            ForkedProcess: Called in a forked child; the views are the parent's.
        """
        if not self._auto_cleanup_enabled or self._provider is None:
            return 0
        self._check_home()
        if not self._touched:
            await self._end_service()
            return 0
        try:
            report = await self._cleanup()
            await shielded(self._drop_schema, timeout=5.0)
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
