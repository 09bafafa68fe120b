"""What runs statements, as seen by the rooms above: the ``Executor`` protocol.

A repository names its executor without knowing whether it is the pool, one
connection or a transaction.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    runtime_checkable,
)

from asyncpg import Record
from asyncpg.pgproto import pgproto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from fm_storage._typing import Relation

__all__ = [
    "CopyOptions",
    "CopyProgress",
    "DriverUUID",
    "Executor",
    "Record",
    "Source",
    "Target",
    "TransactionExecutor",
    "Value",
]

M = TypeVar("M")

DriverUUID = pgproto.UUID
"""Class of the UUIDs that the driver reads, a subclass of the standard library's."""
Value: TypeAlias = Any
"""A parameter or a column's value: whatever the type in the database maps to."""

Source: TypeAlias = str | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]
Target: TypeAlias = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """Progress of a COPY of a file.

    Attributes:
        done: Bytes read or written.
        total: Size of the file in bytes, None where that is not known.
        elapsed: Seconds since it began.
    """

    done: int
    total: int | None
    elapsed: float


class CopyOptions(TypedDict, total=False):
    """What ``copy_from()`` and ``copy_to()`` take beside table and file.

    Attributes:
        columns: The columns in the file's order; by default the table's.
        schema: The table's schema, if not the search path's.
        format: ``csv`` (the default), ``text`` or ``binary``, as the server defines
            them.
        header: Whether the first line names the columns; CSV: yes.
        delimiter: What stands between values; by default the format's.
        null: What stands for NULL; by default the format's.
        progress: Called on the loop, at most ten times a second, and at the end.
        timeout: Seconds; None (the default) is for ever.
    """

    columns: Sequence[str] | None
    schema: str | None
    format: Literal["csv", "text", "binary"]
    header: bool | None
    delimiter: str | None
    null: str | None
    progress: Callable[[CopyProgress], object] | None
    timeout: float | None


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

    async def fetch_as(
        self, model: type[M], sql: str, /, *args: Value, timeout: float | None = None
    ) -> list[M]:
        """Run a statement and return its rows as records of *model*."""
        ...

    async def fetchrow_as(
        self, model: type[M], sql: str, /, *args: Value, timeout: float | None = None
    ) -> M | None:
        """Run a statement and return its first row as a *model*, or None."""
        ...

    def stream_as(
        self, model: type[M], sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AbstractAsyncContextManager[AsyncIterator[M]]:
        """Open a server cursor and yield an iterator over its rows as records."""
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
        table: str | Relation,
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
        table: str | Relation,
        source: Source,
        /,
        **options: Unpack[CopyOptions],
    ) -> int:
        """Write the rows of a file into a table, all or none; return how many."""
        ...

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
    ) -> AbstractAsyncContextManager[TransactionExecutor]:
        """Open a transaction, or a savepoint inside one."""
        ...


@runtime_checkable
class TransactionExecutor(Executor, Protocol):
    """An open transaction: the verbs of ``Executor``, and savepoints."""

    def savepoint(self) -> AbstractAsyncContextManager[TransactionExecutor]:
        """Open a savepoint: what its block did is undone if it fails."""
        ...
