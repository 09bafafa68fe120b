"""Migration files that cannot be one transaction, resumable after any kill.

``CREATE INDEX CONCURRENTLY`` and its like commit in the middle of themselves. So
each statement has a row in ``fm_storage.migration_steps``: written in the
statement's own transaction where it can have one, else before it (intent) and
after it (done), so that a later run knows what to look at in the catalogue.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from yoyo.migrations import read_sql_migration

from fm_storage.errors import MigrationFailed, QueryFailed, StorageError
from fm_storage.migrate.connection import OneConnection
from fm_storage.migrate.statements import (
    IN_A_TRANSACTION,
    PASSED_ON,
    EngineMigration,
    failure,
    sql_path,
    sql_statements,
)
from fm_storage.postgres.pool.schema import NOTIFY

_NAME = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_QUALIFIED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_CREATE_INDEX = re.compile(
    rf"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    rf"(?:(?!ON\b)(?P<name>{_NAME})\s+)?ON\s+(?:ONLY\s+)?(?P<table>{_QUALIFIED})",
    re.IGNORECASE,
)
_DROP_INDEX = re.compile(
    rf"\s*DROP\s+INDEX\s+CONCURRENTLY\s+(?:IF\s+EXISTS\s+)?(?P<index>{_QUALIFIED})\s*"
    r"(?:RESTRICT\s*)?;?\s*$",
    re.IGNORECASE,
)
_REINDEX = re.compile(
    rf"\s*REINDEX\s+(?:\([^)]*\)\s*)?(?P<kind>INDEX|TABLE)\s+CONCURRENTLY\s+"
    rf"(?P<target>{_QUALIFIED})",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?:SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|RESET\b"
    r"|SELECT\s+(?:pg_catalog\s*\.\s*)?set_config\s*\()",
    re.IGNORECASE,
)
"""Statements that hold for the session, so that each run repeats them."""
_NOT_IN_A_TRANSACTION = {IN_A_TRANSACTION, "2D000"}


def run_in_pieces(
    backend: OneConnection,
    migration: EngineMigration,
    direction: str,
    record: Callable[[], None],
) -> None:
    """Run the statements one by one behind those an earlier run has done.

    Raises:
        MigrationFailed: A statement failed; those before it stay, and the next
            run goes on with it.
    """
    _Run(backend, migration, direction).run(record)


class _Run:
    """One run through one file in one direction."""

    def __init__(
        self,
        backend: OneConnection,
        migration: EngineMigration,
        direction: str,
    ) -> None:
        self.backend = backend
        self.id = str(migration.id)
        self.direction = direction
        self.bare = False  # whether the statement runs outside a transaction
        self.steps = _pieces(backend, migration, direction)
        for number, (text, _) in enumerate(self.steps, 1):
            _refuse_unnamed(self.id, number, text)

    def run(self, record: Callable[[], None]) -> None:
        try:
            self._all()
        finally:
            # What the file sets holds for the whole file, as in psql.
            self.backend.reset()
        with self.backend.transaction():
            record()
            self.backend.fetch(
                "DELETE FROM fm_storage.migration_steps WHERE migration_id = $1",
                self.id,
            )

    def _all(self) -> None:
        for step, (text, execute) in enumerate(self.steps):
            self.bare = False
            self.backend.check_stop()
            self.backend.report("statement", self.id, step + 1, len(self.steps))
            try:
                self._one(step, text, execute)
            except PASSED_ON:
                raise
            except Exception as exc:  # what stayed is noted first
                kept = self._what_is_kept(step, text)
                raise failure(self.id, exc, step=step + 1, kept=kept) from exc

    def _what_is_kept(self, step: int, text: str) -> str:
        """Return what stays of the file after statement *step* has failed."""
        kept = f"run it again; it goes on with statement {step + 1}"
        if step:
            kept += f", what stands before it stays ({step} done)"
        if self.bare:
            kept += ", and so does what the statement committed by itself"
        match = _CREATE_INDEX.match(text)
        with contextlib.suppress(StorageError):
            state = _index_state(self.backend, match) if match else None
            if state is not None and not state[1]:
                kept += f"; until then {state[0]} is there, an INVALID index"
        return kept

    def _one(self, step: int, text: str, execute: Callable[[], object]) -> None:
        if _SETTING.match(text):
            execute()  # in every run, also one that goes on behind it
            return
        digest = _digest(text)
        rows = self._as_ourselves(
            "SELECT done, checksum FROM fm_storage.migration_steps "
            "WHERE migration_id = $1 AND direction = $2 AND step = $3",
            self.id,
            self.direction,
            step,
        )
        if rows and rows[0][0]:
            if rows[0][1] != digest:
                message = (
                    f"migration {self.id!r}: statement {step + 1} was edited after "
                    "it had run; restore it and put the change into a new migration"
                )
                raise MigrationFailed(message, migration=self.id)
            return
        intent = bool(rows)
        if not intent:
            try:
                self.backend.retrying(
                    self.id, lambda: self._in_transaction(step, digest, execute)
                )
            except QueryFailed as exc:
                if exc.sqlstate not in _NOT_IN_A_TRANSACTION:
                    raise
            else:
                return
        self._note(step, digest, done=False)

        resumed = intent

        def attempt() -> None:
            nonlocal resumed
            # After an interruption, or a deadlock, the catalogue shows what is there.
            if resumed and self._finished(text):
                return
            resumed = True
            self._bare(text, execute)

        self.backend.retrying(self.id, attempt)
        _refuse_invalid(self.backend, self.id, text)
        self._note(step, digest, done=True)

    def _in_transaction(
        self, step: int, digest: str, execute: Callable[[], object]
    ) -> None:
        with self.backend.transaction():
            self.backend.limit_locks()
            execute()
            self._note(step, digest, done=True)

    def _bare(self, text: str, execute: Callable[[], object]) -> None:
        # These waits block no reader, and giving up would leave an INVALID index.
        waits_harmlessly = re.search(
            r"\b(?:CONCURRENTLY|VACUUM)\b", text, re.IGNORECASE
        )
        self.bare = True
        self.backend.limit_locks(local=False, seconds=0.0 if waits_harmlessly else None)
        execute()

    def _note(self, step: int, digest: str, *, done: bool) -> None:
        self._as_ourselves(
            "INSERT INTO fm_storage.migration_steps "
            "(migration_id, direction, step, checksum, done) "
            "VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT (migration_id, direction, step) DO UPDATE "
            "SET checksum = excluded.checksum, done = excluded.done",
            self.id,
            self.direction,
            step,
            digest,
            done,
        )
        if done:
            self.backend.fetch(NOTIFY)

    def _as_ourselves(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Read or write a mark with our own role, whatever the file has set."""
        with self.backend.transaction():
            self.backend.connection.run("SET LOCAL ROLE NONE")
            return self.backend.fetch(sql, *args)

    def _finished(self, text: str) -> bool:
        """Whether an interrupted statement had happened; clear away its ruins."""
        if match := _CREATE_INDEX.match(text):
            state = _index_state(self.backend, match)
            if state is None:
                return False
            name, valid = state
            if not valid:
                self.backend.report("invalid index", name, 0, 0)
                self.backend.connection.run(f"DROP INDEX CONCURRENTLY {name}")
            return valid
        if match := _DROP_INDEX.match(text):
            rows = self.backend.fetch(
                "SELECT to_regclass($1) IS NULL", match.group("index")
            )
            return bool(rows[0][0])
        if match := _REINDEX.match(text):
            for (name,) in self.backend.fetch(
                "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i "
                "JOIN pg_class c ON c.oid = i.indexrelid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$' "
                "AND i.indrelid = coalesce((SELECT indrelid FROM pg_index "
                "WHERE indexrelid = to_regclass($1)), to_regclass($1))",
                match.group("target"),
            ):
                self.backend.report("invalid index", name, 0, 0)
                self.backend.connection.run(f"DROP INDEX CONCURRENTLY {name}")
        return False


def _pieces(
    backend: OneConnection,
    migration: EngineMigration,
    direction: str,
) -> list[tuple[str, Callable[[], object]]]:
    texts = sql_statements(migration, direction)
    if texts is not None:
        marks = dict(
            backend.fetch(
                "SELECT step, checksum FROM fm_storage.migration_steps "
                "WHERE migration_id = $1 AND direction = $2",
                migration.id,
                direction,
            )
        )
        if not _fit(marks, texts):
            old = _split_before_0_2(migration, direction)
            texts = old if _fit(marks, old) else texts
        return [(text, partial(backend.run, text)) for text in texts]
    steps = migration.steps if direction == "apply" else migration.steps[::-1]
    return [
        (f"step {n}", partial(getattr(step, direction), backend))
        for n, step in enumerate(steps)
    ]


def _fit(marks: Mapping[int, str], texts: Sequence[str]) -> bool:
    """Whether the marks of an interrupted run are those of these statements."""
    digests = dict(enumerate(map(_digest, texts)))
    return marks.items() <= digests.items()


def _split_before_0_2(migration: EngineMigration, direction: str) -> list[str]:
    """Split as releases before 0.2 did, which an interrupted run may go back to."""
    statements: list[str] = read_sql_migration(str(sql_path(migration, direction)))[2]
    return statements


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_unnamed(name: str, number: int, text: str) -> None:
    match = _CREATE_INDEX.match(text)
    if match and match.group("name") is None:
        message = (
            f"migration {name!r}: statement {number} builds an index without a name; "
            "name it, so that an interrupted build can be found and dropped"
        )
        raise MigrationFailed(message, migration=name)


def _index_state(
    backend: OneConnection, match: re.Match[str]
) -> tuple[str, bool] | None:
    """Return the quoted name of the index, and whether it is valid."""
    rows = backend.fetch(
        "SELECT format('%I.%I', n.nspname, c.relname), i.indisvalid "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE i.indrelid = to_regclass($1) AND c.relname = (parse_ident($2))[1]",
        match.group("table"),
        match.group("name"),
    )
    return (rows[0][0], rows[0][1]) if rows else None


def _refuse_invalid(backend: OneConnection, name: str, text: str) -> None:
    match = _CREATE_INDEX.match(text)
    state = _index_state(backend, match) if match else None
    if state is not None and not state[1]:
        message = (
            f"migration {name!r}: index {state[0]} is INVALID, left by someone else; "
            "drop it and run again"
        )
        raise MigrationFailed(message, migration=name)
