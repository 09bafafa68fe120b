"""Rows as records of a class: who makes them is registered from above.

What a class's fields mean is known by ``repositories``, which stands on this room
and registers its maker when it is imported.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from asyncpg import Record

from fm_storage.errors import ConnectionReleased, InvalidRecord, StorageError

M = TypeVar("M")

_REMEMBERED = 1_000
_PATIENCE = 5.0
"""Seconds that the search for an unreadable row may take, on the way to its error."""


class RowMaker(Protocol):
    """Finds out how a class's records are made of rows with some columns."""

    def __call__(
        self, model: type[M], columns: tuple[str, ...], /
    ) -> Callable[[Sequence[Record]], list[M]]:
        """Return what makes the records of rows.

        Raises:
            InvalidName: Columns and fields do not match.
        """
        ...


Beyond: TypeAlias = Callable[[type[Any]], list[tuple[str, str, str]]]
"""Gives, of a class, the fields whose columns may hold what Python cannot.

For each its name, its type and column in words, and the condition in SQL.
"""

_makers: list[tuple[RowMaker, Beyond]] = []


def use_row_maker(maker: RowMaker, beyond: Beyond) -> None:
    """Register what makes records; the last one counts."""
    _makers[:] = [(maker, beyond)]


def _registered() -> tuple[RowMaker, Beyond]:
    """Return what makes records; a pool alone has not loaded it yet."""
    if not _makers:
        importlib.import_module("fm_storage.repositories")
    return _makers[0]


class Matched:
    """Classes and statements whose columns were found to be the fields.

    A result without rows does not show its columns, and what writes should not find
    out after it has written.
    """

    def __init__(self) -> None:
        self._known: set[tuple[Any, str]] = set()

    def __contains__(self, pair: tuple[Any, str]) -> bool:
        """Return whether they are known to match."""
        return pair in self._known

    def add(self, model: type[Any], sql: str, columns: tuple[str, ...]) -> None:
        """Note that they match.

        Args:
            model: The class.
            sql: The statement.
            columns: What it gives; empty if that is no rows at all.

        Raises:
            InvalidName: They do not.
        """
        if columns:
            _registered()[0](model, columns)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known.add((model, sql))


def records_of(model: type[M], rows: Sequence[Record], *, first: int = 0) -> list[M]:
    """Return *rows* as records of *model*.

    Args:
        model: Their class.
        rows: All with the same columns.
        first: Number of the first one in the result.
    """
    if not rows:
        return []
    make = _registered()[0](model, tuple(rows[0].keys()))
    try:
        return make(rows)
    except InvalidRecord:
        for index, row in enumerate(rows, first):
            try:
                make([row])
            except InvalidRecord as exc:
                why = str(exc).removeprefix("result: a row")
                raise _at(index, why, exc.field) from exc.__cause__
        raise


async def stream_of(
    model: type[M],
    rows: AsyncIterator[Record],
    name: Callable[[InvalidRecord], Awaitable[InvalidRecord]],
) -> AsyncGenerator[M, None]:
    """Yield *rows* as records of *model*; *name* finds an unreadable value's place."""
    make: Any = None
    index = 0
    try:
        async for row in rows:
            make = make or _registered()[0](model, tuple(row.keys()))
            try:
                (record,) = make([row])
            except InvalidRecord:
                (record,) = records_of(model, [row], first=index)
            yield record
            index += 1
    except InvalidRecord as exc:
        raise await name(exc) from exc


class _Undo(Exception):
    """Leaves a transaction that changed nothing but itself."""


async def named_value(
    executor: Any,
    model: type[Any],
    sql: str,
    args: Sequence[Any],
    exc: InvalidRecord,
) -> InvalidRecord:
    """Return *exc*, about a value that Python cannot hold, with its row and column.

    The statement, which only reads, runs once more for that, as part of another that
    may not write.

    Args:
        executor: The pool, connection or transaction.
        model: The class that was asked for.
        sql: The statement.
        args: Its parameters.
        exc: What reading its rows raised.
    """
    tests = _registered()[1](model)
    unread = isinstance(exc.__cause__, ValueError | ArithmeticError)
    if exc.field is not None or not unread or not tests:
        return exc
    whens = " ".join(f"WHEN {test} THEN {at}" for at, (*_, test) in enumerate(tests))
    wanted = (
        f"SELECT fm_n, CASE {whens} END FROM (SELECT row_number() OVER () AS fm_n, q.* "
        f"FROM ({sql.strip().rstrip(';')}\n) AS q) AS q "
        f"WHERE {' OR '.join(test for *_, test in tests)} ORDER BY fm_n LIMIT 1"
    )
    row = None
    try:
        async with asyncio.timeout(_PATIENCE), executor.transaction() as transaction:
            await transaction.execute("SET LOCAL transaction_read_only = on")
            row = await transaction.fetchrow(wanted, *args)
            raise _Undo
    except _Undo:
        pass
    except (StorageError, TimeoutError):
        return exc  # the first error is the caller's answer
    if row is None:
        return exc
    number, at = row
    field, what, _ = tests[at]
    why = f" holds a {what} that Python cannot hold; correct the row, or leave it out"
    return _at(number - 1, why, field)


def _at(index: int, why: str, field: str | None) -> InvalidRecord:
    return InvalidRecord(f"result: row {index + 1}{why}", field=field, index=index)


class Records(Generic[M]):
    """A block with a stream, whose rows *make* makes into records.

    Args:
        stream: Of the rows.
        make: Makes records of them.
        before: Awaited before the stream is opened.
    """

    def __init__(
        self,
        stream: AbstractAsyncContextManager[AsyncIterator[Record]],
        make: Callable[[AsyncIterator[Record]], AsyncGenerator[M, None]],
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._stream = stream
        self._make = make
        self._before = before
        self._records: AsyncGenerator[M, None] | None = None

    async def __aenter__(self) -> AsyncIterator[M]:
        if self._before is not None:
            await self._before()
        self._records = self._make(await self._stream.__aenter__())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        records, self._records = self._open(), None
        try:
            await records.aclose()
        finally:
            await self._stream.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> AsyncIterator[M]:
        # The generator itself: a frame more would show at each record.
        return self._open()

    def __anext__(self) -> Awaitable[M]:
        return anext(self._open())

    def _open(self) -> AsyncGenerator[M, None]:
        if self._records is None:  # else it would seem to have no records
            raise ConnectionReleased(
                "stream: it is not open; iterate inside its 'async with' block"
            )
        return self._records
