"""How far to migrate: by number, by name, by a beginning; what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fm_storage.errors import MigrationFailed
from fm_storage.migrate import Migrator
from fm_storage.migrate.files import project_folder
from tests.fix_migrations import MigrationFolder, ask

FIRST = "0001_create_project_errors"
SECOND = "0002_create_session_registry"


@pytest.mark.parametrize(
    "to", [pytest.param(2, id="number"), "2", "0002", SECOND, "0002_cr", "00002"]
)
async def test_a_number_a_name_or_a_beginning_will_do(empty_dsn: str, to: Any):
    """On the project's own files."""
    done = await Migrator(empty_dsn).apply(to=to)
    assert [one.id for one in done] == [FIRST, SECOND]


async def test_a_name_among_several_of_the_same_number(
    dsn: str, migrations: MigrationFolder
):
    """The project has a 0002 too: the number alone names both, the name one."""
    for number in (1, 2, 3):
        migrations.table(f"000{number}_{'abc'[number - 1]}", f"t_{number}")
    migrator = migrations.migrator(dsn)

    for to in ("0002", "2", "0"):
        with pytest.raises(MigrationFailed, match=f"'{to}' may be .*0002_b") as caught:
            await migrator.apply(to=to)
        assert SECOND in str(caught.value)
        assert str(caught.value).endswith("; give the whole name")

    done = await migrator.apply(to="0002_b")
    assert [one.id for one in done] == ["0001_a", "0002_b"]
    tables = "SELECT tablename::text FROM pg_tables WHERE tablename ~ '^t_'"
    assert {name for (name,) in ask(dsn, tables)} == {"t_1", "t_2"}


@pytest.mark.parametrize("to", ["0099", "99", "create", ""])
async def test_to_nowhere_is_refused_with_what_there_is(dsn: str, to: str):
    """Nothing is applied; the message lists the names."""
    with pytest.raises(MigrationFailed, match=f"'{to}' is no migration") as caught:
        await Migrator(dsn).apply(to=to)
    for file in project_folder().glob("????_*.sql"):
        assert (file.stem in str(caught.value)) is ("rollback" not in file.name)


async def test_of_many_migrations_the_newest_are_listed(
    dsn: str, migrations: MigrationFolder
):
    """A message of a hundred names would hide what it says."""
    for number in range(100, 130):
        migrations.write(f"{number}_x", "SELECT 1")
    with pytest.raises(MigrationFailed) as caught:
        await migrations.migrator(dsn).apply(to="7000")
    said = str(caught.value)
    assert "110_x" in said
    assert "109_x" not in said
    assert "before them)" in said
