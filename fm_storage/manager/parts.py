"""The parts of a storage manager: opened in order, closed in reverse."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.postgres.pool.replica import ReadPool
from fm_storage.repositories import ErrorEntryRepository
from fm_storage.sessions import SessionService
from fm_storage.vectors import QdrantStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fm_storage.config import PostgresConfig, QdrantConfig, StorageConfig
    from fm_storage.migrate import Progress
    from fm_storage.postgres import Transaction
    from fm_storage.postgres.connection.statements import Statements

logger = logging.getLogger("fm_storage.manager")


class Parts:
    """Server, pool, migrations, sessions, vectors, outbox: None until open, or off.

    Args:
        config: The settings.
        make_transaction: Makes the pool's transactions.
    """

    def __init__(
        self,
        config: StorageConfig,
        make_transaction: Callable[[Statements], Transaction],
    ) -> None:
        self.config = config
        self._make_transaction = make_transaction
        # By open(), in this order.
        self.embedded: EmbeddedPostgres | None = None
        self.dsn: str | None = None
        self.pool: Pool | None = None
        self.reads: Pool | None = None
        self.error_entries: ErrorEntryRepository | None = None
        self.sessions: SessionService | None = None
        self.qdrant: QdrantStore | None = None
        self.outbox: Outbox | None = None
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._failures: list[Exception] = []  # by close()

    async def open(self) -> None:
        """Open what the settings do not switch off.

        If this fails or is cancelled, ``close()`` closes what was opened.
        """
        config = self.config
        if config.postgres is not None:
            self.pool = await self._open_postgres(config.postgres)
            self.sessions = await self._open_sessions(self.pool)
        if config.qdrant is not None:
            self.qdrant = await self._open_qdrant(config.qdrant)
        if self.pool is not None:
            # Without a store of its own a process still says what it wants; one
            # that has the store delivers it.
            self.outbox = Outbox(
                self.pool, self.qdrant, config.outbox, direct_dsn=config.session.dsn
            )
            self._closers.append(("outbox", self.outbox.aclose))
            await self.outbox.open()

    async def close(self) -> list[Exception]:
        """Close in reverse, all of them; return what failed, with a note each.

        If cancelled, the next call goes on where this one left off.
        """
        while self._closers:
            name, closer = self._closers[-1]
            try:
                await closer()
            except Exception as exc:  # raised together at the end
                exc.add_note(f"while closing {name}")
                self._failures.append(exc)
            self._closers.pop()
        return self._failures

    def migrator(self, progress: Callable[[Progress], None] | None = None) -> Migrator:
        """Return what migrates the database of the pool."""
        return Migrator.for_server(
            self.config.postgres,
            self.config.migrations,
            dsn=self.dsn,
            progress=progress,
        )

    async def _open_postgres(self, config: PostgresConfig) -> Pool:
        self.dsn = config.dsn
        if config.embedded:
            folder = self.config.embedded_folder(config.dsn) / "postgres"
            logger.warning("embedded PostgreSQL keeps its data under %s", folder)
            self.embedded = EmbeddedPostgres(
                folder, bin_dir=self.config.embedded_bin_dir
            )
            self._closers.append(("embedded PostgreSQL", self.embedded.aclose))
            self.dsn = await self.embedded.open()
        pool = Pool(config, dsn=self.dsn, make_transaction=self._make_transaction)
        self._closers.append(("pool", pool.aclose))
        await pool.open()
        await self.migrator().ensure(executor=pool)
        self.reads = pool
        if config.read_dsn is not None:
            self.reads = ReadPool(pool, self._make_transaction)
            self._closers.append(("reads", self.reads.aclose))
            await self.reads.open()
        self.error_entries = ErrorEntryRepository(pool, reads=self.reads)
        return pool

    async def _open_sessions(self, pool: Pool) -> SessionService:
        config = self.config.session
        if self.embedded is not None and self.embedded.found_empty:
            # No owner from before can come back to our own server's folder.
            config = config.model_copy(update={"restart_grace": config.grace})
        name = pool.config.application_name
        sessions = SessionService(pool, config, application_name=name)
        self._closers.append(("sessions", sessions.aclose))
        await sessions.open()
        return sessions

    async def _open_qdrant(self, config: QdrantConfig) -> QdrantStore:
        folder = self.config.embedded_folder(config.url)
        if config.embedded:
            logger.warning("embedded Qdrant keeps its data under %s", folder)
        store = QdrantStore(config, folder=folder)
        self._closers.append(("qdrant", store.aclose))
        await store.open()
        return store
