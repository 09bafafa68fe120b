"""The driver's calls, in the shortest form the driver allows.

A statement that is already prepared is bound and executed directly, past asyncpg's
public methods: that saves five Python frames, three clocks and a context manager
per call. Everything else, preparing above all, is left to the public method.
asyncpg is pinned below 0.33 for this; ``test_postgres_driver.py`` compares both.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.exceptions import OutdatedSchemaCacheError

from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.connect.internals import (
    FIRST_OWN_OID,
    close_portal,
    describe,
    execute_many,
    forget_statements,
    forget_types,
    parameter_types,
    wait_for_cancellation,
)
from fm_storage.postgres.errors import FromCaller, is_own, is_type_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from fm_storage.postgres.executor import Value

_NO_STATEMENT = asyncpg.InvalidSQLStatementNameError
_SUSPECT = (
    asyncpg.InvalidCachedStatementError,
    _NO_STATEMENT,
    OutdatedSchemaCacheError,
    asyncpg.DataError,
    asyncpg.DatatypeMismatchError,
    asyncpg.UndefinedFunctionError,
    asyncpg.AmbiguousFunctionError,
    asyncpg.AmbiguousParameterError,
    asyncpg.IndeterminateDatatypeError,
    asyncpg.CannotCoerceError,
    asyncpg.InternalServerError,
)
"""Errors whose cause may be that the table is no longer what was prepared for, or that
a borrower had the server forget what was prepared (DEALLOCATE ALL)."""
_CALLS = re.compile(r"\s*(call|do)\b", re.IGNORECASE)
_RECORD = asyncpg.Record
_CLOSED = "connection is closed"
"""What the driver says before it sends anything."""
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
    rows = await _ask(raw.fetch, raw, sql, args, timeout)
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
    row: asyncpg.Record | None = await _ask(raw.fetchrow, raw, sql, args, timeout)
    return row


async def _ask(
    ask: Callable[..., Awaitable[Any]],
    raw: Any,
    sql: str,
    args: Sequence[Any],
    timeout: float | None,
) -> Any:
    """Run a public method; again if the driver knew a type as it once was."""
    try:
        return await ask(sql, *args, timeout=timeout)
    except asyncpg.DataError as exc:
        made = raw._stmt_cache.get((sql, _RECORD, False))
        if (
            not _is_drivers(exc)
            or (made is not None and not _has_parts(made))
            or _wrote_some(raw, exc)
        ):
            raise
        forget_types(raw)
        forget_statements(raw)
        return await ask(sql, *args, timeout=timeout)
    except (OverflowError, ValueError) as exc:
        raise _unreadable(exc) from exc


def _wrote_some(raw: Any, exc: Exception) -> bool:
    """Return whether rows of executemany() may stand before the one refused."""
    return bool(raw.is_in_transaction()) and vars(exc).get("rows_taken", 0) > 1


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
    try:
        answer: str = await _ask(raw.execute, raw, sql, args, timeout)
    except AttributeError as exc:
        if "decode" not in str(exc):
            raise
        return ""  # a text without a statement has no tag, which the driver decodes
    return answer


async def executemany(
    raw: Any,
    sql: str,
    rows: Iterable[Sequence[Value]],
    *,
    timeout: float | None,
) -> None:
    """Run once for each row of parameters."""
    statement = raw._stmt_cache.get((sql, _RECORD, False))
    if iter(rows) is rows:  # it cannot be run again
        if statement is not None:
            await _is_outdated(raw, sql, statement, timeout)
        await execute_many(raw, sql, rows, timeout=timeout)
        return
    if statement is not None:
        try:
            await execute_many(raw, sql, rows, timeout=timeout)
        except _SUSPECT as exc:
            await _forget(raw, sql, statement, exc, timeout)
        else:
            return
    await _ask(partial(execute_many, raw), raw, sql, (rows,), timeout)


async def open_cursor(raw: Any, sql: str, *args: Value, timeout: float | None) -> Any:
    """Prepare *sql* and return a cursor over its rows; nothing is fetched yet."""
    # Nothing from a cache: what was prepared for former types fails at its first row,
    # inside the transaction.
    forget_types(raw)
    statement = await raw.prepare(sql, timeout=timeout)
    return await statement.cursor(*args, timeout=timeout)


async def fetch_more(
    _raw: Any, _sql: str, cursor: Any, count: int, *, timeout: float | None
) -> list[asyncpg.Record]:
    """Return the next *count* rows of *cursor*."""
    try:
        rows: list[asyncpg.Record] = await cursor.fetch(count, timeout=timeout)
    except (OverflowError, ValueError) as exc:
        raise _unreadable(exc) from exc
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
    """Whether *exc* says that no byte of the statement was sent on *raw*.

    The driver raises this, and drops the connection, when it finds before
    writing that the server has just closed it. A changed type derives from
    it and means the opposite. A connection that nobody else uses is busy when the
    server has closed it and its socket is not closed yet.
    """
    internal = isinstance(exc, asyncpg.InternalClientError)
    driver_own = internal or isinstance(exc, asyncpg.InterfaceError)
    if driver_own and ("another operation" in str(exc) or str(exc) == _CLOSED):
        return True
    return (
        internal and not isinstance(exc, OutdatedSchemaCacheError) and raw.is_closed()
    )


def has_no_answer(exc: BaseException) -> bool:
    """Whether a statement may have run, without an answer that could be read.

    The connection broke, or the rows are of a type that was changed meanwhile.
    """
    return isinstance(
        exc, (OutdatedSchemaCacheError, asyncpg.ConnectionDoesNotExistError)
    )


def is_synced(exc: BaseException) -> bool:
    """Whether the server has ended the exchange that *exc* comes from.

    Preparing sends Parse without Sync, so a call that is cancelled, or that fails on
    our side, before Bind leaves the server in an implicit transaction, with its locks.
    After an error of the server's the driver has sent Sync.
    """
    return isinstance(exc, asyncpg.PostgresError) and bool(exc.severity)


async def synchronise(raw: Any, timeout: float) -> None:
    """End what a call may have left open on the server, by a simple query."""
    await wait_for_cancellation(raw, timeout)
    await raw.execute("SELECT 1", timeout=timeout)


def in_read_only(
    call: Callable[..., Awaitable[Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return *call* in a transaction in which the server refuses writes (25006)."""

    async def run(raw: Any, sql: str, *args: Any, timeout: float | None) -> Any:
        await raw.execute("BEGIN READ ONLY", timeout=timeout)
        result = await call(raw, sql, *args, timeout=timeout)
        await raw.execute("COMMIT", timeout=timeout)
        return result

    return run


async def _forget(
    raw: Any,
    sql: str,
    statement: Any,
    exc: Exception,
    timeout: float | None,
) -> None:
    """Drop what the driver knew, or raise *exc* where that was not the fault.

    A changed type is refused before anything ran, so outside a transaction the
    public method prepares it anew. A changed row was met while reading the answer:
    the statement had its effect. An error from inside a function or procedure comes
    too late as well: it may have committed.
    """
    if isinstance(exc, OutdatedSchemaCacheError):
        await raw.reload_schema_state()
        raise exc
    if isinstance(exc, asyncpg.InternalServerError) and not is_type_gone(exc):
        raise exc
    if isinstance(exc, _NO_STATEMENT) and statement.name not in str(exc):
        raise exc  # of an EXECUTE
    if isinstance(exc, asyncpg.DataError):
        if (
            not _is_drivers(exc)
            or not await _is_outdated(raw, sql, statement, timeout)
            or _wrote_some(raw, exc)
        ):
            raise exc
        return  # nothing had been sent
    forget_types(raw)
    forget_statements(raw)
    may_have_run = not (is_own(exc) or is_type_gone(exc))
    if raw.is_in_transaction() or may_have_run or _CALLS.match(sql):
        vars(exc)["is_outdated"] = not may_have_run
        raise exc


def _is_drivers(exc: asyncpg.DataError) -> bool:
    """Whether the driver refused a value, for a type as the driver knows it.

    The server's own refusal has a severity.
    """
    return exc.severity is None and not isinstance(
        exc.__cause__, (StorageError, FromCaller)
    )


def _has_parts(statement: Any) -> bool:
    """Whether a parameter is of a user's type with parts, which may have changed."""
    return any(
        each.kind != "scalar" and each.oid >= FIRST_OWN_OID
        for each in parameter_types(statement)
    )


async def columns_of(
    raw: Any, sql: str, *_: Value, timeout: float | None
) -> tuple[str, ...]:
    """Return the names of the columns that *sql* would give; it is not run."""
    described = await describe(raw, sql, timeout)
    # Preparing alone leaves its locks until the next statement ends.
    await raw.execute("SELECT 1", timeout=timeout)
    return tuple(one.name for one in described._get_attributes() or ())


async def _is_outdated(
    raw: Any,
    sql: str,
    statement: Any,
    timeout: float | None,
) -> bool:
    """Ask the server whether the parameters of *sql* may have other types by now.

    Then what was prepared is forgotten.
    """
    before = parameter_types(statement)
    forget_types(raw)
    try:
        fresh = await describe(raw, sql, timeout)
        # Preparing alone leaves its locks until the next statement ends.
        await raw.execute("SELECT 1", timeout=timeout)
    except asyncpg.PostgresError:
        return False  # the first error is the caller's answer
    if parameter_types(fresh) == before and not _has_parts(fresh):
        return False
    forget_statements(raw)
    return True
