"""One migration file as one transaction, and what its statements may not be.

Apart from the backend, which owns the connection and the lock: here is the
order of events inside the transaction that makes a kill harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import psycopg
from psycopg import errors as pg
from yoyo.migrations import read_sql_migration

from fm_storage.errors import MigrationFailed
from fm_storage.migrate.connection import is_broken

if TYPE_CHECKING:
    from fm_storage.migrate.backend import FmStorageBackend

__all__ = [
    "EngineMigration",
    "failure",
    "run_as_one",
    "sql_statements",
    "without_comments",
]


class EngineMigration(Protocol):
    """What we use of yoyo's ``Migration``, which is published without types."""

    id: str
    hash: str
    path: str
    source_dir: str
    use_transactions: bool
    steps: Any

    def load(self) -> None:
        """Read the file."""

    def is_raw_sql(self) -> bool:
        """Tell SQL from Python."""
        ...

    def process_steps(self, backend: object, direction: str) -> None:
        """Run the steps in one (nested) transaction."""


_TRANSACTION = "SELECT pg_current_xact_id()::text"

# Leading comments only: what a statement is, its first words tell.
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_CONTROL = re.compile(
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|PREPARE\s+TRANSACTION"
    r"|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b",
    re.IGNORECASE,
)


def run_as_one(
    backend: FmStorageBackend,
    migration: EngineMigration,
    direction: str,
    record: Callable[[], None],
) -> None:
    """Run every step and *record* in one transaction, again while locks are held.

    Whatever instant the process dies at, either all of it happened or none.

    Raises:
        MigrationFailed: A statement failed; nothing of the file stays.
    """
    texts = sql_statements(migration, direction)
    for number, text in enumerate(texts or (), 1):
        _refuse_control(migration.id, number, text)
    total = len(migration.steps if texts is None else texts)

    def attempt() -> None:
        with backend.transaction():
            backend.fetch(
                "SELECT set_config('lock_timeout', %s, true)",
                f"{int(backend.lock_timeout * 1000)}ms",
            )
            before = None if texts else backend.fetch(_TRANSACTION)
            backend.step_of, backend.step = (migration.id, total), 0
            # A failure ends the whole file; only a Python step may outlive one.
            backend.has_savepoints = texts is None
            try:
                migration.process_steps(backend, direction)
            except psycopg.Error as exc:
                if isinstance(exc, backend.retried) or is_broken(backend, exc):
                    raise
                raise failure(migration.id, exc, step=backend.step) from exc
            finally:
                backend.step_of = None
                backend.has_savepoints = True
            # A Python step that committed has torn the mark from the changes.
            if before is not None and backend.fetch(_TRANSACTION) != before:
                message = (
                    f"migration {migration.id!r}: a step ended the transaction; "
                    "leave commit and rollback to the runner"
                )
                raise MigrationFailed(message, migration=migration.id)
            backend.fetch("RESET ROLE")
            record()

    try:
        backend.retrying(migration.id, attempt)
    finally:
        backend.reset()


def sql_statements(migration: EngineMigration, direction: str) -> list[str] | None:
    """Return the statements of an SQL file in order, or None for Python."""
    if not migration.is_raw_sql():
        return None
    path = migration.path
    if direction == "rollback":
        path = path.removesuffix(".sql") + ".rollback.sql"
    return cast("list[str]", read_sql_migration(path)[2])


def without_comments(text: str) -> str:
    """Return a statement from its first word on."""
    found = _COMMENTS.match(text)
    return text[found.end() :] if found else text


def failure(name: str, exc: psycopg.Error, *, step: int = 0) -> MigrationFailed:
    """Tell what the server said, at which statement, and what to do about it."""
    said = (exc.diag.message_primary or str(exc)).strip()
    remedy = "mend the file and run it again; nothing of it was kept"
    if isinstance(exc, pg.ActiveSqlTransaction):
        remedy = "add the line '-- transactional: false' at the top of the file"
    elif isinstance(exc, pg.InsufficientPrivilege):
        remedy = "set migrations.dsn to a role that owns the schema"
    where = f"statement {step}: " if step else ""
    return MigrationFailed(
        f"migration {name!r}: {where}{said}; {remedy}",
        migration=name,
        sqlstate=exc.sqlstate,
    )


def _refuse_control(name: str, number: int, text: str) -> None:
    if match := _CONTROL.match(without_comments(text)):
        message = (
            f"migration {name!r}: statement {number} is {match.group(1).upper()}, "
            "but the runner opens and commits the transaction; remove it, or mark "
            "the file '-- transactional: false'"
        )
        raise MigrationFailed(message, migration=name)
