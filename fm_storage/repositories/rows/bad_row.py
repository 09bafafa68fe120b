"""Which record of a refused batch was the bad one.

Apart because the server names a row only in message text, which is localised: so
the batch is halved in savepoints until one row is left. That takes some twenty
statements, on the way to an error only, and is rolled back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fm_storage.errors import QueryFailed, StorageError
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.rows.deletes import Deletes

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.model.entity import Stored

__all__ = ["Blame"]

M = TypeVar("M")

_ROW_FAULTS = ("22", "23")
"""SQLSTATE classes that blame a row: data exceptions, integrity violations."""

_COLUMNS_OF = Sql(
    "SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_constraint AS c "
    "CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY AS k (number, place) "
    "JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = k.number "
    "WHERE c.conrelid = $1::regclass AND c.conname = $2"
)
_LENGTHS_OF = Sql(
    "SELECT attname::text, atttypmod - 4 FROM pg_attribute WHERE attrelid = "
    "$1::regclass AND atttypmod > 4 AND atttypid IN "
    "('varchar'::regtype, 'bpchar'::regtype)"
)
_TOO_LONG = "22001"


class _Undo(Exception):
    """Leaves a transaction that was only a trial."""


class Blame(Deletes[M]):
    """Runs the writing of a batch, and names the record that spoils it."""

    async def _blaming(
        self,
        batch: list[M],
        write: Callable[[Executor], Awaitable[Any]],
        *,
        on: tuple[Stored, ...] | None = None,
    ) -> Any:
        """Run *write*; if the server refuses, say which record it refuses."""
        executor = self.executor
        try:
            if not isinstance(executor, Transaction):
                return await write(executor)
            # A failed statement would end the caller's transaction, and with it
            # the chance to look for the record.
            async with executor.savepoint() as savepoint:
                return await write(savepoint)
        except QueryFailed as exc:
            if (exc.sqlstate or "")[:2] not in _ROW_FAULTS:
                raise
            raise await self._blamed(exc, batch, on) from exc

    async def _blamed(
        self, exc: QueryFailed, batch: list[M], on: tuple[Stored, ...] | None
    ) -> QueryFailed:
        try:
            index, found, column = await self._search(batch, on)
        except StorageError:
            # The connection went, or a rule forbids the trial: the first error
            # is the caller's answer.
            return exc
        if index is None or found is None:
            return exc
        named = type(found)(
            f"record {index}"
            + (f", {column}" if column else "")
            + f": {str(found).partition(': ')[2] or found}",
            sqlstate=found.sqlstate,
            constraint=found.constraint,
            table=found.table,
            column=column,
            retryable=found.retryable,
        )
        named.index = index
        return named

    async def _search(
        self, batch: list[M], on: tuple[Stored, ...] | None
    ) -> tuple[int | None, QueryFailed | None, str | None]:
        """Return the first bad record, its error and its column, by halving."""
        low, high = 0, len(batch)
        found: QueryFailed | None = None
        column: str | None = None
        try:
            async with self.executor.transaction() as transaction:
                # Whatever stands before *low* is good and written; the first bad
                # record stands before *high*, once an error has been seen.
                while low < high:
                    middle = high if found is None else (low + high + 1) // 2
                    error = await self._trial(transaction, batch[low:middle], on)
                    if error is None:
                        low = middle
                        continue
                    found, high = error, middle
                    if high - low == 1:
                        break
                if found is not None and low < len(batch):
                    column = await self._column(transaction, batch[low], found)
                raise _Undo
        except _Undo:
            pass
        return (low if found is not None and low < high else None), found, column

    async def _trial(
        self,
        transaction: Any,
        part: list[M],
        on: tuple[Stored, ...] | None,
    ) -> QueryFailed | None:
        columns = self.entity.insert_columns(part)
        sql = self._sql.insert_many if on is None else self._sql.upsert(on, many=True)
        try:
            async with transaction.savepoint() as savepoint:
                await savepoint.fetch(sql, *columns)
        except QueryFailed as exc:
            if (exc.sqlstate or "")[:2] in _ROW_FAULTS:
                return exc
            raise
        return None

    async def _column(
        self,
        transaction: Any,
        record: M,
        error: QueryFailed,
    ) -> str | None:
        """Return the column, or columns, that *error* is about."""
        entity = self.entity
        if error.column is not None:
            return error.column
        if error.constraint is not None:
            names = await transaction.fetchval(
                _COLUMNS_OF, entity.quoted, error.constraint
            )
            return ", ".join(names) if names else None
        if error.sqlstate == _TOO_LONG:
            lengths = dict(
                map(tuple, await transaction.fetch(_LENGTHS_OF, entity.quoted))
            )
            for item in entity.inserted:
                value = item.encode(getattr(record, item.field))
                if isinstance(value, str) and len(value) > lengths.get(
                    item.column, len(value)
                ):
                    return item.column
        return None
