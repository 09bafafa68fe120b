"""Which migrations a call runs, decided under the lock.

Separate from the runner because it loads the engine: the order comes from yoyo's own
sort, over exactly the files that were compared with the record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from yoyo.exceptions import BadMigration
from yoyo.migrations import Migration
from yoyo.topologicalsort import CycleError, topological_sort

from fm_storage.errors import MigrationFailed
from fm_storage.migrate.backend import (
    FmStorageBackend,
    refuse_without_rollback,
    release,
)
from fm_storage.migrate.drift import (
    MigrationState,
    MigrationStatus,
    compare,
    refuse_drift,
    refuse_held,
    settled,
    tolerating_the_end,
)
from fm_storage.migrate.files import (
    MigrationFile,
    Source,
    is_python,
    read_text,
)
from fm_storage.migrate.planned import PlannedMigration

Check = Callable[[Sequence[MigrationStatus]], Sequence[MigrationStatus]]

# yoyo resolves "depends" through one table per process; two threads that load
# folders with equal names would be given each other's migrations.
_loading = threading.Lock()

_SHOWN = 20
"""How many names a message lists."""


def apply(
    backend: FmStorageBackend,
    sources: Sequence[Source],
    files: Sequence[MigrationFile],
    to: str | None,
    *,
    dry_run: bool,
    automatic: bool,
) -> list[PlannedMigration]:
    """Apply the pending files up to *to*, or return which they are.

    Raises:
        SchemaOutOfDate: A start would apply what was rolled back on purpose.
    """
    tolerate: Check = tolerating_the_end if automatic else list
    if dry_run:
        pending = _pending(backend, sources, files, to, tolerate)
        return [_planned(file) for file, _ in pending]
    done = []
    with backend.lock():
        pending = _pending(backend, sources, files, to, tolerate)
        if automatic:
            refuse_held([file for file, _ in pending], backend.read_record())
        for file, migration in pending:
            started = time.monotonic()
            backend.apply_one(migration)
            done.append(_planned(file, time.monotonic() - started))
        if done:
            for hook in _post_apply(sources):
                backend.apply_one(hook, mark=False)
        if not automatic:
            backend.release_holds()
    return done


def rollback(
    backend: FmStorageBackend,
    sources: Sequence[Source],
    files: Sequence[MigrationFile],
    steps: int,
    *,
    dry_run: bool,
) -> list[PlannedMigration]:
    """Undo the last *steps* migrations of *sources*, newest first."""
    done = []
    with backend.lock():
        sources, files, record = settled(sources, files, backend.read_applied())
        by_id = {file.id: file for file in files}
        names = {source.name for source in sources}
        last = [
            row for row in reversed(record) if row.id in by_id or row.source in names
        ][:steps]
        for row in last:
            if row.id not in by_id:
                message = (
                    f"migration {row.id!r}: its file is gone, and with it the way to "
                    "undo it; restore it"
                )
                raise MigrationFailed(message, migration=row.id)
            refuse_without_rollback(by_id[row.id])
        migrations = _load(files)
        for row in last:
            file, started = by_id[row.id], time.monotonic()
            sql = file.read() if is_python(file.path) else read_text(file.rollback_path)
            if dry_run:
                done.append(PlannedMigration(file.id, file.source, sql))
                continue
            backend.rollback_one(migrations[row.id])
            seconds = time.monotonic() - started
            done.append(PlannedMigration(file.id, file.source, sql, seconds))
    return done


def baseline(
    backend: FmStorageBackend,
    sources: Sequence[Source],
    files: Sequence[MigrationFile],
    to: str | None,
) -> list[str]:
    """Record the pending files up to *to* without running them."""
    backend.ensure_internal_schema_updated()
    with backend.lock():
        pending = _pending(backend, sources, files, to, list)
        with backend.transaction():
            for _, migration in pending:
                backend.mark_one(migration)
            backend.release_holds()
    return [file.id for file, _ in pending]


def _pending(
    backend: FmStorageBackend,
    sources: Sequence[Source],
    files: Sequence[MigrationFile],
    to: str | None,
    tolerate: Check,
) -> list[tuple[MigrationFile, Any]]:
    """Return pending files in order, each with yoyo's view of it.

    Raises:
        MigrationFailed: Drift, a circle of dependencies, or no such *to*.
    """
    sources, files, record = settled(sources, files, backend.read_applied())
    statuses = compare(
        files,
        record,
        release=release,
        sources=[source.name for source in sources],
    )
    refuse_drift(tolerate(statuses))
    pending = {s.id for s in statuses if s.state is MigrationState.PENDING}
    by_id = {file.id: file for file in files}
    ordered = [(by_id[name], m) for name, m in _load(files).items()]
    if to is not None:
        ordered = _up_to(ordered, to)
    return [(file, m) for file, m in ordered if file.id in pending]


def _up_to(
    ordered: list[tuple[MigrationFile, Any]], to: str
) -> list[tuple[MigrationFile, Any]]:
    """Return the migrations as far as *to*: a name, a number, or a name's beginning.

    Raises:
        MigrationFailed: It is none of theirs, or that of several; they are named.
    """
    names = [file.id for file, _ in ordered]
    to = str(to)  # a number is often given as one
    number = int(to) if to.isdecimal() else None
    readings = (
        [name for name in names if name == to],
        [name for name in names if name.rpartition(":")[2] == to],
        [name for name in names if number is not None and _number(name) == number],
        [name for name in names if to and name.startswith(to)],
    )
    meant = next(filter(None, readings), [])
    if len(meant) == 1:
        return ordered[: names.index(meant[0]) + 1]
    if meant:
        message = f"migrations: {to!r} may be {_listed(meant)}; give the whole name"
    else:
        message = f"migrations: {to!r} is no migration; give one of {_listed(names)}"
    raise MigrationFailed(message, migration=to)


def _number(name: str) -> int | None:
    digits = name.rpartition(":")[2].partition("_")[0]
    return int(digits) if digits.isdecimal() else None


def _listed(names: Sequence[str]) -> str:
    """Return *names*, of many the newest, as they are shown in a message."""
    left_out = len(names) - _SHOWN
    shown = ", ".join(names[-_SHOWN:])
    return f"{shown} (and {left_out} before them)" if left_out > 0 else shown


def _load(files: Sequence[MigrationFile]) -> dict[str, Any]:
    """Return yoyo's migrations in the order to apply them, loaded."""
    with _loading:
        migrations = [
            Migration(file.id, str(file.path), source_dir=file.source) for file in files
        ]
        for migration, file in zip(migrations, files, strict=True):
            migration.file = file
        try:
            by_id = {migration.id: migration for migration in migrations}
            needs = {
                # Only Python is read by yoyo, which knows no byte order mark.
                migration: migration.depends
                if is_python(file.path)
                else {by_id[name] for name in file.depends}
                for migration, file in zip(migrations, files, strict=True)
            }
            ordered = list(topological_sort(migrations, needs))
        except BadMigration as exc:
            message = f"migrations: {exc.args[0]} could not be read; correct the file"
            raise MigrationFailed(message) from exc
        except CycleError as exc:
            names = [migration.id for migration in exc.args[1]]
            circle = ", ".join(names) + " wait for each other"
            if len(set(names)) == 1:
                circle = f"{names[0]} depends on itself"
            message = f"migrations: {circle}; correct '-- depends:'"
            raise MigrationFailed(message) from exc
    return {migration.id: migration for migration in ordered}


def _post_apply(sources: Sequence[Source]) -> list[Any]:
    """Return yoyo's hooks that run after every batch that applied something."""
    return [
        Migration(path.stem, str(path), source_dir=source.name)
        for source in sources
        for path in sorted(source.folder.glob("post-apply*"))
        if path.suffix in {".sql", ".SQL", ".py"}
        and not path.name.lower().endswith(".rollback.sql")
    ]


def _planned(file: MigrationFile, seconds: float | None = None) -> PlannedMigration:
    return PlannedMigration(file.id, file.source, file.read(), seconds)
