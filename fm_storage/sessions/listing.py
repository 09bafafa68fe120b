"""Who has which temporary view: the query behind ``info()`` and ``sessions list``."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from fm_storage.errors import LockTimeout, StorageError
from fm_storage.postgres import Connection, Record, Sql
from fm_storage.sessions import registry
from fm_storage.sessions.reports import SessionInfo, ViewInfo
from fm_storage.sessions.source import Source

_LIST = (
    "SELECT b.schema_name::text AS schema, b.name::text AS name, b.kind, b.oid,"
    " b.owner_id, b.session_id, b.keep, b.released, b.refused_sqlstate, b.created_at,"
    " extract(epoch FROM pg_catalog.clock_timestamp() - b.created_at)::float8 AS age,"
    " b.created_by::text AS role, o.application_name, o.host, o.pid,"
    f" {registry.LOCK_IS_HELD} AS alive, c.oid IS NOT NULL AS exists,"
    " {size} AS size,"
    " CASE WHEN c.relkind IN ('m', 'r') THEN coalesce("
    " nullif(pg_catalog.pg_stat_get_live_tuples(c.oid), 0), b.rows_made) END AS rows"
    " FROM fm_storage.session_objects b"
    " JOIN fm_storage.session_owners o ON o.id = b.owner_id"
    " LEFT JOIN pg_catalog.pg_class c ON c.oid = b.oid"
    " ORDER BY b.id"
)
_EXACT = (
    "CASE WHEN c.relkind IN ('m', 'r') THEN pg_catalog.pg_total_relation_size(c.oid)"
    " END"
)
# Takes no lock on the views, and knows sizes as of the last count.
_UNKNOWN = "NULL::bigint"


async def listed(
    source: Source, is_own: Callable[[Record], bool], *, session: uuid.UUID | None
) -> SessionInfo:
    """Return every registered view, sorted by how it stands to the asker.

    Sizes are left out if a view is locked at this moment (a refresh).
    """
    async with source.acquire() as connection:
        try:
            rows = await _fetch(connection)
        except StorageError as exc:
            raise registry.explained(exc) from exc.__cause__
    found: dict[str, list[ViewInfo]] = {
        "own": [],
        "other": [],
        "orphaned": [],
        "kept": [],
    }
    for row in rows:
        standing = _standing(row, is_own)
        found[standing].append(_view(row, standing))
    return SessionInfo(
        tuple(found["own"]),
        tuple(found["other"]),
        tuple(found["orphaned"]),
        tuple(found["kept"]),
        session=str(session or ""),
    )


async def _fetch(connection: Connection) -> list[Record]:
    try:
        async with connection.transaction(readonly=True) as transaction:
            await transaction.execute(Sql("SET LOCAL lock_timeout = 200"))
            return await transaction.fetch(Sql(_LIST.format(size=_EXACT)))
    except LockTimeout:
        return await connection.fetch(Sql(_LIST.format(size=_UNKNOWN)))


def _standing(row: Record, is_own: Callable[[Record], bool]) -> Any:
    if is_own(row) and not row["released"]:
        return "own"
    if row["keep"] and (row["released"] or not row["alive"]):
        return "kept"
    return "other" if row["alive"] else "orphaned"


def _view(row: Record, standing: Any) -> ViewInfo:
    return ViewInfo(
        schema=row["schema"],
        name=row["name"],
        kind=row["kind"],
        oid=row["oid"],
        standing=standing,
        size=row["size"],
        rows=row["rows"],
        created_at=row["created_at"],
        age=row["age"],
        owner=str(row["owner_id"]),
        session=str(row["session_id"]),
        application_name=row["application_name"],
        host=row["host"],
        pid=row["pid"],
        role=row["role"],
        exists=row["exists"],
        refused=row["refused_sqlstate"],
    )
