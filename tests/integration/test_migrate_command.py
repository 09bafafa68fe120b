"""The commands: ``fm-storage migrate … schema``, and yoyo's own with our backend."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result
from yoyo.scripts.main import main

from fm_storage.cli import cli
from fm_storage.config import MigrationsConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    MigrationFailed,
    PermissionDenied,
)
from fm_storage.migrate import Migrator
from fm_storage.migrate.files import project_folder
from fm_storage.migrate.ledger import LOCK_KEY
from tests.fix_migrations import MigrationFolder, ask
from tests.fix_process import Child

Command = Callable[..., Result]


@pytest.fixture
def command(empty_dsn: str, migrations: MigrationFolder) -> Command:
    """Give a runner of ``fm-storage`` on an empty database and one more source."""
    env = {
        "FM_STORAGE_POSTGRES__DSN": empty_dsn,
        "FM_STORAGE_QDRANT__URL": "embedded:",
        "FM_STORAGE_MIGRATIONS__SOURCES": json.dumps([str(migrations.path)]),
    }

    def run(*arguments: str, **more: str) -> Result:
        return CliRunner().invoke(cli, arguments, env=env | more)

    return run


@pytest.mark.lengthy
def test_migrate_status_rollback(command: Command, migrations: MigrationFolder):
    """What make migrate, make migrate-status and make rollback run."""
    migrations.table("0001_shop", "t_a")
    shown = command("status").output
    assert re.search(r"0001_shop +pending +app/migrations", shown)
    assert "applied 0001_shop in" in command("migrate").output
    assert command("migrate").output == "nothing pending\n"
    assert re.search(r"0001_shop +applied +\d{4}-", command("status").output)
    assert command("rollback", "--dry-run").output == "-- 0001_shop\nDROP TABLE t_a\n\n"
    assert "taken back 0001_shop" in command("rollback", "--yes").output
    assert "0001_shop" in command("migrate", "--dry-run").output
    assert re.search(r"0001_shop +pending", command("status").output)


def test_status_tells_drift_and_fails(command: Command, migrations: MigrationFolder):
    """For people the reason, for scripts the exit code, for programs JSON."""
    path = migrations.table("0001_shop", "t_a")
    command("migrate")
    path.write_text("CREATE TABLE t_b (id int)")
    result = command("status")
    assert result.exit_code == 1
    assert "0001_shop: applied " in result.output
    assert "restore the file" in result.output
    found = json.loads(command("status", "--json").output)
    assert found[-1]["state"] == "edited"
    assert isinstance(command("migrate").exception, MigrationFailed)


def test_json_to_and_baseline(command: Command, migrations: MigrationFolder):
    """Programs get what was done; an existing database is recorded."""
    to = "0001_create_project_errors"
    done = json.loads(command("migrate", "--to", to, "--json").output)
    assert [one["id"] for one in done] == [to]
    migrations.table("0001_shop", "t_a")
    result = command("migrate", "baseline")
    assert "recorded 0001_shop" in result.output
    assert command("migrate", "baseline").output == "nothing to record\n"
    assert json.loads(command("migrate", "baseline", "--json").output) == []


def test_new_writes_where_the_application_keeps_them(
    command: Command, migrations: MigrationFolder, tmp_path: Path
):
    """The first configured folder, or the one that is named."""
    assert command("migrate", "new", "add it").exit_code == 0
    assert (migrations.path / "0001_add_it.sql").is_file()
    (tmp_path / "other").mkdir()
    result = command("migrate", "new", "x", "--folder", str(tmp_path / "other"))
    assert (tmp_path / "other" / "0001_x.rollback.sql").is_file()
    # Only where nobody would apply it.
    assert "FM_STORAGE_MIGRATIONS__SOURCES" in result.stderr
    assert json.dumps([str(migrations.path), str(tmp_path / "other")]) in result.stderr
    assert command("migrate", "new", "and this").stderr == ""


def test_source_adds_a_folder(command: Command, tmp_path: Path):
    """Besides the configured ones, for once."""
    more = MigrationFolder(tmp_path / "more")
    more.path.mkdir()
    more.table("0001_more", "t_m")
    assert "0001_more" in command("migrate", "--source", str(more.path)).output


def test_schema_prints_the_page(command: Command):
    """From the live catalogue."""
    command("migrate")
    assert "## public.project_errors (table)" in command("schema").output
    found = {one["name"]: one for one in json.loads(command("schema", "--json").output)}
    errors = found["project_errors"]
    assert (errors["schema"], errors["kind"]) == ("public", "table")
    assert errors["comment"]
    message = next(one for one in errors["columns"] if one["name"] == "message")
    assert message == {
        "name": "message",
        "type": "text",
        "nullable": False,
        "default": None,
        "comment": message["comment"],
    }
    assert any("UNIQUE" in index["definition"] for index in errors["indexes"])
    assert all(index["valid"] for index in errors["indexes"])
    assert any(one["constraints"] for one in found.values())


@pytest.mark.slow
def test_what_takes_long_is_reported(
    command: Command,
    migrations: MigrationFolder,
    empty_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Waiting for another process, and for a table, is said on standard error."""
    monkeypatch.setattr("fm_storage.migrate.runner._TICK", 0.2)
    migrations.write("0001_slow", "SELECT pg_sleep(1)")
    assert "0001_slow: statement 1 of 1 still runs" in command("migrate").stderr
    with psycopg.connect(empty_dsn, autocommit=True, application_name="o") as other:
        other.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        migrations.table("0002_more", "t_m")
        result = command("migrate", FM_STORAGE_MIGRATIONS__WAIT_TIMEOUT="0.2")
    assert "(o), which migrates" in result.stderr
    migrations.write("0002_more", "ALTER TABLE project_errors ADD t_x int")
    with psycopg.connect(empty_dsn) as other:
        other.execute("SELECT 1 FROM project_errors")
        result = command(
            "migrate",
            FM_STORAGE_MIGRATIONS__WAIT_TIMEOUT="0.2",
            FM_STORAGE_MIGRATIONS__LOCK_TIMEOUT="0.05",
        )
    assert "0002_more: a table is in use" in result.stderr


@pytest.mark.slow
async def test_ctrl_c_leaves_nothing_half_done(
    empty_dsn: str,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
):
    """The running migration is rolled back, what was done stays, a re-run converges."""
    migrations.table("0001_done", "t_done")
    migrations.write("0002_slow", "CREATE TABLE t_slow (id int); SELECT pg_sleep(60)")
    running = await child(
        "from fm_storage.cli import main; main(['migrate'])",
        FM_STORAGE_MIGRATIONS__DSN=empty_dsn,
        FM_STORAGE_MIGRATIONS__SOURCES=json.dumps([str(migrations.path)]),
    )
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while not await asyncio.to_thread(ask, empty_dsn, sleeping):
        assert running.process.returncode is None
        await asyncio.sleep(0.05)
    running.signal(signal.SIGINT)
    assert await running.wait() == 130
    tables = "SELECT tablename::text FROM pg_tables WHERE tablename ~ '^t_'"
    assert ask(empty_dsn, tables) == [("t_done",)]
    migrations.table("0002_slow", "t_slow")
    assert [m.id for m in await migrations.migrator(empty_dsn).apply()] == ["0002_slow"]


async def test_of_several_hosts_the_one_that_writes_is_migrated(server, empty_dsn: str):
    """An address with a dead host and a living one, over TCP."""
    address = server.over_tcp(empty_dsn)
    both = address.replace("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:")
    assert len(await Migrator(both).apply(to="0001")) == 1


@pytest.mark.parametrize("words", [["status"], ["migrate"], ["sessions", "list"]])
def test_a_server_that_is_away_is_reported_alike(command: Command, words: list[str]):
    """Over libpq and over the pool: address without password, reason, remedy."""
    result = command(
        *words,
        FM_STORAGE_POSTGRES__DSN="postgresql://u:s3cret@127.0.0.1:1/none",
        FM_STORAGE_QDRANT="none",
    )
    assert isinstance(result.exception, ConnectionFailed)
    said = str(result.exception)
    assert said.startswith("postgresql://u:***@127.0.0.1:1/none: Connect")
    assert said.endswith("; is the server running, and is the address right?")
    assert "\n" not in said


async def test_a_refused_login_is_reported_as_one(server):
    """Libpq gives no SQLSTATE here, so its words decide."""
    wrong = re.sub(r":[^:@/]+@", ":wr0ng@", server.tcp_dsn)
    with pytest.raises(PermissionDenied, match="password authentication") as caught:
        await Migrator(wrong).status()
    assert "wr0ng" not in str(caught.value)
    assert not caught.value.retryable


async def test_what_is_no_address_of_a_server_is_a_wrong_setting():
    """``embedded:`` is the manager's to open; no message shows a secret."""
    with pytest.raises(ConfigurationInvalid, match="fm-storage migrate"):
        Migrator("embedded:")
    with pytest.raises(ConfigurationInvalid, match="port that is no number") as caught:
        await Migrator("postgresql://u:s3cret@host:port/x").status()
    assert "s3cret" not in str(caught.value)


def test_a_role_of_its_own_migrates(command: Command, empty_dsn: str):
    """``migrations.dsn`` is preferred to ``postgres.dsn``."""
    result = command(
        "migrate",
        FM_STORAGE_POSTGRES__DSN="postgresql://nobody@127.0.0.1:1/none",
        FM_STORAGE_MIGRATIONS__DSN=empty_dsn,
    )
    assert "applied 0001_create_project_errors" in result.output


def test_without_postgres_there_is_nothing_to_migrate(command: Command, tmp_path: Path):
    """Switched off is a mistake in the settings, reported as one."""
    config = tmp_path / "storage.toml"
    config.write_text("")
    result = command("--config", str(config), "status", FM_STORAGE_POSTGRES="null")
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigurationInvalid | SystemExit)


def _address(dsn: str) -> str:
    parts = urlsplit(dsn)
    if parts.hostname:
        return dsn.replace("postgresql:", "postgresql+fm:", 1)
    return f"postgresql+fm://{parts.path}?{parts.query}&user={parts.username}"


def _yoyo(dsn: str, command: str, *arguments: str) -> None:
    """Run yoyo's own command, in this process: its imports take a while."""
    options = ("--batch", "--no-config-file", "--database", _address(dsn))
    main([command, *options, *arguments])


@pytest.mark.slow
def test_yoyos_program_finds_the_backend(empty_dsn: str, migrations: MigrationFolder):
    """By its entry point, as ``postgresql+fm``."""
    migrations.table("0001_shop", "t_a")
    program = Path(sys.executable).with_name("yoyo")
    address = _address(empty_dsn)
    done = subprocess.run(
        [program, "apply", "--batch", "--database", address, str(migrations.path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    recorded = "SELECT migration_id FROM fm_storage.migrations"
    assert ask(empty_dsn, recorded) == [("0001_shop",)]


@pytest.mark.slow
def test_yoyos_own_command_is_as_safe(
    empty_dsn: str, migrations: MigrationFolder, capsys: pytest.CaptureFixture[str]
):
    """One record for both commands; drift and missing rollback files are refused."""
    path = migrations.table("0001_shop", "t_a")
    sources = (str(project_folder()), str(migrations.path))
    _yoyo(empty_dsn, "apply", *sources)
    rows = ask(
        empty_dsn,
        "SELECT source, checksum IS NOT NULL FROM fm_storage.migrations ORDER BY seq",
    )
    assert rows[0] == ("fm_storage", True)
    assert rows[-1] == ("app/migrations", True)
    capsys.readouterr()
    _yoyo(empty_dsn, "list", *sources)
    assert re.search(r"A +0001_shop", capsys.readouterr().out)
    assert ask(empty_dsn, "SELECT to_regclass('public._yoyo_migration')") == [(None,)]
    path.write_text("CREATE TABLE t_b (id int)")
    migrations.table("0002_more", "t_m")
    with pytest.raises(MigrationFailed, match="'0001_shop' is edited"):
        _yoyo(empty_dsn, "apply", *sources)
    migrations.rollback_of("0001_shop").unlink()
    with pytest.raises(MigrationFailed, match=r"0001_shop\.rollback\.sql does not"):
        _yoyo(empty_dsn, "rollback", "--revision", "0001_shop", *sources)
    assert ask(empty_dsn, "SELECT to_regclass('t_a') IS NOT NULL") == [(True,)]
    with psycopg.connect(empty_dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        _yoyo(empty_dsn, "break-lock", *sources)
        tried = f"SELECT pg_try_advisory_lock({LOCK_KEY})"
        assert ask(empty_dsn, tried) == [(False,)], "only its holder's end breaks it"


def test_yoyos_own_command_rolls_back_and_marks(
    empty_dsn: str, migrations: MigrationFolder
):
    """rollback, mark and unmark keep the same record."""
    migrations.table("0001_shop", "t_a")
    source = str(migrations.path)
    recorded = "SELECT migration_id FROM fm_storage.migrations"
    _yoyo(empty_dsn, "apply", source)
    _yoyo(empty_dsn, "rollback", source)
    assert ask(empty_dsn, "SELECT to_regclass('t_a')") == [(None,)]
    _yoyo(empty_dsn, "mark", source)
    assert ask(empty_dsn, recorded) == [("0001_shop",)]
    _yoyo(empty_dsn, "unmark", source)
    assert ask(empty_dsn, recorded) == []
    with pytest.raises(MigrationFailed, match="force would leave half"):
        _yoyo(empty_dsn, "apply", "--force", source)


@pytest.mark.lengthy
def test_yoyos_own_command_leaves_sources_with_names_to_ours(
    empty_dsn: str, migrations: MigrationFolder
):
    """It knows no names, and would apply or record the same files once more."""
    migrations.table("0001_shop", "t_a")
    source = str(migrations.path)
    named = MigrationsConfig(sources={"shop": source})
    asyncio.run(Migrator(empty_dsn, named).apply())
    for command in ("apply", "mark", "develop"):
        with pytest.raises(MigrationFailed, match="applied as 'shop:0001_shop'; give"):
            _yoyo(empty_dsn, command, source)
    _yoyo(empty_dsn, "rollback", source)
    recorded = "SELECT migration_id FROM fm_storage.migrations ORDER BY seq DESC"
    assert ask(empty_dsn, f"{recorded} LIMIT 1") == [("shop:0001_shop",)]
    assert ask(empty_dsn, "SELECT to_regclass('t_a') IS NOT NULL") == [(True,)]
    asyncio.run(Migrator(empty_dsn, named).rollback())
    _yoyo(empty_dsn, "apply", source)


@pytest.mark.lengthy
def test_a_rollback_asks_with_what_would_go(
    command: Command, migrations: MigrationFolder, empty_dsn: str
):
    """Without an answer nothing is done, and --yes is named."""
    migrations.table("0001_shop", "t_a")
    command("migrate")
    refused = command("rollback", "--steps", "100")
    assert refused.exit_code == 2
    for words in ("--yes", "DROP TABLE t_a", "vector store is not changed"):
        assert words in refused.output
    assert ask(empty_dsn, "SELECT to_regclass('t_a') IS NOT NULL") == [(True,)]
    done = command("rollback", "--yes")
    assert "'fm-storage migrate' does" in done.stderr
    assert command("health").exit_code == 1
    assert ask(empty_dsn, "SELECT to_regclass('t_a')") == [(None,)]


@pytest.mark.parametrize(
    "words", [["health", "--json"], ["errors", "list"], ["outbox", "status"]]
)
@pytest.mark.parametrize("embedded", [False, True])
def test_a_command_that_reads_makes_nothing(
    command: Command,
    empty_dsn: str,
    tmp_path: Path,
    words: list[str],
    *,
    embedded: bool,
):
    """No schema, no folder, no server; only a start of an application migrates."""
    folder = tmp_path / "data"
    more = {"FM_STORAGE_DATA_DIR": str(folder)}
    if embedded:
        more["FM_STORAGE_POSTGRES__DSN"] = "embedded:"
    result = command(*words, **more)
    assert result.exit_code != 0
    assert "fm-storage migrate" in f"{result.output}{result.exception}"
    assert not folder.exists()
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'fm_storage'"
    assert ask(empty_dsn, schemas) == [(0,)]
