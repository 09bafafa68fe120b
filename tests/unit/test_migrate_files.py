"""Reading migration files: names, checksums, directives, sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fm_storage.config import MigrationsConfig
from fm_storage.errors import ConfigurationInvalid, MigrationFailed
from fm_storage.migrate import Migrator
from fm_storage.migrate.files import (
    PROJECT,
    MigrationFile,
    Source,
    find_sources,
    read_file,
    read_files,
)


def _file(folder: Path, name: str, text: str) -> MigrationFile:
    path = folder / name
    path.write_bytes(text.encode())
    return read_file(path, "app")


def test_line_ends_do_not_change_a_checksum(tmp_path: Path):
    """A checkout with CRLF line ends is the same migration."""
    one = _file(tmp_path, "0001_a.sql", "SELECT 1;\nSELECT 2;\n")
    other = _file(tmp_path, "0001_b.sql", "SELECT 1;\r\nSELECT 2;\r\n")
    assert one.checksum == other.checksum


def test_directives_are_read_above_the_first_statement_only(tmp_path: Path):
    """A comment in a function body is no directive."""
    text = (
        "-- Why.\n-- depends: 0001_a 0002_b\n\n--  transactional: False\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n"
        "-- depends: 0009_z\n SELECT 1 $$;\n"
    )
    file = _file(tmp_path, "0003_c.sql", text)
    assert file.depends == ("0001_a", "0002_b")
    assert not file.transactional


def test_depending_on_nothing_known_is_refused_by_name(tmp_path: Path):
    """A dependency that no source holds is named, with the remedy."""
    _file(tmp_path, "0001_a.sql", "-- depends: 0000_gone\nSELECT 1")
    with pytest.raises(MigrationFailed, match=r"'0001_a'.*'0000_gone'.*sources"):
        read_files([Source("app", tmp_path)])


def test_a_file_that_cannot_be_read_is_not_left_out(tmp_path: Path):
    """A link that leads nowhere is a migration that is missing, not none."""
    _file(tmp_path, "0001_a.sql", "SELECT 1")
    (tmp_path / "0002_b.sql").symlink_to(tmp_path / "gone")
    (tmp_path / "0003_c.sql").mkdir()
    with pytest.raises(MigrationFailed, match=r"'0002_b'.*cannot be read.*the link"):
        read_files([Source("app", tmp_path)])


def test_one_name_in_two_sources_is_refused(tmp_path: Path):
    """Identifiers are unique over all sources."""
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0001_x.sql").write_text("SELECT 1")
    with pytest.raises(MigrationFailed, match="same name"):
        read_files([Source("a", tmp_path / "a"), Source("b", tmp_path / "b")])


def test_what_is_no_migration_is_passed_over(tmp_path: Path):
    """Rollback files, hooks, hidden files, packages' markers and folders."""
    for name in (
        *("0001_a.sql", "0001_a.rollback.sql", "post-apply.sql", "__init__.py"),
        *("_tmp.sql", ".x.sql", "README.md", "0002_b.py"),
    ):
        (tmp_path / name).write_text("")
    (tmp_path / "0003_folder.sql").mkdir()
    found = read_files([Source("app", tmp_path)])
    assert [file.id for file in found] == ["0001_a", "0002_b"]


def test_text_that_is_not_utf8_is_refused(tmp_path: Path):
    """The message names the file and the byte."""
    path = tmp_path / "0001_a.sql"
    path.write_bytes(b"SELECT '\xff'")
    with pytest.raises(MigrationFailed, match="'0001_a': byte 8 is not UTF-8"):
        read_file(path, "app")


def test_an_overlong_name_is_refused(tmp_path: Path):
    """The record's column is 255 characters wide (no file system goes there)."""
    path = tmp_path / ("x" * 250)
    path.write_text("")
    with pytest.raises(MigrationFailed, match="256 characters"):
        read_file(_LongNamed(path), "app")


class _LongNamed(type(Path())):
    """A path whose stem is longer than file systems allow."""

    stem = "x" * 256


def test_the_project_comes_first_and_a_folder_once(tmp_path: Path):
    """Sources keep their order; naming one twice adds nothing."""
    folder = tmp_path / "shop" / "migrations"
    folder.mkdir(parents=True)
    found = find_sources([str(folder), f"{folder}/../migrations"])
    assert [source.name for source in found] == [PROJECT, "shop/migrations"]


def test_a_package_is_a_source_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``package:NAME:FOLDER`` finds files wherever the package is installed."""
    package = tmp_path / "shop_of_tests"
    (package / "sql").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sql" / "0001_shop.sql").write_text("SELECT 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = find_sources(["package:shop_of_tests:sql"])[1]
    assert source == Source("package:shop_of_tests:sql", package / "sql")


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "package:no_such_package:x", "package:json:nothing"]
)
def test_a_source_that_is_not_there_is_refused(source: str):
    """A typing error must not read as 'nothing to apply'."""
    with pytest.raises(ConfigurationInvalid, match=r"migrations\.sources"):
        find_sources([source])


def test_new_migration_writes_both_files_behind_the_last(tmp_path: Path):
    """Numbers go on, the dependency is written in, the pair is complete."""
    (tmp_path / "0041_old.sql").write_text("SELECT 1")
    migrator = Migrator("postgresql://", MigrationsConfig())
    forward, backward = migrator.new_migration("Add the Thing!", tmp_path)
    assert forward.name == "0042_add_the_thing.sql"
    assert backward.name == "0042_add_the_thing.rollback.sql"
    assert read_file(forward, "app").depends == ("0041_old",)
    assert read_file(forward, "app").transactional


def test_new_migration_starts_at_one(tmp_path: Path):
    """The first one depends on nothing."""
    forward, _ = Migrator("postgresql://").new_migration("first", tmp_path)
    assert forward.name == "0001_first.sql"
    assert read_file(forward, "app").depends == ()


@pytest.mark.parametrize(("name", "folder"), [("!!", "."), ("x", "missing")])
def test_new_migration_refuses_nonsense(tmp_path: Path, name: str, folder: str):
    """Nothing is written for a name without letters, or into no folder."""
    with pytest.raises(MigrationFailed):
        Migrator("postgresql://").new_migration(name, tmp_path / folder)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_room_loads_neither_driver_nor_engine():
    """A start with nothing pending pays for neither."""
    code = (
        "import sys, fm_storage.migrate\n"
        "print([m for m in ('yoyo', 'psycopg', 'sqlparse') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
