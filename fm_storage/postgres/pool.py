"""The pool: a few connections, lent in turn to whoever asks.

Apart from the connector because this file is about fairness and bounds, not
about addresses. State: ``_idle`` holds links nobody uses, ``_waiters`` the
futures of those who wait, first come first served; ``_size`` counts links that
are idle, lent or being made. A link is handed to a waiter directly and never
passes through ``_idle``, so nobody can barge in.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from fm_storage.errors import PoolClosed, PoolTimeout, WrongLoop
from fm_storage.postgres.connection import Connection
from fm_storage.postgres.connector import Connector
from fm_storage.postgres.link import Link
from fm_storage.postgres.reset import RESET_SQL
from fm_storage.postgres.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from asyncpg import Record

    from fm_storage.config import PostgresConfig

__all__ = ["Pool"]


class Pool:
    """Connections to one PostgreSQL, lent first come first served.

    ``transaction_class`` may be replaced before opening by a subclass of
    ``Transaction``; it is what ``transaction()`` yields.
    """

    def __init__(
        self, config: PostgresConfig, *, dsn: str | None = None, name: str = "postgres"
    ) -> None:
        self.config = config
        self.name = name
        self.transaction_class: type[Transaction] = Transaction
        self._connector = Connector(config, dsn=dsn, name=name)
        self._owner = f"pool {name!r}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = "not open"
        self._generation = 0
        self._size = 0
        self._idle: deque[Link] = deque()
        self._lent: set[Link] = set()
        self._waiters: deque[asyncio.Future[Link]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def transaction_pooler(self) -> bool:
        """Whether a transaction pooler (PgBouncer) answers at the address."""
        return bool(self._connector.transaction_pooler)

    @property
    def server_version(self) -> int:
        """The server's version as ``180001``; 0 before opening."""
        return self._connector.server_version

    async def open(self) -> None:
        """Open the pool: one connection is made, to learn about the server."""
        if self._state == "open":
            return
        self._loop = asyncio.get_running_loop()
        self._size = 1
        try:
            link = await self._make()
        except BaseException:
            self._size = 0
            raise
        self._state = "open"
        self._idle.append(link)

    async def aclose(self, timeout: float | None = None) -> None:
        """Close every connection; borrowers are waited for at most *timeout*."""
        if self._state != "open":
            return
        self._state = "closed"
        deadline = monotonic() + (
            self.config.close_timeout if timeout is None else timeout
        )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(PoolClosed(self.name))
        self._waiters.clear()
        while self._lent and monotonic() < deadline:
            await asyncio.sleep(0.01)
        for link in self._lent:
            link.raw.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.1, deadline - monotonic()))
        while self._idle:
            link = self._idle.pop()
            try:
                await asyncio.wait_for(link.raw.close(), 1.0)
            except TimeoutError:
                link.raw.terminate()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def connect(
        self,
        purpose: str,
        *,
        dsn: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> Connection:
        """Make a connection outside the pool; the caller closes it.

        Args:
            purpose: Shown in ``application_name`` (``lease``, ``listen``).
            dsn: Another address, for example past a pooler.
            settings: Server settings of this connection.
        """
        raw = await self._connector.connect(purpose, dsn=dsn, settings=settings)
        return Connection(
            Link(raw, generation=0, expires=float("inf")),
            owner=f"{self._owner} ({purpose})",
            command_timeout=self.config.command_timeout,
            transaction_class=self.transaction_class,
            dedicated=True,
        )

    # -- lending ---------------------------------------------------------

    def _check(self) -> None:
        if self._state != "open":
            raise PoolClosed(self.name, state=self._state)
        if self._loop is not asyncio.get_running_loop():
            raise WrongLoop(self._owner)

    async def _make(self) -> Link:
        raw = await self._connector.connect()
        lifetime = self.config.max_lifetime * random.uniform(0.9, 1.0)  # noqa: S311 - jitter
        return Link(raw, generation=self._generation, expires=monotonic() + lifetime)

    async def _take(self, timeout: float | None) -> Link:
        self._check()
        while self._idle:
            link = self._idle.pop()
            if not link.raw.is_closed():
                self._lent.add(link)
                return link
            self._size -= 1
        if self._size < self.config.max_size:
            self._size += 1
            try:
                link = await self._make()
            except BaseException:
                self._size -= 1
                raise
            self._lent.add(link)
            return link
        return await self._wait(timeout)

    async def _wait(self, timeout: float | None) -> Link:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Link] = loop.create_future()
        self._waiters.append(waiter)
        started = monotonic()
        limit = self.config.acquire_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await waiter
        except BaseException as exc:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self._give(waiter.result())
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(exc, TimeoutError):
                raise PoolTimeout(
                    self.name,
                    waited=monotonic() - started,
                    in_use=len(self._lent),
                    size=self.config.max_size,
                    waiting=len(self._waiters),
                ) from None
            raise

    def _give(self, link: Link) -> None:
        """Take *link* back: to the next waiter, to the idle ones, or away."""
        self._lent.discard(link)
        link.lease = None
        raw = link.raw
        if raw.is_closed() or link.doubtful or self._state != "open":
            raw.terminate()
            self._size -= 1
            self._replace()
            return
        if link.dirty or raw.is_in_transaction() or raw._protocol._is_cancelling():  # noqa: SLF001
            task = asyncio.get_running_loop().create_task(self._mend(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        self._hand(link)

    def _hand(self, link: Link) -> None:
        link.idle_since = monotonic()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._lent.add(link)
                waiter.set_result(link)
                return
        self._idle.append(link)

    async def _mend(self, link: Link) -> None:
        try:
            async with asyncio.timeout(self.config.check_timeout):
                if link.raw.is_in_transaction():
                    await link.raw.execute("ROLLBACK")
                await link.raw.execute(RESET_SQL)
        except Exception:  # noqa: BLE001 - whatever is wrong, it is not lent again
            link.raw.terminate()
            self._size -= 1
            self._replace()
        else:
            link.dirty = False
            self._hand(link)

    def _replace(self) -> None:
        """Make a link for whoever still waits after one was lost."""
        if self._waiters and self._size < self.config.max_size:
            self._size += 1
            task = asyncio.get_running_loop().create_task(self._fill())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fill(self) -> None:
        try:
            link = await self._make()
        except Exception as exc:  # noqa: BLE001 - handed to a waiter
            self._size -= 1
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(exc)
                    break
            return
        self._hand(link)

    # -- borrowing -------------------------------------------------------

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """Borrow a connection for the block.

        Raises:
            PoolTimeout: None became free within *timeout* (``acquire_timeout``).
        """
        link = await self._take(timeout)
        lease = Connection(
            link,
            owner=self._owner,
            command_timeout=self.config.command_timeout,
            transaction_class=self.transaction_class,
        )
        link.lease = lease
        try:
            yield lease
        finally:
            lease._link = None  # noqa: SLF001 - same room
            self._give(link)

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Transaction]:
        """Borrow a connection and run the block in a transaction."""
        async with (
            self.acquire(timeout) as connection,
            connection.transaction(
                isolation=isolation, readonly=readonly, deferrable=deferrable
            ) as transaction,
        ):
            yield transaction

    async def fetch(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> list[Record]:
        """Run a statement and return all its rows."""
        async with self.acquire(timeout) as connection:
            return await connection.fetch(sql, *args, timeout=timeout)

    async def fetchrow(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> Record | None:
        """Run a statement and return its first row, or None."""
        async with self.acquire(timeout) as connection:
            return await connection.fetchrow(sql, *args, timeout=timeout)

    async def fetchval(
        self, sql: str, /, *args: Any, column: int = 0, timeout: float | None = None
    ) -> Any:  # noqa: ANN401 - whatever the column holds
        """Run a statement and return one value of its first row, or None."""
        async with self.acquire(timeout) as connection:
            return await connection.fetchval(sql, *args, column=column, timeout=timeout)

    async def execute(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> str:
        """Run a statement, or without parameters several, and return the tag."""
        async with self.acquire(timeout) as connection:
            return await connection.execute(sql, *args, timeout=timeout)

    async def executemany(
        self,
        sql: str,
        /,
        rows: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
    ) -> None:
        """Run a statement once for each row of parameters, all or none."""
        async with self.acquire(timeout) as connection:
            await connection.executemany(sql, rows, timeout=timeout)

    async def copy_records(
        self,
        table: str,
        /,
        *,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write rows by COPY, all or none, and return how many."""
        async with self.acquire() as connection:
            return await connection.copy_records(
                table, columns=columns, records=records, schema=schema, timeout=timeout
            )

    @asynccontextmanager
    async def stream(
        self, sql: str, /, *args: Any, prefetch: int = 1000
    ) -> AsyncIterator[AsyncIterator[Record]]:
        """Open a server cursor and yield an iterator over its rows."""
        async with (
            self.acquire() as connection,
            connection.stream(sql, *args, prefetch=prefetch) as rows,
        ):
            yield rows
