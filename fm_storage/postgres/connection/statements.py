"""How statements run on one connection, for Connection, Transaction and streams.

One task at a time, nothing after release, driver errors translated. A stream ends
its cursor, and a transaction opened for it, on every way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from asyncio import current_task, get_running_loop
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from asyncpg.exceptions import OutdatedSchemaCacheError

from fm_storage.concurrency.shield import consume, wait_done
from fm_storage.errors import (
    ConnectionBusy,
    ConnectionFailed,
    ConnectionReleased,
    ForkedProcess,
    QueryFailed,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres.arguments import at_least_one, seconds
from fm_storage.postgres.connect.internals import (
    EndWatch,
    server_of,
    wait_for_cancellation,
)
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import Classifier, Effect
from fm_storage.postgres.connection.entry import GRACE
from fm_storage.postgres.errors import cause_of, is_callers, translate, unsent
from fm_storage.postgres.sql import Sql, sendable
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

GOODBYE = 0.4
"""A ROLLBACK takes no time; a server that needs longer has stopped answering."""
FOREIGN_GOODBYE = 5.0
"""The same on a connection that is not ours to close."""
_BEGIN = Sql("BEGIN READ ONLY")
_ROLLBACK = Sql("ROLLBACK")
_NO_SAVEPOINT = "3B001"
_SYNTAX = "42601"


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the statements of all connections of one owner.

    Attributes:
        owner: Name of the pool, for messages.
        command_timeout: Seconds for a statement without a timeout of its own.
        slow_query: Seconds after which a statement is logged.
        make_transaction: Makes the transaction that a block gets.
        classifier: Says which statements leave nothing behind.
    """

    owner: str
    command_timeout: float | None
    slow_query: float | None
    make_transaction: Callable[[Statements], Any]
    classifier: Classifier


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
        entry = self.required()
        if not entry.blocks:
            entry.ended = 0
        entry.blocks += 1
        inner = Statements(entry, self._rules, what="transaction")
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

    def end(self) -> None:
        """Refuse statements from now on: the block of this transaction was left."""
        entry = self.release()
        if entry is not None:
            entry.blocks -= 1

    async def run(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Any:
        """Run one call of the driver."""
        if timeout is not None and timeout != math.inf:
            timeout = seconds(timeout)
        if self.entry is not None and self.entry.settling is not None:
            await self._settled(self.entry)
        entry = self._enter(sql)
        rules = self._rules
        started = monotonic()
        timeout = self._limit(entry, started, timeout)
        observed = None
        if tracing.state.active:
            observed = tracing.Observed(sql, server_of(entry.raw))
        text = sql.text if type(sql) is Sql else sql
        try:
            try:
                return await call(entry.raw, text, *args, timeout=timeout)
            except OutdatedSchemaCacheError as exc:
                again = driver.in_read_only(call)
                return await self._read_again(
                    entry, exc, sql, again(entry.raw, text, *args, timeout=timeout)
                )
        except BaseException as exc:  # translated, and passed on
            error = self._failed(entry, exc, sql, args)
            if observed is not None:
                observed.fail(error)
            if error is exc:
                raise
            raise error from cause_of(error, exc)
        finally:
            entry.task = None
            entry.deadline = math.inf
            if observed is not None:
                observed.end()
            slow = rules.slow_query
            if slow is not None and monotonic() - started > slow:
                log_slow(rules.owner, sql, monotonic() - started)

    async def _read_again(
        self,
        entry: PoolEntry,
        exc: OutdatedSchemaCacheError,
        sql: str,
        again: Coroutine[Any, Any, Any],
    ) -> Any:
        """Run once more what only reads: the driver has learnt the changed type."""
        reads = self._rules.classifier.classify(sql) is Effect.READS
        if entry.in_transaction or not reads:
            again.close()
            raise exc
        try:
            return await again
        except BaseException as failed:  # its transaction may be open
            entry.give_up()
            if getattr(failed, "sqlstate", None) == "25006":
                raise exc from None
            raise

    def _limit(
        self, entry: PoolEntry, started: float, timeout: float | None
    ) -> float | None:
        """Note the deadline; return the timeout that the driver enforces."""
        if timeout is not None:
            entry.deadline = started + timeout + GRACE
            return None if timeout == math.inf else timeout
        timeout = self._rules.command_timeout
        if timeout is not None and entry.pooled:
            entry.deadline = started + timeout
            return None
        return timeout

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
        if type(sql) is not Sql:
            if type(sql) is not str:
                sendable(sql)
            classifier = self._rules.classifier
            if not (classifier.known.get(sql) or classifier.classify(sql)):
                entry.dirty = True
                if entry.blocks and classifier.ends_transaction(sql):
                    entry.ended += 1
        entry.task = current_task()
        return entry

    def _failed(
        self, entry: PoolEntry, exc: BaseException, sql: str, args: Sequence[Any]
    ) -> BaseException:
        """Translate *exc*, and let the pool learn from it."""
        owner = self._rules.owner
        if entry.ended and getattr(exc, "sqlstate", None) == _SYNTAX:
            # Nothing of the text was run.
            entry.ended -= self._rules.classifier.ends_transaction(sql)
        entry.nothing_sent = False
        if not driver.is_synced(exc):
            self._settle_soon(entry)
        if entry.was_overdue():
            return translate(TimeoutError(), owner=owner)
        if not isinstance(exc, Exception):
            return exc
        if driver.was_unsent(entry.raw, exc):
            entry.nothing_sent = entry.raw.is_closed()
            # Nobody else uses it, or somebody its raw connection: not used again.
            entry.doubtful = entry.pooled
            error = unsent(owner) if entry.nothing_sent else translate(exc, owner=owner)
        else:
            error = translate(exc, args, owner=owner)
        if is_callers(exc) or not isinstance(error, StorageError):
            return error
        entry.failure = error
        if entry.on_error is not None and not entry.nothing_sent:
            entry.on_error(entry, error)
        return error

    def translated(self, exc: BaseException) -> BaseException:
        """Return our error for what the server reported of its own accord."""
        return translate(exc, owner=self._rules.owner)

    def _settle_soon(self, entry: PoolEntry) -> None:
        """End what the call may have left open, off the caller's path."""
        entry.unsynced = True
        raw = entry.raw
        # In a transaction of its own the end of its block does it.
        if not (entry.foreign or raw.is_closed() or raw.is_in_transaction()):
            entry.settling = asyncio.ensure_future(entry.settle(GOODBYE))

    async def _settled(self, entry: PoolEntry) -> None:
        """Wait until that has ended."""
        settling, entry.settling = entry.settling, None
        if settling is not None:
            cancelled = await wait_done(settling)
            if cancelled is not None:
                entry.settling = settling
                raise cancelled


async def finish(
    entry: PoolEntry, work: Coroutine[Any, Any, Any], patience: float = GOODBYE
) -> bool:
    """Run the end of a block, also while the caller is cancelled.

    The error that leaves the block is the caller's, so a failure in here is not
    raised over it. If cancelled, *entry* is given up unless *work* succeeded.

    Returns:
        Whether it succeeded, within a moment.
    """
    ending = asyncio.ensure_future(work)
    ending.add_done_callback(consume)
    cancelled = await wait_done(ending, patience + GRACE)
    done = ending.done() and not ending.cancelled()
    if done and (failure := ending.exception()) is not None:
        # A savepoint that was given up before it was made leaves nothing to undo.
        done = getattr(failure, "sqlstate", None) == _NO_SAVEPOINT
    if cancelled is not None:
        if not done:
            entry.give_up()
        raise cancelled
    return done


_NOT_BEGUN = (ConnectionBusy, ConnectionReleased, WrongLoop, ForkedProcess)


async def begin(statements: Statements, sql: Sql, undo: Sql) -> str:
    """Run a BEGIN, SAVEPOINT or COMMIT; if its outcome is unknown, *undo* it.

    It may still reach the server after its caller gave up: what follows on this
    connection would run, unseen, in a transaction that nobody commits.
    """
    try:
        tag: str = await statements.run(driver.execute, sql)
    except _NOT_BEGUN:
        raise
    except BaseException as exc:
        if getattr(exc, "sqlstate", None) is None:  # else the server refused it
            await undo_block(statements, undo)
        raise
    return tag


async def undo_block(statements: Statements, sql: Sql) -> None:
    """Roll back because the block failed.

    If that fails too, is cancelled, or takes too long, the connection is closed
    and never used again, which rolls back as well. A connection of the caller's is
    not closed.

    Raises:
        QueryFailed: The caller's connection could not be rolled back.
    """
    entry = statements.entry
    if entry is None or entry.raw.is_closed() or entry.forked:
        return
    patience = FOREIGN_GOODBYE if entry.foreign else GOODBYE
    if await finish(entry, statements.run(driver.execute, sql, (), patience), patience):
        return
    if entry.foreign and not entry.raw.is_closed():
        raise QueryFailed(
            "transaction: its block failed and could not be undone on the connection "
            "that was joined; roll back or close that connection"
        )
    entry.give_up()


async def undo_closed(statements: Statements, sql: Sql) -> None:
    """Roll back because the generator or coroutine of the block was closed.

    That may not wait, so what follows on this connection does; only on a connection of
    the caller's, who knows nothing of it, it is waited for.
    """
    entry = statements.entry
    if entry is not None and entry.foreign:
        await undo_block(statements, sql)
    elif entry is not None:
        end_later(entry, lambda: driver.execute(entry.raw, sql.text, timeout=GOODBYE))


def end_later(entry: PoolEntry, work: Callable[[], Awaitable[object]]) -> None:
    """Run *work* on *entry* off the caller's path; if that fails, close it."""
    if entry.raw.is_closed() or entry.forked:
        return
    before = entry.settling

    async def end() -> None:
        try:
            if before is not None:
                await wait_done(before)
            await wait_for_cancellation(entry.raw, GOODBYE)
            await work()
        except BaseException:  # what is open on it ends with it
            entry.give_up()
            raise

    with contextlib.suppress(RuntimeError):  # no loop runs any more
        if get_running_loop() is entry.loop:
            entry.settling = asyncio.ensure_future(end())
            entry.settling.add_done_callback(consume)
            return
    entry.doubtful = True


class Stream:
    """Async context manager that gives an iterator over a statement's rows."""

    def __init__(
        self,
        statements: Statements,
        sql: str,
        args: tuple[Value, ...],
        prefetch: int,
    ) -> None:
        self._statements = statements
        self._sql = sql
        self._args = args
        self._prefetch = at_least_one(prefetch, "prefetch")
        self._own_transaction = False
        self._cursor: Any = None
        self._watch: EndWatch | None = None

    async def __aenter__(self) -> AsyncIterator[Record]:
        run = self._statements.run
        if not self._statements.required().in_transaction:
            await begin(self._statements, _BEGIN, _ROLLBACK)
            self._own_transaction = True
        try:
            self._cursor = await run(
                driver.open_cursor, self._sql, self._args, math.inf
            )
        except BaseException:  # end its transaction, then pass it on
            await self._close()
            raise
        entry = self._statements.required()
        self._watch = EndWatch(entry.raw, lambda: entry.task is None)
        return self._rows()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.stop()
        entry = self._statements.entry
        if exc_type is GeneratorExit and entry is not None:
            cursor, self._cursor = self._cursor, None
            end_later(entry, lambda: self._end_on(entry.raw, self._sql, cursor))
            return
        await self._close()

    async def _rows(self) -> AsyncIterator[Record]:
        run, count = self._statements.run, self._prefetch
        while True:
            if self._cursor is None:  # the block was left
                raise self._statements.gone()
            try:
                rows = await run(
                    driver.fetch_more, self._sql, (self._cursor, count), math.inf
                )
            except ConnectionFailed as exc:
                reported = None if self._watch is None else self._watch.error
                if reported is None:
                    raise
                # Why the server ended it between two calls, such as a conflict with
                # recovery on a standby (40001).
                raise self._statements.translated(reported) from exc
            for row in rows:
                yield row
            if len(rows) < count:
                return

    async def _close(self) -> None:
        """End what was begun; if that fails, never use the connection again."""
        entry = self._statements.entry
        cursor, self._cursor = self._cursor, None
        nothing = cursor is None and not self._own_transaction
        if nothing or entry is None or entry.raw.is_closed():
            return
        if not await finish(entry, self._end(cursor)):
            entry.doubtful = True

    async def _end(self, cursor: Any) -> None:
        sql = _ROLLBACK if self._own_transaction else self._sql
        await self._statements.run(self._end_on, sql, (cursor,), GOODBYE)

    async def _end_on(
        self, raw: Any, _sql: str, cursor: Any, *, timeout: float | None = GOODBYE
    ) -> None:
        if self._own_transaction:
            await driver.execute(raw, _ROLLBACK.text, timeout=timeout)
        elif cursor is not None:
            await driver.close_cursor(raw, _sql, cursor, timeout=timeout)
