"""Migrations speak through the pool's driver, as DB-API: what steps in Python see."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConfigurationInvalid, MigrationFailed, QueryFailed
from fm_storage.migrate import Migrator
from fm_storage.migrate.driver import Connection, MigrationStopped
from fm_storage.postgres import Pool
from tests.fix_migrations import MigrationFolder, ask


@pytest.fixture
def connection(empty_dsn: str) -> Iterator[Connection]:
    """Give an open connection."""
    made = Connection(PostgresConfig(dsn=empty_dsn))
    try:
        made.open()
        yield made
    finally:
        made.close()


def test_a_cursor_is_dbapis(connection: Connection):
    """execute, executemany, the fetch methods, description, rowcount."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (id int, word text); SET work_mem = '5MB'")
        assert (cursor.description, cursor.rowcount) == (None, -1)
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(1, "a"), (2, "b%")])
        assert cursor.rowcount == 1
        cursor.execute("UPDATE t SET word = word || '%%' WHERE id > %(id)s", {"id": 0})
        assert cursor.rowcount == 2
        cursor.execute("SELECT id, word FROM t ORDER BY id")
        assert cursor.description is not None
        assert [column[0] for column in cursor.description] == ["id", "word"]
        assert all(len(column) == 7 for column in cursor.description)
        assert cursor.fetchone() == (1, "a%")
        assert cursor.fetchmany(5) == [(2, "b%%")]
        assert cursor.fetchone() is None
        cursor.execute("DELETE FROM t WHERE id = 1 RETURNING word")
        assert [*cursor] == [("a%",)]
        cursor.execute("SELECT count(*) FROM t WHERE word LIKE '%b%'")
        assert cursor.fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ("date", "2026-01-02", dt.date(2026, 1, 2)),
        ("date", dt.date(2026, 1, 2), dt.date(2026, 1, 2)),
        ("text", 5, "5"),
        ("bigint", "7", 7),
        ("numeric", 1.5, Decimal("1.5")),
        ("int[]", "{1,2}", [1, 2]),
        ("int[]", [1, 2], [1, 2]),
        ("boolean", True, True),
        ("jsonb", '{"a": 1}', {"a": 1}),
        ("uuid", None, None),
    ],
)
def test_values_are_converted_as_a_literal_would_be(
    connection: Connection, kind: str, value: object, read: object
):
    """What psycopg sends without a type, the server reads as the column's."""
    cursor = connection.cursor()
    cursor.execute(f"CREATE TABLE t (v {kind})")
    cursor.execute("INSERT INTO t VALUES (%s)", (value,))
    assert cursor.execute("SELECT v FROM t").fetchone() == (read,)


def test_the_servers_refusal_of_a_value_is_its_own(connection: Connection):
    """It is an error of the database, which yoyo's ignore_errors knows."""
    cursor = connection.cursor()
    with pytest.raises(QueryFailed, match="invalid input syntax") as caught:
        cursor.execute("SELECT %s::int", ("x",))
    assert caught.value.sqlstate == "22P02"
    for wrong, args in (
        ("SELECT %s, %s", (1,)),
        ("SELECT %s", (1, 2)),
        ("SELECT %(a)s", {"b": 1}),
        ("SELECT 5 % 2, %s", (1,)),
    ):
        with pytest.raises(QueryFailed, match="placeholder"):
            cursor.execute(wrong, args)


@pytest.mark.parametrize(
    "copy",
    ["COPY t FROM stdin", "/* x */ copy t (i) to STDOUT", 'COPY "t" FROM STDIN;'],
)
def test_copy_through_the_client_is_refused_before_it_is_sent(
    connection: Connection, copy: str
):
    """It would wait for data that never comes; from and to a file it is possible."""
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE t (i int)")
    with pytest.raises(QueryFailed, match="COPY"):
        cursor.execute(copy)
    cursor.execute("COPY t FROM '/dev/null'")
    assert cursor.execute("SELECT count(*) FROM t").fetchall() == [(0,)]


def test_what_was_stopped_only_rolls_back(connection: Connection):
    """Nothing else begins any more."""
    connection.run("BEGIN; CREATE TABLE t (i int)")
    connection.stop()
    with pytest.raises(MigrationStopped):
        connection.run("COMMIT")
    connection.rollback()
    connection.close()
    connection.close()


@pytest.mark.parametrize(
    "call",
    [
        "connection.execute('SELECT 1')",
        "connection.info.dbname",
        "connection.cursor().copy('COPY t FROM stdin')",
        "connection.cursor().execute(b'SELECT 1')",
        "connection.cursor().nothing",
        "1 / 0",
    ],
)
@pytest.mark.parametrize("transactional", [True, False])
async def test_what_is_not_dbapi_names_the_file(
    dsn: str, migrations: MigrationFolder, call: str, transactional: bool
):
    """And whatever else the Python of a step raises."""
    (migrations.path / "0001_py.py").write_text(
        "from yoyo import step\n"
        f"__transactional__ = {transactional}\n"
        "def make(connection):\n"
        "    connection.cursor().execute('CREATE TABLE t_a (id int)')\n"
        f"    {call}\n"
        "step(make)\n"
    )
    with pytest.raises(MigrationFailed, match=r"0001_py.*Python code failed") as caught:
        await migrations.migrator(dsn).apply()
    assert caught.value.migration == "0001_py"
    assert ask(dsn, "SELECT to_regclass('t_a')") == [(None,)]


async def test_an_ignored_error_of_a_step_is_ignored(
    dsn: str, migrations: MigrationFolder
):
    """Yoyo's ignore_errors, by the driver's DatabaseError."""
    (migrations.path / "0001_py.py").write_text(
        "from yoyo import step\n"
        "step('CREATE TABLE t_a (id int)', 'DROP TABLE t_a')\n"
        "step('SELECT 1/0', ignore_errors='all')\n"
    )
    await migrations.migrator(dsn).apply()
    assert ask(dsn, "SELECT to_regclass('t_a') IS NOT NULL") == [(True,)]


@pytest.mark.parametrize("way", ["server_settings", "query", "service"])
@pytest.mark.lengthy
async def test_pool_and_migrations_read_an_address_alike(
    empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
):
    """The tables are where the pool looks for them."""
    ask(empty_dsn, "CREATE SCHEMA app")
    parts = urlsplit(empty_dsn)
    address, settings = empty_dsn, {}
    if way == "server_settings":
        settings = {"search_path": "app"}
    elif way == "query":
        address += ("&" if parts.query else "?") + "search_path=app"
    else:
        query = parse_qs(parts.query)
        host = parts.hostname or query["host"][0]
        port = parts.port or query["port"][0]
        (tmp_path / "services").write_text(
            f"[case]\nhost={host}\nport={port}\nuser={parts.username}\n"
            f"dbname={parts.path[1:]}\npassword={parts.password or ''}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        address = "postgresql:///?service=case"
    config = PostgresConfig(dsn=address, server_settings=settings)
    assert await Migrator(config).apply()
    async with Pool(config) as pool:
        assert await pool.fetchval("SELECT count(*) FROM project_errors") == 0
    schema = "SELECT relnamespace::regnamespace::text FROM pg_class"
    found = ask(empty_dsn, f"{schema} WHERE relname = 'project_errors'")
    assert found == [("public" if way == "service" else "app",)]


async def test_a_demand_of_security_is_refused_as_by_the_pool():
    """Before anything is sent."""
    with pytest.raises(ConfigurationInvalid, match="require_auth"):
        await Migrator(
            "postgresql://u@127.0.0.1:1/x?require_auth=scram-sha-256"
        ).check()
