"""COPY of Python records into a table, json columns included.

Apart because the driver's own method refuses columns with a text codec, which
json and jsonb have here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.codecs import encode_json
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    import asyncpg

__all__ = ["Copy", "Encoded"]

Encoder: TypeAlias = Callable[[Any], Any]
_FIRST_OWN_OID = 16_384
_ENUMS = "SELECT oid FROM pg_type WHERE oid = ANY($1::oid[]) AND typtype = 'e'"


def _jsonb(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    return b"\x01" + encode_json(value).encode()


def _json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    return encode_json(value).encode()


_JSON: dict[str, Encoder] = {"json": _json, "jsonb": _jsonb}


class Encoded:
    """Records whose values are already as the driver takes them, JSON as text.

    For callers that know the table: nothing is looked at on the way.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return iter(self.rows)


class Copy:
    """One COPY of *records* into *table*.

    Attributes:
        sql: The statement, from quoted identifiers.
    """

    def __init__(
        self,
        table: str,
        *,
        schema: str | None,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
    ) -> None:
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
        """Send the records and return how many there were.

        Raises:
            InvalidRecord: A record does not fit; nothing was written.
        """
        driver: Any = raw
        records = self._records
        if isinstance(records, Encoded):
            described = await driver._get_statement(  # noqa: SLF001 - as the driver's own COPY does
                self._sample(self._columns), timeout, ignore_custom_codec=True
            )
            counted = _Counted(records.rows, {})
            rows: Any = records.rows
        else:
            described, encoders = await self._describe(driver, timeout)
            kind = _CountedAsync if isinstance(records, AsyncIterable) else _Counted
            rows = counted = kind(records, encoders)
        try:
            tag: str = await driver._protocol.copy_in(  # noqa: SLF001 - as above
                sql, None, None, rows, described, timeout
            )
        except (TypeError, ValueError, OverflowError, IndexError) as exc:
            if isinstance(exc, StorageError) and not isinstance(exc, InvalidRecord):
                raise
            if isinstance(exc, InvalidRecord) and isinstance(records, Encoded):
                raise  # it names the record: whoever encoded it knows more
            why = exc if isinstance(exc, InvalidRecord) else type(exc).__name__
            raise InvalidRecord(
                f"record {counted.index}: a value does not fit its column ({why}); "
                "convert it",
                index=counted.index,
            ) from exc
        return int(tag.rpartition(" ")[2])

    async def _describe(
        self,
        driver: Any,  # noqa: ANN401 - private parts are used
        timeout: float | None,
    ) -> tuple[Any, dict[int, Encoder]]:
        """Return a statement with the columns' types, and what to encode first.

        The driver writes neither types with a text codec nor enums in binary.
        Their binary form is simply known bytes, so such a column is described
        as bytea.
        """
        described = await driver._get_statement(  # noqa: SLF001 - as the driver's own COPY does
            self._sample(self._columns), timeout
        )
        types = [a.type for a in described._get_attributes()]  # noqa: SLF001 - as above
        encoders = {
            at: _JSON[each.name] for at, each in enumerate(types) if each.name in _JSON
        }
        own = [each.oid for each in types if each.oid >= _FIRST_OWN_OID]
        if own:
            rows = await driver.fetch(_ENUMS, own, timeout=timeout)
            enums = {row["oid"] for row in rows}
            for at, each in enumerate(types):
                if each.oid in enums:
                    encoders[at] = str.encode
        if encoders:
            columns = list(self._columns)
            for at in encoders:
                columns[at] = f"NULL::bytea AS {columns[at]}"
            described = await driver._get_statement(self._sample(columns), timeout)  # noqa: SLF001 - as above
        return described, encoders

    def _sample(self, columns: Sequence[str]) -> str:
        return f"SELECT {', '.join(columns)} FROM {self._target} LIMIT 0"  # noqa: S608 - quoted


class _Counted:
    """Records on their way out: counted, encoded where the driver cannot."""

    def __init__(
        self,
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        encoders: dict[int, Encoder],
    ) -> None:
        self.index = -1
        self._records = records
        self._encoders = encoders

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for index, record in enumerate(self._records):  # type: ignore[arg-type]  # see Copy
            self.index = index
            yield self._encoded(record)

    def _encoded(self, record: Sequence[Any]) -> Sequence[Any]:
        if not self._encoders:
            return record
        row = list(record)
        for at, encode in self._encoders.items():
            if row[at] is not None:
                row[at] = encode(row[at])
        return row


class _CountedAsync(_Counted):
    """The same for an asynchronous source."""

    async def __aiter__(self) -> AsyncIterator[Sequence[Any]]:
        self.index = -1
        async for record in self._records:  # type: ignore[union-attr]  # see Copy
            self.index += 1
            yield self._encoded(record)
