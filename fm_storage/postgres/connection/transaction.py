"""Transactions and savepoints: the verbs between a BEGIN and its end.

Apart because the end must be reached on every path: an error, a cancellation, a
connection that broke.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fm_storage.errors import ConfigurationInvalid, ConnectionFailed, QueryFailed
from fm_storage.postgres.connection.statements import Verbs
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from fm_storage.postgres.connection.entry import PoolEntry

__all__ = ["Transaction", "begin_sql", "savepoint_on", "transaction_on"]

_ISOLATION = {
    "read_committed": "READ COMMITTED",
    "repeatable_read": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
_GOODBYE = 0.4
"""A ROLLBACK takes no time; a server that needs longer has stopped answering."""
T = TypeVar("T", bound="Transaction")
_numbers = itertools.count(1)


def begin_sql(
    *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
) -> Sql:
    """Return the BEGIN for these options.

    Raises:
        ConfigurationInvalid: The isolation level is unknown.

    See https://www.postgresql.org/docs/current/sql-begin.html.
    """
    words = ["BEGIN"]
    if isolation is not None:
        level = _ISOLATION.get(isolation.lower().replace(" ", "_"))
        if level is None:
            raise ConfigurationInvalid(
                "isolation",
                f"{isolation!r} is unknown; use one of {', '.join(_ISOLATION)}",
            )
        words.append(f"ISOLATION LEVEL {level}")
    if readonly:
        words.append("READ ONLY")
    if deferrable:
        words.append("DEFERRABLE")
    return Sql(" ".join(words))


class Transaction(Verbs):
    """An open transaction, or a savepoint in one: its verbs run inside it.

    It commits when its block ends and rolls back when an error or a
    cancellation leaves the block. Used after the block it raises
    ``ConnectionReleased``.
    """

    _what = "transaction"

    def savepoint(self) -> AbstractAsyncContextManager[Self]:
        """Open a savepoint: what its block did is undone if it fails."""
        if self._link is None:
            raise self._gone()
        return savepoint_on(self, self._link, type(self))

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AbstractAsyncContextManager[Self]:
        """Open a savepoint; the options belong to the outermost transaction.

        Raises:
            ConfigurationInvalid: An option was given.
        """
        if isolation is not None or readonly or deferrable:
            raise ConfigurationInvalid(
                "transaction",
                "isolation, readonly and deferrable are set by the outermost "
                "transaction; leave them out here",
            )
        return self.savepoint()


def _inside(outer: Verbs, link: PoolEntry, kind: type[T]) -> T:
    return kind(
        link,
        owner=outer._owner,  # noqa: SLF001 - same room
        command_timeout=outer._command_timeout,  # noqa: SLF001 - same room
        slow_query=outer._slow_query,  # noqa: SLF001 - same room
    )


@asynccontextmanager
async def transaction_on(
    outer: Verbs, link: PoolEntry, kind: type[T], begin: Sql
) -> AsyncIterator[T]:
    """Run BEGIN on *link*, yield a transaction, and end it on every path."""
    await outer.execute(begin)
    inner = _inside(outer, link, kind)
    try:
        yield inner
    except BaseException:  # undo, then pass it on
        inner._link = None  # noqa: SLF001 - same room
        await _undo(outer, link, "ROLLBACK")
        raise
    inner._link = None  # noqa: SLF001 - same room
    if await outer.execute(Sql("COMMIT")) == "ROLLBACK":
        raise QueryFailed(
            "transaction: the server rolled it back because a statement in it "
            "had failed; let that error leave the block",
            sqlstate="25P02",
        )


@asynccontextmanager
async def savepoint_on(
    outer: Verbs, link: PoolEntry, kind: type[T]
) -> AsyncIterator[T]:
    """Run SAVEPOINT on *link*, yield a transaction, and end it on every path."""
    name = f"fm_{next(_numbers)}"
    await outer.execute(Sql(f"SAVEPOINT {name}"))
    inner = _inside(outer, link, kind)
    try:
        yield inner
    except BaseException:  # undo, then pass it on
        inner._link = None  # noqa: SLF001 - same room
        await _undo(
            outer, link, f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}"
        )
        raise
    inner._link = None  # noqa: SLF001 - same room
    await outer.execute(Sql(f"RELEASE SAVEPOINT {name}"))


async def _undo(verbs: Verbs, link: PoolEntry, sql: str) -> None:
    """Roll back because the block failed.

    The error that leaves the block is the caller's, so a failure in here is
    not raised over it: the connection is closed and never lent again, which
    rolls back as well. The same if it is cancelled, or takes too long.
    """
    if link.raw.is_closed() or link.forked:
        return
    work = asyncio.ensure_future(verbs.execute(Sql(sql), timeout=_GOODBYE))
    work.add_done_callback(look_at)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work}, timeout=_GOODBYE)
        if not work.done() or work.cancelled() or work.exception() is not None:
            _give_up(link)
        raise
    except Exception:
        _give_up(link)


def look_at(work: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody may be left to await."""
    if not work.cancelled():
        work.exception()


def _give_up(link: PoolEntry) -> None:
    link.doubtful = True
    link.raw.terminate()


def is_worth_repeating(error: Exception, *, committing: bool) -> bool:
    """Whether running the whole transaction again is safe and may help.

    A connection lost before COMMIT was sent rolled everything back; lost at
    COMMIT, the outcome is unknown, and only the caller can look.
    """
    if isinstance(error, ConnectionFailed):
        return error.retryable and not committing
    if isinstance(error, QueryFailed):
        return error.sqlstate in _REPEATED or (
            error.sqlstate == "0A000" and error.retryable
        )
    return False


_REPEATED = frozenset({"40001", "40P01", "25006"})
