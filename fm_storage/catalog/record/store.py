"""The statements that write and read the catalogue.

An error, its group and the vector it should have are one statement: one round
trip, all or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from fm_storage.catalog.record.row import RANKS, Prepared
from fm_storage.postgres import Record, Sql
from fm_storage.repositories import ErrorEntry, Severity
from fm_storage.vector_state import upsert_ctes

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

__all__ = ["CHANNEL", "ENTRY_COLUMNS", "SEVERITY_OF_RANK", "CatalogStore", "entry_of"]

CHANNEL = "fm_storage_errors"
"""Notified, at most a few times a second and process, after errors were committed."""

ENTRY_COLUMNS = (
    "e.message, e.module, e.error_code, e.severity, e.stack_trace, "
    "e.manager_context, e.timestamp, e.id"
)
_CONTEXT = Prepared._fields.index("context")
_SEVERITY = Prepared._fields.index("severity")
SEVERITY_OF_RANK = {rank: severity for severity, rank in RANKS.items()}

# The setting travels inside the statement (a pooler would lose a SET), and is
# referenced, or the server would never evaluate it.
_PINNED = "(SELECT pg_catalog.set_config('synchronous_commit', 'on', TRUE)) IS NOT NULL"

_ONE = f"""WITH rec AS (
  INSERT INTO project_errors
    (id, timestamp, message, stack_trace, module, error_code, manager_context,
     severity)
  SELECT $1::uuid, $2::timestamptz, $3::text, $4::text, $5::text, $6::text, $7::jsonb,
    $8::text
  WHERE {_PINNED}
  ON CONFLICT (id) DO NOTHING
  RETURNING id
), grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT $9::bigint, $5::text, $6::text, $10::text FROM rec
  ON CONFLICT (fingerprint) DO NOTHING
)"""
_ONE_MARK = """
  INSERT INTO fm_storage.error_fingerprints
    (error_id, fingerprint, timestamp, severity)
  SELECT id, $9::bigint, $2::timestamptz, $11::smallint FROM rec"""

_MANY = f"""WITH src AS MATERIALIZED (
  SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[],
    $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::text[],
    $11::smallint[])
    AS src (id, at, message, trace, module, code, context, severity, fingerprint,
      template, rank)
), rec AS (
  INSERT INTO project_errors
    (id, timestamp, message, stack_trace, module, error_code, manager_context,
     severity)
  SELECT id, at, message, trace, module, code, context::jsonb, severity FROM src
  WHERE {_PINNED}
  ON CONFLICT (id) DO NOTHING
  RETURNING id
), grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT DISTINCT ON (fingerprint) fingerprint, module, code, template FROM src
  ORDER BY fingerprint
  ON CONFLICT (fingerprint) DO NOTHING
), mark AS (
  INSERT INTO fm_storage.error_fingerprints
    (error_id, fingerprint, timestamp, severity)
  SELECT id, fingerprint, at, rank FROM src JOIN rec USING (id)
)"""

_PAYLOAD = """jsonb_build_object('module', {module}, 'severity', {rank},
    'at', extract(epoch FROM {at}), 'fingerprint', {fingerprint}::text)"""
_ANSWER = " SELECT count(*) FROM rec"


# The payload is made here: putting it together there costs as much as an index.
_RECORD = Sql(_ONE + _ONE_MARK)
_RECORD_WITH_VECTOR = Sql(
    _ONE
    + f", mark AS ({_ONE_MARK}), "
    + upsert_ctes(
        collection="$12::text",
        point_id="rec.id::text",
        payload="$13",
        source="rec",
        durable=False,
        last=True,
    )
)
_RECORD_MANY = Sql(_MANY + _ANSWER)
_RECORD_MANY_WITH_VECTORS = Sql(
    _MANY
    + ", "
    + upsert_ctes(
        collection="$12::text",
        point_id="src.id::text",
        payload=_PAYLOAD.format(
            module="src.module",
            rank="src.rank",
            at="src.at",
            fingerprint="src.fingerprint",
        ),
        source="src JOIN rec USING (id)",
        durable=False,
    )
    + _ANSWER
)
_ENTRIES = Sql(
    f"SELECT {ENTRY_COLUMNS} FROM project_errors AS e WHERE e.id = ANY($1::uuid[])"
)
_WATERMARK = Sql("SELECT last_value FROM fm_storage.vector_version")
_WAITING = Sql(
    "SELECT EXISTS (SELECT FROM fm_storage.vector_queue WHERE collection = $1 "
    "AND ver <= $2 AND NOT replay AND quarantined_at IS NULL)"
)


class CatalogStore:
    """Writes and reads rows through any executor; holds no connection.

    Args:
        collection: Collection whose points accompany the rows; None for none.
    """

    def __init__(self, collection: str | None) -> None:
        self.collection = collection

    async def write(
        self, executor: Executor, row: Prepared, *, timeout: float | None = None
    ) -> bool:
        """Store one row with its group and desired vector; return whether it is new.

        One statement, durable when it returns. If cancelled, it happened wholly
        or not at all; writing it again is harmless.
        """
        values = (
            row.id,
            row.timestamp,
            row.message,
            row.stack_trace,
            row.module,
            row.error_code,
            row.context,
            row.severity.value,
            row.fingerprint,
            row.template,
            RANKS[row.severity],
        )
        if self.collection is None:
            tag = await executor.execute(_RECORD, *values, timeout=timeout)
        else:
            payload = {
                "module": row.module,
                "severity": RANKS[row.severity],
                "at": row.timestamp.timestamp(),
                "fingerprint": str(row.fingerprint),
            }
            tag = await executor.execute(
                _RECORD_WITH_VECTOR, *values, self.collection, payload, timeout=timeout
            )
        return tag.endswith(" 1")

    async def write_many(
        self,
        executor: Executor,
        rows: Sequence[Prepared],
        *,
        timeout: float | None = None,
    ) -> int:
        """Store rows as ``write()`` does, in one statement; count the new ones."""
        columns = columns_of(rows)
        if not columns[0]:
            return 0
        return await self.write_columns(executor, columns, timeout=timeout)

    async def write_columns(
        self,
        executor: Executor,
        columns: Sequence[Sequence[object]],
        *,
        timeout: float | None = None,
    ) -> int:
        """Store what ``columns_of()`` made, perhaps in another thread."""
        if self.collection is None:
            added = await executor.fetchval(_RECORD_MANY, *columns, timeout=timeout)
        else:
            added = await executor.fetchval(
                _RECORD_MANY_WITH_VECTORS, *columns, self.collection, timeout=timeout
            )
        return int(added)

    async def watermark(self, executor: Executor) -> int:
        """Return the greatest version of desired state that anyone has taken."""
        return int(await executor.fetchval(_WATERMARK))

    async def delivered(self, executor: Executor, watermark: int) -> bool:
        """Return whether no point of the catalogue up to *watermark* is on its way."""
        waiting = await executor.fetchval(_WAITING, self.collection, watermark)
        return not waiting

    async def entries(
        self, executor: Executor, ids: Sequence[UUID]
    ) -> dict[UUID, ErrorEntry]:
        """Return the entries that exist among *ids*."""
        rows = await executor.fetch(_ENTRIES, list(ids))
        return {row["id"]: entry_of(row) for row in rows}


def columns_of(rows: Sequence[Prepared]) -> list[list[Any]]:
    """Return the parameters of the bulk statement: columns, in order of id.

    In one order everywhere, so that two batches with common rows cannot
    deadlock; a row that occurs twice counts once.
    """
    distinct = {row.id.int: row for row in rows}  # numbers compare at once
    if not distinct:
        return [[] for _ in range(len(Prepared._fields) + 1)]
    ordered = [distinct[key] for key in sorted(distinct)]
    columns: list[list[Any]] = [list(column) for column in zip(*ordered, strict=True)]
    columns[_CONTEXT] = [
        None if context is None else _json(context) for context in columns[_CONTEXT]
    ]
    severities = columns[_SEVERITY]
    columns[_SEVERITY] = [severity.value for severity in severities]
    columns.append([RANKS[severity] for severity in severities])
    return columns


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()


def entry_of(row: Record) -> ErrorEntry:
    """Return the entity of a row that begins with ``ENTRY_COLUMNS``."""
    return ErrorEntry(
        row[0], row[1], row[2], Severity(row[3]), row[4], row[5], row[6], row[7]
    )
