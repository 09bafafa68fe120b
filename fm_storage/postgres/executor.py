"""What runs statements, as seen by the rooms above: the ``Executor`` protocol.

Apart so that a repository can name its executor without knowing whether it is
the pool, one connection or a transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from asyncpg import Record

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Iterable,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager

    from fm_storage.postgres.connection.transaction import Transaction
    from fm_storage.postgres.copy.files import CopyProgress, Format, Source, Target

__all__ = ["Executor", "Record", "Value"]

Value: TypeAlias = Any
"""A parameter or a column's value: whatever the type in the database maps to."""


@runtime_checkable
class Executor(Protocol):
    """The verbs shared by ``Pool``, ``Connection`` and ``Transaction``.

    ``timeout`` is in seconds and covers the whole call, waiting for a connection
    included; None takes the configured default and ``math.inf`` waits for ever.
    If a call is cancelled, its statement is cancelled on the server too; whether
    it had happened is then unknown, except inside a transaction, which is rolled
    back.
    """

    async def fetch(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> list[Record]:
        """Run a statement and return all its rows."""
        ...

    async def fetchrow(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> Record | None:
        """Run a statement and return its first row, or None."""
        ...

    async def fetchval(
        self, sql: str, /, *args: Value, column: int = 0, timeout: float | None = None
    ) -> Value:
        """Run a statement and return one value of its first row, or None."""
        ...

    async def execute(
        self, sql: str, /, *args: Value, timeout: float | None = None
    ) -> str:
        """Run a statement and return its tag (``INSERT 0 1``)."""
        ...

    async def executemany(
        self,
        sql: str,
        /,
        rows: Iterable[Sequence[Value]],
        *,
        timeout: float | None = None,
    ) -> None:
        """Run a statement once for each row of parameters, all or none."""
        ...

    async def copy_records(
        self,
        table: str,
        /,
        *,
        columns: Sequence[str],
        records: Iterable[Sequence[Value]] | AsyncIterable[Sequence[Value]],
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write rows by COPY, all or none, and return how many."""
        ...

    async def copy_from(
        self,
        table: str,
        source: Source,
        /,
        *,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
        format: Format = "csv",
        header: bool | None = None,
        delimiter: str | None = None,
        null: str | None = None,
        progress: Callable[[CopyProgress], object] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write the rows of a file into a table, all or none; return how many."""
        ...

    async def copy_to(
        self,
        target: Target,
        /,
        *,
        table: str | None = None,
        query: str | None = None,
        args: Sequence[Value] = (),
        columns: Sequence[str] | None = None,
        schema: str | None = None,
        format: Format = "csv",
        header: bool | None = None,
        delimiter: str | None = None,
        null: str | None = None,
        progress: Callable[[CopyProgress], object] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a table, or a query's rows, into a file; return how many rows."""
        ...

    def stream(
        self, sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AbstractAsyncContextManager[AsyncIterator[Record]]:
        """Open a server cursor and yield an iterator over its rows."""
        ...

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction, or a savepoint inside one."""
        ...
