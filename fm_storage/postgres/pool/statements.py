"""The verbs straight from the pool: borrow, run one statement, give back.

Apart because this is the hot path, kept to as few Python frames as it can be:
a checkout here is a ``deque.pop()`` and two comparisons, and no round trip.
"""

from __future__ import annotations

import math
from asyncio import current_task
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConnectionFailed, StorageError
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import Effect, classify
from fm_storage.postgres.connection.verbs import Calls
from fm_storage.postgres.errors import translate, unsent
from fm_storage.postgres.pool.timeouts import GRACE
from fm_storage.postgres.sql import Sql
from fm_storage.postgres.telemetry import tracing
from fm_storage.postgres.telemetry.slow import log_slow

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Sequence,
    )

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["PoolVerbs"]

_REPEATS = 3


class PoolVerbs(Calls):
    """One statement on a borrowed connection. See ``Executor`` for the promises.

    A statement that only reads and whose connection broke is run again on
    another connection, within the caller's time: a server's restart is then
    only a pause. One that may write is repeated only if nothing had been sent.
    """

    def __init__(self, lender: PoolCore, config: PostgresConfig) -> None:
        self._lender = lender
        self._owner = lender.owner
        self._acquire_timeout = config.acquire_timeout
        self._command_timeout = (
            math.inf if config.command_timeout is None else config.command_timeout
        )
        self._slow_query = math.inf if config.slow_query is None else config.slow_query

    def __repr__(self) -> str:
        lender = self._lender
        return (
            f"<{type(self).__name__} {lender.name!r} {lender.life.value}: "
            f"{lender.size} of {lender.config.max_size} connection(s)>"
        )

    async def _run(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        timeout: float | None,
    ) -> Any:
        lender = self._lender
        dirty = lender.always_reset
        if type(sql) is Sql:
            text = sql.text
        else:
            text = sql
            # Before a connection is taken: it raises for what cannot be sent.
            dirty = not classify(sql) or dirty
        link = lender.take_now()
        limit = timeout
        if link is None:
            link, limit = await self._take(timeout)
        link.dirty = dirty
        link.task = current_task()
        if limit is None:
            link.deadline = link.taken_at + self._command_timeout
        else:
            link.deadline = link.taken_at + limit + GRACE
            if limit == math.inf:
                limit = None
        if tracing.active:
            call = tracing.traced(call)
        try:
            result = await call(link.raw, text, *args, timeout=limit)
        except BaseException as exc:
            return await self._recover(link, exc, call, sql, args, limit)
        lender.give_clean(link)
        if monotonic() - link.taken_at > self._slow_query:
            log_slow(self._owner, sql, monotonic() - link.taken_at)
        return result

    async def _take(self, timeout: float | None) -> tuple[PoolEntry, float | None]:
        """Wait for a link; what was waited is taken off a given timeout."""
        if timeout is None or timeout == math.inf:
            return await self._lender.take(self._acquire_timeout), timeout
        started = monotonic()
        link = await self._lender.take(min(timeout, self._acquire_timeout))
        return link, max(0.001, timeout - (monotonic() - started))

    async def _recover(  # noqa: PLR0917 - all of a call that failed
        self,
        link: PoolEntry,
        exc: BaseException,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        limit: float | None,
    ) -> Any:
        """Give *link* back, then repeat what may be repeated, or raise ours."""
        lender = self._lender
        patience = math.inf if limit is None else limit
        deadline = link.taken_at + min(patience, self._acquire_timeout)
        text = sql.text if type(sql) is Sql else sql
        for repeats in range(_REPEATS + 1):
            nothing_sent = driver.was_unsent(link.raw, exc)
            error = self._give_failed(link, exc, args)
            left = deadline - monotonic()
            if (
                repeats == _REPEATS
                or left <= 0
                or not isinstance(error, ConnectionFailed)
                or not (nothing_sent or classify(sql) is Effect.READS)
            ):
                if error is exc:
                    raise exc
                raise error from exc
            lender.counters.repeats += 1
            dirty, link = link.dirty, await lender.take(left)
            link.dirty = dirty
            left = max(0.001, deadline - monotonic())
            try:
                result = await call(link.raw, text, *args, timeout=left)
            except BaseException as again:
                exc = again
            else:
                lender.give(link)
                return result
        raise AssertionError  # the last round raised

    def _give_failed(
        self, link: PoolEntry, exc: BaseException, args: Sequence[Any]
    ) -> BaseException:
        """Give *link* back and return the error to raise."""
        error = exc
        if driver.was_unsent(link.raw, exc):
            error = unsent(self._owner)
        elif link.was_overdue():
            error = translate(TimeoutError(), owner=self._owner)
        elif isinstance(exc, Exception):
            error = translate(exc, args, owner=self._owner)
        if isinstance(error, StorageError):
            self._lender.note(link, error)
        self._lender.give(link)
        return error
