"""No statement that counts as lean leaves anything behind: the server is asked."""

from __future__ import annotations

import asyncpg
import pytest

from fm_storage.postgres.connection.classifier import Classifier, UserNames
from tests.support.statements import sweep


@pytest.mark.parametrize("seed", range(5))
async def test_what_counts_as_lean_leaves_nothing(empty_dsn: str, seed: int):
    """Settings, roles, locks, temporary objects, PREPARE, cursors and channels."""
    await sweep(empty_dsn, seed, 100)


@pytest.mark.parametrize(
    "definition",
    [
        """
        CREATE FUNCTION eq(int, text) RETURNS bool LANGUAGE sql
          AS $$ SELECT set_config('a.b', 'c', false) IS NULL $$;
        CREATE OPERATOR = (leftarg = int, rightarg = text, function = eq);
        """,
        """
        CREATE TYPE pair AS (a int);
        CREATE FUNCTION as_json(pair) RETURNS json LANGUAGE sql
          AS $$ SELECT to_json(set_config('a.b', 'c', false)) $$;
        CREATE CAST (pair AS json) WITH FUNCTION as_json(pair);
        """,
    ],
    ids=["equality", "cast"],
)
async def test_what_is_called_unnamed_makes_every_statement_unclear(
    empty_dsn: str, definition: str
):
    """IN calls ``=``, ``to_json()`` calls a cast: no name of theirs is in the text."""
    connection = await asyncpg.connect(empty_dsn)
    classifier = Classifier()
    classifier.learn(await UserNames.read(connection, 20))
    assert classifier.classify("SELECT 1")
    await connection.execute(definition)
    classifier.learn(await UserNames.read(connection, 20))
    await connection.close()
    assert not classifier.classify("SELECT 1")


async def test_members_of_extensions_in_c_count_as_the_servers_own(empty_dsn: str):
    """citext, hstore, ltree and pg_trgm share names and operators with the server."""
    connection = await asyncpg.connect(empty_dsn)
    known = {"citext", "hstore", "ltree", "pg_trgm", "vector"}
    there = await connection.fetch("SELECT name FROM pg_available_extensions")
    for (name,) in there:
        if name in known:
            await connection.execute(f"CREATE EXTENSION {name}")
    classifier = Classifier()
    classifier.learn(await UserNames.read(connection, 20))
    await connection.close()
    for sql in (
        "SELECT lower(a), replace(b, 'x', 'y') FROM t WHERE a = 'x' AND b LIKE 'y%'",
        "SELECT max(a), regexp_replace(b, 'x', 'y') FROM t WHERE a || b <> ''",
        "INSERT INTO t (a) VALUES ($1) RETURNING a",
    ):
        assert classifier.classify(sql), sql
