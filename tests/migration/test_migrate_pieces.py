"""Files marked ``-- transactional: false``: statement by statement, resumable."""

from __future__ import annotations

import hashlib

import pytest
from yoyo.migrations import read_sql_migration

from fm_storage.errors import MigrationFailed
from fm_storage.migrate import Progress
from tests.fix_migrations import MigrationFolder, ask


def _index(dsn: str, name: str) -> bool | None:
    sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass"
    rows = ask(dsn, f"{sql}('{name}')")
    return rows[0][0] if rows else None


def _leftovers(dsn: str) -> list[tuple[object, ...]]:
    return ask(dsn, "SELECT * FROM fm_storage.migration_steps")


async def test_an_index_is_built_concurrently_and_dropped_so(
    dsn: str, migrations: MigrationFolder
):
    """Both directions run outside a transaction; nothing is left in the journal."""
    migrations.in_pieces(
        "0001_index",
        "CREATE INDEX CONCURRENTLY t_i ON project_errors (module);",
        "DROP INDEX CONCURRENTLY t_i;",
    )
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    assert _index(dsn, "t_i") is True
    assert _leftovers(dsn) == []
    await migrator.rollback()
    assert _index(dsn, "t_i") is None
    assert _leftovers(dsn) == []


async def test_without_the_mark_the_error_says_how(
    dsn: str, migrations: MigrationFolder
):
    """The server refuses; the remedy is a line at the top."""
    migrations.write(
        "0001_index", "CREATE INDEX CONCURRENTLY t_i ON project_errors (module)"
    )
    with pytest.raises(MigrationFailed, match="add the line '-- transactional: false'"):
        await migrations.migrator(dsn).apply()


async def test_a_failed_build_is_cleared_away_before_the_next(
    dsn: str, migrations: MigrationFolder
):
    """The INVALID index that a violated uniqueness leaves is dropped by the re-run."""
    migrations.write("0001_t", "CREATE TABLE t_a (id int); INSERT INTO t_a VALUES (1)")
    migrations.in_pieces(
        "0002_index",
        "INSERT INTO t_a VALUES (1);\n"
        'CREATE UNIQUE INDEX CONCURRENTLY "T i" ON t_a (id);\n'
        "ANALYZE t_a;\n",
    )
    seen: list[Progress] = []
    migrator = migrations.migrator(dsn, seen.append)
    with pytest.raises(MigrationFailed, match="statement 2: could not create unique"):
        await migrator.apply()
    assert _index(dsn, '"T i"') is False
    with pytest.raises(MigrationFailed, match="statement 2"):
        await migrator.apply()
    ask(dsn, "DELETE FROM t_a WHERE ctid = (SELECT min(ctid) FROM t_a)")
    await migrator.apply()
    assert _index(dsn, '"T i"') is True
    assert ask(dsn, "SELECT count(*) FROM t_a") == [(1,)], "the INSERT ran once"
    assert any(p.what == "invalid index" for p in seen)
    assert _leftovers(dsn) == []


async def test_a_statement_that_ran_is_not_run_again(
    dsn: str, migrations: MigrationFolder
):
    """Ordinary statements keep their mark in their own transaction."""
    migrations.in_pieces(
        "0001_a",
        "CREATE TABLE t_a (id int);\nINSERT INTO t_a VALUES (1);\nSELECT 1/0;",
    )
    migrator = migrations.migrator(dsn)
    with pytest.raises(MigrationFailed, match="statement 3: division by zero"):
        await migrator.apply()
    migrations.in_pieces(
        "0001_a",
        "CREATE TABLE t_a (id int);\nINSERT INTO t_a VALUES (1);\nSELECT 1;",
    )
    await migrator.apply()
    assert ask(dsn, "SELECT * FROM t_a") == [(1,)]


async def test_editing_a_statement_that_ran_is_refused(
    dsn: str, migrations: MigrationFolder
):
    """What is done cannot be said otherwise afterwards."""
    migrations.in_pieces("0001_a", "CREATE TABLE t_a (id int);\nSELECT 1/0;")
    migrator = migrations.migrator(dsn)
    with pytest.raises(MigrationFailed):
        await migrator.apply()
    migrations.in_pieces("0001_a", "CREATE TABLE t_a (id bigint);\nSELECT 1;")
    with pytest.raises(MigrationFailed, match="statement 1 was edited after"):
        await migrator.apply()


async def test_a_block_that_commits_runs_bare(dsn: str, migrations: MigrationFolder):
    """DO with COMMIT in it, as batched changes are written."""
    migrations.in_pieces(
        "0001_a",
        "CREATE TABLE t_a (id int);\n"
        "DO $$ BEGIN FOR n IN 1..3 LOOP INSERT INTO t_a VALUES (n); COMMIT; END LOOP;"
        " END $$;\nVACUUM t_a;\n",
    )
    await migrations.migrator(dsn).apply()
    assert ask(dsn, "SELECT count(*) FROM t_a") == [(3,)]


async def test_an_index_without_a_name_is_refused(
    dsn: str, migrations: MigrationFolder
):
    """An interrupted build could not be found again."""
    migrations.in_pieces(
        "0001_a", "CREATE INDEX CONCURRENTLY ON project_errors (module)"
    )
    with pytest.raises(MigrationFailed, match="statement 1 builds an index without"):
        await migrations.migrator(dsn).apply()


async def test_a_strangers_invalid_index_is_not_taken_for_ours(
    dsn: str, migrations: MigrationFolder
):
    """IF NOT EXISTS would pass over it; a migration that did so is not recorded."""
    ask(dsn, "CREATE TABLE t_a (id int); INSERT INTO t_a VALUES (1), (1)")
    migrations.in_pieces("0001_a", "CREATE UNIQUE INDEX CONCURRENTLY t_i ON t_a (id)")
    with pytest.raises(MigrationFailed):
        await migrations.migrator(dsn).apply()
    ask(dsn, "DELETE FROM fm_storage.migration_steps")
    migrations.in_pieces(
        "0001_a",
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS t_i ON t_a (id)",
    )
    with pytest.raises(MigrationFailed, match=r"index public\.t_i is INVALID"):
        await migrations.migrator(dsn).apply()


async def test_interrupted_drops_and_rebuilds_are_understood(
    dsn: str, migrations: MigrationFolder
):
    """Intent in the journal, effect in the catalogue: the re-run looks first."""
    ask(dsn, "CREATE TABLE t_a (id int); CREATE INDEX t_j ON t_a (id)")
    migrations.in_pieces(
        "0001_a",
        "DROP INDEX CONCURRENTLY t_i;\nREINDEX INDEX CONCURRENTLY t_j;\n"
        "REINDEX TABLE CONCURRENTLY t_a;\n"
        "CREATE INDEX CONCURRENTLY t_k ON t_a (id);",
    )
    migrator = migrations.migrator(dsn)
    with pytest.raises(MigrationFailed, match="statement 1"):
        await migrator.apply()
    # As if killed between the effect and the mark of each.
    ask(
        dsn,
        "CREATE INDEX t_k ON t_a (id);"
        "INSERT INTO fm_storage.migration_steps (migration_id, direction, step,"
        " checksum, done) SELECT '0001_a', 'apply', n, 'x', false"
        " FROM generate_series(1, 3) n",
    )
    ask(dsn, "CREATE INDEX t_j_ccnew ON t_a (id)")
    ask(
        dsn,
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 't_j_ccnew'::regclass",
    )
    await migrator.apply()
    assert _index(dsn, "t_j_ccnew") is None
    assert _index(dsn, "t_j") is True
    assert _index(dsn, "t_k") is True


async def test_python_steps_are_resumed_too(dsn: str, migrations: MigrationFolder):
    """Each step has its mark, in both directions."""
    (migrations.path / "0001_py.py").write_text(
        "from yoyo import step\n__transactional__ = False\n"
        "step('CREATE TABLE t_a (id int)', 'DROP TABLE t_a')\n"
        "step('CREATE INDEX CONCURRENTLY t_i ON t_a (id)',"
        " 'DROP INDEX CONCURRENTLY t_i')\n"
    )
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    assert _index(dsn, "t_i") is True
    await migrator.rollback()
    assert ask(dsn, "SELECT to_regclass('t_a')") == [(None,)]


@pytest.mark.parametrize("changed", [False, True])
async def test_marks_of_the_former_splitter_are_resumed(
    dsn: str, migrations: MigrationFolder, changed: bool
):
    """It kept comments with a statement, and cut the body of an SQL function."""
    body = (
        "-- what it is for\nCREATE TABLE t_a (id int);\n"
        "-- and a row\nINSERT INTO t_a VALUES (1); -- one\n"
        "/* the last */ INSERT INTO t_a SELECT 1/0;\n"
    )
    path = migrations.in_pieces("0001_a", body)
    texts = read_sql_migration(str(path))[2]
    with pytest.raises(MigrationFailed):
        await migrations.migrator(dsn).apply()
    # As the release before would have left it.
    for step, text in enumerate(texts[:2]):
        digest = hashlib.sha256(text.encode()).hexdigest()
        ask(
            dsn,
            f"UPDATE fm_storage.migration_steps SET checksum = '{digest}'"
            f" WHERE step = {step}",
        )
    fixed = body.replace("1/0", "2")
    if changed:
        fixed = fixed.replace("VALUES (1)", "VALUES (7)")
    migrations.in_pieces("0001_a", fixed)
    if changed:
        with pytest.raises(MigrationFailed, match="statement 2 was edited after"):
            await migrations.migrator(dsn).apply()
        return
    await migrations.migrator(dsn).apply()
    assert ask(dsn, "SELECT * FROM t_a ORDER BY id") == [(1,), (2,)]
    assert _leftovers(dsn) == []
