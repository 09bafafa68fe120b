"""Transactions and savepoints: the verbs between a BEGIN and its end.

The end is reached on every path: an error, a cancellation, a broken connection.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Self

from fm_storage.errors import ConfigurationInvalid, QueryFailed, StorageError
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.connection.statements import (
    Stream,
    begin,
    undo_block,
    undo_closed,
)
from fm_storage.postgres.connection.verbs import Verbs
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from fm_storage.postgres.connection.statements import Statements
    from fm_storage.postgres.executor import Value

_ISOLATION = {
    "read_committed": "READ COMMITTED",
    "repeatable_read": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
_BEGIN = Sql("BEGIN")
_COMMIT = Sql("COMMIT")
_ROLLBACK = Sql("ROLLBACK")
_FAILED = "25P02"  # an earlier statement failed
_numbers = itertools.count(1)


def begin_sql(
    *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
) -> Sql:
    """Return the BEGIN for these options.

    Raises:
        ConfigurationInvalid: The isolation level is unknown.

    See https://www.postgresql.org/docs/current/sql-begin.html.
    """
    if isolation is None and not readonly and not deferrable:
        return _BEGIN
    words = ["BEGIN"]
    if isolation is not None:
        of_kind(isolation, str, "isolation", f"use one of {', '.join(_ISOLATION)}")
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

    Args:
        statements: What runs them.
        owner: For a subclass: what the pool's transactions belong to.
    """

    def __init__(self, statements: Statements, owner: Any = None) -> None:
        super().__init__(statements.run)
        self._statements = statements
        self._owner = owner

    def stream(self, sql: str, /, *args: Value, prefetch: int = 1000) -> Stream:
        """Open a server cursor; the block gets an iterator over its rows.

        No timeout applies. Leaving the block early, for any reason, leaves
        nothing open.
        """
        return Stream(self._statements, sql, args, prefetch)

    def savepoint(self) -> AbstractAsyncContextManager[Self]:
        """Open a savepoint: what its block did is undone if it fails."""
        self._statements.required()
        return savepoint_on(self._statements)

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


class Block:
    """A transaction or a savepoint: begun on entering, ended on every path.

    No generator: when a loop ends, Python closes all generators at once.
    """

    __slots__ = ("_end", "_inner", "_outer", "_start", "_undo")

    def __init__(self, outer: Statements, start: Sql, end: Sql, undo: Sql) -> None:
        self._outer = outer
        self._start, self._end, self._undo = start, end, undo
        self._inner: Statements

    async def __aenter__(self) -> Any:
        await begin(self._outer, self._start, self._undo)
        self._inner, transaction = self._outer.transaction()
        return transaction

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inner.end()
        if exc_type is GeneratorExit:
            await undo_closed(self._outer, self._undo)
        elif exc_type is not None:
            entry = self._outer.entry
            await undo_block(self._outer, self._undo)
            ended = entry is not None and entry.ended > 0
            if ended and isinstance(exc, StorageError) and exc.retryable:
                raise _ended() from exc  # a part may be committed: nobody repeats it
        else:
            await self._finish()

    async def _finish(self) -> None:
        entry = self._outer.required()
        raw = entry.raw
        if not raw.is_closed() and (entry.ended or not raw.is_in_transaction()):
            if raw.is_in_transaction():  # AND CHAIN, or a BEGIN behind it
                await undo_block(self._outer, self._undo)
            raise _ended()
        try:
            tag = await begin(self._outer, self._end, self._undo)
        except QueryFailed as exc:
            if exc.sqlstate == _FAILED:  # a savepoint's: the outer block can go on
                await undo_block(self._outer, self._undo)
            raise
        if tag == "ROLLBACK":
            raise QueryFailed(
                "transaction: the server rolled it back because a statement in it "
                "had failed; let that error leave the block",
                sqlstate=_FAILED,
            )


def _ended() -> QueryFailed:
    return QueryFailed(
        "transaction: a statement in its block ended it (COMMIT or ROLLBACK as "
        "text), so what followed was not part of it; leave that to the block",
        sqlstate="25P01",
    )


def transaction_on(outer: Statements, sql: Sql) -> Block:
    """Return a block from the BEGIN *sql* to COMMIT."""
    return Block(outer, sql, _COMMIT, _ROLLBACK)


def savepoint_on(outer: Statements) -> Block:
    """Return a block of a savepoint."""
    name = f"fm_{next(_numbers)}"
    undo = Sql(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
    start, end = Sql(f"SAVEPOINT {name}"), Sql(f"RELEASE SAVEPOINT {name}")
    return Block(outer, start, end, undo)
