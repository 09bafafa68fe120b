"""How statements run on one connection, for Connection, Transaction and streams.

One task at a time, nothing after release, driver errors translated. A stream ends
its cursor, and a transaction opened for it, on every way out.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import current_task, get_running_loop
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.concurrency.shield import consume, wait_done
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionBusy,
    ConnectionReleased,
    StorageError,
)
from fm_storage.postgres.connect.internals import server_of
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import classify, known
from fm_storage.postgres.connection.entry import GRACE
from fm_storage.postgres.errors import translate, unsent
from fm_storage.postgres.sql import Sql
from fm_storage.postgres.telemetry import tracing
from fm_storage.postgres.telemetry.slow import log_slow

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Sequence,
    )
    from types import TracebackType

    from asyncpg import Record

    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.executor import Value

__all__ = ["GOODBYE", "Rules", "Statements", "Stream", "finish"]

GOODBYE = 0.4
"""A ROLLBACK takes no time; a server that needs longer has stopped answering."""
_BEGIN = Sql("BEGIN READ ONLY")
_ROLLBACK = Sql("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the statements of all connections of one owner.

    Attributes:
        owner: Name of the pool, for messages.
        command_timeout: Seconds for a statement without a timeout of its own.
        slow_query: Seconds after which a statement is logged.
        make_transaction: Makes the transaction that a block gets.
    """

    owner: str
    command_timeout: float | None
    slow_query: float | None
    make_transaction: Callable[[Statements], Any]


class Statements:
    """Runs statements on one entry until it is released."""

    __slots__ = ("_rules", "_what", "entry")

    def __init__(
        self, entry: PoolEntry, rules: Rules, *, what: str = "connection"
    ) -> None:
        self.entry: PoolEntry | None = entry
        self._rules = rules
        self._what = what

    def transaction(self) -> tuple[Statements, Any]:
        """Return statements for a transaction on the same entry, and the object."""
        inner = Statements(self.required(), self._rules, what="transaction")
        return inner, self._rules.make_transaction(inner)

    def required(self) -> PoolEntry:
        """Return the entry.

        Raises:
            ConnectionReleased: It was released.
        """
        if self.entry is None:
            raise self.gone()
        return self.entry

    def gone(self) -> ConnectionReleased:
        """Return the error for a use after the block."""
        return ConnectionReleased(
            f"{self._rules.owner}: this {self._what} was already given back; use it "
            "inside its 'async with' block"
        )

    def release(self) -> PoolEntry | None:
        """Refuse statements from now on; return the entry, once."""
        entry, self.entry = self.entry, None
        return entry

    async def run(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Any:
        """Run one call of the driver."""
        entry = self._enter(sql)
        rules = self._rules
        started = monotonic()
        if timeout is None:
            timeout = rules.command_timeout
            if timeout is not None and entry.pooled:
                entry.deadline = started + timeout
                timeout = None
        else:
            entry.deadline = started + timeout + GRACE
            if timeout == math.inf:
                timeout = None
        observed = None
        if tracing.state.active:
            observed = tracing.Observed(sql, server_of(entry.raw))
        text = sql.text if type(sql) is Sql else sql
        try:
            return await call(entry.raw, text, *args, timeout=timeout)
        except BaseException as exc:  # translated, and passed on
            error = self._failed(entry, exc, args)
            if observed is not None:
                observed.fail(error)
            if error is exc:
                raise
            raise error from exc
        finally:
            entry.task = None
            entry.deadline = math.inf
            if observed is not None:
                observed.end()
            slow = rules.slow_query
            if slow is not None and monotonic() - started > slow:
                log_slow(rules.owner, sql, monotonic() - started)

    def _enter(self, sql: str) -> PoolEntry:
        """Claim the entry for the running task; a statement's end frees it."""
        entry = self.entry
        if entry is None:
            raise self.gone()
        if entry.loop is not get_running_loop():
            raise entry.refusal(self._rules.owner)
        if entry.task is not None:
            mine = current_task()
            raise ConnectionBusy(
                f"{self._rules.owner}: this {self._what} is running a statement of "
                f"task {entry.task.get_name()!r} while "
                f"{mine.get_name() if mine else '?'!r} wants to run another; "
                "acquire one connection per task"
            )
        # Classified in any case: that raises for what cannot be sent.
        if type(sql) is not Sql and not (known.get(sql) or classify(sql)):
            entry.dirty = True
        entry.task = current_task()
        return entry

    def _failed(
        self, entry: PoolEntry, exc: BaseException, args: Sequence[Any]
    ) -> BaseException:
        """Translate *exc*, and let the pool learn from it."""
        owner = self._rules.owner
        if entry.was_overdue():
            return translate(TimeoutError(), owner=owner)
        if not isinstance(exc, Exception):
            return exc
        if driver.was_unsent(entry.raw, exc):
            return unsent(owner)
        error = translate(exc, args, owner=owner)
        if entry.on_error is not None and isinstance(error, StorageError):
            entry.on_error(entry, error)
        return error


async def finish(entry: PoolEntry, work: Coroutine[Any, Any, Any]) -> bool:
    """Run the end of a block, also while the caller is cancelled.

    The error that leaves the block is the caller's, so a failure in here is not
    raised over it. If cancelled, *entry* is given up unless *work* succeeded.

    Returns:
        Whether it succeeded, within a moment.
    """
    ending = asyncio.ensure_future(work)
    ending.add_done_callback(consume)
    cancelled = await wait_done(ending, GOODBYE + GRACE)
    done = ending.done() and not ending.cancelled() and ending.exception() is None
    if cancelled is not None:
        if not done:
            entry.give_up()
        raise cancelled
    return done


class Stream:
    """Async context manager that gives an iterator over a statement's rows."""

    def __init__(
        self,
        statements: Statements,
        sql: str,
        args: tuple[Value, ...],
        prefetch: int,
    ) -> None:
        if prefetch < 1:
            raise ConfigurationInvalid(
                "prefetch", f"{prefetch} is below 1; ask for some rows at a time"
            )
        self._statements = statements
        self._sql = sql
        self._args = args
        self._prefetch = prefetch
        self._own_transaction = False
        self._cursor: Any = None

    async def __aenter__(self) -> AsyncIterator[Record]:
        run = self._statements.run
        if not self._statements.required().raw.is_in_transaction():
            await run(driver.execute, _BEGIN)
            self._own_transaction = True
        try:
            self._cursor = await run(
                driver.open_cursor, self._sql, self._args, math.inf
            )
        except BaseException:  # end its transaction, then pass it on
            await self._close()
            raise
        return self._rows()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _rows(self) -> AsyncIterator[Record]:
        run, count = self._statements.run, self._prefetch
        while True:
            if self._cursor is None:  # the block was left
                raise self._statements.gone()
            rows = await run(
                driver.fetch_more, self._sql, (self._cursor, count), math.inf
            )
            for row in rows:
                yield row
            if len(rows) < count:
                return

    async def _close(self) -> None:
        """End what was begun; if that fails, never use the connection again."""
        entry = self._statements.entry
        cursor, self._cursor = self._cursor, None
        if entry is None or entry.raw.is_closed():
            return
        if not await finish(entry, self._end(cursor)):
            entry.doubtful = True

    async def _end(self, cursor: Any) -> None:
        run = self._statements.run
        if self._own_transaction:
            await run(driver.execute, _ROLLBACK, (), GOODBYE)
        elif cursor is not None:
            await run(driver.close_cursor, self._sql, (cursor,), GOODBYE)
