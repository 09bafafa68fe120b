"""The migrator: what applications, the manager and the command line call.

Everything that waits for the server happens in one thread per call, so that the
event loop never does; a start with nothing pending is one query.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import SecretStr

from fm_storage.concurrency.threads import run_in_thread
from fm_storage.config import MigrationsConfig, PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    MigrationFailed,
    QueryFailed,
    SchemaOutOfDate,
)
from fm_storage.migrate import ledger
from fm_storage.migrate.drift import (
    MigrationState,
    MigrationStatus,
    compare,
    refuse_drift,
    refuse_held,
    settled,
    tolerating_the_end,
)
from fm_storage.migrate.files import MigrationFile, Source, find_sources, read_files
from fm_storage.migrate.planned import THREAD, PlannedMigration, Progress

if TYPE_CHECKING:
    from fm_storage.migrate.backend import FmStorageBackend
    from fm_storage.migrate.driver import Connection
    from fm_storage.migrate.schema_page import SchemaTable
    from fm_storage.postgres import Executor

logger = logging.getLogger("fm_storage.migrate")

T = TypeVar("T")

_TICK = 5.0
"""Seconds between two reports of a call that still does the same."""

_PATIENCE = 5.0
"""Seconds that a cancelled call waits for the server to roll back."""


class Migrator:
    """Brings a database's schema up to date with the migration files.

    Each call opens a connection of its own and closes it. Cancelling a call rolls
    back what was running; whatever happens, calling again goes on from there.

    Args:
        server: The server, as a pool takes it: an address, or all its settings.
        config: Sources and limits. Its ``dsn`` is preferred to that of *server*.
        progress: Called on the event loop with what is being done.
        password: Overrides the one in the address; a value, or a function, sync
            or async.

    Raises:
        ConfigurationInvalid: *server* is no address of a server.
    """

    def __init__(
        self,
        server: str | PostgresConfig,
        config: MigrationsConfig | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        password: SecretStr | str | Callable[[], str | Awaitable[str]] | None = None,
    ) -> None:
        if not isinstance(server, str | PostgresConfig):
            raise ConfigurationInvalid(
                "server",
                f"is a {type(server).__name__}; give an address or a PostgresConfig",
            )
        self._config = config or MigrationsConfig()
        self._server = server
        self._password = password
        self._progress = progress
        dsn = server if isinstance(server, str) else server.dsn
        if self._config.dsn is None and dsn.startswith("embedded:"):
            raise ConfigurationInvalid(
                "migrations.dsn",
                f"{dsn!r} is no server's address; a StorageManager starts the "
                "embedded server, migrates it, and has migrate(), and so does the "
                "command 'fm-storage migrate'",
            )

    @classmethod
    def for_server(
        cls,
        postgres: PostgresConfig | None,
        config: MigrationsConfig,
        *,
        dsn: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Self:
        """Make one for a configured server, or that of ``migrations.dsn``.

        Args:
            postgres: The server; None if ``migrations.dsn`` names one.
            config: Sources and limits.
            dsn: The address of *postgres* if that is embedded and runs.
            progress: Called on the event loop with what is being done.
        """
        if postgres is None:
            return cls(config.dsn or dsn or "", config, progress=progress)
        if dsn is not None:
            postgres = postgres.model_copy(update={"dsn": dsn})
        return cls(postgres, config, progress=progress)

    # -- looking -----------------------------------------------------------

    async def ensure(self, executor: Executor | None = None) -> list[PlannedMigration]:
        """Bring the schema up to date, or refuse, as ``auto_apply`` demands.

        This is what a start calls. With nothing pending it costs one query, on
        *executor* if one is given. Migrations that a later release has applied
        are no hindrance: schemas are expanded first and contracted later.

        Raises:
            SchemaOutOfDate: Migrations are missing and ``auto_apply`` is off, or
                they were rolled back: then ``apply()`` applies them again.
            MigrationFailed: One failed, or files and database disagree.
        """
        statuses, record = await self._look(executor)
        refuse_drift(tolerating_the_end(statuses))
        pending = [s for s in statuses if s.state is MigrationState.PENDING]
        if not pending:
            return []
        refuse_held(pending, record)
        if not self._config.auto_apply:
            raise SchemaOutOfDate([status.id for status in pending])
        return await self._apply(automatic=True)

    async def check(self, executor: Executor | None = None) -> None:
        """Raise unless every migration is applied and none has drifted.

        Raises:
            SchemaOutOfDate: Names the missing ones.
            MigrationFailed: Files and database disagree.
        """
        statuses = await self.status(executor)
        refuse_drift(tolerating_the_end(statuses))
        if pending := _pending(statuses):
            raise SchemaOutOfDate(pending)

    async def status(self, executor: Executor | None = None) -> list[MigrationStatus]:
        """Return how every migration stands; changes nothing.

        Args:
            executor: Reads the record through this instead of a connection of
                its own.

        Raises:
            ConfigurationInvalid: A source does not exist.
        """
        return (await self._look(executor))[0]

    async def _look(
        self, executor: Executor | None
    ) -> tuple[list[MigrationStatus], list[ledger.Applied]]:
        sources, files = await asyncio.to_thread(self._read_files)
        if executor is None:
            record = await self._run(lambda backend: backend.read_record())
        else:
            record = await _read_through(executor)
        sources, files, record = settled(sources, files, record)
        applied = [row for row in record if not row.is_hold]
        names = [source.name for source in sources]
        return compare(files, applied, release=_release, sources=names), record

    # -- changing ----------------------------------------------------------

    async def apply(
        self, *, to: str | None = None, dry_run: bool = False
    ) -> list[PlannedMigration]:
        """Apply what is pending, and return it.

        Several processes may call this at once: one works, the others wait and
        find nothing to do. If cancelled, the running migration is rolled back
        (one marked ``-- transactional: false`` is resumed by the next call).

        Args:
            to: Last migration to apply: its identifier, its number (``4`` or
                ``0004``), or a beginning that no other one has.
            dry_run: Only return what would run; not a byte is written.

        Raises:
            MigrationFailed: A statement failed, the lock was not to be had, or
                files and database disagree; earlier migrations stay applied.
        """
        return await self._apply(to=to, dry_run=dry_run)

    async def rollback(
        self, *, steps: int = 1, dry_run: bool = False
    ) -> list[PlannedMigration]:
        """Undo the last *steps* applied migrations, newest first.

        Until the next ``apply()``, no start applies them again.

        Raises:
            MigrationFailed: One has no rollback file (then nothing is undone),
                or a statement failed.
        """
        if steps < 1:
            message = f"migrations: cannot roll back {steps} steps; give at least 1"
            raise MigrationFailed(message)

        def work(backend: FmStorageBackend) -> list[PlannedMigration]:
            from fm_storage.migrate import plan

            return plan.rollback(backend, *self._read_files(), steps, dry_run=dry_run)

        return await self._run(work)

    async def baseline(self, to: str | None = None) -> list[str]:
        """Record migrations as applied without running them.

        For a database whose objects already exist.

        Args:
            to: Last migration to record, as for ``apply()``; None records every
                pending one.

        Raises:
            MigrationFailed: Files and database disagree.
        """

        def work(backend: FmStorageBackend) -> list[str]:
            from fm_storage.migrate import plan

            return plan.baseline(backend, *self._read_files(), to)

        return await self._run(work)

    async def schema(self) -> list[SchemaTable]:
        """Return every table of the toolkit, read from the live catalogue."""

        def work(backend: FmStorageBackend) -> list[SchemaTable]:
            from fm_storage.migrate.schema_page import describe

            return describe(backend.fetch)

        return await self._run(work)

    async def schema_page(self) -> str:
        """Return the schema as a Markdown page, read from the live catalogue."""
        from fm_storage.migrate.schema_page import render

        return render(await self.schema())

    def new_migration(self, name: str, folder: Path | str) -> tuple[Path, Path]:
        """Write a migration and its rollback file from the template.

        Raises:
            MigrationFailed: The name is no name, or the folder no folder.
        """
        from fm_storage.migrate.template import write

        return write(name, Path(folder))

    # -- how ---------------------------------------------------------------

    def _read_files(self) -> tuple[list[Source], list[MigrationFile]]:
        sources = find_sources(self._config.sources)
        return sources, read_files(sources)

    async def _apply(
        self, *, to: str | None = None, dry_run: bool = False, automatic: bool = False
    ) -> list[PlannedMigration]:
        def work(backend: FmStorageBackend) -> list[PlannedMigration]:
            from fm_storage.migrate import plan

            return plan.apply(
                backend, *self._read_files(), to, dry_run=dry_run, automatic=automatic
            )

        return await self._run(work)

    async def _run(self, work: Callable[[FmStorageBackend], T]) -> T:
        """Run *work* with a backend, in a thread, with progress and interruption."""
        # Imported here: this loads the driver, and below the engine.
        from fm_storage.migrate.driver import Connection

        server = self._postgres()
        connection = Connection(server)
        call = _Call(server.safe_dsn, self._progress, connection)

        def body() -> T:
            from fm_storage.migrate.backend import FmStorageBackend
            from fm_storage.migrate.connection import opened

            with opened(
                FmStorageBackend, connection, self._config, stop=call.stop
            ) as backend:
                backend.report = call.report
                return work(backend)

        try:
            return await run_in_thread(
                body,
                name=THREAD,
                interrupt=call.interrupt,
                patience=_PATIENCE,
            )
        finally:
            call.end()

    def _postgres(self) -> PostgresConfig:
        """Return the settings of the server that is migrated.

        Those of ``migrations.dsn`` are the pool's, but for the address, the
        password and TLS, which that address says itself.
        """
        from fm_storage.migrate.driver import for_migrations

        given, dsn = self._server, self._config.dsn
        config = PostgresConfig(dsn=given) if isinstance(given, str) else given
        if dsn is not None:
            config = PostgresConfig(
                dsn=dsn,
                server_settings=config.server_settings,
                connect_timeout=config.connect_timeout,
            )
        if self._password is not None:
            password = _as_secret(self._password)
            config = config.model_copy(update={"password": password})
        return for_migrations(config)


def _as_secret(
    password: SecretStr | str | Callable[[], str | Awaitable[str]],
) -> SecretStr | Callable[[], str | Awaitable[str]]:
    return SecretStr(password) if isinstance(password, str) else password


class _Call:
    """A call in progress: what its thread reports, and how it is interrupted."""

    def __init__(
        self,
        address: str,
        progress: Callable[[Progress], None] | None,
        connection: Connection,
    ) -> None:
        self.stop = threading.Event()  # by interrupt()
        self._connection = connection
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        # The latest report; replaced as a whole, so that no lock is needed.
        self._seen = Progress("connecting", address, 0, 0, 0.0)
        self._timer = self._loop.call_later(_TICK, self._tick)

    def interrupt(self) -> None:
        """Stop the work; in any thread."""
        self.stop.set()
        self._connection.stop()

    def end(self) -> None:
        """Report no longer; on the event loop."""
        self._timer.cancel()

    def report(self, what: str, name: str, step: int, steps: int) -> None:
        """Note what is being done; in the thread that works."""
        now = Progress(what, name, step, steps, time.monotonic() - self._started)
        seen, self._seen = self._seen, now
        if (what, name, step) != (seen.what, seen.name, seen.step):
            logger.debug("%s %s %d/%d", what, name, step, steps)
            self._loop.call_soon_threadsafe(self._show, now)

    def _tick(self) -> None:
        now = replace(self._seen, elapsed=time.monotonic() - self._started)
        logger.info("still %s %s after %.0f s", now.what, now.name, now.elapsed)
        self._timer = self._loop.call_later(_TICK, self._tick)
        self._show(now)

    def _show(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)


async def _read_through(executor: Executor) -> list[ledger.Applied]:
    # Loaded already where there is an executor.
    from fm_storage.postgres import Sql

    try:
        rows = await executor.fetch(Sql(ledger.READ_LEDGER))
    except QueryFailed as exc:
        if exc.sqlstate in ledger.ABSENT_STATES:
            return []
        raise
    return [ledger.Applied.from_row(tuple(row)) for row in rows]


def _pending(statuses: Sequence[MigrationStatus]) -> list[str]:
    return [s.id for s in statuses if s.state is MigrationState.PENDING]


def _release() -> str:
    from importlib import metadata

    return metadata.version("fm-storage")
