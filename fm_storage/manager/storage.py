"""The manager: one awaitable object in front of every part.

What a part does is told in its own room, and how parts open and close in
``life``; here stands what the manager offers.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.manager.health import Health, PartHealth, probe
from fm_storage.manager.life import ManagerLife
from fm_storage.manager.transaction import StorageTransaction, transaction_class
from fm_storage.migrate import Progress as MigrationProgress
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
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

    from fm_storage.config import ConfigManager
    from fm_storage.outbox import OutboxStatistics
    from fm_storage.postgres import PoolStatistics, Transaction
    from fm_storage.sessions import SessionStatistics

__all__ = ["StorageManager", "StorageStatistics"]

T = TypeVar("T")
Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """Counters of every part that is on; None for one that is off."""

    pool: PoolStatistics | None
    qdrant: Any
    outbox: OutboxStatistics | None
    sessions: SessionStatistics | None


class StorageManager(ManagerLife):
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

    @classmethod
    def from_config_manager(cls, manager: ConfigManager) -> Self:
        """Make a manager whose settings come from *manager* alone.

        Raises:
            ConfigurationInvalid: A value is wrong.
        """
        return cls(StorageConfig.from_config_manager(manager))

    def _transaction_class(self) -> type[Transaction]:
        return transaction_class(self)

    # -- parts -----------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The connection pool."""
        self._check()
        return self._part(self._pool, "postgres")

    @property
    def qdrant(self) -> QdrantStore:
        """The vector store."""
        self._check()
        return self._part(self._qdrant, "qdrant")

    @property
    def outbox(self) -> Outbox:
        """Vectors on their way from PostgreSQL to Qdrant."""
        self._check()
        return self._part(self._outbox, "postgres")

    @property
    def sessions(self) -> SessionService:
        """Temporary views of this and of other processes."""
        self._check()
        return self._part(self._sessions, "postgres")

    @property
    def error_entries(self) -> ErrorEntryRepository:
        """The repository of recorded errors."""
        self._check()
        return self._part(self._error_entries, "postgres")

    @staticmethod
    def _part(part: T | None, key: str) -> T:
        if part is None:
            raise ConfigurationInvalid(
                key, f"is switched off; leave out {key}=None to use this part"
            )
        return part

    # -- work ------------------------------------------------------------

    def repository(
        self,
        model: type[Model],
        *,
        table: str | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
        deleted: str | None = None,
        collection: str | None = None,
    ) -> Repository[Model]:
        """Return the repository of *model*; declared once, known afterwards.

        The options are needed where the model is declared and can be left out
        later; what they mean is told by ``Repository``.

        Args:
            model: A slotted dataclass, a pydantic model or a msgspec struct.
            table: Table, such as ``billing.invoice``; by default the model's name.
            key: Field or fields that identify a record; by default ``id``.
            columns: For some fields the column's name, or a ``Column``.
            version: Whole-number field that turns the optimistic lock on.
            deleted: Field, a ``datetime | None``, that turns soft deletion on.
            collection: Collection that has a point for each record.

        Raises:
            ConfigurationInvalid: The model cannot be stored as declared.
        """
        options = (table, key, columns, version, deleted, collection)
        known = self._repositories.get(model)
        if known is None or any(option is not None for option in options):
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
            )
            self._repositories[model] = known
        return known

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        connection: Any = None,
    ) -> AsyncIterator[StorageTransaction]:
        """Open a transaction: commits when its block ends, else rolls back.

        Args:
            isolation: ``read_committed`` (the server's default),
                ``repeatable_read`` or ``serializable``.
            readonly: Refuse writes.
            deferrable: With serializable and readonly: wait for a snapshot that
                cannot fail.
            connection: A connection of asyncpg that the caller holds; the
                transaction joins what is open on it, and never closes it.

        Raises:
            PoolTimeout: No connection became free in time.
        """
        async with self.pool.transaction(
            isolation=isolation,
            readonly=readonly,
            deferrable=deferrable,
            connection=connection,
        ) as opened:
            yield cast("StorageTransaction", opened)

    async def run_in_transaction(
        self,
        fn: Callable[[StorageTransaction], Awaitable[T]],
        *,
        isolation: str | None = "serializable",
        attempts: int = 5,
    ) -> T:
        """Run *fn* in a transaction; run it whole again if the server asks.

        *fn* must be able to run several times: only its database work is undone.

        Raises:
            SerializationFailed: Still failing after *attempts* (40001).
            DeadlockDetected: Still failing after *attempts* (40P01).
        """
        return await self.pool.run_in_transaction(
            fn, isolation=isolation, attempts=attempts
        )

    def session(
        self, *, schema: str | None = None, auto_cleanup: bool = True
    ) -> PostgresSessionManager:
        """Return a session for temporary views: ``async with`` it, or await it.

        Args:
            schema: Where its views live; ``session.schema_name`` if None.
            auto_cleanup: Whether closing drops the views, see
                ``PostgresSessionManager.toggle_auto_cleanup()``.

        Raises:
            StorageClosed: The manager is not open.
            ConfigurationInvalid: PostgreSQL is switched off. When it opens: a
                pooler lets no lease be held.
        """
        return self.sessions.session(schema=schema, auto_cleanup=auto_cleanup)

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
        self._check()
        applied = await self._migrator(progress).apply(to=to)
        await self.pool.drain()
        return [one.id for one in applied]

    # -- what it tells ---------------------------------------------------

    async def health(self, *, timeout: float = 5.0) -> Health:
        """Ask every part how it is; never raises for a part that is ill.

        Args:
            timeout: Seconds at most for each part; all are asked at once.
        """
        self._check()
        asked = (
            ("postgres", self._pool, self._ask_postgres),
            ("migrations", self._pool, self._ask_migrations),
            ("qdrant", self._qdrant, partial(self._ask_qdrant, timeout)),
            ("outbox", self._outbox, self._ask_outbox),
            ("sessions", self._sessions, self._ask_sessions),
        )

        async def one(
            name: str,
            part: object,
            ask: Callable[[], Awaitable[tuple[str, str]]],
        ) -> PartHealth:
            if part is None:
                return PartHealth(name, "off", detail="switched off")
            return await probe(name, ask, timeout=timeout)

        return Health(tuple(await asyncio.gather(*(one(*each) for each in asked))))

    async def _ask_postgres(self) -> tuple[str, str]:
        pool = self.pool
        await pool.fetchval("SELECT 1")
        major, minor = divmod(pool.server_version, 10_000)
        kind = "embedded PostgreSQL" if self._embedded else "PostgreSQL"
        pooled = " behind a transaction pooler" if pool.transaction_pooler else ""
        return "ok", f"{kind} {major}.{minor}{pooled}"

    async def _ask_migrations(self) -> tuple[str, str]:
        found = await self._migrator().status(executor=self.pool)
        others = [f"{one.id} is {one.state}" for one in found if one.state != "applied"]
        if others:
            return "degraded", ", ".join(others)
        return "ok", f"{len(found)} applied"

    async def _ask_qdrant(self, timeout: float) -> tuple[str, str]:
        # A little less than the part has: so that it can say what is wrong.
        return "ok", str(await self.qdrant.ready(timeout=0.9 * timeout))

    async def _ask_outbox(self) -> tuple[str, str]:
        return await self.outbox.health()

    async def _ask_sessions(self) -> tuple[str, str]:
        return await self.sessions.health()

    def statistics(self) -> StorageStatistics:
        """Return the counters of every part, as they are now; no I/O."""
        self._check()
        return StorageStatistics(
            pool=self._pool.statistics() if self._pool else None,
            qdrant=self._qdrant.statistics() if self._qdrant else None,
            outbox=self._outbox.statistics() if self._outbox else None,
            sessions=self._sessions.statistics() if self._sessions else None,
        )
