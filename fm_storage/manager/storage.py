"""The manager: one awaitable object in front of every part."""

from __future__ import annotations

import logging
import os
from asyncio import _get_running_loop  # get_running_loop() that returns None
from collections.abc import Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fm_storage._typing import Relation
from fm_storage.concurrency.lifecycle import Home, Life, Lifecycle
from fm_storage.concurrency.shield import Once, shielded
from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid, StorageClosed
from fm_storage.hooks import Hosted, ShutdownHooks
from fm_storage.hooks.hosts import STATE
from fm_storage.manager.health import Health, check_parts
from fm_storage.manager.parts import Parts
from fm_storage.manager.probes import Probes
from fm_storage.manager.transaction import StorageTransaction
from fm_storage.migrate import Progress as MigrationProgress
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.postgres.arguments import of_kind, seconds
from fm_storage.repositories import Column, ErrorEntryRepository, Repository
from fm_storage.sessions import PostgresSessionManager, SessionService
from fm_storage.vectors import QdrantStore

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager

    from fm_storage.config import ConfigManager
    from fm_storage.outbox import OutboxStatistics
    from fm_storage.postgres import PoolStatistics
    from fm_storage.sessions import SessionStatistics

logger = logging.getLogger("fm_storage.manager")

T = TypeVar("T")
Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """Counters of every part that is on; None for one that is off."""

    pool: PoolStatistics | None
    qdrant: Any
    outbox: OutboxStatistics | None
    sessions: SessionStatistics | None
    reads: PoolStatistics | None = None


class StorageManager(Lifecycle, Hosted):
    """PostgreSQL and Qdrant behind one awaitable object.

    ``async with StorageManager() as storage`` opens it and closes it on every
    path. ``storage = await StorageManager(config)`` opens it; then
    ``await storage.aclose()`` closes it, and where that is forgotten the end of
    ``asyncio.run()`` does. Parts open in order (server, pool, migrations, hooks,
    sessions, vectors, outbox) and close in reverse. If opening fails or is
    cancelled half-way, what was open is closed first.

    One manager belongs to the event loop and the process that opened it.

    Args:
        config: The settings; None reads the environment.

    Raises:
        ConfigurationInvalid: From the constructor, if a setting is wrong.
        ConnectionFailed: While opening, if PostgreSQL does not answer.
        PermissionDenied: While opening, if the role or password is refused.
        ServerTooOld: While opening, if the server is older than 14.
        SchemaOutOfDate: While opening, if migrations are missing and
            ``migrations.auto_apply`` is off.
        EmbeddedFailed: While opening, if an embedded engine cannot run.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = StorageConfig() if config is None else config
        remedy = (
            "give a StorageConfig, such as "
            "StorageConfig(postgres=PostgresConfig(dsn=…), qdrant=…)"
        )
        of_kind(self.config, StorageConfig, "config", remedy)
        self.hooks = ShutdownHooks()
        self._home = Home(
            "storage manager",
            usage="use it inside 'async with', or between "
            "'await StorageManager(…)' and aclose()",
        )
        self._parts = Parts(self.config, partial(StorageTransaction, owner=self))
        self._repositories: dict[type[Any], Repository[Any]] = {}  # by repository()
        self._closing = Once(self._close)
        self._failures: list[Exception] = []  # by _close(), until they are raised

    @classmethod
    def from_config_manager(cls, manager: ConfigManager) -> Self:
        """Make a manager whose settings come from *manager* alone.

        Raises:
            ConfigurationInvalid: A value is wrong.
        """
        return cls(StorageConfig.from_config_manager(manager))

    def __repr__(self) -> str:
        postgres, qdrant = self.config.postgres, self.config.qdrant
        parts = (
            postgres.safe_dsn if postgres else "no PostgreSQL",
            qdrant.url if qdrant else "no Qdrant",
        )
        return f"<{type(self).__name__} {self._home.life.value}: {', '.join(parts)}>"

    # -- opening and closing ---------------------------------------------

    async def _opened(self) -> Self:
        home = self._home
        if home.life is not Life.NEW:
            raise StorageClosed(
                f"storage manager: it is {home.life.value}; make a new one "
                "(a manager is opened once)"
            )
        home.enter()
        home.life = Life.OPENING
        self.hooks.arm(self._close_quietly)
        try:
            await self._parts.open()
        except BaseException:  # close what was opened, then pass it on
            await shielded(self._close_quietly)
            raise
        home.life = Life.OPEN
        return self

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open for as long as an ASGI application lives: ``FastAPI(lifespan=…)``.

        Handlers find the manager with ``Depends(storage_of)``.
        """
        if (state := getattr(app, "state", None)) is not None:
            setattr(state, STATE, self)
        async with self:
            yield

    def probes(self, *, vectors: bool = False, timeout: float = 2.0) -> Probes:
        """Return an ASGI application with ``/livez`` and ``/readyz``.

        Ready is a manager that is open, whose pool answers, and whose migrations are
        applied. It may be mounted before the manager is opened.

        Args:
            vectors: Whether the vector store must answer as well. A store that is
                away otherwise delays deliveries, and is no reason to stop traffic.
            timeout: Seconds that a part may take to answer.
        """
        return Probes(self._open_parts, vectors=vectors, timeout=timeout)

    def _open_parts(self) -> Parts:
        self._home.require_open()
        return self._parts

    async def __aexit__(self, *_: object) -> None:
        """Close it; what fails is logged, and hides nothing that ended the block."""
        try:
            await self.aclose()
        except ExceptionGroup as failed:
            for failure in failed.exceptions:
                logger.exception("closing failed in part", exc_info=failure)

    async def aclose(self) -> None:
        """Run the shutdown hooks, then close every part. Closing twice is fine.

        Hooks still have every part; the pool closes after them. Everything is
        tried whatever fails, and finished if the caller is cancelled; the
        cancellation goes on afterwards.

        Raises:
            ExceptionGroup: What failed in hooks or parts, together. The end of an
                ``async with`` block logs it instead.
        """
        home = self._home
        if home.forked:
            return
        if home.life in {Life.NEW, Life.CLOSED}:
            home.life = Life.CLOSED
            return
        home.check()
        if self.hooks.running_here:
            return  # a hook of ours: the close it wants is under way
        await shielded(self._closing)
        failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup("storage manager: closing failed in part", failures)

    async def _close_quietly(self) -> None:
        """Close at the loop's end, or after a failed start: log what fails."""
        await self._closing()
        failures, self._failures = self._failures, []
        for failure in failures:
            logger.error("closing failed in part", exc_info=failure)

    async def _close(self) -> None:
        self._home.life = Life.CLOSING
        with self.hooks.guarded():
            # Hooks run first: they may need every part.
            failed = await self.hooks.run()
            self._failures = [*failed, *await self._parts.close()]
        self._home.life = Life.CLOSED
        self.hooks.disarm()

    # -- parts -----------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The connection pool."""
        return self._use(self._parts.pool, "postgres")

    @property
    def reads(self) -> Pool:
        """The pool to read from: of the replicas at ``postgres.read_dsn``, or ``pool``.

        A replica answers late by its lag; see ``position()``.
        """
        return self._use(self._parts.reads, "postgres")

    async def position(self) -> str:
        """Return a position in the server's log behind all that was committed so far.

        A read ``after`` it sees all that: ``storage.reads.after(position)``,
        ``repository.on_replica(after=position)``. It is a text, such as
        ``16/B374D848``, that may travel in a cookie or a message.
        """
        return await self.pool.position()

    @property
    def qdrant(self) -> QdrantStore:
        """The vector store."""
        return self._use(self._parts.qdrant, "qdrant")

    @property
    def outbox(self) -> Outbox:
        """Vectors on their way from PostgreSQL to Qdrant."""
        return self._use(self._parts.outbox, "postgres")

    @property
    def sessions(self) -> SessionService:
        """Temporary views of this and of other processes."""
        return self._use(self._parts.sessions, "postgres")

    @property
    def error_entries(self) -> ErrorEntryRepository:
        """The repository of recorded errors."""
        return self._use(self._parts.error_entries, "postgres")

    def _use(self, part: T | None, key: str) -> T:
        home = self._home
        if (  # not the usual case, which costs no call
            home.life is not Life.OPEN
            or home.loop is not _get_running_loop()
            or home.pid != os.getpid()
        ):
            home.require_open(Life.CLOSING)  # hooks use parts while it closes
        if part is None:
            raise ConfigurationInvalid(
                key, f"is switched off; leave out {key}=None to use this part"
            )
        return part

    def repository(
        self,
        model: type[Model],
        *,
        table: str | Relation | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
        deleted: str | None = None,
        collection: str | None = None,
        durable: bool = True,
    ) -> Repository[Model]:
        """Return the repository of *model*; declared once, known afterwards.

        The options are needed where the model is declared and can be left out
        later; see ``Repository`` for their meaning. A repository on a session's view
        is not remembered: bind() it where you need it again.

        Args:
            model: A slotted dataclass, a pydantic model or a msgspec struct.
            table: Table, such as ``billing.invoice``, or a session's ``TempView``; by
                default the model's name.
            key: Field or fields that identify a record; by default ``id``.
            columns: For some fields the column's name, or a ``Column``.
            version: Whole-number field that turns the optimistic lock on.
            deleted: Field, a ``datetime | None``, that turns soft deletion on.
            collection: Collection that has a point for each record.
            durable: Pin ``synchronous_commit = on`` in writes of points.

        Raises:
            ConfigurationInvalid: The model cannot be stored as declared.
        """
        of_kind(model, Hashable, "model", "give a class of records")
        options = (table, key, columns, version, deleted, collection)
        known = self._repositories.get(model)
        if known is None or not durable or any(each is not None for each in options):
            known = Repository(
                self.pool,
                model,
                table=table,
                key=key,
                columns=columns,
                version=version,
                deleted=deleted,
                collection=collection,
                wake=None if collection is None else self.outbox.wake,
                shapes=None if collection is None else self.outbox.shapes,
                durable=durable,
                reads=self.reads,
            )
            if not isinstance(table, Relation):  # a view is one session's only
                self._repositories[model] = known
        return known

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        connection: Any = None,
        timeout: float | None = None,
    ) -> AbstractAsyncContextManager[StorageTransaction]:
        """Open a transaction: commits when its block ends, else rolls back.

        Args:
            isolation: ``read_committed`` (the server's default),
                ``repeatable_read`` or ``serializable``.
            readonly: Refuse writes.
            deferrable: With serializable and readonly: wait for a snapshot that
                cannot fail.
            connection: A connection of asyncpg that the caller holds; the
                transaction joins what is open on it, and never closes it.
            timeout: Seconds to wait for a connection; ``acquire_timeout`` if None.

        Raises:
            PoolTimeout: No connection became free in time.
        """
        opened: AbstractAsyncContextManager[Any] = self.pool.transaction(
            isolation=isolation,
            readonly=readonly,
            deferrable=deferrable,
            connection=connection,
            timeout=timeout,
        )
        return opened

    async def run_in_transaction(
        self,
        fn: Callable[[StorageTransaction], Awaitable[T]],
        *,
        isolation: str | None = "serializable",
        readonly: bool = False,
        deferrable: bool = False,
        attempts: int = 10,
    ) -> T:
        """Run *fn* in a transaction; run it whole again if the server asks.

        *fn* must be able to run several times: only its database work is undone.
        See ``Pool.run_in_transaction()`` for what is repeated.

        Raises:
            SerializationFailed: Still failing after *attempts* (40001).
            DeadlockDetected: Still failing after *attempts* (40P01).
        """
        return await self.pool.run_in_transaction(
            fn,
            isolation=isolation,
            readonly=readonly,
            deferrable=deferrable,
            attempts=attempts,
        )

    def session(
        self,
        *,
        schema: str | None = None,
        auto_cleanup: bool = True,
        private: bool = False,
    ) -> PostgresSessionManager:
        """Return a session for temporary views: ``async with`` it, or await it.

        Args:
            schema: Where its views live; ``session.schema_name`` if None.
            auto_cleanup: Whether closing drops the views, see
                ``PostgresSessionManager.toggle_auto_cleanup()``.
            private: Whether only this role may read them; otherwise members of the
                group role ``fm_storage_app`` may.

        Raises:
            StorageClosed: The manager is not open.
            ConfigurationInvalid: PostgreSQL is switched off. When it opens: a
                pooler lets no lease be held.
        """
        return self.sessions.session(
            schema=schema, auto_cleanup=auto_cleanup, private=private
        )

    async def migrate(
        self,
        *,
        to: str | None = None,
        progress: Callable[[MigrationProgress], None] | None = None,
    ) -> list[str]:
        """Apply the missing migrations and return their identifiers, in order.

        Prepared statements of the pool are renewed afterwards, so that none of
        them meets the changed schema.

        Args:
            to: Apply up to and including this one.
            progress: Called on the event loop with what is being done.

        Raises:
            MigrationFailed: One did not apply; those before it stay applied.
        """
        self._home.require_open(Life.CLOSING)
        applied = await self._parts.migrator(progress).apply(to=to)
        for pool in {self.pool, self.reads}:
            await pool.drain()
        return [one.id for one in applied]

    # -- health and counters ---------------------------------------------

    async def health(self, *, timeout: float = 5.0) -> Health:
        """Ask every part how it is; never raises for a part that is ill.

        Args:
            timeout: Seconds at most for each part; all are asked at once.
        """
        self._home.require_open(Life.CLOSING)
        return await check_parts(self._parts, timeout=seconds(timeout))

    def statistics(self) -> StorageStatistics:
        """Return the counters of every part, as they are now; no I/O."""
        self._home.require_open(Life.CLOSING)
        parts = self._parts
        return StorageStatistics(
            pool=parts.pool.statistics() if parts.pool else None,
            qdrant=parts.qdrant.statistics() if parts.qdrant else None,
            outbox=parts.outbox.statistics() if parts.outbox else None,
            sessions=parts.sessions.statistics() if parts.sessions else None,
            reads=parts.reads.statistics() if parts.reads else None,
        )
