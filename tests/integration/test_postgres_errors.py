"""Errors come from the server's SQLSTATE, each provoked on a real server."""

from __future__ import annotations

import asyncio

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    CheckViolated,
    ConnectionFailed,
    DeadlockDetected,
    DuplicateRecord,
    ForeignKeyViolated,
    InvalidRecord,
    LockTimeout,
    NotNullViolated,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    SerializationFailed,
    StorageError,
)
from fm_storage.postgres import Pool
from tests.support.waiting import sleeping_on_server

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (
    id int CONSTRAINT child_key PRIMARY KEY,
    parent int CONSTRAINT child_parent REFERENCES parent,
    n int NOT NULL CONSTRAINT child_positive CHECK (n > 0),
    during int4range,
    CONSTRAINT child_apart EXCLUDE USING gist (during WITH &&)
);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 1, 1, '[1,5)');
"""
REFUSALS = [
    ("INSERT INTO child VALUES (1, 1, 1)", DuplicateRecord, "23505", "child_key"),
    (
        "INSERT INTO child VALUES (2, 1, 1, '[2,3)')",
        DuplicateRecord,
        "23P01",
        "child_apart",
    ),
    ("INSERT INTO child VALUES (2, 9, 1)", ForeignKeyViolated, "23503", "child_parent"),
    ("DELETE FROM parent", ForeignKeyViolated, "23503", "child_parent"),
    ("INSERT INTO child VALUES (2, 1, 0)", CheckViolated, "23514", "child_positive"),
    ("INSERT INTO child VALUES (2, 1, NULL)", NotNullViolated, "23502", None),
    ("SELECT 1 / 0", QueryFailed, "22012", None),
    ("SELEC 1", QueryFailed, "42601", None),
    ("SELECT * FROM nowhere", QueryFailed, "42P01", None),
]


@pytest.fixture
async def tables(empty_dsn):
    """Give a pool on a database with constraints of every kind."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        await pool.execute(TABLES)
        yield pool


@pytest.mark.parametrize(("sql", "kind", "state", "constraint"), REFUSALS)
async def test_a_refusal_has_its_own_class(tables, sql, kind, state, constraint):
    """Class, SQLSTATE and constraint name; the driver's error is the cause."""
    with pytest.raises(kind) as caught:
        await tables.execute(sql)
    error = caught.value
    assert type(error) is kind
    assert (error.sqlstate, error.constraint) == (state, constraint)
    assert error.__cause__ is not None
    assert not error.retryable
    async with tables.transaction() as tx:
        with pytest.raises(kind):
            async with tx.savepoint() as inner:
                await inner.execute(sql)


async def test_table_and_column_are_reported(tables):
    """Where the server gives them."""
    with pytest.raises(NotNullViolated) as caught:
        await tables.execute("INSERT INTO child VALUES (2, 1, NULL)")
    assert (caught.value.table, caught.value.column) == ("child", "n")


async def test_messages_hold_no_values(tables):
    """Neither parameters nor the server's DETAIL, which quotes the row."""
    await tables.execute("CREATE TABLE secret (token text PRIMARY KEY)")
    await tables.execute("INSERT INTO secret VALUES ($1)", "s3cret")
    with pytest.raises(DuplicateRecord) as caught:
        await tables.execute("INSERT INTO secret VALUES ($1)", "s3cret")
    assert "s3cret" not in str(caught.value)


async def test_the_language_of_the_server_does_not_matter(empty_dsn):
    """SQLSTATE decides, whatever the text of the message is."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        with pytest.raises(SerializationFailed):
            await pool.execute(
                "DO $$ BEGIN RAISE EXCEPTION 'doppelter Schlüssel' "
                "USING ERRCODE = '40001'; END $$"
            )


async def test_permission_denied_is_not_retryable(tables):
    """42501 is PermissionDenied, also a PermissionError."""
    await tables.execute(
        "DO $$ BEGIN CREATE ROLE fm_errors_other; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    async with tables.acquire() as connection:
        await connection.execute("SET ROLE fm_errors_other")
        with pytest.raises(PermissionDenied) as caught:
            await connection.execute("DELETE FROM child")
    assert isinstance(caught.value, PermissionError)
    assert not caught.value.retryable


async def test_a_lock_that_is_not_granted_is_lock_timeout(tables):
    """55P03, from lock_timeout and from NOWAIT."""
    async with tables.transaction() as one:
        await one.execute("LOCK TABLE child")
        for sql in (
            "SET LOCAL lock_timeout = '20ms'; DELETE FROM child",
            "LOCK TABLE child NOWAIT",
        ):
            with pytest.raises(LockTimeout) as caught:
                async with tables.transaction() as two:
                    await two.execute(sql)
            assert caught.value.retryable
            assert isinstance(caught.value, TimeoutError)


async def test_a_deadlock_is_reported(tables):
    """40P01 reaches one of two."""
    both = asyncio.Barrier(2)
    await tables.execute("INSERT INTO parent VALUES (2)")

    async def lock(first, second):
        async with tables.transaction() as tx:
            await tx.execute("SET LOCAL deadlock_timeout = '20ms'")
            await tx.execute("SELECT * FROM parent WHERE id = $1 FOR UPDATE", first)
            await both.wait()
            await tx.execute("SELECT * FROM parent WHERE id = $1 FOR UPDATE", second)

    results = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    (error,) = [result for result in results if result is not None]
    assert isinstance(error, DeadlockDetected)
    assert error.retryable


async def test_statement_timeout_and_cancel_are_query_timeout(tables):
    """57014, whatever cancelled it."""
    with pytest.raises(QueryTimeout) as caught:
        async with tables.transaction() as tx:
            await tx.execute("SET LOCAL statement_timeout = '20ms'")
            await tx.execute("SELECT pg_sleep(5)")
    assert caught.value.sqlstate == "57014"
    assert not caught.value.retryable


async def test_a_terminated_backend_is_connection_failed(tables):
    """57P01 in the middle of a write: retryable by the caller's own judgement."""
    async with tables.acquire() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        work = asyncio.create_task(
            connection.execute("INSERT INTO parent SELECT 5 FROM pg_sleep(5)")
        )
        await sleeping_on_server(tables)
        await tables.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(ConnectionFailed) as caught:
            await work
        assert caught.value.__cause__ is not None
        assert "unknown" in str(caught.value)


async def test_every_error_is_ours(tables):
    """Nothing of the driver's comes out of a verb."""
    for sql, args in (
        ("SELECT $1::int", ("x",)),
        ("SELECT $1::int", (1, 2)),
        ("SELECT 1; SELECT $1::int", (1,)),
        ("SELECT $1::int4range", ("x",)),
    ):
        with pytest.raises(StorageError):
            await tables.fetch(sql, *args)
    with pytest.raises(InvalidRecord) as caught:
        await tables.copy_records(
            "child", columns=["id", "n"], records=[(2, 1), (3, "x")]
        )
    assert caught.value.index == 1
    with pytest.raises(DuplicateRecord):
        await tables.copy_records("child", columns=["id", "n"], records=[(1, 1)])

    def fails():
        yield (2, 1)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        await tables.copy_records("child", columns=["id", "n"], records=fails())
    assert await tables.fetchval("SELECT count(*) FROM child") == 1
