"""yoyo's backend made safe: one connection, one transaction, a lock that dies with it.

Registered as the entry point ``postgresql+fm`` of yoyo, so that its stock command
has the same safety as ours. Plain yoyo keeps its lock in a row (a kill leaves it),
commits the steps on one connection and the mark on another (a kill between them
leaves "applied but unmarked"), does not look at contents, and unmarks what it
cannot undo.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import yoyo.migrations

from fm_storage.errors import ConnectionFailed, MigrationFailed, QueryFailed
from fm_storage.migrate import ledger, pieces, statements
from fm_storage.migrate.connection import OneConnection
from fm_storage.migrate.drift import compare, refuse_drift, refuse_without_name
from fm_storage.migrate.files import (
    PROJECT,
    MigrationFile,
    is_python,
    migration_paths,
    project_folder,
    read_file,
    source_name,
)
from fm_storage.migrate.planned import THREAD
from fm_storage.migrate.statements import EngineMigration
from fm_storage.postgres.pool.schema import NOTIFY

logger = logging.getLogger("fm_storage.migrate")


def _rename(record: logging.LogRecord) -> bool:
    """Log what the engine logs in a Migrator's thread under our name instead.

    Under the command yoyo, the lines keep their own.
    """
    if record.threadName != THREAD:
        return True
    record.name = logger.name
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
    return False


logging.getLogger("yoyo.migrations").addFilter(_rename)


@functools.cache
def release() -> str:
    """Version of fm_storage, as the record remembers it."""
    return metadata.version("fm-storage")


class FmStorageBackend(OneConnection):
    """A connection that migrates, holds the lock, and keeps the record."""

    has_transactional_ddl = True
    _internal_schema_updated: bool = False
    _is_locked: bool = False

    # -- the record -------------------------------------------------------

    @property
    def migration_table_quoted(self) -> str:
        """The record; yoyo's default table is an application's own affair."""
        return "fm_storage.migrations"

    @property
    def log_table_quoted(self) -> str:
        """The log."""
        return "fm_storage.migration_log"

    def ensure_internal_schema_updated(self) -> None:
        """Make the record's tables if they are missing, under the lock."""
        if self._internal_schema_updated:
            return
        if not self._has_ledger():
            with self.lock():
                if not self._has_ledger():
                    with self.transaction():
                        self.connection.run(ledger.CREATE_LEDGER)
        self._internal_schema_updated = True

    def _has_ledger(self) -> bool:
        return bool(
            self.fetch("SELECT to_regclass('fm_storage.migrations') IS NOT NULL")[0][0]
        )

    def read_applied(self) -> list[ledger.Applied]:
        """Return what is applied, in order; writes nothing."""
        return [row for row in self.read_record() if not row.is_hold]

    def read_record(self) -> list[ledger.Applied]:
        """Return the record, empty if there is none; writes nothing."""
        if not self._has_ledger():
            return []
        return [ledger.Applied.from_row(row) for row in self.fetch(ledger.READ_LEDGER)]

    def get_applied_migration_hashes(self) -> list[str]:
        """Return the names' hashes in order of application; writes nothing."""
        get_hash = yoyo.migrations.get_migration_hash
        return [cast("str", get_hash(row.id)) for row in self.read_applied()]

    def get_log_data(
        self,
        migration: EngineMigration | None = None,
        operation: str = "apply",
    ) -> dict[str, Any]:
        """Return an entry of the log, without asking the network for our name."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's numeric user
            user = str(os.getuid())
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def mark_one(self, migration: EngineMigration, log: bool = True) -> None:
        """Record a migration as applied, with its content's checksum."""
        super().mark_one(migration, log=log)
        file = file_of(migration)
        self.fetch(
            "UPDATE fm_storage.migrations SET checksum = $1, source = $2, "
            "release = $3 WHERE migration_id = $4",
            file.checksum,
            file.source,
            release(),
            file.id,
        )

    # -- the lock ---------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Let one process migrate at a time; the lock dies with its connection.

        A blocking advisory lock deadlocks with CREATE INDEX CONCURRENTLY, which
        waits for every transaction that the waiters' statements are; so the lock
        is tried and polled.

        Raises:
            MigrationFailed: Another process still migrates after *timeout*.
            MigrationStopped: The caller was cancelled while waiting.
        """
        if self._is_locked:
            yield
            return
        self.lift_limits()
        limit = self.wait_timeout if timeout is None else timeout
        started = time.monotonic()
        while not self._try_lock():
            waited = time.monotonic() - started
            holder = self._holder()
            if waited > limit:
                message = (
                    f"migrations: {holder} has been migrating for more than "
                    f"{limit:g} s; wait for it, end it, or raise "
                    "migrations.wait_timeout"
                )
                raise MigrationFailed(message)
            self.report("waiting", holder, 0, 0)
            self.pause(random.uniform(0.02, 0.1))
        self._is_locked = True
        try:
            yield
        finally:
            self.release_lock()

    def release_lock(self) -> None:
        """Roll back what is open, and let the next process migrate."""
        self._is_locked = False
        with contextlib.suppress(
            QueryFailed, ConnectionFailed
        ):  # then the lock is gone anyway
            if self._in_transaction:
                self.rollback()
            if not self.connection.closed:
                self.fetch("SELECT pg_advisory_unlock($1)", ledger.LOCK_KEY)

    def break_lock(self) -> None:
        """Do nothing: there is never a stale lock to break."""
        logger.warning(
            "migrations: the lock belongs to a living connection (%s); "
            "it is gone when that process is",
            self._holder(),
        )

    def _try_lock(self) -> bool:
        return bool(
            self.fetch("SELECT pg_try_advisory_lock($1)", ledger.LOCK_KEY)[0][0]
        )

    def _holder(self) -> str:
        rows = self.fetch(
            "SELECT a.pid, a.application_name FROM pg_locks l "
            "JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' "
            "AND l.granted AND l.classid = ($1::bigint >> 32)::int::oid "
            "AND l.objid = ($1::bigint & 4294967295)::oid AND l.database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
            ledger.LOCK_KEY,
        )
        return f"backend {rows[0][0]} ({rows[0][1]})" if rows else "another process"

    # -- applying and rolling back ------------------------------------------

    def to_apply(self, migrations: Any) -> Any:
        """Return what is pending, in order, unless files and record disagree.

        Raises:
            MigrationFailed: A file was edited, renamed, deleted or comes too late.
        """
        folders = {Path(m.path).parent: source_of(m) for m in migrations}
        files = [
            read_file(path, source)
            for folder, source in folders.items()
            for path in migration_paths(folder)
        ]
        record = self.read_applied()
        refuse_without_name(files, record)
        refuse_drift(compare(files, record, release=release))
        return super().to_apply(migrations)

    def apply_migrations_only(self, migrations: Any, force: bool = False) -> None:
        """Apply in order; the first failure ends it (yoyo passes over some)."""
        for migration in migrations:
            self.apply_one(migration, force=force)
        self.release_holds()

    def mark_migrations(self, migrations: Any) -> None:
        """Record as applied without running; as explicit as applying."""
        refuse_without_name([file_of(one) for one in migrations], self.read_applied())
        super().mark_migrations(migrations)
        self.release_holds()

    def rollback_migrations(self, migrations: Any, force: bool = False) -> None:
        """Roll back in order, after a look whether every one can be."""
        for migration in migrations:
            refuse_without_rollback(file_of(migration))
        for migration in migrations:
            self.rollback_one(migration, force=force)

    def apply_one(
        self,
        migration: EngineMigration,
        force: bool = False,
        mark: bool = True,
    ) -> None:
        """Run the steps, the log entry and the mark as one transaction.

        A file marked ``-- transactional: false`` runs statement by statement and
        goes on where an earlier run stopped.

        Raises:
            MigrationFailed: A statement failed; nothing of a transactional file
                stays.
        """
        if force:
            message = "migrations: --force would leave half of it; correct the file"
            raise MigrationFailed(message)

        def record() -> None:
            self.log_migration(migration, "apply")
            if mark:
                self.mark_one(migration, log=False)

        self._run(migration, "apply", record)

    def rollback_one(self, migration: EngineMigration, force: bool = False) -> None:  # noqa: ARG002 - yoyo's signature
        """Undo the steps and remove the mark as one transaction.

        Raises:
            MigrationFailed: It has no rollback file, or a statement failed.
        """
        file = file_of(migration)
        refuse_without_rollback(file)

        def record() -> None:
            self.log_migration(migration, "rollback")
            self.unmark_one(migration, log=False)
            if file.id != file.path.stem:  # from before its source had a name
                self.fetch(ledger.FORGET, file.path.stem, file.checksum)
            self.fetch(ledger.HOLD, ledger.HELD, file.source)

        self._run(migration, "rollback", record)

    def release_holds(self) -> None:
        """Let starts apply again what was rolled back."""
        if ledger.held_sources(self.read_record()):
            self.fetch(ledger.RELEASE_HOLDS)

    def _run(
        self, migration: EngineMigration, direction: str, record: Callable[[], None]
    ) -> None:
        def announced() -> None:
            record()
            self.fetch(NOTIFY)

        file = file_of(migration)
        if is_python(file.path):
            migration.load()
            transactional = migration.use_transactions
        else:  # read here: yoyo's reader knows no byte order mark
            transactional = file.transactional
        self.ensure_internal_schema_updated()
        with self.lock():
            if transactional:
                statements.run_as_one(self, migration, direction, announced)
            else:
                pieces.run_in_pieces(self, migration, direction, announced)


def source_of(migration: EngineMigration) -> str:
    """Name of the source of one of yoyo's migrations."""
    if migration.source_dir.startswith("package:"):
        return str(migration.source_dir)
    folder = Path(migration.path).resolve().parent
    if folder == project_folder():
        return PROJECT
    return source_name(folder)


def file_of(migration: EngineMigration) -> MigrationFile:
    """Return the file of one of yoyo's migrations; its own command knows none."""
    known: MigrationFile | None = getattr(migration, "file", None)
    return known or read_file(Path(migration.path), source_of(migration))


def refuse_without_rollback(file: MigrationFile) -> None:
    """Raise if nobody wrote how to undo *file*.

    Raises:
        MigrationFailed: Names the missing file.
    """
    if not file.can_roll_back:
        message = (
            f"migration {file.id!r}: {file.rollback_path.name} does not exist, so "
            "its objects would stay; write it (comments alone say: nothing to undo)"
        )
        raise MigrationFailed(message, migration=file.id)
