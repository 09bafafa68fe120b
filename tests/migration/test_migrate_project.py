"""The project's own migrations: reversible, documented, granted, on every server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg

from fm_storage.migrate import Migrator
from fm_storage.migrate.files import PROJECT, Source, project_folder, read_files
from tests.fix_cluster import TestCluster
from tests.fix_migrations import ask, catalogue
from tests.fix_postgres import TestServer

ROOT = Path(__file__).parents[2]
FILES = read_files([Source(PROJECT, project_folder())])


@pytest.fixture
def database(every_server: TestServer) -> Iterator[str]:
    """Give the DSN of an empty database on each version of the server."""
    made = every_server.create_database()
    yield made
    every_server.drop_database(made)


@pytest.mark.timeout(120)
async def test_up_down_up_leaves_no_difference(database: str):
    """Each file's rollback undoes that file exactly, and all can be applied again."""
    migrator = Migrator(database)
    after = []
    for file in FILES:
        await migrator.apply(to=file.id)
        after.append(catalogue(database))
    for before in reversed(after[:-1]):
        await migrator.rollback()
        assert catalogue(database) == before
    await migrator.rollback()
    bare = catalogue(database)
    assert [row for row in bare["relations"] if "project_errors" in row] == []
    await migrator.apply()
    assert catalogue(database) == after[-1]
    await migrator.rollback(steps=len(FILES))
    assert catalogue(database) == bare


async def test_project_errors_has_exactly_the_promised_columns(dsn: str):
    """Other programs read this table; what is ours alone lies elsewhere."""
    rows = ask(
        dsn,
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull"
        " FROM pg_attribute WHERE attrelid = 'project_errors'::regclass"
        " AND attnum > 0 ORDER BY attnum",
    )
    assert rows == [
        ("id", "uuid", True),
        ("timestamp", "timestamp with time zone", True),
        ("message", "text", True),
        ("stack_trace", "text", False),
        ("module", "character varying(255)", True),
        ("error_code", "character varying(100)", True),
        ("manager_context", "jsonb", False),
        ("severity", "character varying(50)", True),
    ]


async def test_every_table_and_column_has_a_comment(dsn: str):
    """The schema is documented where it lives."""
    missing = ask(
        dsn,
        """
        SELECT c.oid::regclass::text, a.attname::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S')
          AND n.nspname IN ('fm_storage', 'public')
          AND (obj_description(c.oid, 'pg_class') IS NULL
               OR (c.relkind <> 'S' AND col_description(c.oid, a.attnum) IS NULL))
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid
                          AND c.relkind = 'S' AND d.deptype = 'i')
        """,
    )
    assert missing == []
    assert (
        ask(
            dsn,
            "SELECT p.oid::regprocedure::text FROM pg_proc p"
            " WHERE p.pronamespace = 'fm_storage'::regnamespace"
            " AND obj_description(p.oid, 'pg_proc') IS NULL",
        )
        == []
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.id)
def test_a_file_keeps_to_the_convention(file):
    """Numbered without gaps, in a chain, reversible, and says what it is for."""
    at = FILES.index(file)
    assert re.fullmatch(rf"{at + 1:04d}_[a-z0-9_]+", file.id)
    assert file.depends == ((FILES[at - 1].id,) if at else ())
    assert file.can_roll_back
    text = file.read()
    assert text.startswith("-- ")
    if file.transactional:
        assert not re.search(r"\bIF NOT EXISTS\b(?!.*SELECT)", text.split("DO $$")[0])
    rollback = file.rollback_path.read_text()
    assert "CASCADE" not in rollback.upper()
    assert "DROP TABLE IF EXISTS" not in rollback.upper()


def test_the_lint_of_unsafe_ddl_finds_nothing():
    """As ``make check`` runs it: squawk over the forward files."""
    squawk = Path(sys.executable).with_name("squawk")
    files = [str(file.path) for file in FILES]
    done = subprocess.run(
        [squawk, "--config", ROOT / ".squawk.toml", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_lint_does_find_what_blocks(tmp_path: Path):
    """It is switched on: a rewriting ALTER and a blocking index are refused."""
    squawk = Path(sys.executable).with_name("squawk")
    shutil.copy(ROOT / ".squawk.toml", tmp_path)
    (tmp_path / "0001_bad.sql").write_text(
        "ALTER TABLE project_errors ADD COLUMN x int NOT NULL;\n"
        "CREATE INDEX i ON project_errors (module);\n"
    )
    done = subprocess.run(
        [squawk, "0001_bad.sql"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "adding-required-field" in done.stdout
    assert "require-concurrent-index-creation" in done.stdout


async def test_an_application_needs_no_rights_on_the_schema(
    every_server: TestServer, database: str
):
    """A member of fm_storage_app reads the record and changes rows, nothing more."""
    await Migrator(database).apply()
    ask(every_server.dsn, "DROP ROLE IF EXISTS t_app")
    create = "CREATE ROLE t_app LOGIN PASSWORD 'app' IN ROLE fm_storage_app"
    ask(every_server.dsn, create)
    theirs = re.sub("//[^@]*@", "//t_app:app@", database)
    assert {s.state for s in await Migrator(theirs).status()} == {"applied"}
    assert await Migrator(theirs).ensure() == []
    ask(theirs, "SELECT nextval('fm_storage.vector_version')")
    tables = ask(
        database,
        "SELECT c.oid::regclass::text, "
        "has_table_privilege('t_app', c.oid, 'SELECT'),"
        "has_any_column_privilege('t_app', c.oid, 'INSERT'),"
        "has_any_column_privilege('t_app', c.oid, 'UPDATE'),"
        "has_table_privilege('t_app', c.oid, 'DELETE'),"
        "has_table_privilege('t_app', c.oid, 'TRUNCATE')"
        " FROM pg_class c WHERE c.relkind IN ('r', 'p') AND (c.relnamespace ="
        " 'fm_storage'::regnamespace OR c.oid = 'project_errors'::regclass)",
    )
    rights = {name: "".join("-+"[right] for right in row) for name, *row in tables}
    assert rights.pop("fm_storage.migrations") == "+----"
    assert rights.pop("fm_storage.migration_log") == "-----"
    assert rights.pop("fm_storage.migration_steps") == "-----"
    assert rights.pop("fm_storage.vector_store") == "+-+--"
    assert set(rights.values()) == {"++++-"}, rights
    for statement in (
        "CREATE TABLE fm_storage.t (id int)",
        "DROP TABLE project_errors",
        "DELETE FROM fm_storage.migrations",
    ):
        with pytest.raises(pg.InsufficientPrivilege):
            ask(theirs, statement)


async def test_a_role_that_may_not_create_roles_can_migrate(cluster: TestCluster):
    """The group role is made where permitted, and done without where not."""
    ask(cluster.dsn, "CREATE ROLE t_owner LOGIN NOCREATEROLE")
    ask(cluster.dsn, "CREATE DATABASE t_db OWNER t_owner")
    at = cluster.dsn.replace("postgres@/postgres", "t_owner@/t_db")
    assert len(await Migrator(at).apply()) == len(FILES)
    assert ask(at, "SELECT 1 FROM pg_roles WHERE rolname = 'fm_storage_app'") == []
    await Migrator(at).rollback(steps=len(FILES))


async def test_the_schema_may_belong_to_a_dba(cluster: TestCluster):
    """Who may not create schemas can still fill the one that was made for him."""
    ask(cluster.dsn, "CREATE ROLE t_owner LOGIN")
    ask(cluster.dsn, "CREATE SCHEMA fm_storage AUTHORIZATION t_owner")
    ask(cluster.dsn, "GRANT CREATE ON SCHEMA public TO t_owner")
    at = cluster.dsn.replace("postgres@/", "t_owner@/")
    assert len(await Migrator(at).apply()) == len(FILES)


async def test_an_applications_own_yoyo_tables_are_not_ours(empty_dsn: str):
    """Their record, in the public schema, neither counts nor changes."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE _yoyo_migration (migration_hash varchar(64) PRIMARY KEY,"
            " migration_id varchar(255), applied_at_utc timestamp)"
        )
        connection.execute(
            "INSERT INTO _yoyo_migration SELECT encode(sha256(convert_to(name,"
            " 'UTF8')), 'hex'), name, now()::timestamp"
            " FROM (SELECT '0001_create_project_errors'::text AS name) AS theirs"
        )
    done = await Migrator(empty_dsn).apply()
    assert done[0].id == "0001_create_project_errors"
    assert ask(empty_dsn, "SELECT count(*) FROM _yoyo_migration") == [(1,)]
