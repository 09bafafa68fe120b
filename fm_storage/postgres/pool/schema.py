"""Whether the schema was changed: what migrations announce, and their record.

A migration notifies ``CHANNEL`` in its transaction, which a pool hears while it
listens to anything. A pool that does not, compares the record of migrations when it
checks a connection, in the same round trip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL = "fm_storage_schema"
NOTIFY = f"SELECT pg_catalog.pg_notify('{CHANNEL}', '')"

_READABLE = (
    "SELECT FROM pg_catalog.pg_class c"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = 'fm_storage' AND c.relname = 'migrations'"
    " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
    " AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"
)
_VERSION = (
    "SELECT coalesce(pg_catalog.max(seq), 0), pg_catalog.count(*)"
    " FROM fm_storage.migrations"
)
_ABSENT = frozenset({"42P01", "3F000", "42501"})
_SAME = "SELECT 1"


class SchemaVersion:
    """The record of migrations as it was when it was looked at last.

    Args:
        changed: Called when it is another one.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._same: str | None = None  # asks whether nothing has changed

    async def check(self, raw: asyncpg.Connection[Any], timeout: float) -> None:
        """Ask on *raw*, which shows that it is alive as well."""
        if self._same is not None:
            try:
                if await raw.execute(self._same, timeout=timeout) == _SAME:
                    return
            except asyncpg.PostgresError as exc:
                if exc.sqlstate not in _ABSENT:
                    raise
        self._same = f"SELECT 1 WHERE NOT EXISTS ({_READABLE})"
        if await raw.execute(self._same, timeout=timeout) != _SAME:
            row = await raw.fetchrow(_VERSION, timeout=timeout)
            assert row is not None
            self._same = f"SELECT 1 WHERE ({row[0]}, {row[1]}) = ({_VERSION})"
        self._changed()
