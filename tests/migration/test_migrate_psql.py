"""What psql takes is taken; what fails is reported with the file and what stayed."""

from __future__ import annotations

import pytest

from fm_storage.errors import MigrationFailed
from tests.fix_migrations import MigrationFolder, ask

BOM = "\ufeff"
PIECES = "-- transactional: false\n"
DEFERRED = """
CREATE TABLE t_p (i int PRIMARY KEY);
CREATE TABLE t_c (i int REFERENCES t_p DEFERRABLE INITIALLY DEFERRED);
INSERT INTO t_c VALUES (54321);
"""


@pytest.mark.parametrize(
    "content",
    [
        f"{BOM}CREATE TABLE t_a (i int);",
        f"{BOM}-- transactional: false\nCREATE TABLE t_a (i int);\nVACUUM t_a;",
        f"{BOM}-- transactional: false\r\nCREATE TABLE t_a (i int);\r\nVACUUM t_a;\r\n",
        "-- transactional: false\rCREATE TABLE t_a (i int);\rVACUUM t_a;\r",
        "/*\nDROP TABLE x; /* old; */\nDROP TABLE x;\n*/ CREATE TABLE t_a (i int);",
        "CREATE TABLE t_a (i int); CREATE PROCEDURE t_f() BEGIN ATOMIC SELECT 1; END;",
    ],
)
@pytest.mark.parametrize("ending", ["sql", "SQL"])
async def test_a_file_that_psql_runs_is_run(
    dsn: str, migrations: MigrationFolder, content: str, ending: str
):
    """Byte order mark, every kind of line end, nested comments, and back again."""
    (migrations.path / f"0001_a.{ending}").write_bytes(content.encode())
    (migrations.path / f"0001_a.rollback.{ending}").write_bytes(
        f"{BOM}DROP TABLE t_a".encode()
    )
    migrator = migrations.migrator(dsn)
    assert [one.id for one in await migrator.apply()] == ["0001_a"]
    assert ask(dsn, "SELECT to_regclass('t_a') IS NOT NULL") == [(True,)]
    await migrator.rollback()
    assert ask(dsn, "SELECT to_regclass('t_a')") == [(None,)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            DEFERRED,
            r"'0001_a': at COMMIT: insert or .*constraint.*nothing of it was kept",
        ),
        ("SELECT 1; COPY t FROM stdin;\n1\n\\.\n", "statement 2 is COPY .*use INSERT"),
        (
            "CREATE TYPE t_m AS ENUM ('a'); CREATE TABLE project_errors (i int);",
            r"statement 2: relation .* already exists; .*migrate baseline --to 0001_a",
        ),
        ("-- depends: 0001_a\nSELECT 1", "0001_a depends on itself"),
        ("\\connect shop\nSELECT 1;", "statement 1 has a command of psql"),
        ("SELECT 1; SELECT 'VACUUM' \\gexec", "statement 2 has a command of psql"),
        ("SELECT 1;\0", "byte 9 is not UTF-8 text; save"),
        (f"{PIECES}BEGIN; SELECT 1; COMMIT;", "statement 1 is BEGIN, but the runner"),
        ("START TRANSACTION; SELECT 1;", "statement 1 is START TRANSACTION, but the"),
        ("-- transactional: maybe\nSELECT 1", "'-- transactional: maybe' is unclear"),
    ],
)
async def test_a_failure_names_the_file_and_the_remedy(
    dsn: str, migrations: MigrationFolder, sql: str, message: str
):
    """Without values."""
    migrations.write("0001_a", sql)
    with pytest.raises(MigrationFailed, match=message) as caught:
        await migrations.migrator(dsn).apply()
    assert "54321" not in str(caught.value)
    found = ask(dsn, "SELECT relname FROM pg_class WHERE relname ~ '^t_'")
    assert found == []


async def test_a_new_value_of_an_enum_needs_a_transaction_of_its_own(
    dsn: str, migrations: MigrationFolder
):
    """The message says how: the file statement by statement."""
    migrations.write("0001_m", "CREATE TYPE t_m AS ENUM ('a')")
    sql = "ALTER TYPE t_m ADD VALUE 'b'; CREATE TABLE t_a (m t_m DEFAULT 'b');"
    migrations.write("0002_b", sql)
    with pytest.raises(MigrationFailed, match="transactional: false") as caught:
        await migrations.migrator(dsn).apply()
    assert caught.value.sqlstate == "55P04"
    migrations.in_pieces("0002_b", sql)
    await migrations.migrator(dsn).apply()


async def test_what_a_file_sets_holds_for_the_file(
    dsn: str, migrations: MigrationFolder
):
    """In every run of it, and no longer; marks are written with our own role."""
    ask(dsn, "DROP ROLE IF EXISTS t_owner; CREATE ROLE t_owner")
    ask(dsn, "CREATE SCHEMA app AUTHORIZATION t_owner")
    body = (
        "SET search_path = app;\nSET ROLE t_owner;\nCREATE TABLE t_a (i int);\n"
        "CREATE INDEX CONCURRENTLY t_i ON t_a (i);\n{}\nCREATE TABLE t_b (i int);\n"
    )
    migrations.in_pieces("0001_a", body.format("SELECT 1/0;"))
    migrator = migrations.migrator(dsn)
    with pytest.raises(MigrationFailed, match="statement 5: division by zero"):
        await migrator.apply()
    migrations.in_pieces("0001_a", body.format("SELECT 1;"))
    migrations.write("0002_c", "CREATE TABLE t_c (i int)")
    await migrator.apply()
    assert ask(
        dsn,
        "SELECT relnamespace::regnamespace || '.' || relname,"
        " pg_get_userbyid(relowner) = 't_owner' FROM pg_class"
        " WHERE relname ~ '^t_[abc]$' ORDER BY relname",
    ) == [("app.t_a", True), ("app.t_b", True), ("public.t_c", False)]
    ask(dsn, "DROP OWNED BY t_owner; DROP ROLE t_owner")


async def test_what_stays_of_a_file_in_pieces_is_said(
    dsn: str, migrations: MigrationFolder
):
    """The statements before the failed one, and an index that it left INVALID."""
    migrations.in_pieces(
        "0001_a",
        "CREATE TABLE t_a (i int);\nINSERT INTO t_a VALUES (1), (1);\n"
        "CREATE UNIQUE INDEX CONCURRENTLY t_i ON t_a (i);",
    )
    with pytest.raises(MigrationFailed) as caught:
        await migrations.migrator(dsn).apply()
    message = str(caught.value)
    assert (
        "it goes on with statement 3, what stands before it stays (2 done)" in message
    )
    assert "public.t_i is there, an INVALID index" in message
    assert "nothing" not in message
