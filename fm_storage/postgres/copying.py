"""COPY of Python records into a table, json columns included.

Apart because the driver's own method refuses columns with a text codec, which
json and jsonb have here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.codecs import encode_json
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    import asyncpg

__all__ = ["Copy"]

_JSON = frozenset({"json", "jsonb"})


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
        self._columns = ", ".join(quote_ident(column) for column in columns)
        self._records = records
        self.sql = Sql(
            f"COPY {self._target} ({self._columns}) FROM STDIN (FORMAT binary)"
        )

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Send the records and return how many there were.

        Raises:
            InvalidRecord: A record does not fit; nothing was written.
        """
        driver: Any = raw
        described = await driver._get_statement(  # noqa: SLF001 - the only way round text codecs
            f"SELECT {self._columns} FROM {self._target} LIMIT 0",  # noqa: S608 - quoted
            timeout,
            ignore_custom_codec=True,
        )
        json_at = [
            at
            for at, attribute in enumerate(described._get_attributes())  # noqa: SLF001 - as above
            if attribute.type.name in _JSON
        ]
        kind = _CountedAsync if isinstance(self._records, AsyncIterable) else _Counted
        counted = kind(self._records, json_at)
        try:
            tag: str = await driver._protocol.copy_in(  # noqa: SLF001 - as above
                sql, None, None, counted, described, timeout
            )
        except (TypeError, ValueError, OverflowError, IndexError) as exc:
            if isinstance(exc, StorageError) and not isinstance(exc, InvalidRecord):
                raise
            why = exc if isinstance(exc, InvalidRecord) else type(exc).__name__
            raise InvalidRecord(
                f"record {counted.index}: a value does not fit its column ({why}); "
                "convert it",
                index=counted.index,
            ) from exc
        return int(tag.rpartition(" ")[2])


class _Counted:
    """Records on their way out: counted, with JSON values as text."""

    def __init__(
        self,
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        json_at: list[int],
    ) -> None:
        self.index = -1
        self._records = records
        self._json_at = json_at

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for index, record in enumerate(self._records):  # type: ignore[arg-type]  # see Copy
            self.index = index
            yield self._with_json(record)

    def _with_json(self, record: Sequence[Any]) -> Sequence[Any]:
        if not self._json_at:
            return record
        row = list(record)
        for at in self._json_at:
            if row[at] is not None:
                row[at] = encode_json(row[at])
        return row


class _CountedAsync(_Counted):
    """The same for an asynchronous source."""

    async def __aiter__(self) -> AsyncIterator[Sequence[Any]]:
        self.index = -1
        async for record in self._records:  # type: ignore[union-attr]  # see Copy
            self.index += 1
            yield self._with_json(record)
