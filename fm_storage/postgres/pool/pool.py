"""The pool as its users see it: its life, borrowing, transactions, numbers.

Apart from the lender, which decides who gets a connection, and from the pool's
verbs, which are the hot path.
"""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fm_storage.concurrency.shield import shielded
from fm_storage.errors import ConfigurationInvalid, PoolClosed, StorageError
from fm_storage.postgres.connect import composites
from fm_storage.postgres.connect.connector import Connector
from fm_storage.postgres.connection.connection import Connection
from fm_storage.postgres.connection.entry import Borrower, PoolEntry
from fm_storage.postgres.connection.joining import join
from fm_storage.postgres.connection.transaction import Transaction, is_worth_repeating
from fm_storage.postgres.pool import closing
from fm_storage.postgres.pool.core import Life, PoolCore
from fm_storage.postgres.pool.housekeeping import Housekeeping
from fm_storage.postgres.pool.listen import Listener, Subscription
from fm_storage.postgres.pool.statements import PoolVerbs
from fm_storage.postgres.pool.timeouts import StatementTimeouts
from fm_storage.postgres.statistics import PoolStatistics
from fm_storage.postgres.telemetry import metrics, tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import FrameType, TracebackType

    import asyncpg
    from asyncpg import Record

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.executor import Value

__all__ = ["Pool"]

T = TypeVar("T")
_FRAMES = 6
_LONGEST_PAUSE = 0.5


class Pool(PoolVerbs):
    """Connections to one PostgreSQL, lent first come first served.

    Every verb borrows a connection for itself; ``acquire()`` and
    ``transaction()`` borrow one for a block. Belongs to the event loop and the
    process that opened it.

    Attributes:
        transaction_class: What ``transaction()`` yields; may be replaced by a
            subclass of ``Transaction`` before opening.
    """

    def __init__(
        self, config: PostgresConfig, *, dsn: str | None = None, name: str = "postgres"
    ) -> None:
        self.config = config
        self.name = name
        self.transaction_class: type[Transaction] = Transaction
        self._connector = Connector(config, dsn=dsn)
        lender = PoolCore(name, config, self._connector)
        super().__init__(lender, config)
        self._housekeeping = Housekeeping(lender)
        self._watch = StatementTimeouts(lender)
        self._listener = Listener(self)
        self._closed: asyncio.Future[None] | None = None

    @property
    def transaction_pooler(self) -> bool:
        """Whether a transaction pooler (PgBouncer) answers at the address."""
        return bool(self._connector.transaction_pooler)

    @property
    def server_version(self) -> int:
        """The server's version as ``180001``; 0 before opening."""
        return self._connector.server_version

    # -- life ------------------------------------------------------------

    async def open(self) -> None:
        """Open the pool: one connection is made, to learn about the server.

        A server that is starting up or has no slot free is waited for, at most
        ``connect_timeout``. If this fails or is cancelled, nothing stays open
        and it can be called again. Opening an open pool does nothing.

        Raises:
            ConnectionFailed: No server answered as it should.
            PoolClosed: The pool was closed; make a new one.
        """
        lender = self._lender
        if lender.life is Life.OPEN:
            lender.require_open()
            return
        if lender.life is not Life.NEW:
            raise PoolClosed(self.name, state=lender.life.value)
        tracing.switch_on()
        lender.size += 1
        try:
            link = await lender.growth.first()
        except BaseException:  # give its place back, then pass it on
            lender.size -= 1
            raise
        lender.home = lender.loop = asyncio.get_running_loop()
        lender.life = Life.OPEN
        metrics.watch(lender)
        lender.hand(link)
        lender.growth.wake()
        self._housekeeping.begin()
        self._watch.begin()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close every connection; a second call waits for the first.

        Callers in the queue fail with ``PoolClosed`` at once. Borrowers are
        waited for at most *timeout* (``close_timeout``) seconds; then each is
        named in the log, with the place it borrowed at, and its connection is
        cut. If cancelled, closing goes on to its end first.
        """
        lender = self._lender
        if lender.forked or lender.life is Life.NEW:
            lender.life = Life.CLOSED
            return
        if lender.home is not asyncio.get_running_loop():
            if lender.life is Life.CLOSED:
                return
            raise lender.refusal()
        limit = self.config.close_timeout if timeout is None else timeout
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close(limit))
        closed = self._closed
        await shielded(lambda: closing.wait_for(closed), timeout=limit + 1.0)

    async def _close(self, limit: float) -> None:
        metrics.unwatch(self._lender)
        self._housekeeping.end()
        await self._listener.aclose()
        await closing.close(self._lender, limit)
        self._watch.end()

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

    async def drain(self) -> None:
        """Replace every connection: idle ones now, lent ones when they return.

        For after a migration or a failover. Nobody is interrupted.
        """
        self._lender.require_open()
        self._lender.renew("drain() was called")

    # -- borrowing -------------------------------------------------------

    def acquire(self, timeout: float | None = None) -> Acquire:
        """Borrow a connection for an ``async with`` block.

        Raises (on entering):
            PoolTimeout: None became free within *timeout* (``acquire_timeout``).
            ConnectionFailed: None could be made in that time.
        """
        return Acquire(
            self, self.config.acquire_timeout if timeout is None else timeout
        )

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        connection: asyncpg.Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Transaction]:
        """Borrow a connection and run the block in a transaction.

        With *connection*, a raw asyncpg connection that the caller owns, the
        block runs there instead: in a transaction of its own, or in a savepoint
        if one is open. It is neither closed nor given back.
        """
        if connection is not None:
            async with join(
                connection,
                self.transaction_class,
                owner=self._owner,
                config=self.config,
                isolation=isolation,
                readonly=readonly,
                deferrable=deferrable,
            ) as joined:
                yield joined
            return
        async with (
            self.acquire(timeout) as borrowed,
            borrowed.transaction(
                isolation=isolation, readonly=readonly, deferrable=deferrable
            ) as transaction,
        ):
            yield transaction

    @asynccontextmanager
    async def stream(
        self, sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AsyncIterator[AsyncIterator[Record]]:
        """Borrow a connection and open a server cursor on it.

        The block gets an iterator over the rows. Leaving it early, for any
        reason, leaves nothing open.
        """
        async with (
            self.acquire() as connection,
            connection.stream(sql, *args, prefetch=prefetch) as rows,
        ):
            yield rows

    async def run_in_transaction(
        self,
        fn: Callable[[Any], Awaitable[T]],
        *,
        isolation: str | None = "serializable",
        readonly: bool = False,
        deferrable: bool = False,
        attempts: int = 10,
    ) -> T:
        """Run ``await fn(transaction)`` and commit; repeat all of it at need.

        It is repeated, with growing random pauses, when concurrent transactions
        could not be ordered (40001), deadlocked (40P01), met a changed table
        with a cached plan, or lost the connection before COMMIT was sent. So
        *fn* must be harmless to run again: its own effects outside the
        transaction are not undone.

        Raises:
            SerializationFailed: Also the last of *attempts* failed.
            DeadlockDetected: The same.
        """
        if attempts < 1:
            raise ConfigurationInvalid("attempts", f"{attempts} is below 1")
        for attempt in range(1, attempts + 1):
            committing = False
            try:
                async with self.transaction(
                    isolation=isolation, readonly=readonly, deferrable=deferrable
                ) as transaction:
                    result = await fn(transaction)
                    committing = True
            except StorageError as error:
                if attempt == attempts or not is_worth_repeating(
                    error, committing=committing
                ):
                    raise
            else:
                return result
            pause = min(_LONGEST_PAUSE, 0.002 * 2**attempt)
            await asyncio.sleep(pause * random.random())
        raise AssertionError  # the last attempt returned or raised

    async def connect(
        self,
        purpose: str,
        *,
        dsn: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> Connection:
        """Make a connection outside the pool; the caller closes it.

        Works as long as the pool's loop runs, whether the pool is open or not.

        Args:
            purpose: Shown in ``application_name`` (``lease``, ``listen``).
            dsn: Another address, for example past a pooler.
            settings: Server settings of this connection.

        Raises:
            ConnectionFailed: No server answered as it should.
        """
        raw = await self._connector.connect(purpose, dsn=dsn, settings=settings)
        return Connection(
            PoolEntry(raw),
            owner=f"{self._owner} ({purpose})",
            command_timeout=self.config.command_timeout,
            slow_query=self.config.slow_query,
            transaction_class=self.transaction_class,
            dedicated=True,
        )

    def listen(self, channel: str) -> Subscription:
        """Listen on *channel*: an async iterator over ``Notification``.

        One connection outside the pool serves all channels. It is made again
        after a loss; the first notification after that has ``missed=True`` and
        no payload, for what was sent meanwhile is gone.

        Raises (on entering or at the first iteration):
            ConfigurationInvalid: A transaction pooler is in the way.
        """
        return self._listener.subscribe(channel)

    async def register_composite(
        self, name: str, kind: type[Any], *, schema: str = "public"
    ) -> None:
        """Read and write the composite type *name* as instances of *kind*.

        Holds for every connection lent from now on; register a type that others
        contain before them. A parameter may be a plain tuple all the same.

        Args:
            name: Name of the type, or of a table, whose rows are one.
            kind: A dataclass or named tuple with the type's fields.
            schema: The type's schema.

        Raises:
            InvalidName: There is no such type.
            ConfigurationInvalid: *kind* has other fields, or some are json, which
                the driver cannot read inside a row.
        """
        found = await composites.register(self, name, kind, schema)
        self._connector.composites.append(found)
        self._lender.renew(f"type {name} was registered")

    # -- numbers ---------------------------------------------------------

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of the pool; no I/O."""
        return closing.snapshot(self._lender)


class Acquire:
    """What ``Pool.acquire()`` returns: enter it to borrow, leave it to give back."""

    __slots__ = ("_connection", "_limit", "_link", "_pool")

    def __init__(self, pool: Pool, limit: float) -> None:
        self._pool = pool
        self._limit = limit
        self._link: PoolEntry | None = None
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        pool = self._pool
        lender = pool._lender  # noqa: SLF001 - same room
        link = lender.take_now() or await lender.take(self._limit)
        link.lease = Borrower(asyncio.current_task(), _borrower(sys._getframe(1)))  # noqa: SLF001 - extract_stack() is too dear
        if lender.always_reset:
            link.dirty = True
        config = pool.config
        self._link = link
        self._connection = Connection(
            link,
            owner=lender.owner,
            command_timeout=config.command_timeout,
            slow_query=config.slow_query,
            transaction_class=pool.transaction_class,
        )
        return self._connection

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        link, connection = self._link, self._connection
        self._link = self._connection = None
        if link is None or connection is None:
            return
        connection._link = None  # noqa: SLF001 - same room
        self._pool._lender.give(link)  # noqa: SLF001 - same room


def _borrower(frame: FrameType | None) -> list[tuple[str, int, str]]:
    """Return the innermost frames outside this package and asyncio."""
    frames: list[tuple[str, int, str]] = []
    while frame is not None and len(frames) < _FRAMES:
        code = frame.f_code
        if code.co_filename.endswith("asyncio/events.py"):
            break
        if "fm_storage/postgres/" not in code.co_filename and not (
            code.co_filename.endswith("/contextlib.py")
        ):
            frames.append((code.co_filename, frame.f_lineno, code.co_qualname))
        frame = frame.f_back
    return frames
