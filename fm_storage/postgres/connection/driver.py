"""The driver's calls, in the shortest form the driver allows.

A statement that is already prepared is bound and executed directly, past asyncpg's
public methods: that saves five Python frames, three clocks and a context manager
per call. Everything else, preparing above all, is left to the public method.
asyncpg is pinned below 0.33 for this; ``test_postgres_driver.py`` compares both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.exceptions import OutdatedSchemaCacheError

from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.connect.internals import (
    close_portal,
    describe,
    forget_statements,
    parameter_types,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fm_storage.postgres.executor import Value

__all__ = [
    "close_cursor",
    "execute",
    "executemany",
    "fetch",
    "fetch_more",
    "fetchrow",
    "is_settled",
    "open_cursor",
    "was_unsent",
]

_SUSPECT = (
    asyncpg.InvalidCachedStatementError,
    OutdatedSchemaCacheError,
    asyncpg.DataError,
    asyncpg.DatatypeMismatchError,
    asyncpg.UndefinedFunctionError,
)
"""Errors whose cause may be that the table is no longer what was prepared for."""
_RECORD = asyncpg.Record
_ALL = 0
_ROWS, _STATUS = False, True


async def fetch(
    raw: Any,
    sql: str,
    *args: Value,
    timeout: float | None,
) -> list[asyncpg.Record]:
    """Return all rows."""
    statement = raw._stmt_cache.get((sql, _RECORD, False))
    rows: list[asyncpg.Record]
    if statement is not None:
        try:
            rows = await raw._protocol.bind_execute(
                statement, args, "", _ALL, _ROWS, timeout
            )
        except _SUSPECT as exc:
            await _forget(raw, sql, statement, exc, timeout)
        except (OverflowError, ValueError) as exc:
            raise _unreadable(exc) from exc
        else:
            return rows
    try:
        rows = await raw.fetch(sql, *args, timeout=timeout)
    except (OverflowError, ValueError) as exc:
        raise _unreadable(exc) from exc
    return rows


async def fetchrow(
    raw: Any,
    sql: str,
    *args: Value,
    timeout: float | None,
) -> asyncpg.Record | None:
    """Return the first row, or None."""
    statement = raw._stmt_cache.get((sql, _RECORD, False))
    if statement is not None:
        try:
            rows = await raw._protocol.bind_execute(
                statement, args, "", 1, _ROWS, timeout
            )
        except _SUSPECT as exc:
            await _forget(raw, sql, statement, exc, timeout)
        except (OverflowError, ValueError) as exc:
            raise _unreadable(exc) from exc
        else:
            return rows[0] if rows else None
    row: asyncpg.Record | None
    try:
        row = await raw.fetchrow(sql, *args, timeout=timeout)
    except (OverflowError, ValueError) as exc:
        raise _unreadable(exc) from exc
    return row


def _unreadable(exc: Exception) -> Exception:
    """Return the error for a value that its Python type cannot hold.

    What the driver's decoders raise arrives bare; everything else is of a class of
    the driver's, or of ours, and is passed on.
    """
    if isinstance(exc, (StorageError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        return exc
    return InvalidRecord(
        f"result: a value cannot be read as a Python value ({exc}); select it as "
        "text (column::text), or correct the row"
    )


async def execute(
    raw: Any,
    sql: str,
    *args: Value,
    timeout: float | None,
) -> str:
    """Return the status tag."""
    statement = None
    if args:
        statement = raw._stmt_cache.get((sql, _RECORD, False))
    if statement is not None:
        try:
            _, status, _ = await raw._protocol.bind_execute(
                statement, args, "", _ALL, _STATUS, timeout
            )
        except _SUSPECT as exc:
            await _forget(raw, sql, statement, exc, timeout)
        else:
            tag: str = status.decode()
            return tag
    answer: str = await raw.execute(sql, *args, timeout=timeout)
    return answer


async def executemany(
    raw: Any,
    sql: str,
    rows: Iterable[Sequence[Value]],
    *,
    timeout: float | None,
) -> None:
    """Run once for each row of parameters."""
    await raw.executemany(sql, rows, timeout=timeout)


async def open_cursor(raw: Any, sql: str, *args: Value, timeout: float | None) -> Any:
    """Prepare *sql* and return a cursor over its rows; nothing is fetched yet."""
    return await raw.cursor(sql, *args, timeout=timeout)


async def fetch_more(
    _raw: Any, _sql: str, cursor: Any, count: int, *, timeout: float | None
) -> list[asyncpg.Record]:
    """Return the next *count* rows of *cursor*."""
    rows: list[asyncpg.Record] = await cursor.fetch(count, timeout=timeout)
    return rows


async def close_cursor(
    raw: Any, _sql: str, cursor: Any, *, timeout: float | None
) -> None:
    """Close *cursor*, if its transaction is still open."""
    await close_portal(raw, cursor, timeout)


def is_settled(raw: Any) -> bool:
    """Whether no transaction is open and no cancellation is under way."""
    protocol = raw._protocol
    return not (protocol.is_in_transaction() or protocol._is_cancelling())


def was_unsent(raw: Any, exc: BaseException) -> bool:
    """Whether *exc* says that *raw* had ended before a byte was sent.

    The driver raises this, and drops the connection, when it finds before
    writing that the server has just closed it. A changed type derives from
    it and means the opposite.
    """
    return (
        isinstance(exc, asyncpg.InternalClientError)
        and not isinstance(exc, OutdatedSchemaCacheError)
        and raw.is_closed()
    )


async def _forget(
    raw: Any,
    sql: str,
    statement: Any,
    exc: Exception,
    timeout: float | None,
) -> None:
    """Drop what the driver knew, or raise *exc* where that was not the fault.

    A changed result type is refused before anything ran, so outside a
    transaction the public method prepares it anew. A changed row was met while
    reading the answer: the statement had its effect.
    """
    if isinstance(exc, OutdatedSchemaCacheError):
        await raw.reload_schema_state()
        raise exc
    if isinstance(exc, asyncpg.DataError):
        # The server's own refusal of a value has a severity. The driver's may
        # come from parameters that are prepared for what a column once was.
        if (
            exc.severity is not None
            or isinstance(exc.__cause__, StorageError)
            or not await _is_outdated(raw, sql, statement, timeout)
        ):
            raise exc
        forget_statements(raw)
        return  # nothing had been sent
    forget_statements(raw)
    if raw.is_in_transaction():
        raise exc


async def _is_outdated(
    raw: Any,
    sql: str,
    statement: Any,
    timeout: float | None,
) -> bool:
    """Ask the server whether the parameters of *sql* have other types by now."""
    try:
        fresh = await describe(raw, sql, timeout)
        # Preparing alone leaves its locks until the next statement ends.
        await raw.execute("SELECT 1", timeout=timeout)
    except asyncpg.PostgresError:
        return False  # the first error is the caller's answer
    return parameter_types(fresh) != parameter_types(statement)
