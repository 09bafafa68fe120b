"""The verbs of one borrowed connection, shared by Connection and Transaction.

Apart because both run statements on the same link under the same rules: one
task at a time, nothing after release, driver errors translated.
"""

from __future__ import annotations

import math
from asyncio import current_task, get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConnectionBusy, ConnectionReleased, StorageError
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import is_lean
from fm_storage.postgres.connection.stream import Stream
from fm_storage.postgres.connection.verbs import Calls
from fm_storage.postgres.errors import translate, unsent
from fm_storage.postgres.pool.timeouts import GRACE
from fm_storage.postgres.sql import plain
from fm_storage.postgres.telemetry import tracing
from fm_storage.postgres.telemetry.slow import log_slow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.executor import Value

__all__ = ["Verbs"]


class Verbs(Calls):
    """Statements on one link. See ``Executor`` for what each verb promises."""

    _what = "connection"

    def __init__(
        self,
        link: PoolEntry,
        *,
        owner: str,
        command_timeout: float | None,
        slow_query: float | None = None,
    ) -> None:
        self._link: PoolEntry | None = link
        self._owner = owner
        self._command_timeout = command_timeout
        self._slow_query = slow_query

    # -- the one way in --------------------------------------------------

    def _enter(self, sql: str) -> PoolEntry:
        """Claim the link for the running task; ``_leave()`` gives it back."""
        link = self._link
        if link is None:
            raise self._gone()
        if link.loop is not get_running_loop():
            raise link.refusal(self._owner)
        if link.task is not None:
            mine = current_task()
            raise ConnectionBusy(
                f"{self._owner}: this {self._what} is running a statement of task "
                f"{link.task.get_name()!r} while "
                f"{mine.get_name() if mine else '?'!r} wants to run another; "
                "acquire one connection per task"
            )
        if not is_lean(sql):  # looked at in any case: it raises for a NUL
            link.dirty = True
        link.task = current_task()
        return link

    async def _run(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        timeout: float | None,
    ) -> Any:
        """Run one call of the driver under the rules of this room."""
        link = self._enter(sql)
        started = monotonic()
        if timeout is None:
            timeout = self._command_timeout
            if timeout is not None and link.lender is not None:
                link.deadline = started + timeout
                timeout = None
        else:
            link.deadline = started + timeout + GRACE
            if timeout == math.inf:
                timeout = None
        observed = tracing.Observed(sql, link.raw) if tracing.active else None
        try:
            return await call(link.raw, plain(sql), *args, timeout=timeout)
        except BaseException as exc:  # translated, and passed on
            error = self._failed(link, exc, args)
            if observed is not None:
                observed.fail(error)
            if error is exc:
                raise
            raise error from exc
        finally:
            link.task = None
            link.deadline = math.inf
            if observed is not None:
                observed.end()
            slow = self._slow_query
            if slow is not None and monotonic() - started > slow:
                log_slow(self._owner, sql, monotonic() - started)

    def _failed(
        self, link: PoolEntry, exc: BaseException, args: Sequence[Any]
    ) -> BaseException:
        """Translate, and let the lender learn from it."""
        if link.was_overdue():
            return translate(TimeoutError(), owner=self._owner)
        if not isinstance(exc, Exception):
            return exc
        if driver.was_unsent(link.raw, exc):
            return unsent(self._owner)
        error = translate(exc, args, owner=self._owner)
        if isinstance(error, StorageError) and link.lender is not None:
            link.lender.note(link, error)
        return error

    def _gone(self) -> ConnectionReleased:
        return ConnectionReleased(
            f"{self._owner}: this {self._what} was already given back; use it "
            "inside its 'async with' block"
        )

    # -- the verbs -------------------------------------------------------

    def stream(self, sql: str, /, *args: Value, prefetch: int = 1000) -> Stream:
        """Open a server cursor; the block gets an iterator over its rows.

        The cursor lives in a transaction, opened read-only if there is none.
        No timeout applies. Leaving the block early, for any reason, leaves
        nothing open.
        """
        return Stream(self, sql, args, prefetch)
