"""The manager: opens the parts in order, hands them out, closes them in reverse.

What a part does is told in its own room; here stands only the order, and what
happens when opening or closing goes wrong half-way.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from fm_storage.config import PostgresConfig, QdrantConfig, StorageConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ForkedProcess,
    StorageClosed,
    WrongLoop,
)
from fm_storage.hooks import ShutdownHooks, outlast
from fm_storage.manager.health import Health, PartHealth, probe
from fm_storage.manager.transaction import StorageTransaction, transaction_class
from fm_storage.migrate import Migrator
from fm_storage.migrate import Progress as MigrationProgress
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded import EmbeddedPostgres
from fm_storage.repositories import ErrorEntryRepository, Repository
from fm_storage.sessions import PostgresSessionManager, SessionService
from fm_storage.vectors import QdrantStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from types import TracebackType

    from fm_storage.config import ConfigManager
    from fm_storage.postgres import PoolStatistics

__all__ = ["StorageManager", "StorageStatistics"]

logger = logging.getLogger("fm_storage.manager")

T = TypeVar("T")
Model = TypeVar("Model")


class _Life(enum.Enum):
    NEW = "not open yet"
    OPENING = "still opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """Counters of every part that is on; None for one that is off."""

    pool: PoolStatistics | None
    qdrant: Any
    outbox: Any
    sessions: Any


class StorageManager:
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
        self.hooks = ShutdownHooks()
        self._life = _Life.NEW
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failures: list[Exception] = []
        # Set while opening, in this order; taken away while closing, in reverse.
        self._embedded: EmbeddedPostgres | None = None
        self._dsn: str | None = None
        self._pool: Pool | None = None
        self._sessions: SessionService | None = None
        self._qdrant: QdrantStore | None = None
        self._outbox: Outbox | None = None
        self._error_entries: ErrorEntryRepository | None = None
        self._repositories: dict[type[Any], Repository[Any]] = {}
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    @classmethod
    def from_config_manager(cls, manager: ConfigManager) -> Self:
        """Make a manager whose settings come from *manager* alone.

        Raises:
            ConfigurationInvalid: A value is wrong.
        """
        return cls(StorageConfig.from_config_manager(manager))

    # -- life ------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Self:
        if self._life is not _Life.NEW:
            raise StorageClosed(
                f"storage manager: it is {self._life.value}; make a new one "
                "(a manager is opened once)"
            )
        if self._pid != os.getpid():
            raise ForkedProcess("storage manager")
        self._loop = asyncio.get_running_loop()
        self._life = _Life.OPENING
        self.hooks.arm(self._close_quietly)
        try:
            await self._open_parts()
        except BaseException:
            await outlast(self._close_quietly)
            raise
        self._life = _Life.OPEN
        return self

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open for as long as an ASGI application lives: ``FastAPI(lifespan=…)``."""
        del app
        async with self:
            yield

    async def _open_parts(self) -> None:
        config = self.config
        if config.postgres is not None:
            await self._open_postgres(config.postgres)
        if self._pool is not None:
            session = config.session
            if self._embedded is not None and self._embedded.found_empty:
                # No owner from before can come back to our own server's folder.
                session = session.model_copy(update={"restart_grace": session.grace})
            self._sessions = SessionService(
                self._pool,
                session,
                application_name=self._postgres_config().application_name,
            )
            self._closers.append(("sessions", self._sessions.aclose))
            await self._sessions.open()
        if config.qdrant is not None:
            await self._open_qdrant(config.qdrant)
        if self._pool is not None:
            # Without a store of its own a process still says what it wants; one
            # that has the store delivers it.
            self._outbox = Outbox(self._pool, self._qdrant, config.outbox)
            self._closers.append(("outbox", self._outbox.aclose))
            await self._outbox.open()

    async def _open_postgres(self, config: PostgresConfig) -> None:
        if config.embedded:
            folder = self.config.embedded_folder(config.dsn) / "postgres"
            logger.warning("embedded PostgreSQL keeps its data under %s", folder)
            self._embedded = EmbeddedPostgres(folder)
            self._closers.append(("embedded PostgreSQL", self._embedded.aclose))
            self._dsn = await self._embedded.open()
        else:
            self._dsn = config.dsn
        self._pool = Pool(config, dsn=self._dsn)
        self._pool.transaction_class = transaction_class(self)
        self._closers.append(("pool", self._pool.aclose))
        await self._pool.open()
        await self._migrator().ensure(executor=self._pool)
        self._error_entries = ErrorEntryRepository(self._pool)

    async def _open_qdrant(self, config: QdrantConfig) -> None:
        folder = self.config.embedded_folder(config.url)
        if config.embedded:
            logger.warning("embedded Qdrant keeps its data under %s", folder)
        self._qdrant = QdrantStore(config, folder=folder)
        self._closers.append(("qdrant", self._qdrant.aclose))
        await self._qdrant.open()

    async def aclose(self) -> None:
        """Run the shutdown hooks, then close every part. Closing twice is fine.

        Hooks still have every part; the pool closes after them. Everything is
        tried whatever fails, and finished if the caller is cancelled; the
        cancellation goes on afterwards.

        Raises:
            ExceptionGroup: What failed in hooks or parts, together.
        """
        if self._pid != os.getpid():
            return
        if self._life in {_Life.NEW, _Life.CLOSED}:
            self._life = _Life.CLOSED
            return
        self._check_loop()
        if self.hooks.running_here:
            return  # a hook of ours: the close it wants is under way
        await outlast(self._joined)
        failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup("storage manager: closing failed in part", failures)

    async def _close_quietly(self) -> None:
        """Close at the loop's end, or after a failed start: log what fails."""
        await self._joined()
        for failure in self._failures:
            logger.error("closing failed in part", exc_info=failure)
        self._failures.clear()

    async def _joined(self) -> None:
        """Close, or join who is closing."""
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.ensure_future(self._close_parts())
        await asyncio.shield(self._closing)

    async def _close_parts(self) -> None:
        """Close in reverse; go on where a cancelled attempt left off."""
        self._life = _Life.CLOSING
        with self.hooks.guarded():
            # Hooks run first: they may need every part.
            self._failures += await self.hooks.run()
            while self._closers:
                name, closer = self._closers[-1]
                try:
                    await closer()
                except Exception as exc:  # noqa: BLE001 - raised together at the end
                    exc.add_note(f"while closing {name}")
                    self._failures.append(exc)
                self._closers.pop()
        self._life = _Life.CLOSED
        self.hooks.disarm()

    def _check(self) -> None:
        if self._life is not _Life.OPEN and self._life is not _Life.CLOSING:
            raise StorageClosed(
                f"storage manager: it is {self._life.value}; use it inside "
                "'async with', or between 'await StorageManager(…)' and aclose()"
            )
        self._check_loop()

    def _check_loop(self) -> None:
        if self._pid != os.getpid():
            raise ForkedProcess("storage manager")
        running = asyncio._get_running_loop()  # noqa: SLF001 - documented in asyncio.events
        if running is not None and running is not self._loop:
            raise WrongLoop("storage manager")

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

    def _postgres_config(self) -> PostgresConfig:
        return self._part(self.config.postgres, "postgres")

    # -- work ------------------------------------------------------------

    def repository(
        self,
        model: type[Model],
        **options: Any,  # noqa: ANN401 - those of Repository
    ) -> Repository[Model]:
        """Return the repository of *model*; declared once, known afterwards.

        Args:
            model: A slotted dataclass, a pydantic model or a msgspec struct.
            **options: Those of ``Repository``: ``table="billing.invoice"``,
                ``key="number"``, ``collection="invoices"``, … They are needed
                where the model is declared, and left out afterwards.
        """
        known = self._repositories.get(model)
        if known is None or options:
            if options.get("collection") is not None:
                options.setdefault("wake", self.outbox.wake)
            known = Repository(self.pool, model, **options)
            self._repositories[model] = known
        return known

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        connection: Any = None,  # noqa: ANN401 - asyncpg's, unknown in this room
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

    def session(self, **options: Any) -> PostgresSessionManager:  # noqa: ANN401 - those of SessionService.session
        """Return a session for temporary views; use it in ``async with``."""
        return self.sessions.session(**options)

    def _migrator(
        self, progress: Callable[[MigrationProgress], None] | None = None
    ) -> Migrator:
        migrations = self.config.migrations
        password = None if migrations.dsn else self._postgres_config().password
        return Migrator(
            self._dsn or "", migrations, progress=progress, password=password
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
            ("qdrant", self._qdrant, self._ask_qdrant),
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

    async def _ask_qdrant(self) -> tuple[str, str]:
        return "ok", str(await self.qdrant.ready())

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
