"""The classifier accepts only what provably leaves nothing on a connection."""

from __future__ import annotations

import pytest

from fm_storage.postgres.connection.classifier import (
    Classifier,
    Effect,
    UserNames,
    classify,
    ends_transaction,
)

USERS = UserNames(
    functions=frozenset({"lower", "set", "substring"}),
    attributes=frozenset({"touched"}),
    operators=frozenset({"||"}),
)
READS = [
    "SELECT 1",
    "select id, j from t where id = $1 and n in (1, 2)",
    "SELECT count(*), max(a) FILTER (WHERE b) FROM s.t GROUP BY (a) HAVING sum(b) > 1",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "WITH x(a, b) AS (VALUES (1, 2)) SELECT * FROM x -- set_config('a','b',false)",
    "SELECT 'SET ROLE x; LISTEN y' /* pg_advisory_lock(1) /* nested */ */",
    "SELECT $tag$ pg_advisory_lock(1) $tag$, $1::text",
    "SELECT a::varchar(10), cast(b AS numeric(10, 2)) FROM t FOR NO KEY UPDATE",
    "SELECT * FROM unnest($1::int[]) AS u(x) WHERE x = ANY($2)",
    "SELECT E'it\\'s', pg_catalog.lower('A');",
    "VALUES (1), (2)",
    "TABLE project_errors",
    "SHOW search_path",
    "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t",
    "SELECT jsonb_build_object('a', 1) || coalesce(j, '{}'::jsonb) FROM t",
]
WRITES = [
    "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = $2",
    "insert into s.t(a) select 1 returning a",
    'INSERT INTO "S"."T"(a) VALUES (1)',
    "UPDATE t SET a = lower($1) WHERE b IS NULL",
    "DELETE FROM t USING u WHERE t.a = u.a",
    "WITH x(a) AS (SELECT 1) INSERT INTO t (a) SELECT a FROM x",
    "WITH x AS (INSERT INTO s.t(a) VALUES (1) RETURNING a), y(b) AS (SELECT 1) TABLE y",
    "UPDATE t SET (a, b) = ($1, $2)",
    "WITH d AS (DELETE FROM t RETURNING *) SELECT count(*) FROM d",
    "SELECT nextval('s')",
    "SELECT pg_notify('c', 'p')",
]
ANYTHING = [
    "",
    "SET search_path = x",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_catalog.pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock (1)",
    'SELECT "pg_advisory_lock"(1)',
    "SELECT my_function()",
    "SELECT public.lower('a')",
    "SELECT other.pg_catalog.lower('a')",
    "SELECT * INTO TEMP x FROM t",
    "SELECT 1; SET ROLE x",
    "CREATE TEMP TABLE x (a int)",
    "CREATE TABLE x (a int)",
    "LISTEN c",
    "PREPARE p AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CALL p()",
    "DO $$ BEGIN PERFORM 1; END $$",
    "BEGIN",
    "DISCARD ALL",
    "LOCK TABLE t",
    "EXPLAIN ANALYZE SELECT pg_advisory_lock(1)",
    "SELECT 'unterminated",
    "SELECT $q$ unterminated",
    "SELECT /* unterminated",
    "SELECT 'back\\' , pg_advisory_lock(1) --'",
    "SELECT dblink_connect('x')",
    "SELECT " + "1," * 20_000 + "1",
    "COPY t FROM STDIN",
    "SELECT id, merge INTO TEMP picked FROM jobs",
    "SELECT 1 AS insert INTO TEMP picked",
    "SELECT (1) insert INTO TEMP picked",
    "WITH x AS (SELECT 1) (SELECT 1) UNION SELECT (2) insert INTO TEMP picked",
    "SELECT insert(1)",
    "SELECT merge(1)",
    "SELECT 1 -- an old line end\r, set_config('a.b', 'c', false)",
    'SELECT U&"\\0070g_advisory_lock"(1)',
    "SELECT operator(1)",
]


@pytest.mark.parametrize("sql", READS)
def test_plain_reading_is_known(sql):
    """Reading statements are lean and may be repeated."""
    assert classify(sql) is Effect.READS
    assert classify(sql)


@pytest.mark.parametrize("sql", WRITES)
def test_writing_is_lean_but_never_repeated(sql):
    """Writing leaves nothing on the connection."""
    assert classify(sql) is Effect.WRITES


@pytest.mark.parametrize("sql", ANYTHING)
def test_all_else_is_not_trusted(sql):
    """Whatever cannot be proved makes the connection dirty."""
    assert classify(sql) is Effect.ANYTHING
    assert not classify(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT lower('A')",
        'SELECT "lower"(a) FROM t',
        "UPDATE t SET (a, b) = (1, 2)",
        "SELECT substring('a', 1, 2)",
        "SELECT t.touched FROM t",
        'SELECT (t)."touched" FROM t',
        "SELECT a || b FROM t",
    ],
)
def test_a_known_name_that_users_have_taken_is_not_trusted(sql):
    """Functions, operators, and functions of a row that look like a column."""
    assert classify(sql)
    assert not classify(sql, USERS)
    assert classify("SELECT upper(a), t.b FROM t WHERE a = 1", USERS)


def test_the_memory_is_bounded():
    """Many different statements do not grow without end."""
    classifier = Classifier()
    for number in range(5_000):
        classifier.classify(f"SELECT {number}")
    assert classifier.classify("SELECT 4999") is Effect.READS


@pytest.mark.parametrize(
    ("sql", "ends"),
    [
        ("COMMIT", True),
        ("  commit and chain", True),
        ("SELECT 1;ROLLBACK WORK", True),
        ("-- a\nEND TRANSACTION", True),
        ("/* a */ ABORT; BEGIN", True),
        ("PREPARE TRANSACTION 'a'", True),
        ("PREPARE a AS SELECT 1", False),
        ("COMMIT PREPARED 'a'", False),
        ("ROLLBACK TO SAVEPOINT a", False),
        ("ROLLBACK WORK TO a", False),
        ("SELECT CASE WHEN TRUE THEN 1\nEND", False),
        ("SELECT '\nCOMMIT;'", False),
        ("DO $$ BEGIN PERFORM 1;\nEND $$", False),
        (
            "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC\nSELECT 1;\nEND; SELECT 1",
            False,
        ),
        (
            "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC\nSELECT 1;\nEND;\nEND",
            True,
        ),
        ("\nCOMMIT '", False),
    ],
)
def test_what_ends_a_transaction_is_found(sql: str, ends: bool) -> None:
    """By its first words, wherever it stands in a text of several statements."""
    assert ends_transaction(sql) is ends
