"""One borrowed or dedicated connection: what users hold."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConfigurationInvalid
from fm_storage.postgres.arguments import function, of_kind, seconds
from fm_storage.postgres.connection.statements import Stream
from fm_storage.postgres.connection.transaction import (
    Transaction,
    begin_sql,
    savepoint_on,
    transaction_on,
)
from fm_storage.postgres.connection.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from fm_storage.postgres.connection.statements import Statements
    from fm_storage.postgres.executor import Value


class Connection(Verbs):
    """A connection with the verbs of ``Executor``.

    Borrowed from ``Pool.acquire()`` it is given back by its block; made by
    ``Pool.connect()`` it belongs to the caller, who closes it with ``aclose()``.
    One task at a time may use it.
    """

    def __init__(self, statements: Statements, *, dedicated: bool = False) -> None:
        super().__init__(statements.run)
        self._statements = statements
        self._dedicated = dedicated

    @property
    def raw(self) -> asyncpg.Connection[Any]:
        """The driver's connection; using it means a reset after release."""
        entry = self._statements.required()
        entry.dirty = True
        return entry.raw

    def reported(self, name: str) -> str | None:
        """Return a setting that the server reports by itself (``TimeZone``); no I/O."""
        if not isinstance(name, str):
            of_kind(name, str, "name", "give the name of a setting")
        return getattr(self._statements.required().raw.get_settings(), name, None)

    @property
    def is_closed(self) -> bool:
        """Whether the connection was given back, closed or lost."""
        entry = self._statements.entry
        return entry is None or entry.raw.is_closed()

    @property
    def in_transaction(self) -> bool:
        """Whether the server sees an open transaction on this connection."""
        entry = self._statements.entry
        return entry is not None and entry.in_transaction

    def stream(self, sql: str, /, *args: Value, prefetch: int = 1000) -> Stream:
        """Open a server cursor; the block gets an iterator over its rows.

        The cursor lives in a transaction, opened read-only if there is none.
        No timeout applies. Leaving the block early, for any reason, leaves
        nothing open.
        """
        return Stream(self._statements, sql, args, prefetch)

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on this connection, or a savepoint inside one.

        Raises:
            ConfigurationInvalid: The isolation level is unknown, or the server is in
                a transaction that was opened by other means.
        """
        entry = self._statements.required()
        begin = begin_sql(isolation=isolation, readonly=readonly, deferrable=deferrable)
        raw = entry.raw
        if not raw.is_closed() and raw.is_in_transaction():
            if not entry.blocks:
                raise ConfigurationInvalid(
                    "transaction",
                    "the connection is in a transaction that no block opened (a BEGIN "
                    "as text, or on its raw connection); end that first, or open it "
                    "with transaction()",
                )
            return savepoint_on(self._statements)
        return transaction_on(self._statements, begin)

    def add_termination_listener(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, on the loop, when the connection ends."""
        function(callback, "callback")
        raw = self._statements.required().raw
        raw.add_termination_listener(lambda _raw: callback())

    async def aclose(self, timeout: float = 1.0) -> None:
        """Close a dedicated connection; a second call does nothing.

        Never takes longer than *timeout*: then, or if cancelled, the socket is
        closed without the server's answer. A borrowed connection is given back
        by its block instead, and a forked child closes nothing.
        """
        timeout = seconds(timeout)
        entry = self._statements.release() if self._dedicated else None
        if entry is None or entry.forked:
            return
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(timeout):
                    await entry.raw.close()
        finally:
            entry.raw.terminate()
