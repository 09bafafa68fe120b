"""One borrowed or dedicated connection.

Apart from the pool because it is what users hold: it knows its verbs and its
own end, and nothing of queues.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fm_storage.postgres.connection.statements import Verbs
from fm_storage.postgres.connection.transaction import (
    Transaction,
    begin_sql,
    savepoint_on,
    transaction_on,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from fm_storage.postgres.connection.entry import PoolEntry

__all__ = ["Connection"]


class Connection(Verbs):
    """A connection with the verbs of ``Executor``.

    Borrowed from ``Pool.acquire()`` it is given back by its block; made by
    ``Pool.connect()`` it belongs to the caller, who closes it with ``aclose()``.
    One task at a time may use it.
    """

    _what = "connection"

    def __init__(
        self,
        link: PoolEntry,
        *,
        owner: str,
        command_timeout: float | None,
        slow_query: float | None = None,
        transaction_class: type[Transaction] = Transaction,
        dedicated: bool = False,
    ) -> None:
        super().__init__(
            link,
            owner=owner,
            command_timeout=command_timeout,
            slow_query=slow_query,
        )
        self._transaction_class = transaction_class
        self._dedicated = dedicated

    @property
    def raw(self) -> asyncpg.Connection[Any]:
        """The driver's connection; touching it means a reset after release."""
        if self._link is None:
            raise self._gone()
        self._link.dirty = True
        return self._link.raw

    @property
    def is_closed(self) -> bool:
        """Whether the connection was given back, closed or lost."""
        return self._link is None or self._link.raw.is_closed()

    @property
    def in_transaction(self) -> bool:
        """Whether the server sees an open transaction on this connection."""
        return self._link is not None and self._link.raw.is_in_transaction()

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on this connection, or a savepoint inside one.

        Raises:
            ConfigurationInvalid: The isolation level is unknown.
        """
        link = self._link
        if link is None:
            raise self._gone()
        begin = begin_sql(isolation=isolation, readonly=readonly, deferrable=deferrable)
        if link.raw.is_in_transaction():
            return savepoint_on(self, link, self._transaction_class)
        return transaction_on(self, link, self._transaction_class, begin)

    def add_termination_listener(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, on the loop, when the connection ends."""
        if self._link is None:
            raise self._gone()
        self._link.raw.add_termination_listener(lambda _raw: callback())

    async def aclose(self, timeout: float = 1.0) -> None:
        """Close a dedicated connection; a second call does nothing.

        Never takes longer than *timeout*: then, or if cancelled, the socket is
        closed without the server's answer. A borrowed connection is given back
        by its block instead, and a forked child closes nothing.
        """
        if not self._dedicated:
            return
        link, self._link = self._link, None
        if link is None or link.forked:
            return
        try:
            async with asyncio.timeout(timeout):
                await link.raw.close()
        except Exception:  # noqa: S110 - it is being thrown away
            pass
        finally:
            link.raw.terminate()
