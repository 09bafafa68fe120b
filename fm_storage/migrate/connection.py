"""The one connection that a migrating thread has, and how it is interrupted."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import psycopg
import yoyo.connections
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.utils import change_param_style

from fm_storage.concurrency.backoff import Backoff
from fm_storage.config import MigrationsConfig, mask_dsn
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    MigrationFailed,
    PermissionDenied,
    StorageError,
)

__all__ = ["MigrationStopped", "OneConnection", "is_broken", "opened"]

_SETTINGS = {
    # Limits that a role may carry are for queries, not for schema changes.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "client_min_messages": "warning",
    # A server that works for a killed client keeps its lock until it notices.
    "client_connection_check_interval": "200ms",
}
_LOGIN_REFUSED = re.compile(
    r"authentication failed|pg_hba\.conf|^role .* does not exist"
)
_NO_PRIVILEGE = "42501"
_CANCEL_TIMEOUT = 1.0
_CANCEL_AGAIN = 0.2
_CANCEL_TIMES = 20

B = TypeVar("B", bound="OneConnection")


class MigrationStopped(Exception):
    """The caller was cancelled; what ran was rolled back."""


class _Cursor(psycopg.Cursor[Any]):
    """A cursor whose rows nobody sees: yoyo prints those of every SELECT."""

    quiet = True

    @property
    def description(self) -> list[psycopg.Column] | None:
        return None if self.quiet else super().description


class OneConnection(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo is untyped
    """A psycopg connection in yoyo's clothes.

    Belongs to one thread; another may call ``interrupt()`` only.
    """

    lock_timeout = 1.0
    wait_timeout = 600.0
    retried = (pg.LockNotAvailable, pg.DeadlockDetected)
    has_savepoints = True
    _in_transaction: bool = False

    def __init__(self, dburi: Any, migration_table: str = "") -> None:
        self.stop = threading.Event()
        self.report: Callable[[str, str, int, int], None] = lambda *_: None
        self.step_of: tuple[str, int] | None = None
        self.step = 0
        super().__init__(dburi, migration_table)
        self.has_transactional_ddl = True

    def connect(self, dburi: Any) -> psycopg.Connection[Any]:
        """Open the one connection, in autocommit: transactions are explicit."""
        named = {
            "dbname": dburi.database or None,
            "user": dburi.username,
            "password": dburi.password,
            "host": dburi.hostname,
            "port": dburi.port,
        }
        defaults = {"application_name": "fm_storage migrate", "connect_timeout": 10}
        options = {k: v for k, v in dburi.args.items() if k != "conninfo"}
        given = conninfo_to_dict(dburi.args.get("conninfo", ""))
        if "," in str(given.get("host", "")):  # of several, the one that can write
            given.setdefault("target_session_attrs", "read-write")
        connection: psycopg.Connection[Any] = psycopg.connect(
            **{
                **defaults,
                **{key: value for key, value in named.items() if value is not None},
                **given,
                **options,
            },
            autocommit=True,
            prepare_threshold=None,
            cursor_factory=_Cursor,
        )
        # yoyo's own command leaves it open. A forked child's exit must not close it.
        weakref.finalize(self, connection.close).atexit = False
        return connection

    def lift_limits(self) -> None:
        """Free the session from limits that are meant for queries.

        Raises:
            MigrationFailed: A pooler stands between, which would hand them, and
                the lock, to strangers.
        """
        served_by = self.fetch("SELECT pg_backend_pid()")[0][0]
        if served_by != self.connection.info.backend_pid:
            message = (
                "migrations: the address leads to a connection pooler, which would "
                "hand the lock to strangers; set migrations.dsn to the server itself"
            )
            raise MigrationFailed(message)
        settings = dict(_SETTINGS)
        try:
            self._set(settings)
        except psycopg.DataError:  # an operating system without that check
            del settings["client_connection_check_interval"]
            self._set(settings)

    def _set(self, settings: Mapping[str, str]) -> None:
        """Set what this server knows of *settings*."""
        self.fetch(
            "SELECT set_config(s.name, v.value, false) FROM "
            "unnest(%s::text[], %s::text[]) AS v (name, value) "
            "JOIN pg_settings s ON s.name = v.name",
            list(settings),
            list(settings.values()),
        )

    def init_database(self) -> None:
        """Write nothing: a look at the state must not change the database."""

    def fetch(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Run a statement of our own and return its rows."""
        with contextlib.closing(cast("_Cursor", self.connection.cursor())) as cursor:
            cursor.quiet = False
            cursor.execute(sql, args or None)
            return cursor.fetchall() if cursor.description else []

    def execute(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
    ) -> _Cursor:
        """Run one of yoyo's own statements, whose rows it reads itself."""
        cursor = cast("_Cursor", self.connection.cursor())
        cursor.quiet = False
        text, values = change_param_style(self.driver.paramstyle, sql, params)
        cursor.execute(text, values)
        return cursor

    def interrupt(self) -> None:
        """End what runs, from another thread: wake the waiter, cancel the query."""
        self.stop.set()
        for _ in range(_CANCEL_TIMES):
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
            # One cancellation may arrive between two statements, and be lost.
            time.sleep(_CANCEL_AGAIN)
            if self.connection.closed:
                break

    def check_stop(self) -> None:
        """Raise if the caller was cancelled.

        Raises:
            MigrationStopped: ``interrupt()`` was called.
        """
        if self.stop.is_set():
            raise MigrationStopped

    def cursor(self) -> psycopg.Cursor[Any]:
        """Return a cursor, and report which statement it is about to run."""
        self.check_stop()
        if self.step_of is not None:
            name, total = self.step_of
            self.step += 1
            self.report("statement", name, self.step, total)
        return cast("psycopg.Cursor[Any]", self.connection.cursor())

    def commit(self) -> None:
        """Commit, unless the caller was cancelled meanwhile."""
        self.check_stop()
        super().commit()

    def rollback(self) -> None:
        """Roll back; a connection that broke has done so by itself."""
        if self.connection.closed:
            self._in_transaction = False
        else:
            super().rollback()

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
            with contextlib.suppress(psycopg.Error):
                self.fetch("RESET ALL")
                self.fetch("RESET ROLE")
                self.lift_limits()


@contextlib.contextmanager
def opened(
    kind: type[B],
    dsn: str,
    config: MigrationsConfig,
    *,
    password: str | None,
    stop: threading.Event,
    options: Mapping[str, str] | None = None,
) -> Iterator[B]:
    """Connect by a libpq address, and close at the end.

    Raises:
        ConfigurationInvalid: The address cannot be read.
        ConnectionFailed: No server answered, or the connection broke.
        MigrationFailed: The server refused a statement of our own.
    """
    args: dict[str, Any] = {"conninfo": dsn, **(options or {})}
    if password is not None:
        args["password"] = password
    address = yoyo.connections.DatabaseURI(
        "postgresql+fm", None, None, None, None, None, args
    )
    try:
        backend = kind(address)
    except psycopg.OperationalError as exc:
        raise _no_connection(dsn, exc) from exc
    except psycopg.ProgrammingError:
        # libpq quotes the address, password and all.
        raise ConfigurationInvalid(
            "migrations.dsn",
            f"{mask_dsn(dsn)!r} cannot be read as an address; write "
            "postgresql://user@host:5432/database",
        ) from None
    backend.stop = stop
    backend.lock_timeout = config.lock_timeout
    backend.wait_timeout = config.wait_timeout
    try:
        backend.check_stop()
        yield backend
    except psycopg.Error as exc:
        what = str(exc).strip()
        if is_broken(backend, exc):
            message = f"migrations: the connection broke ({what}); run it again"
            raise ConnectionFailed(message, sqlstate=exc.sqlstate) from exc
        message = f"migrations: {what}"
        if exc.sqlstate == _NO_PRIVILEGE:
            message += "; set migrations.dsn to a role that owns the schema"
        raise MigrationFailed(message, sqlstate=exc.sqlstate) from exc
    finally:
        backend.connection.close()


def _no_connection(dsn: str, exc: psycopg.OperationalError) -> StorageError:
    """Return the error for a failed login, in one line and worded as the pool's."""
    lines = [line.strip() for line in str(exc).splitlines()]
    reasons = [line for line in lines if "failed: " in line] or lines[:1]
    why = reasons[-1].rpartition("failed: ")[2].removeprefix("FATAL:").strip()
    # libpq has no SQLSTATE for an error before the login is complete.
    if _LOGIN_REFUSED.search(why):
        return PermissionDenied(
            f"{mask_dsn(dsn)}: {why}; check user and password, and what pg_hba.conf "
            "asks for",
            sqlstate=exc.sqlstate or "28000",
        )
    return ConnectionFailed(
        f"{mask_dsn(dsn)}: {why or 'no answer'}; is the server running, and is the "
        "address right?",
        sqlstate=exc.sqlstate,
    )


def is_broken(backend: OneConnection, exc: psycopg.Error) -> bool:
    """Whether *exc* means that the connection ended, not that a statement failed."""
    return backend.connection.closed or (exc.sqlstate or "").startswith(("08", "57P"))
