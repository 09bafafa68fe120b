"""Several applications in one database, whatever their folders and files are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from fm_storage.config import MigrationsConfig
from fm_storage.errors import ConfigurationInvalid, MigrationFailed
from fm_storage.migrate import Migrator
from tests.fix_migrations import ask


def application(root: Path, folder: str, name: str, table: str) -> Path:
    """Write a migration that makes a table, and its rollback file."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.sql").write_text(f"CREATE TABLE {table} (i int)")
    (place / f"{name}.rollback.sql").write_text(f"DROP TABLE {table}")
    return place


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("shop/app/migrations", "0001_orders"), ("crm/app/migrations", "0001_users")),
        (("shop/sql", "0001_init"), ("crm/tables", "0001_init")),
    ],
    ids=["folders", "files"],
)
async def test_two_applications_with_equal_names_live_side_by_side(
    dsn: str, tmp_path: Path, one: tuple[str, str], two: tuple[str, str]
):
    """Each starts, starts again, goes on, and takes back its own."""
    shop = application(tmp_path, *one, "t_shop")
    crm = application(tmp_path, *two, "t_crm")
    migrators = [
        Migrator(dsn, MigrationsConfig(sources=(str(place),))) for place in (shop, crm)
    ]
    assert [len(await each.apply()) for each in migrators] == [1, 1]
    assert [len(await each.apply()) for each in migrators] == [0, 0]
    assert [len(await each.ensure()) for each in migrators] == [0, 0]
    application(tmp_path, two[0], "0002_more", "t_more")
    assert [len(await each.apply()) for each in migrators] == [0, 1]
    assert len(await migrators[0].rollback()) == 1
    tables = "SELECT relname FROM pg_class WHERE relname ~ '^t_' ORDER BY 1"
    assert ask(dsn, tables) == [("t_crm",), ("t_more",)]
    assert len(await migrators[1].rollback(steps=2)) == 2
    assert ask(dsn, tables) == []


async def test_sources_with_names_share_everything_else(dsn: str, tmp_path: Path):
    """The same folder names, the same file names; dependencies are their own."""
    migrators = []
    for name in ("shop", "crm"):
        place = application(
            tmp_path, f"{name}/app/migrations", "0001_init", f"t_{name}"
        )
        (place / "0002_more.sql").write_text(
            f"-- depends: 0001_init\nALTER TABLE t_{name} ADD COLUMN j int"
        )
        config = MigrationsConfig(sources={name: str(place)})
        migrators.append(Migrator(dsn, config))
    for _ in range(2):
        for each in migrators:
            await each.apply()
    recorded = (
        "SELECT migration_id FROM fm_storage.migrations WHERE source <> 'fm_storage'"
    )
    assert [name for (name,) in ask(dsn, f"{recorded} ORDER BY seq")] == [
        *("shop:0001_init", "shop:0002_more", "crm:0001_init", "crm:0002_more")
    ]
    (tmp_path / "crm/app/migrations/0001_init.sql").write_text("SELECT 1")
    with pytest.raises(MigrationFailed, match="'crm:0001_init' is edited"):
        await migrators[1].apply()
    assert await migrators[0].apply() == []


async def test_a_source_takes_over_what_it_did_before_it_had_a_name(
    dsn: str, tmp_path: Path
):
    """Nothing is applied again, and a rollback takes back the old row."""
    place = application(tmp_path, "app/migrations", "0001_init", "t_a")
    await Migrator(dsn, MigrationsConfig(sources=(str(place),))).apply()
    named = Migrator(dsn, MigrationsConfig(sources={"shop": str(place)}))
    assert await named.apply() == []
    application(tmp_path, "app/migrations", "0002_more", "t_b")
    assert [one.id for one in await named.apply()] == ["shop:0002_more"]
    assert [one.id for one in await named.rollback(steps=2)] == [
        *("shop:0002_more", "shop:0001_init")
    ]
    recorded = (
        "SELECT migration_id FROM fm_storage.migrations WHERE source ~ 'app|shop'"
    )
    assert ask(dsn, recorded) == []
    assert [one.id for one in await named.apply(to="shop:0001_init")] == [
        "shop:0001_init"
    ]


async def test_a_source_that_has_lost_its_name_is_not_applied_again(
    dsn: str, tmp_path: Path
):
    """Nor would yoyo's own command, which knows no names; the message has it."""
    place = application(tmp_path, "app/migrations", "0001_init", "t_a")
    named = Migrator(dsn, MigrationsConfig(sources={"shop": str(place)}))
    await named.apply()
    bare = Migrator(dsn, MigrationsConfig(sources=(str(place),)))
    for start in (bare.apply, bare.ensure, bare.status):
        with pytest.raises(MigrationFailed, match="applied as 'shop:0001_init'; give"):
            await start()
    other = Migrator(dsn, MigrationsConfig(sources={"crm": str(place)}))
    (place / "0001_init.sql").write_text("CREATE TABLE t_b (i int)")
    assert len(await other.apply()) == 1, "another application's, by its name"


async def test_a_folder_that_was_moved_is_the_same_application(
    dsn: str, tmp_path: Path
):
    """Its files are known by name and content."""
    place = application(tmp_path, "old/migrations", "0001_init", "t_a")
    await Migrator(dsn, MigrationsConfig(sources=(str(place),))).apply()
    moved = tmp_path / "new" / "sql"
    moved.parent.mkdir()
    place.rename(moved)
    assert await Migrator(dsn, MigrationsConfig(sources=(str(moved),))).apply() == []


@pytest.mark.parametrize("name", ["fm_storage", "a:b", "", "a b", "x" * 41])
def test_a_name_of_a_source_is_plain(name: str):
    """It begins identifiers."""
    with pytest.raises(ConfigurationInvalid, match="of a source is taken or has"):
        MigrationsConfig(sources={name: "sql"})
