"""The statements of a migration file, and a file that runs as one transaction.

The order of events inside the transaction makes a kill harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fm_storage.errors import (
    ConnectionFailed,
    InvalidRecord,
    MigrationFailed,
    PermissionDenied,
    QueryFailed,
)
from fm_storage.migrate.connection import OneConnection
from fm_storage.migrate.driver import (
    MigrationStopped,
    copies_through_client,
    reason,
)
from fm_storage.migrate.files import is_python, read_text, rollback_path
from fm_storage.postgres.tokens import split, tokens


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
        """Whether the file is SQL, not Python."""
        ...

    def process_steps(self, backend: object, direction: str) -> None:
        """Run the steps in one (nested) transaction."""


IN_A_TRANSACTION = "25001"
_ALONE = frozenset({IN_A_TRANSACTION, "55P04"})
"""Not possible in a transaction; not possible in that which added the enum value."""
_THERE_ALREADY = frozenset({"42P07", "42710", "42P06", "42701", "42723"})
"""A table, object, schema, column or function of that name exists."""
PASSED_ON = (ConnectionFailed, MigrationFailed, MigrationStopped)
"""Errors that no statement of a file is to blame for, or that name it already."""

_TRANSACTION = "SELECT pg_current_xact_id()::text"

_CONTROL = re.compile(
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|PREPARE\s+TRANSACTION"
    r"|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b",
    re.IGNORECASE,
)


def run_as_one(
    backend: OneConnection,
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

    def attempt() -> None:
        try:
            _in_one_transaction(backend, migration, direction, texts, record)
        except QueryFailed as exc:  # at COMMIT: constraints that were deferred
            if isinstance(exc, backend.retried):
                raise
            raise failure(migration.id, exc) from exc

    try:
        backend.retrying(migration.id, attempt)
    finally:
        backend.reset()


def _in_one_transaction(
    backend: OneConnection,
    migration: EngineMigration,
    direction: str,
    texts: Sequence[str] | None,
    record: Callable[[], None],
) -> None:
    total = len(migration.steps if texts is None else texts)
    with backend.transaction():
        backend.limit_locks()
        before = backend.fetch(_TRANSACTION) if texts is None else None
        backend.step_of, backend.step = (migration.id, total), 0
        # A failure ends the whole file; only a Python step may outlive one.
        backend.has_savepoints = texts is None
        try:
            if texts is None:
                migration.process_steps(backend, direction)
            for text in texts or ():
                backend.run(text)
        except (*backend.retried, *PASSED_ON):
            raise
        except Exception as exc:  # named with its file
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
        backend.connection.run("RESET ROLE")
        record()


def sql_statements(migration: EngineMigration, direction: str) -> list[str] | None:
    """Return the statements of an SQL file in order, or None for Python.

    Raises:
        MigrationFailed: A string, a quoted name or a comment does not end.
    """
    path = sql_path(migration, direction)
    if path is None:
        return None
    try:
        texts = split(
            read_text(path) if path.exists() else "",
            owner=f"migration {migration.id!r}",
        )
    except InvalidRecord as exc:
        raise MigrationFailed(str(exc), migration=migration.id) from None
    for number, text in enumerate(texts, 1):
        if why := _refused(text):
            raise MigrationFailed(
                f"migration {migration.id!r}: statement {number} {why}",
                migration=migration.id,
            )
    return texts


def sql_path(migration: EngineMigration, direction: str) -> Path | None:
    """Return the SQL file for one direction, or None for Python."""
    path = Path(migration.path)
    if is_python(path):
        return None
    return rollback_path(path) if direction == "rollback" else path


def failure(
    name: str,
    exc: Exception,
    *,
    step: int = 0,
    kept: str | None = None,
) -> MigrationFailed:
    """Return the server's message, the statement it is about, and the remedy.

    An error that is not the server's comes from a step in Python.

    Args:
        name: The migration.
        exc: The error.
        step: Number of the statement; 0 is COMMIT.
        kept: What becomes of a file that is not one transaction.
    """
    again = kept or "run it again; nothing of it was kept"
    if not isinstance(exc, QueryFailed):
        return MigrationFailed(
            f"migration {name!r}: its Python code failed "
            f"({type(exc).__name__}: {exc}); correct the file and {again}",
            migration=name,
        )
    remedy = f"correct the file and {again}"
    if exc.sqlstate in _ALONE and kept is None:
        remedy = "add the line '-- transactional: false' at the top of the file"
    elif exc.sqlstate in _THERE_ALREADY:
        remedy = (
            "if it is what the file would make, record the file with 'fm-storage "
            f"migrate baseline --to {name}'; else {remedy}"
        )
    elif isinstance(exc, PermissionDenied):
        remedy = "set migrations.dsn to a role that owns the schema"
    where = f"statement {step}: " if step else "at COMMIT: "
    return MigrationFailed(
        f"migration {name!r}: {where}{reason(exc)}; {remedy}",
        migration=name,
        sqlstate=exc.sqlstate,
    )


def _refused(text: str) -> str:
    """Return why a statement cannot be run in a migration, or ""."""
    if copies_through_client(text):
        return (
            "is COPY from or to the client, which sends nothing in a migration; use "
            "INSERT, or COPY with a file on the server"
        )
    if match := _CONTROL.match(text):
        return (
            f"is {match[1].upper()}, but the runner commits: the whole file, or with "
            "'-- transactional: false' each statement; remove it"
        )
    if any(token.text == "\\" for token in tokens(text)):
        return "has a command of psql (\\ …), which no server knows; take it out"
    return ""
