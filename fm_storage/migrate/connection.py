"""yoyo's backend on the one connection that a migrating thread has."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from yoyo.backends.base import DatabaseBackend
from yoyo.utils import change_param_style

from fm_storage.concurrency.backoff import Backoff
from fm_storage.config import MigrationsConfig, PostgresConfig
from fm_storage.errors import (
    ConnectionFailed,
    DeadlockDetected,
    LockTimeout,
    MigrationFailed,
    PermissionDenied,
    QueryFailed,
)
from fm_storage.migrate import driver
from fm_storage.migrate.driver import MigrationStopped, for_migrations, reason

_SETTINGS = {
    # Limits that a role may carry are for queries, not for schema changes.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "client_min_messages": "warning",
    # A server that works for a killed client keeps its lock until it notices.
    "client_connection_check_interval": "200ms",
}
_INVALID_VALUE = "22023"

B = TypeVar("B", bound="OneConnection")


class QuietCursor(driver.Cursor):
    """A cursor whose rows nobody sees: yoyo prints those of every SELECT."""

    def execute(self, *args: Any) -> driver.Cursor:
        """Run a statement and show no columns."""
        super().execute(*args)
        self.description = None
        return self


class OneConnection(DatabaseBackend):  # type: ignore[misc]  # yoyo is untyped
    """A connection in yoyo's clothes.

    Belongs to one thread; another may set ``stop`` and stop its connection.
    """

    driver_module = "fm_storage.migrate.driver"
    lock_timeout = 1.0
    wait_timeout = 600.0
    retried = (LockTimeout, DeadlockDetected)
    has_transactional_ddl = True
    has_savepoints = True
    _in_transaction: bool = False

    def __init__(self, dburi: Any, migration_table: str = "") -> None:
        # yoyo's own __init__() would pickle the address.
        self.uri = dburi
        self.migration_table = migration_table
        self.DatabaseError = self.driver.DatabaseError
        self.stop = threading.Event()
        self.report: Callable[[str, str, int, int], None] = lambda *_: None
        self.step_of: tuple[str, int] | None = None
        self.step = 0
        self._connection = self.connect(dburi)

    def connect(self, dburi: Any) -> driver.Connection:
        """Return *dburi*, if it is a connection; else connect to that address."""
        if isinstance(dburi, driver.Connection):
            return dburi
        query = f"?{urlencode(dburi.args)}" if dburi.args else ""
        dsn = f"postgresql://{dburi.netloc}/{quote(dburi.database or '')}{query}"
        connection = driver.Connection(for_migrations(PostgresConfig(dsn=dsn)))
        # yoyo's own command leaves it open. A forked child's exit must not close it.
        weakref.finalize(self, connection.close).atexit = False
        connection.open()
        return connection

    def lift_limits(self) -> None:
        """Free the session from limits that are meant for queries.

        Raises:
            MigrationFailed: A pooler stands between, which would hand them, and
                the lock, to strangers.
        """
        served_by = self.fetch("SELECT pg_backend_pid()")[0][0]
        if served_by != self.connection.process_id:
            message = (
                "migrations: the address leads to a connection pooler, which would "
                "hand the lock to strangers; set migrations.dsn to the server itself"
            )
            raise MigrationFailed(message)
        settings = dict(_SETTINGS)
        try:
            self._set(settings)
        except QueryFailed as exc:  # an operating system without that check
            if exc.sqlstate != _INVALID_VALUE:
                raise
            del settings["client_connection_check_interval"]
            self._set(settings)

    def _set(self, settings: Mapping[str, str]) -> None:
        """Set what this server knows of *settings*."""
        self.fetch(
            "SELECT set_config(s.name, v.value, false) FROM "
            "unnest($1::text[], $2::text[]) AS v (name, value) "
            "JOIN pg_settings s ON s.name = v.name",
            list(settings),
            list(settings.values()),
        )

    def limit_locks(self, *, local: bool = True, seconds: float | None = None) -> None:
        """Let a statement wait for a lock no longer than ``lock_timeout``.

        Args:
            local: Whether that ends with the transaction.
            seconds: Another limit; 0 is none.
        """
        limit = self.lock_timeout if seconds is None else seconds
        text = f"{int(limit * 1000)}ms"
        self.fetch("SELECT set_config('lock_timeout', $1, $2)", text, local)

    def init_database(self) -> None:
        """Write nothing: a look at the state must not change the database."""

    def fetch(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Run a statement of our own with ``$1`` …, and return its rows."""
        rows: list[tuple[Any, ...]] = self.connection.fetch(sql, *args)
        return rows

    def run(self, sql: str) -> None:
        """Run a statement of a migration, whose rows nobody sees."""
        self._announce()
        self.connection.run(sql)

    def execute(
        self, sql: str, params: Mapping[str, object] | None = None
    ) -> driver.Cursor:
        """Run one of yoyo's own statements, whose rows it reads itself."""
        text, values = change_param_style(self.driver.paramstyle, sql, params)
        cursor: driver.Cursor = self.connection.cursor()
        return cursor.execute(text, values)

    def check_stop(self) -> None:
        """Raise if the caller was cancelled.

        Raises:
            MigrationStopped: ``stop`` was set.
        """
        if self.stop.is_set():
            raise MigrationStopped

    def cursor(self) -> driver.Cursor:
        """Return a cursor, and report which statement it is about to run."""
        self._announce()
        return QuietCursor(self.connection)

    def _announce(self) -> None:
        self.check_stop()
        if self.step_of is not None:
            name, total = self.step_of
            self.step += 1
            self.report("statement", name, self.step, total)

    def commit(self) -> None:
        """Commit, unless the caller was cancelled meanwhile."""
        self.check_stop()
        self.connection.run("COMMIT")
        self._in_transaction = False

    def rollback(self) -> None:
        """Roll back; a connection that broke has done so by itself."""
        self._in_transaction = False
        if not self.connection.closed:
            self.connection.rollback()

    def savepoint(self, id: str) -> None:
        """Set a savepoint; yoyo wants one around every statement."""
        if self.has_savepoints:
            super().savepoint(id)

    def savepoint_rollback(self, id: str) -> None:
        """Go back to a savepoint, or leave that to the end of the transaction."""
        if self.has_savepoints:
            super().savepoint_rollback(id)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until ``stop`` is set."""
        if self.stop.wait(seconds):
            raise MigrationStopped

    def retrying(self, what: str, attempt: Callable[[], None]) -> None:
        """Run *attempt* until it gets its table locks, within ``wait_timeout``.

        Waiting for a lock makes later readers wait behind us; giving up after
        ``lock_timeout`` lets them through before the next attempt.
        """
        deadline = time.monotonic() + self.wait_timeout
        delay = Backoff(0.05, 2.0)
        while True:
            try:
                return attempt()
            except self.retried as exc:
                if time.monotonic() > deadline:
                    message = (
                        f"migration {what!r}: no table lock within "
                        f"{self.wait_timeout:g} s; end the transactions that hold "
                        "it, or raise migrations.wait_timeout"
                    )
                    raise MigrationFailed(
                        message, migration=what, sqlstate=exc.sqlstate
                    ) from exc
                self.report("blocked", what, 0, 0)
                self.pause(delay.next())

    def reset(self) -> None:
        """Forget what a migration set for the session, the limits included."""
        if not self.connection.closed and not self._in_transaction:
            with contextlib.suppress(QueryFailed, ConnectionFailed):
                self.connection.run("RESET ALL; RESET ROLE")
                self.lift_limits()


@contextlib.contextmanager
def opened(
    kind: type[B],
    connection: driver.Connection,
    config: MigrationsConfig,
    *,
    stop: threading.Event,
) -> Iterator[B]:
    """Connect, and close at the end.

    Raises:
        ConfigurationInvalid: The address cannot be read.
        ConnectionFailed: No server answered, or the connection broke.
        MigrationFailed: The server refused a statement of our own.
    """
    try:
        connection.open()
        backend = kind(connection)
        backend.stop = stop
        backend.lock_timeout = config.lock_timeout
        backend.wait_timeout = config.wait_timeout
        try:
            backend.check_stop()
            yield backend
        except ConnectionFailed as exc:
            message = f"migrations: the connection broke ({reason(exc)}); run it again"
            raise ConnectionFailed(message, sqlstate=exc.sqlstate) from exc
        except QueryFailed as exc:
            message = f"migrations: {reason(exc)}"
            if isinstance(exc, PermissionDenied):
                message += "; set migrations.dsn to a role that owns the schema"
            raise MigrationFailed(message, sqlstate=exc.sqlstate) from exc
    finally:
        connection.close()
