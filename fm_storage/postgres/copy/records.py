"""COPY of Python records into a table, json columns included.

The driver's own method refuses columns with a text codec, which json and jsonb
have here.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from fm_storage._typing import Relation
from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.arguments import names_of, of_kind
from fm_storage.postgres.connect.codecs import encode_json
from fm_storage.postgres.connect.internals import (
    FIRST_OWN_OID,
    column_types,
    copy_in,
    describe,
    forget_types,
    socket_of,
)
from fm_storage.postgres.copy.source import from_caller
from fm_storage.postgres.errors import FromCaller
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    import asyncpg

Encoder: TypeAlias = Callable[[Any], Any]
_UNIX = getattr(socket, "AF_UNIX", None)
_ROOM = 1 << 20
_REFUSED = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, BufferError
)  # fmt: skip
"""What the driver's encoders raise; the last two, those for uuid and bytea."""
_ENUMS = "SELECT oid FROM pg_type WHERE oid = ANY($1::oid[]) AND typtype = 'e'"


def _jsonb(value: Any) -> bytes:
    return b"\x01" + encode_json(value).encode()


def _json(value: Any) -> bytes:
    return encode_json(value).encode()


_JSON: dict[str, Encoder] = {"json": _json, "jsonb": _jsonb}


class Encoded:
    """Records whose values are already as the driver takes them, JSON as text.

    For callers that know the table: nothing is checked on the way.

    Attributes:
        rows: The records.
        reached: Returns the position of the record that the driver took last, if
            it is known.
    """

    __slots__ = ("reached", "rows")

    def __init__(
        self,
        rows: Iterable[Sequence[Any]],
        reached: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.rows = rows
        self.reached = reached

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return iter(self.rows)


class Copy:
    """One COPY of *records* into *table*.

    Attributes:
        sql: The statement, from quoted identifiers.
    """

    def __init__(
        self,
        table: str | Relation,
        *,
        schema: str | None,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
    ) -> None:
        of_kind(records, (Iterable, AsyncIterable), "records", "give rows of values")
        names_of(columns)
        self._target = quote_qualified(schema, table)
        self._columns = [quote_ident(column) for column in columns]
        self._records = records
        self.sql = Sql(
            f"COPY {self._target} ({', '.join(self._columns)}) "
            "FROM STDIN (FORMAT binary)"
        )

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Send the records and return how many.

        Raises:
            InvalidRecord: A record does not fit; nothing was written.
        """
        _widen(socket_of(raw))
        records = self._records
        if isinstance(records, Encoded):
            described = await describe(
                raw, self._select(self._columns), timeout, ignore_custom_codec=True
            )
            rows: Any = records.rows
            reached = records.reached
        else:
            described, encoders = await self._describe(raw, timeout)
            counted = _Counted(encoders)
            rows = counted.rows(records)
            reached = counted.reached
        try:
            return await copy_in(
                raw, sql, records=rows, described=described, timeout=timeout
            )
        except _REFUSED as exc:
            if isinstance(exc, StorageError) and not isinstance(exc, InvalidRecord):
                raise
            why = exc if isinstance(exc, InvalidRecord) else type(exc).__name__
            index = reached()
            at = "" if index is None else f"record {index}: "
            raise InvalidRecord(
                f"{at}a value does not fit its column ({why}); convert it",
                index=index,
            ) from exc

    async def _describe(
        self, raw: asyncpg.Connection[Any], timeout: float | None
    ) -> tuple[Any, dict[int, Encoder]]:
        """Return a statement with the columns' types, and what to encode first.

        The driver writes neither types with a text codec nor enums in binary.
        Their binary form is simply known bytes, so such a column is described
        as bytea.
        """
        # Described anew each time: the binary form of what a column was before
        # ALTER TABLE would be refused, or worse, taken for something else.
        forget_types(raw)
        described = await describe(raw, self._select(self._columns), timeout)
        types = column_types(described)
        encoders = {
            at: _JSON[each.name] for at, each in enumerate(types) if each.name in _JSON
        }
        own = [each.oid for each in types if each.oid >= FIRST_OWN_OID]
        if own:
            rows = await raw.fetch(_ENUMS, own, timeout=timeout)
            enums = {row["oid"] for row in rows}
            for at, each in enumerate(types):
                if each.oid in enums:
                    encoders[at] = str.encode
        if encoders:
            columns = list(self._columns)
            for at in encoders:
                columns[at] = f"NULL::bytea AS {columns[at]}"
            described = await describe(raw, self._select(columns), timeout)
        return described, encoders

    def _select(self, columns: Sequence[str]) -> str:
        return f"SELECT {', '.join(columns)} FROM {self._target} LIMIT 0"


def _widen(connected: Any) -> None:
    """Let a local socket hold what the driver sends at a time.

    The driver encodes half a megabyte, sends it, and while it encodes the next
    the loop can push nothing more. A Unix socket takes less than half of it at
    once, so the server would run dry and wait; TCP makes room by itself. The
    kernel cuts the wish down to its own limit.
    """
    if connected is not None and connected.family == _UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)


class _Counted:
    """Counts records on their way out and encodes what the driver cannot."""

    def __init__(self, encoders: dict[int, Encoder]) -> None:
        self._encoders = encoders
        self._index = -1

    def reached(self) -> int:
        """Return the position of the record that the driver took last."""
        return self._index

    def rows(
        self, records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]]
    ) -> Iterator[Sequence[Any]] | AsyncIterator[Sequence[Any]]:
        """Return the records as the driver takes them."""
        if isinstance(records, AsyncIterable):
            return self._of_async(records)
        return self._of(records)

    def _of(self, records: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        source = iter(records)
        while True:
            try:
                record = next(source)
            except StopIteration:
                return
            except BaseException as exc:  # the caller's, not the driver's
                raise FromCaller(exc) from None
            self._index += 1
            yield self._encoded(record)

    async def _of_async(
        self, records: AsyncIterable[Sequence[Any]]
    ) -> AsyncIterator[Sequence[Any]]:
        async for record in from_caller(records):
            self._index += 1
            yield self._encoded(record)

    def _encoded(self, record: Sequence[Any]) -> Sequence[Any]:
        if not self._encoders:
            return record
        row = list(record)
        for at, encode in self._encoders.items():
            if row[at] is not None:
                row[at] = encode(row[at])
        return row
