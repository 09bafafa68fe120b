"""The statements that write and read the catalogue.

An error, its group and the vector it should have are one statement: one round
trip, all or nothing.
"""

from __future__ import annotations

import codecs
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from fm_storage.catalog.record.row import (
    CONTEXT,
    RANK,
    RANKS,
    REPAIRED,
    Origin,
    Prepared,
    columns_of,
    json_text,
)
from fm_storage.concurrency.batcher import refuses_values
from fm_storage.errors import InvalidRecord, QueryFailed, StorageError
from fm_storage.postgres import Record, Sql
from fm_storage.repositories import ErrorEntry, Severity
from fm_storage.vector_state import upsert_ctes
from fm_storage.vector_state.statements import PIN

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

CHANNEL = "fm_storage_errors"
"""Notified, at most a few times a second and process, after errors were committed."""

# Plain SQL may store what the driver cannot read: infinity, or years before Christ.
CLAMPED = "LEAST(GREATEST({}, '0001-01-02T00:00Z'), '9999-12-30T00:00Z')"
"""A time within the years that Python has."""

ENTRY_COLUMNS = (
    "e.message, e.module, e.error_code, e.severity, e.stack_trace, "
    f"e.manager_context, {CLAMPED.format('e.timestamp')} AS timestamp, e.id"
)
_PAYLOAD = [
    *map(Prepared._fields.index, ("module", "fingerprint", "timestamp")),
    RANK,
]
SEVERITY_OF_RANK = {rank: severity for severity, rank in RANKS.items()}

_KINDS = {
    "id": "uuid", "at": "timestamptz", "message": "text", "trace": "text",
    "module": "text", "code": "text", "context": "text", "severity": "text",
    "fingerprint": "bigint", "template": "text", "rank": "smallint",
}  # fmt: skip


def _record(*, many: bool, fresh: bool, vectors: bool, origins: bool) -> Sql:
    """Return the statement that writes rows; its tag counts those that were new.

    A *fresh* one has no ON CONFLICT, which costs a row a sixth: of a row that is
    there already it answers 23505, and has written nothing.
    """
    numbers = {name: nr for nr, name in enumerate(_KINDS, 1)}
    kinds = dict(_KINDS)
    if vectors:  # made here: putting one together there costs a third more
        numbers["payload"], kinds["payload"] = len(_KINDS) + 2, "text"
    array = "[]" if many else ""
    given = ", ".join(f"${nr}::{kinds[name]}{array}" for name, nr in numbers.items())
    rows = f"unnest({given})" if many else f"(VALUES ({given}))"
    new = "src" if fresh else "rec JOIN src USING (id)"
    # In the order of the other one, or two with a common row could deadlock.
    last = "src, (SELECT count(*) FROM rec) AS written" if fresh else new
    ctes = [
        f"""src AS {"" if many else "NOT "}MATERIALIZED (
  SELECT * FROM {rows} AS src ({", ".join(numbers)})
)""",
        f"""rec AS (
  INSERT INTO project_errors
    (id, timestamp, message, stack_trace, module, error_code, manager_context,
     severity)
  SELECT id, at, message, trace, module, code, context::jsonb, severity FROM src
  WHERE {PIN}{"" if fresh else " ON CONFLICT (id) DO NOTHING"} RETURNING id
)""",
        f"""grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT {"DISTINCT ON (fingerprint)" if many else ""}
    fingerprint, module, code, template FROM src
  {"ORDER BY fingerprint" if many else ""}
  ON CONFLICT (fingerprint) DO NOTHING
)""",
    ]
    if origins:
        first = len(numbers) + (2 if vectors else 1)
        own = ("uuid[]", *["text[]"] * 4) if many else ["text"] * 4
        values = ", ".join(f"${nr}::{kind}" for nr, kind in enumerate(own, first))
        made = f"unnest({values}) AS made (id, a, b, c, d)"
        known = "" if fresh else " JOIN rec USING (id)"
        chosen = f"made.* FROM {made}{known}" if many else f"id, {values} FROM {new}"
        ctes.append(f"org AS (INSERT INTO fm_storage.error_origins SELECT {chosen})")
    mark = f"""
  INSERT INTO fm_storage.error_fingerprints
    (error_id, fingerprint, timestamp, severity)
  SELECT id, fingerprint, at, rank FROM {new if vectors else last}"""
    if vectors:
        mark = f", mark AS ({mark}\n), " + upsert_ctes(
            collection=f"${len(_KINDS) + 1}::text",
            point_id="id::text",
            payload="payload",
            source=last,
            durable=False,
            fresh=fresh,
            last=True,
        )
    return Sql("WITH " + ", ".join(ctes) + mark)


_RECORD = {
    (many, fresh, vectors, origins): _record(
        many=many, fresh=fresh, vectors=vectors, origins=origins
    )
    for many, fresh, vectors, origins in product((False, True), repeat=4)
}
_ORIGINS = Sql(
    "SELECT error_id, trace_id, span_id, release, environment "
    "FROM fm_storage.error_origins WHERE error_id = ANY($1::uuid[])"
)
_ENTRIES = Sql(
    f"SELECT {ENTRY_COLUMNS} FROM project_errors AS e WHERE e.id = ANY($1::uuid[])"
)
_WATERMARK = Sql("SELECT last_value FROM fm_storage.vector_version")
_WAITING = Sql(
    "SELECT EXISTS (SELECT FROM fm_storage.vector_queue WHERE collection = $1 "
    "AND ver <= $2 AND NOT replay AND quarantined_at IS NULL)"
)


_KNOWN, _UNTRANSLATABLE = "23505", "22P05"


async def write_each(
    count: int,
    write: Callable[[slice], Awaitable[int]],
    refuse: Callable[[int, StorageError], Awaitable[None]],
) -> int:
    """Write *count* rows at once, or in halves where the database refuses values.

    One row that cannot be stored stops no other: it is handed to *refuse*.

    Args:
        count: Number of rows.
        write: Writes some of them in one statement, returning how many were new.
        refuse: Takes the position of a row that cannot be stored, and why.

    Raises:
        StorageError: Something else than a row's values is in the way.
    """

    async def some(start: int, stop: int) -> int:
        try:
            return await write(slice(start, stop))
        except (QueryFailed, InvalidRecord) as exc:
            if not refuses_values(exc):
                raise
            if stop - start == 1:
                await refuse(start, exc)
                return 0
        middle = (start + stop) // 2
        return await some(start, middle) + await some(middle, stop)

    return await some(0, count)


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

        One statement, durable when it returns (two, if the row was there already;
        so not inside of a transaction). If cancelled, it happened wholly or not at
        all; writing it again is harmless.
        """
        rank = RANKS[row.severity]
        values: tuple[object, ...] = (
            row.id,
            row.timestamp,
            row.message,
            row.stack_trace,
            row.module,
            row.error_code,
            None if row.context is None else json_text(row.context),
            row.severity.value,
            row.fingerprint,
            row.template,
            rank,
        )
        if self.collection is not None:
            payload = _payload(row.module, row.fingerprint, row.timestamp, rank)
            values += (self.collection, payload)
        values += row.origin or ()
        case = (self.collection is not None, row.origin is not None)
        try:
            return bool(await _run(executor, (False, True, *case), values, timeout))
        except QueryFailed as exc:
            if exc.sqlstate != _UNTRANSLATABLE:
                raise
        return bool(await self.write_many(executor, [row], timeout=timeout))

    async def write_many(
        self,
        executor: Executor,
        rows: Sequence[Prepared],
        *,
        fresh: bool = True,
        timeout: float | None = None,
    ) -> int:
        """Store rows as ``write()`` does, in one statement; count the new ones."""
        columns = columns_of(rows)
        if not columns[0]:
            return 0
        return await self.write_columns(executor, columns, fresh=fresh, timeout=timeout)

    async def write_columns(
        self,
        executor: Executor,
        columns: Sequence[Sequence[object]],
        *,
        fresh: bool = True,
        timeout: float | None = None,
    ) -> int:
        """Store what ``columns_of()`` made, perhaps in another thread.

        Characters that the database's encoding lacks are escaped. Where rows are
        likely to be there already, *fresh* = False saves the server a refusal.
        """
        try:
            return await self._write_columns(executor, columns, fresh, timeout)
        except QueryFailed as exc:
            if exc.sqlstate != _UNTRANSLATABLE:
                raise
        encoding = await executor.fetchval("SHOW server_encoding")
        encodable = _encodable(columns, str(encoding))
        return await self._write_columns(executor, encodable, fresh, timeout)

    async def _write_columns(
        self,
        executor: Executor,
        columns: Sequence[Sequence[Any]],
        fresh: bool,
        timeout: float | None,
    ) -> int:
        values: list[Any]
        *values, origins = columns
        if self.collection is not None:
            payloads = list(map(_payload, *(columns[at] for at in _PAYLOAD)))
            values += [self.collection, payloads]
        known = [
            (key, *origin)
            for key, origin in zip(columns[0], origins, strict=True)
            if origin is not None
        ]
        values += map(list, zip(*known, strict=True))
        case = (True, fresh, self.collection is not None, bool(known))
        return await _run(executor, case, values, timeout)

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


async def _run(
    executor: Executor,
    case: tuple[bool, bool, bool, bool],
    values: Sequence[object],
    timeout: float | None,
) -> int:
    """Write rows, again if some were there already; return how many were new."""
    try:
        tag = await executor.execute(_RECORD[case], *values, timeout=timeout)
    except QueryFailed as exc:
        many, fresh, vectors, origins = case
        if exc.sqlstate != _KNOWN or not fresh:
            raise
        known = _RECORD[many, False, vectors, origins]
        tag = await executor.execute(known, *values, timeout=timeout)
    return int(tag.rpartition(" ")[2])


async def fetch_origins(executor: Executor, ids: Sequence[UUID]) -> dict[UUID, Origin]:
    """Return the origins that are known of errors."""
    rows = await executor.fetch(_ORIGINS, list(ids))
    return {row[0]: Origin(*row[1:]) for row in rows}


def _encodable(
    columns: Sequence[Sequence[object]], encoding: str
) -> list[Sequence[object]]:
    """Return *columns* in characters that the database's encoding has."""
    try:
        codec = codecs.lookup(encoding.replace("WIN", "cp")).name
    except LookupError:
        codec = "ascii"
    note = f"characters that {encoding} lacks escaped"

    def fit(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode(codec, "backslashreplace").decode(codec)
        if isinstance(value, list | tuple):
            fitted = map(fit, value)
            return tuple(fitted) if isinstance(value, tuple) else list(fitted)
        if isinstance(value, dict):
            return {fit(key): fit(one) for key, one in value.items()}
        return value

    made: list[Sequence[object]] = [
        column if at == CONTEXT else [fit(value) for value in column]
        for at, column in enumerate(columns)
    ]
    contexts: list[str] = []
    for at, text in enumerate(columns[CONTEXT]):
        context = fit(orjson.loads(str(text))) if text else {}
        pairs = zip(columns, made, strict=True)
        if any(old[at] != new[at] for old, new in pairs) or json_text(context) != text:
            context[REPAIRED] = [*context.get(REPAIRED, ()), note]
        contexts.append(json_text(context))
    made[CONTEXT] = contexts
    return made


def _payload(module: str, fingerprint: int, timestamp: datetime, rank: int) -> str:
    """Return the payload of an error's point, as text."""
    return json_text(
        {
            "module": module,
            "severity": rank,
            "at": timestamp.timestamp(),
            "fingerprint": str(fingerprint),
        }
    )


def entry_of(row: Record) -> ErrorEntry:
    """Return the entity of a row that begins with ``ENTRY_COLUMNS``."""
    return ErrorEntry(
        row[0], row[1], row[2], Severity(row[3]), row[4], row[5], row[6], row[7]
    )
