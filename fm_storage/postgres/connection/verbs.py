"""The verbs by name, the same for pool, connection and transaction.

How a call of the driver is run, and under which rules, is what each of them gives
to ``Verbs``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack

from fm_storage._typing import Relation
from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import Effect, classify
from fm_storage.postgres.copy.files import FileIn, FileOut
from fm_storage.postgres.copy.records import Copy
from fm_storage.postgres.sql import sendable
from fm_storage.postgres.typed_rows import (
    Matched,
    Records,
    named_value,
    records_of,
    stream_of,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager

    from asyncpg import Record

    from fm_storage.postgres.executor import CopyOptions, Source, Target, Value

M = TypeVar("M")
_CLASS = "give a dataclass, or another class of records"
_MATCHED = Matched()


class Run(Protocol):
    """Runs one call of the driver: ``call(raw, sql, *args, timeout=…)``."""

    def __call__(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        timeout: float | None,
        /,
    ) -> Awaitable[Any]:
        """Run it and return what it returns."""
        ...


class Verbs:
    """One statement a call, on the pool, a connection or in a transaction.

    ``timeout`` is in seconds and covers the whole call, waiting for a connection
    included; None takes ``command_timeout`` and ``math.inf`` waits for ever. If a
    call is cancelled, its statement is cancelled on the server too; whether it had
    happened is then unknown, except in a transaction, which is rolled back.

    Every verb raises:
        QueryFailed: The server refused the statement; subclasses name the
            condition (``DuplicateRecord``, ``LockTimeout``, …).
        QueryTimeout: Not done in time; it was cancelled on the server.
        InvalidRecord: A parameter does not fit its type; ``field`` is ``$n``.
        PoolTimeout: No connection became free in time (pool only).
        ConnectionFailed: The connection broke; a write may or may not have happened.
        ConnectionBusy: Another task is using this connection.
        ConnectionReleased: Used after its block.

    See https://www.postgresql.org/docs/current/errcodes-appendix.html.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    async def fetch(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> list[Record]:
        """Run a statement and return all its rows.

        Args:
            sql: One statement, with ``$1`` … for values.
            *args: The values, as the types of the statement want them.
            timeout: Seconds for the whole call; see the class.

        Raises:
            StorageError: One of those that every verb raises; see the class.
        """
        rows: list[Record] = await self._run(driver.fetch, sql, args, timeout)
        return rows

    async def fetchrow(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> Record | None:
        """Run a statement and return its first row, or None.

        Raises:
            StorageError: One of those that every verb raises; see the class.
        """
        row: Record | None = await self._run(driver.fetchrow, sql, args, timeout)
        return row

    async def fetch_as(
        self, model: type[M], sql: str, /, *args: Value, timeout: float | None = None
    ) -> list[M]:
        """Run a statement and return its rows as records of *model*.

        Columns are matched with fields by name, in any order.

        Args:
            model: A dataclass, pydantic model, msgspec struct, attrs class or
                NamedTuple; what a field's ``Column`` names is respected.
            sql: One statement, with ``$1`` … for values.
            *args: The values.
            timeout: Seconds for the whole call; see the class.

        Raises:
            InvalidName: A column is no field of *model*, or a field has no column;
                before it is run, unless it only reads. A statement that writes, or
                gives no rows, is described to the server first, once for a class.
            InvalidRecord: A row's values are not what *model* is annotated with, or
                nothing that Python can hold; ``.index`` is the row, from 0, and
                ``.field`` the field. To find them in the latter case a statement that
                only reads is run again, in a transaction that may not write.
            StorageError: One of those that every verb raises; see the class.
        """
        found = await self._as(self.fetch, model, sql, args, timeout)
        return records_of(model, found)

    async def fetchrow_as(
        self, model: type[M], sql: str, /, *args: Value, timeout: float | None = None
    ) -> M | None:
        """Run a statement and return its first row as a *model*, or None.

        As ``fetch_as()``.
        """
        row = await self._as(self.fetchrow, model, sql, args, timeout)
        return None if row is None else records_of(model, [row])[0]

    def stream_as(
        self, model: type[M], sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AbstractAsyncContextManager[AsyncIterator[M]]:
        """Open a server cursor and yield an iterator over its rows as records.

        As ``stream()`` and ``fetch_as()``.
        """
        of_kind(model, Hashable, "model", _CLASS)
        sendable(sql)
        opened = self.stream(sql, *args, prefetch=prefetch)
        name = partial(self._named, model, sql, args)
        match = partial(self._match, model, sql, None)
        return Records(opened, lambda rows: stream_of(model, rows, name), match)

    async def _as(
        self,
        verb: Callable[..., Awaitable[Any]],
        model: type[Any],
        sql: str,
        args: Sequence[Value],
        timeout: float | None,
    ) -> Any:
        """Run a verb whose rows shall be records of *model*."""
        of_kind(model, Hashable, "model", _CLASS)
        sendable(sql)
        new = (model, sql) not in _MATCHED
        if new and classify(sql) is not Effect.READS:
            await self._match(model, sql, timeout)
        try:
            found = await verb(sql, *args, timeout=timeout)
        except InvalidRecord as exc:
            raise await self._named(model, sql, args, exc) from exc
        if new and found:
            _MATCHED.add(model, sql, ())  # by their rows, each time
        elif new:
            await self._match(model, sql, timeout)
        return found

    async def _match(self, model: type[Any], sql: str, timeout: float | None) -> None:
        """Compare columns and fields, once."""
        if (model, sql) not in _MATCHED:
            columns = await self._run(driver.columns_of, sql, (), timeout)
            _MATCHED.add(model, sql, columns)

    async def _named(
        self, model: type[Any], sql: str, args: Sequence[Value], exc: InvalidRecord
    ) -> InvalidRecord:
        """Return *exc* with row and column, if *sql* may be run again to find them."""
        if classify(sql) is not Effect.READS:
            return exc
        return await named_value(self, model, sql, args, exc)

    def stream(
        self, sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AbstractAsyncContextManager[AsyncIterator[Record]]:
        """Open a server cursor; each subclass has its own way."""
        raise NotImplementedError

    async def fetchval(
        self, sql: str, /, *args: Value, column: int = 0, timeout: float | None = None
    ) -> Value:
        """Run a statement and return one value of its first row, or None.

        None also where there is no row.

        Args:
            sql: One statement, with ``$1`` … for values.
            *args: The values.
            column: Which value, from 0.
            timeout: Seconds for the whole call; see the class.

        Raises:
            StorageError: One of those that every verb raises; see the class.
        """
        row = await self._run(driver.fetchrow, sql, args, timeout)
        if row is None:
            return None
        try:
            return row[column]
        except (LookupError, TypeError):
            raise ConfigurationInvalid(
                "column", f"{column!r} is none of the {len(row)} columns; count from 0"
            ) from None

    async def execute(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> str:
        """Run a statement, or without parameters several, and return the tag.

        Returns:
            The server's command tag: ``INSERT 0 1``, ``SELECT 5``, ``CREATE TABLE``.

        Raises:
            StorageError: One of those that every verb raises; see the class.
        """
        tag: str = await self._run(driver.execute, sql, args, timeout)
        return tag

    async def executemany(
        self,
        sql: str,
        /,
        rows: Iterable[Sequence[Value]],
        *,
        timeout: float | None = None,
    ) -> None:
        """Run a statement once for each row of parameters, all or none.

        Raises:
            StorageError: One of those that every verb raises; see the class.
        """
        of_kind(rows, Iterable, "rows", "give an iterable of rows of parameters")
        await self._run(driver.executemany, sql, (rows,), timeout)

    # Without a timeout of its own a COPY may take as long as it needs.

    async def copy_records(
        self,
        table: str | Relation,
        /,
        *,
        columns: Sequence[str],
        records: Iterable[Sequence[Value]] | AsyncIterable[Sequence[Value]],
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write rows by COPY, all or none, and return how many.

        If cancelled, nothing is written.

        Args:
            table: The table; a ``TempView`` brings its schema.
            columns: Its columns, in the order of each record's values.
            records: The rows, or an async iterable of them: bounded memory.
            schema: The table's schema, if not the search path's.
            timeout: Seconds; None is for ever.

        Raises:
            InvalidRecord: A value does not fit its column.
            QueryFailed: The server refused a row.

        See https://www.postgresql.org/docs/current/sql-copy.html.
        """
        job = Copy(table, schema=schema, columns=columns, records=records)
        done: int = await self._run(
            job.run, job.sql, (), math.inf if timeout is None else timeout
        )
        return done

    async def copy_from(
        self, table: str | Relation, source: Source, /, **options: Unpack[CopyOptions]
    ) -> int:
        """Write the rows of a file into a table, all or none; return how many.

        If cancelled, nothing is written.

        Args:
            table: The table; a ``TempView`` brings its schema.
            source: A path, a binary file, or an async iterable of bytes, in UTF-8.
            **options: ``columns``, ``schema``, ``format``, ``header`` (a first line
                that is skipped), ``delimiter``, ``null``, ``progress``, ``timeout``:
                see ``CopyOptions``.

        Raises:
            InvalidRecord: A value does not fit; ``index`` is its line.
            OSError: The file cannot be read.
        """
        return await FileIn(table, source, options).copy(self._run)

    async def copy_to(
        self,
        target: Target,
        /,
        *,
        table: str | Relation | None = None,
        query: str | None = None,
        args: Sequence[Value] = (),
        **options: Unpack[CopyOptions],
    ) -> int:
        """Write a table, or a query's rows, into a file; return how many rows.

        A path is written beside itself and renamed at the end: if the call fails or
        is cancelled, what was there before is there still.

        Args:
            target: A path, or a binary file.
            table: The table; or
            query: a statement that gives rows, with ``$1`` … for
            args: its values.
            **options: ``columns`` and ``schema`` of a table, ``format``, ``header``,
                ``delimiter``, ``null``, ``progress``, ``timeout``: see
                ``CopyOptions``.

        Raises:
            OSError: The file cannot be written.
        """
        job = FileOut(target, options, table=table, query=query, args=args)
        return await job.copy(self._run)
