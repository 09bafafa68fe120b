"""The pool as its users see it: its life, borrowing, transactions, numbers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.lifecycle import Life
from fm_storage.concurrency.shield import Once, shielded
from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    PoolClosed,
    StorageError,
)
from fm_storage.postgres.arguments import (
    at_least_one,
    awaitable,
    check_position,
    function,
    of_kind,
    seconds,
)
from fm_storage.postgres.connect import composites
from fm_storage.postgres.connect.connector import Connector
from fm_storage.postgres.connection.connection import Connection
from fm_storage.postgres.connection.entry import PoolEntry
from fm_storage.postgres.connection.joining import join
from fm_storage.postgres.connection.statements import Rules, Statements, Stream
from fm_storage.postgres.connection.transaction import (
    Transaction,
    begin_sql,
    transaction_on,
)
from fm_storage.postgres.connection.verbs import Verbs
from fm_storage.postgres.pool.closing import close
from fm_storage.postgres.pool.core import PoolCore, Verdict
from fm_storage.postgres.pool.growth import Growth
from fm_storage.postgres.pool.listen import Listener, Subscription
from fm_storage.postgres.pool.maintenance import Maintenance
from fm_storage.postgres.pool.retry import is_worth_repeating
from fm_storage.postgres.pool.statements import PoolStatements
from fm_storage.postgres.pool.timeouts import Ticker, timeout_interval
from fm_storage.postgres.sql import Sql, quote_qualified
from fm_storage.postgres.telemetry import metrics, tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    import asyncpg
    from asyncpg import Record

    from fm_storage.postgres.connection.verbs import Run
    from fm_storage.postgres.executor import Value
    from fm_storage.postgres.statistics import PoolStatistics

T = TypeVar("T")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.004, 0.5
# Of a transaction with synchronous_commit = off, too. After the header of a page that
# holds nothing yet, no replay ever ends: then it is the end of the page before.
_POSITION = Sql(
    """SELECT (lsn - CASE
  WHEN (lsn - '0/0') % pg_size_bytes(current_setting('wal_segment_size')) = 40 THEN 40
  WHEN (lsn - '0/0') % current_setting('wal_block_size')::int = 24 THEN 24
  ELSE 0 END::numeric)::text
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
  ELSE pg_current_wal_insert_lsn() END AS lsn) AS log"""
)


@dataclass(frozen=True, slots=True)
class Shared:
    """What a pool lets the pool of its replicas use.

    Attributes:
        run: Runs one call of the driver on the primary.
        borrow: Borrows one of the primary's connections.
        types: What every new connection of both is taught.
        renewals: Replace the connections of both, each with the reason.
    """

    run: Run
    borrow: Callable[..., Acquire[Any]]
    types: list[composites.Composite]
    renewals: list[Callable[[str], None]]


class Pool(Verbs):
    """Connections to one PostgreSQL, for the caller who came first.

    Every verb borrows a connection for itself; ``acquire()`` and
    ``transaction()`` borrow one for a block. Belongs to the event loop and the
    process that opened it.

    Args:
        config: Size, timeouts and all other settings.
        dsn: The address, if not that of *config*.
        name: For messages, metrics and names of tasks.
        make_transaction: Makes what ``transaction()`` yields: ``Transaction``, or a
            subclass with what else the application does in one.
    """

    def __init__(
        self,
        config: PostgresConfig,
        *,
        dsn: str | None = None,
        name: str = "postgres",
        make_transaction: Callable[[Statements], Transaction] = Transaction,
    ) -> None:
        of_kind(config, PostgresConfig, "config", "give PostgresConfig(dsn=…)")
        self.config = config
        self.name = name
        self._connector = Connector(config, dsn=dsn)
        self._core = core = PoolCore(
            name,
            config,
            grow=self._grow,
            act=self._act,
        )
        super().__init__(PoolStatements(core, config).run)
        self._rules = Rules(
            core.owner,
            config.command_timeout,
            config.slow_query,
            make_transaction,
            core.classifier,
        )
        self._maintenance = Maintenance(core, self._connector, config)
        self._growth = Growth(core, self._connector, config, self._maintenance.spawn)
        self._timeouts = Ticker(
            timeout_interval(config.command_timeout), core.cancel_overdue
        )
        self._listener = Listener(
            name,
            connect=self.connect,
            require_open=self._require_listening,
            on_schema=core.forget_prepared,
            limit=config.acquire_timeout,
        )
        self._closed: Once[None] | None = None
        self.shared = Shared(
            self._run, self._borrow, self._connector.composites, [core.renew]
        )

    def __repr__(self) -> str:
        core = self._core
        return (
            f"<{type(self).__name__} {self.name!r} {core.life.value}: "
            f"{core.size} of {self.config.max_size} connection(s)>"
        )

    # What the core decides is carried out by parts that need the core themselves.

    def _grow(self) -> None:
        self._growth.wake()

    def _act(self, entry: PoolEntry, verdict: Verdict) -> None:
        self._maintenance.act(entry, verdict)

    @property
    def transaction_pooler(self) -> bool:
        """Whether a transaction pooler (PgBouncer) answers at the address."""
        return bool(self._connector.transaction_pooler)

    @property
    def server_version(self) -> int:
        """The server's version as ``180001``; 0 before opening."""
        return self._connector.server_version

    @property
    def primary(self) -> Pool:
        """The pool that takes writes: this one, unless it is of a replica."""
        return self

    @property
    def in_transaction(self) -> bool:
        """Whether the running task is inside a transaction of this pool."""
        return self._core.holds_transaction()

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
        core = self._core
        if core.life is Life.OPEN:
            core.require_open()
            return
        if core.life is not Life.NEW:
            raise PoolClosed(self.name, state=core.life.value)
        tracing.switch_on()
        core.reserve()
        try:
            entry = await self._growth.first()
        except BaseException:  # give its place back, then pass it on
            core.cancel_reservation()
            raise
        self._begin()
        core.admit(entry)

    def _begin(self) -> None:
        """Be open: connections may be acquired from now on."""
        self._core.open()
        metrics.watch(
            self.statistics,
            min_size=self.config.min_size,
            max_size=self.config.max_size,
        )
        loop = asyncio.get_running_loop()
        self._maintenance.ticker.begin(loop)
        self._timeouts.begin(loop)

    async def aclose(self, timeout: float | None = None) -> None:
        """Close every connection; a second call waits for the first.

        Callers in the queue fail with ``PoolClosed`` at once. Borrowers are
        waited for at most *timeout* (``close_timeout``) seconds; then each is
        named in the log, with the place it borrowed at, and its connection is
        cut. If cancelled, closing goes on to its end first.
        """
        core = self._core
        if core.forked or core.life is Life.NEW:
            core.end()
            return
        if core.home is not asyncio.get_running_loop():
            if core.life is Life.CLOSED:
                return
            raise core.refusal()
        limit = self.config.close_timeout if timeout is None else seconds(timeout)
        if self._closed is None:
            self._closed = Once(lambda: self._close(limit))
        await shielded(self._closed, timeout=limit + 1.0)

    async def _close(self, limit: float) -> None:
        metrics.unwatch(self.statistics)
        self._maintenance.ticker.end()
        await self._listener.aclose(PoolClosed(self.name))
        await close(self._core, self._maintenance, limit)
        self._timeouts.end()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def drain(self) -> None:
        """Replace every connection: idle ones now, those in use when they return.

        For after a migration or a failover. Nobody is interrupted. What is in use, or
        was made by ``connect()``, prepares its statements anew.
        """
        self._core.require_open()
        self._core.renew("drain() was called")

    # -- borrowing -------------------------------------------------------

    def acquire(self, timeout: float | None = None) -> Acquire[Connection]:
        """Borrow a connection for an ``async with`` block.

        Raises (on entering):
            PoolTimeout: None became free within *timeout* (``acquire_timeout``).
            ConnectionFailed: None could be made in that time.
        """
        return self._borrow(Connection, timeout)

    def _borrow(
        self,
        make: Callable[[Statements], T],
        timeout: float | None = None,
        *,
        _attempt: int = 1,  # for a pool that has somewhere else to go
    ) -> Acquire[T]:
        limit = self.config.acquire_timeout if timeout is None else seconds(timeout)
        return Acquire(self._core, self._rules, limit, make)

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        connection: asyncpg.Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Borrow a connection and run the block in a transaction.

        With *connection*, a raw asyncpg connection that the caller owns, the
        block runs there instead: in a transaction of its own, or in a savepoint
        if one is open. It is neither closed nor given back.
        """
        if connection is not None:
            owner = f"{self._core.owner} (joined connection)"
            return join(
                connection,
                replace(self._rules, owner=owner),
                isolation=isolation,
                readonly=readonly,
                deferrable=deferrable,
            )
        begin = self._begin_sql(isolation, readonly=readonly, deferrable=deferrable)
        return _Inside(
            self._borrow(_as_they_are, timeout),
            lambda statements: transaction_on(statements, begin),
        )

    def _begin_sql(
        self, isolation: str | None, *, readonly: bool, deferrable: bool
    ) -> Sql:
        replica = not self._core.takes_writes
        if replica and isolation == "serializable":
            raise ConfigurationInvalid(
                "isolation",
                "a replica has no serializable transactions; use repeatable_read",
            )
        return begin_sql(
            isolation=isolation, readonly=readonly or replica, deferrable=deferrable
        )

    def stream(
        self, sql: str, /, *args: Value, prefetch: int = 1000
    ) -> AbstractAsyncContextManager[AsyncIterator[Record]]:
        """Borrow a connection and open a server cursor on it.

        The block gets an iterator over the rows. Leaving it early, for any
        reason, leaves nothing open.
        """
        at_least_one(prefetch, "prefetch")
        return _Inside(
            self._borrow(_as_they_are),
            lambda statements: Stream(statements, sql, args, prefetch),
        )

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
        at_least_one(attempts, "attempts")
        function(fn, "fn")
        pauses = Backoff(_SHORTEST_PAUSE, _LONGEST_PAUSE, jitter=1.0)
        begin = self._begin_sql(isolation, readonly=readonly, deferrable=deferrable)
        for attempt in range(1, attempts + 1):
            committing = False
            entry: PoolEntry | None = None
            try:
                async with self._borrow(_as_they_are, _attempt=attempt) as statements:
                    entry = statements.required()
                    entry.failure = None
                    async with transaction_on(statements, begin) as transaction:
                        result = await awaitable(
                            fn(transaction), "fn", "give an async function"
                        )
                        committing = True
            except StorageError as error:
                if attempt == attempts or not is_worth_repeating(
                    error, entry, committing=committing
                ):
                    raise
            else:
                return result
            await pauses.sleep()
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
        of_kind(purpose, str, "purpose", "give a word or two")
        of_kind(settings or {}, Mapping, "settings", "give names and their values")
        for name, value in (settings or {}).items():
            of_kind(name, str, "settings", "give names as text")
            of_kind(value, str, f"settings[{name!r}]", "give its value as text")
        raw = await self._connector.connect(purpose, dsn=dsn, settings=settings)
        rules = replace(self._rules, owner=f"{self._core.owner} ({purpose})")
        entry = PoolEntry(raw)
        self._core.dedicated.add(entry)
        return Connection(Statements(entry, rules), dedicated=True)

    def listen(self, channel: str) -> Subscription:
        """Listen on *channel*: an async iterator over ``Notification``.

        One connection outside the pool serves all channels. It is made again
        after a loss; the first notification after that has ``missed=True`` and
        no payload, for what was sent meanwhile is gone.

        Raises (on entering or at the first iteration):
            ConfigurationInvalid: A transaction pooler is in the way.
        """
        return self._listener.subscribe(channel)

    def _require_listening(self) -> None:
        """Refuse to listen where nothing can be heard."""
        self._core.require_open()
        if self.transaction_pooler:
            raise ConfigurationInvalid(
                "postgres.dsn",
                "names a transaction pooler, through which LISTEN hears nothing; "
                "poll instead, or use a direct address",
            )

    async def register_composite(
        self, name: str, kind: type[Any], *, schema: str = "public"
    ) -> None:
        """Read and write the composite type *name* as instances of *kind*.

        Holds for every connection acquired from now on; register a type that others
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
        await self._register(await composites.composite_of(self, name, kind, schema))

    async def register_type(
        self,
        name: str,
        *,
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        schema: str = "public",
        format: Literal["text", "binary"] = "text",
    ) -> None:
        """Read and write values of the type *name* by functions, arrays of it too.

        Holds for every connection acquired from now on.

        Args:
            name: Name of the type: ``vector``, ``hstore``, one of your own.
            encoder: Gives what the server reads: text, or bytes if *format* is
                ``binary``.
            decoder: Takes what the server writes.
            schema: The type's schema.
            format: What the server exchanges.

        Raises:
            InvalidName: There is no such type.
            ConfigurationInvalid: The driver cannot exchange it so.
        """
        quote_qualified(schema, name)
        function(encoder, "encoder")
        function(decoder, "decoder")
        found = composites.Composite(schema, name, encoder, decoder, format)
        try:
            await self._register(found)
        except ValueError as exc:
            raise InvalidName(
                f"type {schema}.{name}: {exc}; create it first, or name its schema"
            ) from exc

    async def _register(self, found: composites.Composite) -> None:
        trial = await self.connect("types")
        try:
            await found.try_on(trial.raw)
        finally:
            await trial.aclose()
        self.shared.types.append(found)
        for renew in self.shared.renewals:
            renew(f"type {found.name} was registered")

    # -- reading one's own writes from a replica ---------------------------

    async def position(self) -> str:
        """Return where the server's log ends now, such as ``16/B374D848``.

        Whatever was committed before the call lies before it.
        """
        found: str = await self.primary.fetchval(_POSITION)
        return found

    def after(self, position: str | Awaitable[str]) -> Pool:
        """Return this pool, for reading what was committed before *position*.

        The primary has it always; see ``PostgresConfig.read_wait`` for a replica.

        Args:
            position: Of ``position()``, awaited or not.

        Raises:
            ConfigurationInvalid: It is no position.
        """
        if isinstance(position, Coroutine):
            position.close()  # nobody has to ask
        elif not isinstance(position, Awaitable):
            check_position(position)
        return self

    # -- numbers ---------------------------------------------------------

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of the pool; no I/O."""
        return self._core.statistics()


class Acquire(Generic[T]):
    """What ``Pool.acquire()`` returns: enter it to borrow, leave it to give back."""

    __slots__ = ("_core", "_limit", "_make", "_rules", "_statements")

    def __init__(
        self,
        core: PoolCore,
        rules: Rules,
        limit: float,
        make: Callable[[Statements], T],
    ) -> None:
        self._core = core
        self._rules = rules
        self._limit = limit
        self._make = make
        self._statements: Statements | None = None

    async def __aenter__(self) -> T:
        core = self._core
        entry = core.take_now() or await core.take(self._limit)
        core.note_borrower(entry, inspect.currentframe())
        self._statements = Statements(entry, self._rules)
        return self._make(self._statements)

    async def __aexit__(self, *_: object) -> None:
        entry = None if self._statements is None else self._statements.release()
        if entry is not None:
            self._core.give(entry)


class _Inside(Generic[T]):
    """A block on a connection that is borrowed for it."""

    __slots__ = ("_borrow", "_inner", "_make")

    def __init__(
        self,
        borrow: Acquire[Statements],
        make: Callable[[Statements], AbstractAsyncContextManager[T]],
    ) -> None:
        self._borrow = borrow
        self._make = make
        self._inner: AbstractAsyncContextManager[T]

    async def __aenter__(self) -> T:
        statements = await self._borrow.__aenter__()
        try:
            self._inner = self._make(statements)
            return await self._inner.__aenter__()
        except BaseException:  # give the connection back, then pass it on
            await self._borrow.__aexit__(None, None, None)
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._inner.__aexit__(exc_type, exc, traceback)
        finally:
            await self._borrow.__aexit__(None, None, None)


def _as_they_are(statements: Statements) -> Statements:
    return statements
