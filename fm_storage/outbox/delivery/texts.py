"""Where the texts of points come from: the payload, a column, or a function.

A fault of the source concerns every point alike and is ``TextsFailed``; a point
that lacks its text in the payload is at fault itself and is returned as refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from fm_storage._typing import Relation
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, StorageError
from fm_storage.outbox.delivery.queue import Leased
from fm_storage.postgres import Executor, Sql, quote_ident, quote_qualified
from fm_storage.vector_state import decode_id

TextOf: TypeAlias = Callable[[Executor, list[str]], Awaitable[Mapping[str, str]]]
"""Reads the texts of points: ``await text_of(executor, ids)`` → text by id."""

Found: TypeAlias = "tuple[dict[str, str], list[tuple[Leased, Exception]]]"
"""Texts by id, and rows that cannot have one."""


class Texts(Protocol):
    """Reads the texts of points that are being delivered."""

    async def read(self, executor: Executor, rows: Sequence[Leased], /) -> Found:
        """Return texts by id; a row in neither part has no record any more."""
        ...


ALONE = 4
"""Points that must fail one by one before the source is held to be at fault."""
_SHOWN = 5

_KEY_TYPE = Sql("""
SELECT format_type(a.atttypid, NULL) FROM pg_attribute AS a
WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped""")


class TextMissing(LookupError):
    """No point of a batch has the key, so the key is what is wrong."""


class TextsFailed(Exception):
    """The source of texts, or the vectorizer, failed; no point is at fault.

    Attributes:
        common: Whether it concerns every point alike, so that none is tried alone.
    """

    def __init__(self, source: str, exc: BaseException) -> None:
        super().__init__(
            f"{source} failed, its points wait: {type(exc).__name__}: {exc}"
        )
        retryable = isinstance(exc, StorageError) and exc.retryable
        self.common = retryable or isinstance(exc, OSError | TimeoutError | TextMissing)


def raise_if_cancelled(exc: BaseException) -> None:
    """Pass on a cancellation of this task, not one that the application raised."""
    task = asyncio.current_task()
    if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
        raise exc


def texts_from(
    text_of: TextOf | str, *, collection: str, table: str | Relation | None, key: str
) -> Texts:
    """Return the reader of texts that *text_of* describes.

    Raises:
        ConfigurationInvalid: It is none of the forms, or lacks its table.
    """
    if isinstance(text_of, str):
        form, _, name = text_of.partition(":")
        if form == "payload" and name and table is None:
            return _PayloadTexts(name)
        if form == "column" and name and table is not None:
            return ColumnTexts(table, key, [name])
        raise ConfigurationInvalid(
            "text_of",
            f"of collection {collection!r}: {text_of!r} is not accepted; give "
            "'payload:KEY', or 'column:NAME' with table=, or an async function",
        )
    method = type(text_of).__call__ if callable(text_of) else None
    if not any(map(inspect.iscoroutinefunction, (text_of, method))):
        raise ConfigurationInvalid(
            "text_of",
            f"of collection {collection!r}: {text_of!r} is not an async function; "
            "give 'async def text_of(executor, ids)' that returns {id: text}",
        )
    try:
        inspect.signature(text_of).bind(None, [])
    except TypeError as exc:
        raise ConfigurationInvalid(
            "text_of",
            f"of collection {collection!r}: {text_of!r} does not take "
            f"(executor, ids): {exc}",
        ) from exc
    return _FunctionTexts(text_of)


class _PayloadTexts:
    """Texts that the points carry in their payloads."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def read(self, _: Executor, rows: Sequence[Leased], /) -> Found:
        texts: dict[str, str] = {}
        refused: list[tuple[Leased, Exception]] = []
        found = [self._get(row.payload or {}) for row in rows]
        if len(rows) >= ALONE and all(text is None for text in found):
            raise TextMissing(f"no point of {len(rows)} has payload.{self._name}")
        for row, text in zip(rows, found, strict=True):
            if isinstance(text, str):
                texts[str(decode_id(row.point_id))] = text
            else:
                field = f"payload.{self._name}"
                exc = InvalidRecord(
                    f"{field}: it is {type(text).__name__}, not the text to embed; "
                    "write the point with a text",
                    field=field,
                )
                refused.append((row, exc))
        return texts, refused

    def _get(self, payload: Mapping[str, Any]) -> Any:
        """Return what is under the name, which may be a path into objects."""
        if self._name in payload:
            return payload[self._name]
        value: Any = payload
        for step in self._name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        return value


class ColumnTexts:
    """Texts that are columns of a table, in the row with the point's id as its key.

    A row that is gone, or has no text (NULL), gives none.
    """

    def __init__(self, table: str | Relation, key: str, columns: Sequence[str]) -> None:
        schema, name = "", table
        if isinstance(table, str):
            schema, _, name = table.rpartition(".")
        self._table = quote_qualified(schema or None, name)
        self._key = key
        self._columns = columns
        self._statement: Sql | None = None  # by the first call
        self._folded: Sql | None = None  # likewise, for a text key

    async def read(self, executor: Executor, rows: Sequence[Leased], /) -> Found:
        """Read the columns of the rows whose keys are the points' ids."""
        if self._statement is None:
            await self._prepare(executor)
        assert self._statement is not None
        ids = [str(decode_id(row.point_id)) for row in rows]
        try:
            records = await executor.fetch(self._statement, ids)
        except StorageError:
            self._statement = None  # the type of the key may have been changed
            raise
        if self._folded is not None and len(records) < len(ids):
            # The id of a text key that looks like a UUID is its lower-case form.
            found = {key for key, _ in records}
            rest = [one for one in ids if one not in found]
            records += await executor.fetch(self._folded, rest)
        return {key: text for key, text in records if text is not None}, []

    async def _prepare(self, executor: Executor) -> None:
        kind = await executor.fetchval(_KEY_TYPE, self._table, self._key)
        if kind is None:
            raise ConfigurationInvalid(
                "text_of",
                f"there is no column {self._key!r} in a table {self._table}; "
                "name the table and its key",
            )
        key = quote_ident(self._key)
        text = text_sql(self._columns)
        start = f"FROM {self._table} WHERE "
        self._statement = Sql(
            f"SELECT {key}::text, {text} {start}{key} = ANY ($1::text[]::{kind}[])"
        )
        if kind in {"text", "character varying"}:
            self._folded = Sql(
                f"SELECT lower({key}), {text} {start}lower({key}) = ANY ($1::text[])"
            )


def text_sql(columns: Sequence[str], prefix: str = "") -> str:
    """Return SQL for the text of a row: columns by line, NULL if all of them are."""
    listed = ", ".join(f"{prefix}{quote_ident(one)}::text" for one in columns)
    return f"CASE WHEN num_nonnulls({listed}) > 0 THEN concat_ws(E'\\n', {listed}) END"


class _FunctionTexts:
    """Texts that a function of the application reads."""

    def __init__(self, function: TextOf) -> None:
        self._function = function

    async def read(self, executor: Executor, rows: Sequence[Leased], /) -> Found:
        ids = [str(decode_id(row.point_id)) for row in rows]
        found: Any = await self._function(executor, list(ids))
        if not isinstance(found, Mapping):
            raise TypeError(f"it returned {type(found).__name__}, not {{id: text}}")
        # A missing text deletes the point, so a key of another type must not pass.
        strange = found.keys() - set(ids)
        if strange:
            shown = sorted(map(repr, strange))[:_SHOWN]
            raise TypeError(
                f"it returned ids that were not asked for ({', '.join(shown)}); "
                "give each id as the text it came as"
            )
        for key, text in found.items():
            if not isinstance(text, str):
                raise TypeError(f"the text of {key!r} is {type(text).__name__}")
        return dict(found), []
