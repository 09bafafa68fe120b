"""Files against the record: every way in which they can disagree."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fm_storage.errors import MigrationFailed
from fm_storage.migrate import MigrationState, MigrationStatus
from fm_storage.migrate.drift import compare, refuse_drift
from fm_storage.migrate.files import PROJECT, MigrationFile
from fm_storage.migrate.ledger import Applied

_WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _file(name: str, checksum: str = "", source: str = "app") -> MigrationFile:
    path = Path(os.devnull)
    return MigrationFile(name, path, source, checksum or name, (), True)


def _row(
    name: str,
    checksum: str | None = "",
    source: str | None = "app",
    release: str = "1.2.0",
) -> Applied:
    known = name if checksum == "" else checksum
    return Applied(name, known, source, release, _WHEN, "bob", 1)


def _states(
    files: list[MigrationFile], rows: list[Applied], release: str = "1.2.0"
) -> dict[str, str]:
    found = compare(files, rows, release=lambda: release, sources=["app", PROJECT])
    return {status.id: str(status.state) for status in found}


def test_what_fits_is_applied_and_the_rest_pending():
    """Applied ones come first, in their order; pending ones follow."""
    assert _states([_file("1"), _file("2")], [_row("1")]) == {
        "1": "applied",
        "2": "pending",
    }


def test_edited():
    """Another checksum than the recorded one."""
    assert _states([_file("1", "new")], [_row("1", "old")]) == {"1": "edited"}


def test_a_record_without_checksum_is_believed():
    """Marked by an older tool: nothing to compare with."""
    assert _states([_file("1")], [_row("1", None)]) == {"1": "applied"}


def test_renamed_is_reported_on_both_names():
    """The same content under a name that was never applied."""
    assert _states([_file("1_new", "same")], [_row("1_old", "same")]) == {
        "1_old": "renamed",
        "1_new": "renamed",
    }


def test_deleted():
    """Applied, of a source that is here, and no file."""
    assert _states([_file("2")], [_row("1"), _row("2")])["1"] == "deleted"


def test_out_of_order_within_one_source_only():
    """A late lower number is refused; another source has its own order."""
    files = [_file("1"), _file("2"), _file("0", source="other")]
    assert _states(files, [_row("2")]) == {
        "2": "applied",
        "1": "out-of-order",
        "0": "pending",
    }


def test_another_applications_migrations_are_foreign():
    """Two applications in one database are not each other's drift."""
    assert _states([], [_row("1", source="else/where")]) == {"1": "foreign"}
    assert _states([], [_row("1", source=None)]) == {"1": "foreign"}


@pytest.mark.parametrize(
    ("release", "state"),
    [("1.3.0", "newer"), ("1.10", "newer"), ("1.2.0", "deleted"), ("1.1.9", "deleted")],
)
def test_a_later_releases_migration_is_newer(release: str, state: str):
    """An old process lives on a schema that a new release has expanded."""
    rows = [_row("9", source=PROJECT, release=release)]
    assert _states([], rows) == {"9": state}


def test_refusal_names_every_one_since_when_and_the_remedy():
    """One error tells all, so that one round of corrections is enough."""
    found = compare(
        [_file("1", "new"), _file("3")],
        [_row("1", "old"), _row("2"), _row("4")],
        release=lambda: "1",
        sources=["app"],
    )
    with pytest.raises(MigrationFailed) as caught:
        refuse_drift(found)
    said = str(caught.value)
    assert "'1' is edited (applied 2026-01-02 03:04:05 UTC by bob, file changed" in said
    assert "'2' is deleted" in said
    assert "'3' is out-of-order (comes before '4'" in said
    assert caught.value.migration == "1"


def test_applied_is_reported_by_the_status():
    """Whatever the state: the database has it, or not."""
    here = MigrationStatus("1", MigrationState.EDITED, "app", applied_at=_WHEN)
    assert here.applied
    assert not MigrationStatus("2", MigrationState.PENDING, "app").applied
    refuse_drift([])
