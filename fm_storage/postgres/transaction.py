"""Transactions and savepoints: the verbs between a BEGIN and its end.

Apart because the end must be reached on every path: an error, a cancellation, a
connection that broke.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConfigurationInvalid, QueryFailed
from fm_storage.postgres.sql import Sql
from fm_storage.postgres.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fm_storage.postgres.link import Link

__all__ = ["Transaction", "begin_sql", "transaction_on"]

_ISOLATION = {
    "read_committed": "READ COMMITTED",
    "repeatable_read": "REPEATABLE READ",
    "serializable": "SERIALIZABLE",
}
_numbers = itertools.count(1)


def begin_sql(*, isolation: str | None, readonly: bool, deferrable: bool) -> Sql:
    """Return the BEGIN for these options.

    Raises:
        ConfigurationInvalid: The isolation level is unknown.
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

    def savepoint(self) -> Any:  # noqa: ANN401 - async context manager of this type
        """Open a savepoint: what its block did is undone if it fails."""
        return self._savepoint()

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> Any:  # noqa: ANN401 - async context manager of this type
        """Open a savepoint; the options belong to the outermost transaction."""
        if isolation is not None or readonly or deferrable:
            raise ConfigurationInvalid(
                "transaction",
                "isolation, readonly and deferrable are set by the outermost "
                "transaction; leave them out here",
            )
        return self._savepoint()

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[Transaction]:
        link = self._link
        if link is None:
            raise self._gone()
        name = f"fm_{next(_numbers)}"
        await self.execute(Sql(f"SAVEPOINT {name}"))
        inner = self._again(link)
        try:
            yield inner
        except BaseException:
            inner._link = None
            if not link.raw.is_closed():
                await _finish(
                    self, f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}"
                )
            raise
        inner._link = None
        await self.execute(Sql(f"RELEASE SAVEPOINT {name}"))

    def _again(self, link: Link) -> Transaction:
        return type(self)(
            link, owner=self._owner, command_timeout=self._command_timeout
        )


@asynccontextmanager
async def transaction_on(
    outer: Verbs,
    link: Link,
    kind: type[Transaction],
    begin: Sql,
) -> AsyncIterator[Transaction]:
    """Run BEGIN on *link*, yield a transaction, and end it on every path."""
    await outer.execute(begin)
    inner = kind(link, owner=outer._owner, command_timeout=outer._command_timeout)  # noqa: SLF001 - same room
    try:
        yield inner
    except BaseException:
        inner._link = None  # noqa: SLF001 - same room
        if not link.raw.is_closed():
            await _finish(outer, "ROLLBACK")
        raise
    inner._link = None  # noqa: SLF001 - same room
    tag = await outer.execute(Sql("COMMIT"))
    if tag == "ROLLBACK":
        raise QueryFailed(
            "transaction: the server rolled it back because a statement in it "
            "had failed; let that error leave the block",
            sqlstate="25P02",
        )


async def _finish(verbs: Verbs, sql: str) -> None:
    """Roll back although the block failed; a failure here marks the link.

    The error that leaves the block is the caller's, so one of the rollback is
    not raised over it: the connection is never lent again instead.
    """
    link = verbs._link  # noqa: SLF001 - same room
    task = asyncio.ensure_future(verbs.execute(Sql(sql), timeout=5.0))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=5.0)
        raise
    except Exception:  # noqa: BLE001 - see the docstring
        if link is not None:
            link.doubtful = True
