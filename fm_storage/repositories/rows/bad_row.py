"""Which record of a refused batch is the bad one.

The server names a row only in message text, which is localised: so the batch is
halved in savepoints until one row is left. That takes some twenty statements, on
the way to an error only, and is rolled back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from fm_storage.errors import InvalidRecord, QueryFailed, StorageError
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.executor import Executor, TransactionExecutor
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.rows.bound import Bound

M = TypeVar("M")
R = TypeVar("R")

Trial: TypeAlias = Callable[[Executor, list[M]], Awaitable[None]]
"""Writes some of a batch."""

Fault: TypeAlias = InvalidRecord | QueryFailed
"""What a record is refused with, by the driver or by the server."""

Alone: TypeAlias = Callable[[Executor, int], Awaitable[None]]
"""Writes one record as it is written alone, where the driver encodes its values."""

_ROW_FAULTS = ("22", "23", "44", "P0", "XX")
"""SQLSTATE classes that may be about a row.

Data exceptions, integrity violations, check options of views, what triggers raise;
internal errors are what PostGIS answers to text that it cannot read.
"""
_POLICY = "42501"
"""What row security answers; and a missing privilege, which no row is to blame for."""

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


async def naming_bad_row(
    bound: Bound[M],
    batch: list[M],
    write: Callable[[Executor], Awaitable[R]],
    trial: Trial[M],
    alone: Alone,
) -> R:
    """Run *write*; if the server refuses, name the record it refuses.

    Raises:
        InvalidRecord: The record would be refused before it is sent, if it were alone.
        QueryFailed: The server refused a record.
    """
    executor = bound.executor
    try:
        if not isinstance(executor, Transaction):
            return await write(executor)
        # A failed statement would end the caller's transaction, and with it
        # the chance to look for the record.
        async with executor.savepoint() as savepoint:
            return await write(savepoint)
    except QueryFailed as exc:
        if not _is_row_fault(bound, exc):
            raise
        raise await _named(bound, batch, exc, trial, alone) from exc
    except InvalidRecord as exc:
        if exc.index is not None:  # the driver does not always say it
            raise
        raise await _named(bound, batch, exc, trial, alone) from exc.__cause__


async def _named(
    bound: Bound[M], batch: list[M], exc: Fault, trial: Trial[M], alone: Alone
) -> Fault:
    """Return *exc* with the number of the bad record, if that can be found."""
    try:
        bad = await find_bad_row(bound, batch, trial, alone)
    except StorageError:
        # The connection went, or a rule forbids the trial: the first error is
        # the caller's answer.
        return exc
    if bad is None:
        return exc
    index, found, column = bad
    if isinstance(found, InvalidRecord):
        return found
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


async def find_bad_row(
    bound: Bound[M], batch: list[M], trial: Trial[M], alone: Alone
) -> tuple[int, Fault, str | None] | None:
    """Return the first bad record, its error and its column, by halving.

    Args:
        bound: Where the batch was refused.
        batch: The records; they are written again, and undone.
        trial: Writes some of them.
        alone: Writes one of them.
    """
    low, high = 0, len(batch)
    bad: tuple[int, Fault, str | None] | None = None
    try:
        async with bound.executor.transaction() as transaction:
            # Everything before *low* is good and written; once an error has been
            # seen, the first bad record stands before *high*.
            found: Fault | None = None
            while low < high:
                middle = high if found is None else (low + high + 1) // 2
                part = batch[low:middle]
                error = await _trial(bound, transaction, part, trial)
                if error is None:
                    low = middle
                    continue
                found, high = error, middle
                if high - low == 1:
                    found = await _refusal(transaction, low, alone) or found
                    column = await _column(bound, transaction, batch[low], found)
                    bad = low, found, column
                    break
            raise _Undo
    except _Undo:
        return bad


async def _trial(
    bound: Bound[M], transaction: TransactionExecutor, part: list[M], trial: Trial[M]
) -> Fault | None:
    """Write *part* in a savepoint; return what refuses a row of it."""
    try:
        async with transaction.savepoint() as savepoint:
            await trial(savepoint, part)
    except InvalidRecord as exc:
        return exc
    except QueryFailed as exc:
        if _is_row_fault(bound, exc):
            return exc
        raise
    return None


async def _refusal(
    transaction: TransactionExecutor, index: int, alone: Alone
) -> InvalidRecord | None:
    """Return why a record is not even sent when it is written alone, if so."""
    try:
        async with transaction.savepoint() as savepoint:
            await alone(savepoint, index)
    except InvalidRecord as exc:
        return exc
    except QueryFailed:
        pass
    return None


def _is_row_fault(bound: Bound[M], exc: QueryFailed) -> bool:
    state = exc.sqlstate or ""
    return state[:2] in _ROW_FAULTS or (state == _POLICY and bound.table.secured)


async def _column(
    bound: Bound[M], transaction: Executor, record: M, error: Fault
) -> str | None:
    """Return the column, or columns, that *error* is about."""
    entity = bound.entity
    if isinstance(error, InvalidRecord):
        return error.field
    if error.column is not None:
        return error.column
    if error.constraint is not None:
        names = await transaction.fetchval(_COLUMNS_OF, entity.quoted, error.constraint)
        return ", ".join(names) if names else None
    if error.sqlstate == _TOO_LONG:
        rows = await transaction.fetch(_LENGTHS_OF, entity.quoted)
        lengths = {row[0]: row[1] for row in rows}
        for item in entity.inserted:
            value = item.encode(getattr(record, item.field))
            limit = lengths.get(item.column)
            if limit is not None and isinstance(value, str) and len(value) > limit:
                return item.column
    return None
