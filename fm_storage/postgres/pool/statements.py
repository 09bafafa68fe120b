"""Statements straight from the pool: take a connection, run one, give it back.

This is the hot path, kept to as few Python frames as it can be: a checkout here is
a ``deque.pop()`` and two comparisons, and no round trip.
"""

from __future__ import annotations

import math
from asyncio import current_task
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConnectionFailed, StorageError
from fm_storage.postgres.arguments import seconds
from fm_storage.postgres.connect.internals import server_of
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import Effect
from fm_storage.postgres.connection.entry import GRACE
from fm_storage.postgres.errors import cause_of, is_callers, translate, unsent
from fm_storage.postgres.sql import Sql, sendable
from fm_storage.postgres.telemetry import tracing
from fm_storage.postgres.telemetry.slow import log_slow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.pool.core import PoolCore

_REPEATS = 3


class PoolStatements:
    """Runs each statement on a connection of its own.

    A statement that only reads and whose connection broke is run again on
    another connection, in a read-only transaction and within the caller's time: a
    server's restart is then only a pause. One that may write is repeated only if
    nothing had been sent.
    """

    def __init__(self, core: PoolCore, config: PostgresConfig) -> None:
        self._core = core
        self._owner = core.owner
        self._known = core.classifier.known
        self._classify = core.classifier.classify
        self._acquire_timeout = config.acquire_timeout
        self._command_timeout = (
            math.inf if config.command_timeout is None else config.command_timeout
        )
        self._slow_query = math.inf if config.slow_query is None else config.slow_query

    async def run(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        timeout: float | None,
    ) -> Any:
        """Run one call of the driver."""
        if timeout is not None:
            timeout = seconds(timeout)
        core = self._core
        dirty = core.always_reset
        if type(sql) is Sql:
            text = sql.text
        else:
            if type(sql) is not str:
                sendable(sql)
            text = sql
            # Before a connection is taken: it raises for what cannot be sent.
            found = self._known.get(sql) or self._classify(sql)
            dirty = not found or dirty
        entry = core.take_now()
        limit = timeout
        if entry is None:
            entry, limit = await self._take(timeout)
        entry.dirty = dirty
        entry.task = current_task()
        if limit is None:
            entry.deadline = entry.taken_at + self._command_timeout
        else:
            entry.deadline = entry.taken_at + limit + GRACE
            if limit == math.inf:
                limit = None
        if tracing.state.active:
            call = tracing.traced(call, server_of)
        try:
            result = await call(entry.raw, text, *args, timeout=limit)
        except BaseException as exc:  # given back first, then raised
            return await self._recover(
                entry, exc, call=call, sql=sql, args=args, limit=limit
            )
        core.give_clean(entry)
        if monotonic() - entry.taken_at > self._slow_query:
            log_slow(self._owner, sql, monotonic() - entry.taken_at)
        return result

    async def _take(self, timeout: float | None) -> tuple[PoolEntry, float | None]:
        """Wait for a connection; what was waited is taken off a given timeout."""
        if timeout is None or timeout == math.inf:
            return await self._core.take(self._acquire_timeout), timeout
        started = monotonic()
        entry = await self._core.take(min(timeout, self._acquire_timeout))
        return entry, max(0.001, timeout - (monotonic() - started))

    async def _recover(
        self,
        entry: PoolEntry,
        exc: BaseException,
        *,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        limit: float | None,
    ) -> Any:
        """Give *entry* back, then repeat what may be repeated, or raise ours."""
        core = self._core
        patience = math.inf if limit is None else limit
        deadline = entry.taken_at + min(patience, self._acquire_timeout)
        text = sql.text if type(sql) is Sql else sql
        reads = self._classify(sql) is Effect.READS
        lost: tuple[BaseException, BaseException] | None = None
        for repeats in range(_REPEATS + 1):
            nothing_sent = driver.was_unsent(entry.raw, exc)
            error = self._give_failed(entry, exc, args)
            left = deadline - monotonic()
            if (
                repeats == _REPEATS
                or left <= 0
                or not (
                    isinstance(error, ConnectionFailed) or driver.has_no_answer(exc)
                )
                or is_callers(exc)
                or not (nothing_sent or reads)
            ):
                if error is exc:
                    raise exc
                raise error from cause_of(error, exc)
            core.counters.repeats += 1
            if not nothing_sent and lost is None:
                # It may have run. What the text does not show (a view, a function of
                # the caller's) may write: the server refuses that now.
                lost, call = (error, exc), driver.in_read_only(call)
            dirty, entry = entry.dirty, await core.take(left)
            entry.dirty = dirty
            left = max(0.001, deadline - monotonic())
            try:
                result = await call(entry.raw, text, *args, timeout=left)
            except BaseException as again:  # judged below
                if lost is not None and getattr(again, "sqlstate", None) == "25006":
                    core.give(entry)
                    raise lost[0] from lost[1]
                exc = again
            else:
                core.give(entry)
                return result
        raise AssertionError  # the last round raised

    def _give_failed(
        self, entry: PoolEntry, exc: BaseException, args: Sequence[Any]
    ) -> BaseException:
        """Give *entry* back and return the error to raise."""
        error = exc
        entry.unsynced = not driver.is_synced(exc)
        if driver.was_unsent(entry.raw, exc):
            entry.doubtful = True
            error = unsent(self._owner)
        elif entry.was_overdue():
            error = translate(TimeoutError(), owner=self._owner)
        elif isinstance(exc, Exception):
            error = translate(exc, args, owner=self._owner)
        if isinstance(error, StorageError) and not is_callers(exc):
            self._core.note(entry, error)
        self._core.give(entry)
        return error
