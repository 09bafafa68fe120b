"""The manager's life: parts opened in order, closed in reverse.

Apart from what the manager offers, because here stands only the order, and what
happens when opening or closing goes wrong or is cancelled half-way.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from fm_storage.concurrency.lifecycle import Lifecycle
from fm_storage.concurrency.shield import shielded
from fm_storage.config import PostgresConfig, QdrantConfig, StorageConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ForkedProcess,
    StorageClosed,
    WrongLoop,
)
from fm_storage.hooks import Hosted, ShutdownHooks
from fm_storage.migrate import Migrator
from fm_storage.migrate import Progress as MigrationProgress
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool, Transaction
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.repositories import ErrorEntryRepository, Repository
from fm_storage.sessions import SessionService
from fm_storage.vectors import QdrantStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

__all__ = ["ManagerLife"]

logger = logging.getLogger("fm_storage.manager")


class _Life(enum.Enum):
    NEW = "not open yet"
    OPENING = "still opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class ManagerLife(Lifecycle, Hosted):
    """Opens and closes the parts of a ``StorageManager``; see there."""

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = StorageConfig() if config is None else config
        if not isinstance(self.config, StorageConfig):
            raise ConfigurationInvalid(
                "config",
                f"is a {type(config).__name__}; give a StorageConfig, such as "
                "StorageConfig(postgres=PostgresConfig(dsn=…), qdrant=…)",
            )
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

    def __repr__(self) -> str:
        postgres, qdrant = self.config.postgres, self.config.qdrant
        parts = (
            postgres.safe_dsn if postgres else "no PostgreSQL",
            qdrant.url if qdrant else "no Qdrant",
        )
        return f"<{type(self).__name__} {self._life.value}: {', '.join(parts)}>"

    async def _opened(self) -> Self:
        if self._life is not _Life.NEW:
            raise StorageClosed(
                f"storage manager: it is {self._life.value}; make a new one "
                "(a manager is opened once)"
            )
        if self._pid != os.getpid():
            raise ForkedProcess("storage manager")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoop("storage manager", none_runs=True) from None
        self._life = _Life.OPENING
        self.hooks.arm(self._close_quietly)
        try:
            await self._open_parts()
        except BaseException:  # close what was opened, then pass it on
            await shielded(self._close_quietly)
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
                application_name=self._pool.config.application_name,
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
        self._pool.transaction_class = self._transaction_class()
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

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        if self._pid != os.getpid():
            return
        if self._life in {_Life.NEW, _Life.CLOSED}:
            self._life = _Life.CLOSED
            return
        self._check_loop()
        if self.hooks.running_here:
            return  # a hook of ours: the close it wants is under way
        await shielded(self._joined)
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
                except Exception as exc:
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

    def _migrator(
        self, progress: Callable[[MigrationProgress], None] | None = None
    ) -> Migrator:
        return Migrator.for_server(
            self.config.postgres,
            self.config.migrations,
            dsn=self._dsn,
            progress=progress,
        )

    def _transaction_class(self) -> type[Transaction]:
        """Return the class of transactions that the pool yields."""
        return Transaction
