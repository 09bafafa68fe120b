"""Drift against a live record: refused by name, tolerated where it must be."""

from __future__ import annotations

import pytest

from fm_storage.errors import MigrationFailed
from fm_storage.migrate import Migrator
from tests.fix_migrations import MigrationFolder, ask


@pytest.fixture
async def migrator(dsn: str, migrations: MigrationFolder) -> Migrator:
    """Give a migrator whose files 0001, 0002 and 0004 are applied."""
    for number in (1, 2, 4):
        migrations.table(f"000{number}_t", f"t_{number}")
    made = migrations.migrator(dsn)
    await made.apply()
    return made


async def _refused(migrator: Migrator, said: str) -> None:
    """Every call that changes something refuses, and so does the start."""
    with pytest.raises(MigrationFailed, match=said):
        await migrator.apply()
    with pytest.raises(MigrationFailed, match=said):
        await migrator.apply(dry_run=True)
    with pytest.raises(MigrationFailed, match=said):
        await migrator.baseline()
    with pytest.raises(MigrationFailed, match=said):
        await migrator.ensure()
    with pytest.raises(MigrationFailed, match=said):
        await migrator.check()


async def test_edited(migrator: Migrator, migrations: MigrationFolder):
    """Another content under an applied name."""
    migrations.write("0002_t", "CREATE TABLE t_2 (id bigint)")
    await _refused(migrator, r"'0002_t' is edited \(applied .* by postgres, file ch")


async def test_renamed(migrator: Migrator, migrations: MigrationFolder):
    """Both names are reported; nothing runs twice."""
    path = migrations.path / "0002_t.sql"
    path.rename(path.with_name("0002_better.sql"))
    await _refused(migrator, "'0002_t' is renamed .* now '0002_better'")


async def test_deleted(migrator: Migrator, migrations: MigrationFolder):
    """A gap in the middle cannot be another release's."""
    (migrations.path / "0002_t.sql").unlink()
    await _refused(migrator, "'0002_t' is deleted .* its file is gone")


async def test_out_of_order(migrator: Migrator, migrations: MigrationFolder):
    """A file that comes before one which is applied."""
    migrations.table("0003_t", "t_3")
    await _refused(migrator, "'0003_t' is out-of-order .* before '0004_t'")


async def test_a_start_tolerates_what_a_later_release_has_added(
    migrator: Migrator, migrations: MigrationFolder
):
    """An old process of a rolling deployment opens; an explicit apply is strict."""
    (migrations.path / "0004_t.sql").unlink()
    assert await migrator.ensure() == []
    await migrator.check()
    with pytest.raises(MigrationFailed, match="'0004_t' is deleted"):
        await migrator.apply()


async def test_a_later_release_of_the_toolkit_is_no_drift(dsn: str):
    """Its migrations say which release applied them."""
    ask(
        dsn,
        "INSERT INTO fm_storage.migrations (migration_hash, migration_id,"
        " applied_at_utc, checksum, source, release)"
        " VALUES ('x', '0999_future', now(), 'y', 'fm_storage', '99.0.0')",
    )
    migrator = Migrator(dsn)
    assert (await migrator.status())[-1].state == "newer"
    assert await migrator.ensure() == []
    assert await migrator.apply() == []


async def test_two_applications_share_a_database(
    migrator: Migrator, dsn: str, migrations: MigrationFolder
):
    """Neither takes the other's migrations for deleted ones."""
    other = MigrationFolder(migrations.path.parent.parent / "other" / "migrations")
    other.path.mkdir(parents=True)
    other.table("0001_other", "t_other")
    theirs = other.migrator(dsn)
    await theirs.apply()
    states = {status.id: status.state for status in await theirs.status()}
    assert states["0002_t"] == "foreign"
    assert await migrator.apply() == []
    assert [m.id for m in await theirs.rollback()] == ["0001_other"]
