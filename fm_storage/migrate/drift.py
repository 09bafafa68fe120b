"""Files compared with the record: what is pending, and what no longer fits.

Pure, so that every way in which the two can disagree is decided, and tested,
without a server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from fm_storage.errors import MigrationFailed, SchemaOutOfDate
from fm_storage.migrate.files import PROJECT, MigrationFile, Source
from fm_storage.migrate.ledger import Applied, held_sources


class MigrationState(StrEnum):
    """How a migration's file and the database's record of it stand."""

    APPLIED = "applied"
    PENDING = "pending"
    EDITED = "edited"
    RENAMED = "renamed"
    DELETED = "deleted"
    OUT_OF_ORDER = "out-of-order"
    NEWER = "newer"
    FOREIGN = "foreign"

    @property
    def drifted(self) -> bool:
        """Whether nothing is applied until someone has put it right."""
        return self in _DRIFT


_KNOWN = frozenset(
    {MigrationState.APPLIED, MigrationState.PENDING, MigrationState.EDITED}
)
_DRIFT = frozenset(
    {
        MigrationState.EDITED,
        MigrationState.RENAMED,
        MigrationState.DELETED,
        MigrationState.OUT_OF_ORDER,
    }
)


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration, as its file and the database see it.

    Attributes:
        id: File name without its ending.
        state: ``pending``, ``applied``; one of the drifts ``edited``, ``renamed``,
            ``deleted``, ``out-of-order``; ``newer`` (a later release of fm_storage
            applied it; this one can live with it); ``foreign`` (from a source that
            is not configured here).
        source: Folder or package it comes from.
        applied_at: When it was applied, None if it was not.
        applied_by: The role that applied it.
        detail: For a drift: what is wrong, since when, and the remedy.
    """

    id: str
    state: MigrationState
    source: str
    applied_at: datetime | None = None
    applied_by: str | None = None
    detail: str = ""

    @property
    def applied(self) -> bool:
        """Whether the database has it."""
        return self.applied_at is not None


def compare(
    files: Sequence[MigrationFile],
    applied: Sequence[Applied],
    *,
    release: Callable[[], str],
    sources: Collection[str] | None = None,
) -> list[MigrationStatus]:
    """Return how every file and every applied migration stands.

    Args:
        files: All files of the sources.
        applied: The whole record, in order of application.
        release: Returns the running version of fm_storage; called if it matters.
        sources: Names of the sources, also of those without files.

    Returns:
        Applied migrations in order of application, then the files that were not,
        in the order given.
    """
    by_id = {file.id: file for file in files}
    here = {file.source for file in files} | set(sources or ())
    recorded = {row.id for row in applied}
    unknown = [row for row in applied if row.id not in by_id and row.source in here]
    fresh = {file.checksum: file for file in files if file.id not in recorded}
    renamed = {row.id: fresh[row.checksum] for row in unknown if row.checksum in fresh}
    result = [
        _of_applied(row, by_id.get(row.id), renamed.get(row.id), here, release)
        for row in applied
    ]
    old_names = {file.id: old for old, file in renamed.items()}
    last = {
        source: max(
            (row.id for row in applied if row.source == source), key=bare, default=""
        )
        for source in here
    }
    for file in files:
        if file.id in recorded:
            continue
        if file.id in old_names:
            state, detail = MigrationState.RENAMED, f"was {old_names[file.id]!r}"
        elif bare(file.id) < bare(last[file.source]):
            state = MigrationState.OUT_OF_ORDER
            detail = (
                f"comes before {last[file.source]!r}, which is applied; give it a "
                "later number"
            )
        else:
            state, detail = MigrationState.PENDING, ""
        result.append(MigrationStatus(file.id, state, file.source, detail=detail))
    return result


def bare(name: str) -> str:
    """Return an identifier without the name of its source: files sort by that."""
    return name.rpartition(":")[2]


def settled(
    sources: Sequence[Source],
    files: Sequence[MigrationFile],
    record: Sequence[Applied],
) -> tuple[list[Source], list[MigrationFile], list[Applied]]:
    """Tell these sources from those of other applications in the same database.

    A folder whose files have nothing in common with what is recorded under its name
    is another application's folder of that name, and gets a name of its own; so does
    an identifier that another source has. A source that was given a name takes over
    what was recorded before it had one.

    Returns:
        Sources, files and record, with those names.
    """
    record, found = list(record), list(files)
    result = []
    for source in sources:
        mine = [file for file in found if file.source == source.name]
        sums = {file.checksum for file in mine}
        here = {each.name for each in sources}
        if source.named:
            former = {r.source for r in record if r.checksum in sums} - here
            record = [_taken_over(row, source, former) for row in record]
        elif mine and source.name != PROJECT and "package:" not in source.name:
            name = _own_name(source.name, mine, record)
            refuse_without_name(mine, [row for row in record if row.source != name])
            # A source that holds one of our files is ours under a former name.
            former = {row.source for row in record if row.checksum in sums}
            others = {row.id for row in record if row.source not in {name, *former}}
            recorded = {row.id for row in record}
            ids = {
                file.id: longer
                for file in mine
                if (longer := f"{name}:{file.id}") in recorded or file.id in others
            }
            found = [
                replace(
                    file,
                    id=ids[file.id] if file in mine and file.id in ids else file.id,
                    source=name if file in mine else file.source,
                    depends=tuple(ids.get(each, each) for each in file.depends),
                )
                for file in found
            ]
            result.append(replace(source, name=name))
            continue
        result.append(source)
    return result, found, record


def refuse_without_name(
    files: Sequence[MigrationFile], record: Sequence[Applied]
) -> None:
    """Refuse to apply again what was applied when its source had a name.

    Raises:
        MigrationFailed: Names the migration as it is recorded.
    """
    recorded = {row.id for row in record}
    for file in files:
        for row in record:
            known = row.source == file.source or file.id in recorded
            is_it = row.checksum == file.checksum and not known
            if is_it and row.id == f"{row.source}:{file.id}":
                raise MigrationFailed(
                    f"migration {file.id!r}: it is applied as {row.id!r}; give its "
                    "source that name in migrations.sources and run 'fm-storage "
                    "migrate', or another name if it is another application's",
                    migration=file.id,
                )


def _own_name(
    name: str, mine: Sequence[MigrationFile], record: Sequence[Applied]
) -> str:
    """Return the name under which *mine* are recorded, or the first free one."""
    names = {file.id for file in mine}
    sums = {file.checksum for file in mine}
    free = ""
    for number in range(1, len(record) + 2):
        candidate = name if number == 1 else f"{name}#{number}"
        rows = [row for row in record if row.source == candidate]
        if any(bare(row.id) in names or row.checksum in sums for row in rows):
            return candidate
        if not rows and not free:
            free = candidate
    return free


def _taken_over(
    row: Applied, source: Source, former: Collection[str | None]
) -> Applied:
    if row.source not in former or row.source == PROJECT:
        return row
    return replace(row, id=f"{source.name}:{row.id}", source=source.name)


def _of_applied(
    row: Applied,
    file: MigrationFile | None,
    new_name: MigrationFile | None,
    here: Collection[str],
    release: Callable[[], str],
) -> MigrationStatus:
    state, detail = MigrationState.APPLIED, ""
    since = f"applied {row.applied_at:%Y-%m-%d %H:%M:%S %Z} by {row.applied_by}"
    if file is not None:
        if row.checksum is not None and row.checksum != file.checksum:
            state = MigrationState.EDITED
            changed = datetime.fromtimestamp(
                file.path.stat().st_mtime, tz=row.applied_at.tzinfo
            )
            detail = (
                f"{since}, file changed {changed:%Y-%m-%d %H:%M:%S %Z}; restore the "
                "file and put the change into a new migration"
            )
    elif new_name is not None:
        state = MigrationState.RENAMED
        detail = f"{since}, the file is now {new_name.id!r}; give it its old name back"
    elif row.source not in here:
        state, detail = MigrationState.FOREIGN, f"{since}, from {row.source}"
    elif row.source == PROJECT and _is_later(row.release, release()):
        state = MigrationState.NEWER
        detail = f"{since} with fm_storage {row.release}, this is {release()}"
    else:
        state = MigrationState.DELETED
        detail = f"{since}, its file is gone; restore it"
    return MigrationStatus(
        row.id,
        state,
        row.source or "",
        applied_at=row.applied_at,
        applied_by=row.applied_by,
        detail=detail,
    )


def _is_later(release: str | None, than: str) -> bool:
    return release is not None and _numbers(release) > _numbers(than)


def _numbers(release: str) -> tuple[int, ...]:
    parts = []
    for part in release.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def refuse_drift(statuses: Sequence[MigrationStatus]) -> None:
    """Raise if any migration drifted.

    Raises:
        MigrationFailed: Names each, with the time and the remedy.
    """
    drifted = [status for status in statuses if status.state.drifted]
    if not drifted:
        return
    reasons = "; ".join(
        f"{status.id!r} is {status.state} ({status.detail})" for status in drifted
    )
    message = f"migrations: the files and the database disagree: {reasons}"
    raise MigrationFailed(message, migration=drifted[0].id)


def refuse_held(
    pending: Sequence[MigrationFile | MigrationStatus], record: Sequence[Applied]
) -> None:
    """Raise if a start would apply what somebody has rolled back.

    Raises:
        SchemaOutOfDate: Names all that is pending.
    """
    held = held_sources(record)
    if any(each.source in held for each in pending):
        raise SchemaOutOfDate([each.id for each in pending], rolled_back=True)


def tolerating_the_end(
    statuses: Sequence[MigrationStatus],
) -> list[MigrationStatus]:
    """Leave out deleted ones behind all that are known: another release's, likely.

    A rolling deployment starts old processes on the new schema; an explicit
    ``apply()`` is stricter.
    """
    known = {
        source: max(
            bare(s.id) for s in statuses if s.source == source and s.state in _KNOWN
        )
        for source in {s.source for s in statuses if s.state in _KNOWN}
    }
    return [
        status
        for status in statuses
        if status.state is not MigrationState.DELETED
        or bare(status.id) < known.get(status.source, "")
    ]
