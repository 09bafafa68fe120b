"""COPY of Python records into a table, json columns included.

Apart because the driver's own method refuses columns with a text codec, which
json and jsonb have here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.codecs import encode_json
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    import asyncpg

__all__ = ["BEGIN_READ", "COPY", "ROLLBACK", "copy_records"]

COPY = Sql("COPY")
BEGIN_READ = Sql("BEGIN READ ONLY")
ROLLBACK = Sql("ROLLBACK")
_JSON = frozenset({"json", "jsonb"})


async def copy_records(
    raw: asyncpg.Connection[Any],
    table: str,
    *,
    schema: str | None,
    columns: Sequence[str],
    records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
    timeout: float | None,
) -> int:
    """Write *records* into *table* by binary COPY and return how many.

    Raises:
        InvalidRecord: A record does not fit; nothing was written.
    """
    target = quote_qualified(schema, table)
    names = ", ".join(quote_ident(column) for column in columns)
    driver: Any = raw
    described = await driver._get_statement(  # noqa: SLF001 - the only way round text codecs
        f"SELECT {names} FROM {target} LIMIT 0",  # noqa: S608 - quoted identifiers
        timeout,
        ignore_custom_codec=True,
    )
    json_at = [
        at
        for at, attribute in enumerate(described._get_attributes())  # noqa: SLF001 - as above
        if attribute.type.name in _JSON
    ]
    counted = _Counted(records, json_at)
    try:
        tag = await driver._protocol.copy_in(  # noqa: SLF001 - as above
            f"COPY {target} ({names}) FROM STDIN (FORMAT binary)",
            None,
            None,
            counted,
            described,
            timeout,
        )
    except (TypeError, ValueError, OverflowError, IndexError) as exc:
        raise InvalidRecord(
            f"record {counted.index}: a value does not fit its column "
            f"({type(exc).__name__}); convert it",
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
        if isinstance(records, AsyncIterable):
            self.__class__ = _CountedAsync

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for self.index, record in enumerate(self._records):  # type: ignore[arg-type]  # see __init__
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
        async for record in self._records:  # type: ignore[union-attr]  # see _Counted
            self.index += 1
            yield self._with_json(record)
