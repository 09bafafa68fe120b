"""Transactions and savepoints: the verbs between a BEGIN and its end.

The end is reached on every path: an error, a cancellation, a broken connection.
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from fm_storage.errors import ConfigurationInvalid, QueryFailed
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.connection.statements import Stream, begin, undo_block
from fm_storage.postgres.connection.verbs import Verbs
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

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


@asynccontextmanager
async def transaction_on(outer: Statements, sql: Sql) -> AsyncIterator[Any]:
    """Run BEGIN, yield a transaction, and end it on every path."""
    await begin(outer, sql, _ROLLBACK)
    inner, transaction = outer.transaction()
    try:
        yield transaction
    except BaseException:  # undo, then pass it on
        inner.end()
        await undo_block(outer, _ROLLBACK)
        raise
    inner.end()
    if await begin(outer, _COMMIT, _ROLLBACK) == "ROLLBACK":
        raise QueryFailed(
            "transaction: the server rolled it back because a statement in it "
            "had failed; let that error leave the block",
            sqlstate="25P02",
        )


@asynccontextmanager
async def savepoint_on(outer: Statements) -> AsyncIterator[Any]:
    """Set a savepoint, yield a transaction, and end it on every path."""
    name = f"fm_{next(_numbers)}"
    undo = Sql(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
    await begin(outer, Sql(f"SAVEPOINT {name}"), undo)
    inner, transaction = outer.transaction()
    try:
        yield transaction
    except BaseException:  # undo, then pass it on
        inner.end()
        await undo_block(outer, undo)
        raise
    inner.end()
    await begin(outer, Sql(f"RELEASE SAVEPOINT {name}"), undo)
