"""Applying, rolling back, baseline, dry run: what each leaves in the database."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fm_storage.config import MigrationsConfig, PostgresConfig
from fm_storage.errors import (
    ConnectionFailed,
    MigrationFailed,
    QueryFailed,
    SchemaOutOfDate,
)
from fm_storage.migrate import MigrationState, Migrator, PlannedMigration, Progress
from fm_storage.postgres import Pool
from tests.fix_migrations import MigrationFolder, ask, catalogue


def _ids(done: list[PlannedMigration]) -> list[str]:
    return [migration.id for migration in done]


def _tables(dsn: str) -> set[str]:
    return {
        row[0]
        for row in ask(dsn, "SELECT tablename FROM pg_tables WHERE tablename ~ '^t_'")
    }


async def test_an_empty_database_gets_everything(empty_dsn: str):
    """From nothing to current in one call; a second call does nothing."""
    migrator = Migrator(empty_dsn)
    done = await migrator.apply()
    assert done[0].id == "0001_create_project_errors"
    assert "CREATE TABLE project_errors" in done[0].sql
    assert done[0].seconds is not None
    assert {status.state for status in await migrator.status()} == {"applied"}
    assert await migrator.apply() == []
    await migrator.check()


async def test_the_applications_own_follow(dsn: str, migrations: MigrationFolder):
    """An application's folder depends on the project's files and runs after."""
    migrations.write(
        "0001_shop", "-- depends: 0001_create_project_errors\nCREATE TABLE t_a (id int)"
    )
    migrations.table("0002_more", "t_b")
    migrator = migrations.migrator(dsn)
    assert _ids(await migrator.apply()) == ["0001_shop", "0002_more"]
    assert _tables(dsn) == {"t_a", "t_b"}


async def test_depends_decides_the_order(dsn: str, migrations: MigrationFolder):
    """A file may wait for one with a greater number, on a first run."""
    migrations.write("0001_second", "-- depends: 0002_first\nALTER TABLE t_a ADD x int")
    migrations.table("0002_first", "t_a")
    done = await migrations.migrator(dsn).apply()
    assert _ids(done) == ["0002_first", "0001_second"]


async def test_a_circle_is_refused(dsn: str, migrations: MigrationFolder):
    """Two files that wait for each other are named."""
    migrations.write("0001_a", "-- depends: 0002_b\nSELECT 1")
    migrations.write("0002_b", "-- depends: 0001_a\nSELECT 1")
    with pytest.raises(MigrationFailed, match=r"0001_a.*0002_b"):
        await migrations.migrator(dsn).apply()


async def test_a_dry_run_writes_nothing(empty_dsn: str, migrations: MigrationFolder):
    """It shows the SQL in order; the catalogue is the same to the byte."""
    migrations.table("0001_shop", "t_a")
    migrator = migrations.migrator(empty_dsn)
    before = catalogue(empty_dsn)
    planned = await migrator.apply(dry_run=True)
    assert catalogue(empty_dsn) == before
    assert planned[-1] == PlannedMigration(
        "0001_shop", "app/migrations", "CREATE TABLE t_a (id int)"
    )
    await migrator.apply()
    before = catalogue(empty_dsn)
    planned = await migrator.rollback(dry_run=True)
    assert (planned[0].id, planned[0].sql) == ("0001_shop", "DROP TABLE t_a")
    assert catalogue(empty_dsn) == before


async def test_a_failing_statement_leaves_nothing(
    dsn: str, migrations: MigrationFolder
):
    """The file is one transaction; the error says which statement, and why."""
    migrations.table("0001_fine", "t_a")
    migrations.write("0002_bad", "CREATE TABLE t_b (id int);\nSELECT 1/0;\n")
    migrator = migrations.migrator(dsn)
    with pytest.raises(MigrationFailed, match="statement 2: division by zero") as bad:
        await migrator.apply()
    assert bad.value.migration == "0002_bad"
    assert bad.value.sqlstate == "22012"
    assert _tables(dsn) == {"t_a"}
    migrations.table("0002_bad", "t_b")
    assert _ids(await migrator.apply()) == ["0002_bad"]


async def test_ending_the_transaction_is_refused_before_anything_runs(
    dsn: str, migrations: MigrationFolder
):
    """BEGIN or COMMIT in a file would tear the mark from the changes."""
    migrations.write("0001_a", "CREATE TABLE t_a (id int);\n/* now */ COMMIT;\n")
    with pytest.raises(MigrationFailed, match="statement 2 is COMMIT"):
        await migrations.migrator(dsn).apply()
    assert _tables(dsn) == set()


async def test_a_savepoint_of_its_own_is_no_harm(dsn: str, migrations: MigrationFolder):
    """ROLLBACK TO ends no transaction; neither does END in a function's body."""
    migrations.write(
        "0001_a",
        "SAVEPOINT s; CREATE TABLE t_a (id int); ROLLBACK TO SAVEPOINT s;\n"
        "CREATE TABLE t_b (id int);\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\n"
        "BEGIN\n IF true THEN RETURN 1; END IF; RETURN 100 % 7;\nEND $$;\n"
        "CREATE FUNCTION g() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END;\n",
    )
    await migrations.migrator(dsn).apply()
    assert _tables(dsn) == {"t_b"}
    assert ask(dsn, "SELECT f(), g()") == [(1, 1)]


async def test_settings_of_one_file_do_not_reach_the_next(
    dsn: str, migrations: MigrationFolder
):
    """search_path and role are put back, and the record is written as ourselves."""
    migrations.write(
        "0001_a",
        "CREATE SCHEMA elsewhere; SET search_path TO elsewhere;"
        "GRANT ALL ON SCHEMA elsewhere TO fm_storage_app; SET ROLE fm_storage_app;"
        "CREATE TABLE t_a (id int);",
    )
    migrations.table("0002_b", "t_b")
    await migrations.migrator(dsn).apply()
    assert ask(dsn, "SELECT 't_b'::regclass::text, 'elsewhere.t_a'::regclass::text")


async def test_rows_of_a_select_are_not_printed(
    dsn: str, migrations: MigrationFolder, capsys: pytest.CaptureFixture[str]
):
    """A library does not write to standard output."""
    migrations.write("0001_a", "SELECT 'seen' AS word")
    await migrations.migrator(dsn).apply()
    assert capsys.readouterr().out == ""


async def test_python_files_run_too(dsn: str, migrations: MigrationFolder):
    """Yoyo's other kind of file, in the same one transaction."""
    (migrations.path / "0001_py.py").write_text(
        "from yoyo import step\n"
        "def make(connection):\n"
        "    connection.cursor().execute('CREATE TABLE t_a (id int)')\n"
        "step(make, 'DROP TABLE t_a')\n"
    )
    migrator = migrations.migrator(dsn)
    assert _ids(await migrator.apply()) == ["0001_py"]
    assert _tables(dsn) == {"t_a"}
    assert _ids(await migrator.rollback()) == ["0001_py"]
    assert _tables(dsn) == set()


async def test_a_python_file_that_commits_is_refused(
    dsn: str, migrations: MigrationFolder
):
    """It cannot be seen beforehand; it is at least said."""
    (migrations.path / "0001_py.py").write_text(
        "from yoyo import step\n"
        "def make(connection):\n"
        "    cursor = connection.cursor()\n"
        "    cursor.execute('CREATE TABLE t_a (id int)')\n"
        "    cursor.execute('COMMIT')\n"
        "    cursor.execute('BEGIN')\n"
        "    cursor.execute('SAVEPOINT sp')\n"
        "step(make)\n"
    )
    with pytest.raises(MigrationFailed):
        await migrations.migrator(dsn).apply()


async def test_a_python_file_that_does_not_load_is_named(
    dsn: str, migrations: MigrationFolder
):
    """Yoyo alone would pass over it."""
    (migrations.path / "0001_py.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(MigrationFailed, match="0001_py"):
        await migrations.migrator(dsn).apply()


async def test_hooks_run_after_a_batch_and_are_not_recorded(
    dsn: str, migrations: MigrationFolder
):
    """Yoyo's ``post-apply`` files run each time something was applied."""
    migrations.write("post-apply", "INSERT INTO t_a VALUES (7)")
    migrations.table("0001_a", "t_a")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    await migrator.apply()
    assert ask(dsn, "SELECT id FROM t_a") == [(7,)]
    assert [s.id for s in await migrator.status()][-1] == "0001_a"


async def test_rollback_goes_backwards_and_forgets(
    dsn: str, migrations: MigrationFolder
):
    """Newest first; what was undone is pending again."""
    migrations.table("0001_a", "t_a")
    migrations.table("0002_b", "t_b")
    migrations.table("0003_c", "t_c")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    assert _ids(await migrator.rollback(steps=2)) == ["0003_c", "0002_b"]
    assert _tables(dsn) == {"t_a"}
    assert _ids(await migrator.apply()) == ["0002_b", "0003_c"]


async def test_rollback_without_its_file_is_refused(
    dsn: str, migrations: MigrationFolder
):
    """Nothing of the whole call is undone, and the record stays."""
    migrations.write("0001_a", "CREATE TABLE t_a (id int)")
    migrations.table("0002_b", "t_b")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    with pytest.raises(MigrationFailed, match=r"0001_a\.rollback\.sql does not exist"):
        await migrator.rollback(steps=2)
    assert _tables(dsn) == {"t_a", "t_b"}
    migrations.rollback_of("0001_a").write_text("-- the table is kept on purpose\n")
    assert _ids(await migrator.rollback(steps=2)) == ["0002_b", "0001_a"]
    assert _tables(dsn) == {"t_a"}


async def test_rollback_of_a_deleted_file_is_refused(
    dsn: str, migrations: MigrationFolder
):
    """The way to undo it went with it."""
    path = migrations.table("0001_a", "t_a")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    path.unlink()
    with pytest.raises(MigrationFailed, match="its file is gone"):
        await migrator.rollback()


async def test_rollback_of_an_edited_file_is_the_way_out(
    dsn: str, migrations: MigrationFolder
):
    """While developing: roll back, and apply the new wording."""
    migrations.table("0001_a", "t_a")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    migrations.write("0001_a", "CREATE TABLE t_a (id int, more int)")
    await migrator.rollback()
    assert _ids(await migrator.apply()) == ["0001_a"]


@pytest.mark.parametrize("steps", [0, -1])
async def test_rolling_back_nothing_is_refused(steps: int):
    """A wrong number is reported before any connection is made."""
    with pytest.raises(MigrationFailed, match="at least 1"):
        await Migrator("postgresql://nowhere").rollback(steps=steps)


async def test_baseline_records_what_exists(empty_dsn: str):
    """For a database that got its tables another way."""
    ask(empty_dsn, "CREATE TABLE project_errors (id uuid PRIMARY KEY)")
    migrator = Migrator(empty_dsn)
    with pytest.raises(MigrationFailed, match="already exists"):
        await migrator.apply()
    assert await migrator.baseline(to="0001") == ["0001_create_project_errors"]
    status = (await migrator.status())[0]
    assert status.state is MigrationState.APPLIED
    assert await migrator.baseline(to="0001") == []


async def test_check_names_what_is_missing(dsn: str, migrations: MigrationFolder):
    """With auto_apply off a start says which migrations it lacks."""
    migrations.table("0001_a", "t_a")
    migrations.table("0002_b", "t_b")
    migrator = migrations.migrator(dsn, auto_apply=False)
    with pytest.raises(SchemaOutOfDate) as caught:
        await migrator.ensure()
    assert caught.value.missing == ("0001_a", "0002_b")
    with pytest.raises(SchemaOutOfDate, match="0001_a, 0002_b"):
        await migrator.check()
    await migrator.apply()
    assert await migrator.ensure() == []
    await migrator.check()


async def test_ensure_applies_and_looks_through_a_pool(empty_dsn: str):
    """The first start migrates; later ones ask the pool one question."""
    migrator = Migrator(empty_dsn)
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        assert await migrator.ensure(pool)
        assert await migrator.ensure(pool) == []
        await migrator.check(pool)


async def test_a_start_with_nothing_pending_asks_one_question(dsn: str):
    """Through the pool, without the engine, the driver, or a second connection."""
    code = (
        "import asyncio, sys\n"
        "from fm_storage.config import PostgresConfig\n"
        "from fm_storage.migrate import Migrator\n"
        "from fm_storage.postgres import Pool\n"
        "class Asked:\n"
        "    def __init__(self, pool): self.pool, self.count = pool, 0\n"
        "    def fetch(self, *args):\n"
        "        self.count += 1\n"
        "        return self.pool.fetch(*args)\n"
        "async def main():\n"
        "    async with Pool(PostgresConfig(dsn=sys.argv[1])) as pool:\n"
        "        asked = Asked(pool)\n"
        "        await Migrator(sys.argv[1]).ensure(asked)\n"
        "        print(asked.count, {'yoyo', 'psycopg'} & set(sys.modules))\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, dsn],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == "1 set()\n"


async def test_a_role_that_may_not_look_gets_the_servers_word(dsn: str):
    """No grant on the record is not the same as no record."""
    ask(
        dsn,
        "DROP ROLE IF EXISTS t_stranger;"
        " CREATE ROLE t_stranger LOGIN PASSWORD 't_stranger'",
    )
    parts = urlsplit(dsn)
    address = parts.netloc.rpartition("@")[2]
    netloc = f"t_stranger:t_stranger@{address}"
    stranger = parts._replace(netloc=netloc).geturl()
    try:
        async with Pool(PostgresConfig(dsn=stranger)) as theirs:
            with pytest.raises(QueryFailed, match="permission denied"):
                await Migrator(dsn).status(theirs)
        with pytest.raises(MigrationFailed, match=r"migrations\.dsn"):
            await Migrator(stranger).status()
    finally:
        ask(dsn, "DROP ROLE t_stranger")


async def test_progress_tells_every_statement(dsn: str, migrations: MigrationFolder):
    """Called on the event loop, once per statement, in order."""
    migrations.write("0001_a", "SELECT 1; SELECT 2; SELECT 3")
    seen: list[Progress] = []
    await migrations.migrator(dsn, seen.append).apply()
    assert [(p.what, p.name, p.step, p.steps) for p in seen] == [
        ("statement", "0001_a", n, 3) for n in (1, 2, 3)
    ]


async def test_no_server_is_a_failed_connection_without_secrets(tmp_path: Path):
    """The address is named, the password is not."""
    with pytest.raises(ConnectionFailed) as caught:
        await Migrator(
            f"postgresql://bob:s3cret@/db?host={tmp_path}", MigrationsConfig()
        ).apply()
    assert "s3cret" not in str(caught.value)
    assert caught.value.retryable


async def test_the_password_may_come_from_a_function(server, empty_dsn: str):
    """A value, a function, or an async one; it overrides the address."""
    address = server.over_tcp(empty_dsn)
    password = str(urlsplit(address).password)
    bare = address.replace(f":{password}@", "@")

    async def later() -> str:
        return password

    for given in (password, lambda: password, later):
        assert await Migrator(bare, password=given).status()


async def test_the_page_shows_every_table_with_its_words(dsn: str):
    """The schema page comes from the live catalogue."""
    page = await Migrator(dsn).schema_page()
    assert "## public.project_errors (table)" in page
    assert "## fm_storage.migrations (table)" in page
    assert "| severity | character varying(50) | no |" in page
    for line in page.splitlines():
        assert not line.endswith("|  |"), f"a column without a comment: {line}"


async def test_a_start_does_not_apply_what_was_rolled_back(
    dsn: str, migrations: MigrationFolder
):
    """Somebody took it back on purpose; apply() is as explicit, and ends that."""
    migrations.table("0001_a", "t_a")
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    await migrator.rollback()
    for start in (migrator, migrations.migrator(dsn)):
        with pytest.raises(SchemaOutOfDate, match=r"'fm-storage migrate'$") as caught:
            await start.ensure()
        assert caught.value.missing == ("0001_a",)
    assert _tables(dsn) == set()
    assert (await migrator.status())[-1].state == "pending"
    # Another application of the same database is not concerned.
    other = MigrationFolder(migrations.path.parent.parent / "other" / "migrations")
    other.path.mkdir(parents=True)
    other.table("0001_other", "t_other")
    assert _ids(await other.migrator(dsn).ensure()) == ["0001_other"]
    assert _ids(await migrator.apply()) == ["0001_a"]
    migrations.table("0002_b", "t_b")
    assert _ids(await migrator.ensure()) == ["0002_b"]
