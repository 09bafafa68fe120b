"""A folder of migrations that a test writes, and what a database looks like.

Apart, because the tests of applying, of drift and of kills all tell their story
with two or three small files.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator, Progress
from fm_storage.postgres.embedded.cluster import Cluster
from fm_storage.postgres.embedded.programs import Server
from tests.fix_postgres import (
    THROW_AWAY,
    TestServer,
    make_base,
    start_on_free_port,
    test_account,
)

__all__ = ["MigrationFolder", "ask", "catalogue", "every_server", "migrations"]

# Where Debian and its children put the servers of their packages.
_PACKAGED = sorted(
    folder
    for folder in Path("/usr/lib/postgresql").glob("*")
    if folder.name.isdigit()
    and int(folder.name) >= 14
    and (folder / "bin/initdb").exists()
)


class MigrationFolder:
    """An application's folder of migrations."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, sql: str, rollback: str | None = None) -> Path:
        """Write a migration, and its rollback file unless that is None."""
        path = self.path / f"{name}.sql"
        path.write_text(sql, encoding="utf-8")
        if rollback is not None:
            self.rollback_of(name).write_text(rollback, encoding="utf-8")
        return path

    def in_pieces(self, name: str, sql: str, rollback: str | None = None) -> Path:
        """Write a migration that runs statement by statement."""
        return self.write(name, f"-- transactional: false\n{sql}", rollback)

    def table(self, name: str, table: str) -> Path:
        """Write a migration that makes a table, with its rollback file."""
        return self.write(name, f"CREATE TABLE {table} (id int)", f"DROP TABLE {table}")

    def rollback_of(self, name: str) -> Path:
        """Return where the rollback file of a migration is."""
        return self.path / f"{name}.rollback.sql"

    def config(self, **settings: Any) -> MigrationsConfig:
        """Return a configuration with this folder as a source."""
        return MigrationsConfig(**{"sources": (str(self.path),), **settings})

    def migrator(
        self,
        dsn: str,
        progress: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> Migrator:
        """Return a migrator over the project's files and this folder."""
        return Migrator(dsn, self.config(**settings), progress=progress)


@pytest.fixture
def migrations(tmp_path: Path) -> MigrationFolder:
    """Give an empty folder of migrations."""
    folder = tmp_path / "app" / "migrations"
    folder.mkdir(parents=True)
    return MigrationFolder(folder)


@pytest.fixture(
    scope="session",
    params=[None, *_PACKAGED],
    ids=lambda folder: "server" if folder is None else f"packaged-{folder.name}",
)
def every_server(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    """Give the server under test, then each other version that is installed here."""
    if request.param is None:
        yield request.getfixturevalue("server")
        return
    base = make_base("fm-pv-")
    cluster = Cluster(
        Server(request.param, request.param.name),
        base / "data",
        log=base / "postgres.log",
        user=test_account(),
    )
    try:
        _initialise(request.param, base / "data")
        port = start_on_free_port(cluster, base)
        at = f"postgresql://postgres@/postgres?host={quote(str(base))}&port={port}"
        running = TestServer(at, "packaged", at)
        try:
            yield running
        finally:
            running.close()
            cluster.stop("immediate")
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _initialise(prefix: Path, data: Path) -> None:
    """Make a cluster with an older server's own initdb."""
    user = test_account()
    subprocess.run(
        [
            *(prefix / "bin/initdb", "--pgdata", data, "--auth=trust", "--no-sync"),
            *("--username=postgres", "--encoding=UTF8", "--no-locale"),
        ],
        check=True,
        capture_output=True,
        cwd=data.parent,
        user=None if user.is_us else user.uid,
        group=None if user.is_us else user.gid,
        extra_groups=None if user.is_us else [],
    )
    with (data / "postgresql.conf").open("a", encoding="utf-8") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in THROW_AWAY.items())


def ask(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of one query, on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


_CATALOGUE = {
    "relations": """
        SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.reloptions,
               c.relacl::text, pg_get_userbyid(c.relowner),
               obj_description(c.oid, 'pg_class'),
               CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid)
                    WHEN 'i' THEN pg_get_indexdef(c.oid) END
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^(pg_|information_schema)'""",
    "columns": """
        SELECT a.attrelid::regclass::text,
               -- A column that was dropped keeps its number for ever.
               row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum), a.attname,
               format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               a.attgenerated, a.attstorage, a.attcollation::regcollation::text,
               a.attacl::text,
               pg_get_expr(d.adbin, d.adrelid),
               col_description(a.attrelid, a.attnum)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped
            AND n.nspname !~ '^(pg_|information_schema)'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid),
               convalidated
        FROM pg_constraint WHERE connamespace::regnamespace::text
        !~ '^(pg_|information_schema)'""",
    "indexes": """
        SELECT indexrelid::regclass::text, indisvalid, indisready FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^(pg_|information_schema)'""",
    "functions": """
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text,
               obj_description(p.oid, 'pg_proc')
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname !~ '^(pg_|information_schema)' AND p.prokind IN ('f', 'p')""",
    "types": """
        SELECT t.oid::regtype::text, t.typtype, t.typacl::text,
               obj_description(t.oid, 'pg_type')
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname !~ '^(pg_|information_schema)'""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
        FROM pg_trigger WHERE NOT tgisinternal""",
    "schemas": """
        SELECT nspname, nspacl::text, obj_description(oid, 'pg_namespace')
        FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'""",
    "sequences": "SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart,"
    " seqincrement, seqmax, seqmin, seqcache, seqcycle FROM pg_sequence",
    "extensions": "SELECT extname, extversion FROM pg_extension",
    "default privileges": "SELECT defaclnamespace, defaclobjtype, defaclacl::text"
    " FROM pg_default_acl",
}


def catalogue(dsn: str) -> dict[str, list[str]]:
    """Return everything a schema consists of, without the objects' numbers."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return {
            what: sorted(repr(row) for row in connection.execute(sql.encode()))
            for what, sql in _CATALOGUE.items()
        }
