"""Sessions used the wrong way: another loop, a forked child, names, indexes."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    ForkedProcess,
    InvalidName,
    InvalidRecord,
    PermissionDenied,
    QueryTimeout,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres import Pool
from fm_storage.repositories import Repository
from fm_storage.sessions import PostgresSessionManager, TempView
from tests.fix_postgres import TestServer


def as_role(server: TestServer, dsn: str, role: str) -> str:
    """Return the address of a database for a role whose password is its name."""
    parts = urlsplit(server.over_tcp(dsn))
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{role}@{host}").geturl()


METHODS: list[Callable[[PostgresSessionManager], Awaitable[object]]] = [
    lambda session: session.cleanup_session_views(),
    lambda session: session.cleanup_on_close(),
    lambda session: session.aclose(),
    lambda session: session.create_view("SELECT 1"),
    lambda session: session.info(),
]
NAMES = ["cleanup_session_views", "cleanup_on_close", "aclose", "create_view", "info"]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
async def test_another_loop_is_refused_and_nothing_happens(pool: Pool, method):
    """Each call says so at once; the session keeps its view and stays usable."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 1 AS one")

        async def elsewhere() -> None:
            with pytest.raises(WrongLoop, match="run_coroutine_threadsafe"):
                await method(session)

        # Bounded: a call that waited for the other loop would hold the thread.
        await asyncio.to_thread(asyncio.run, asyncio.wait_for(elsewhere(), 5))

        assert session.get_session_views() == [str(view)]
        assert await pool.fetchval(f"SELECT one FROM {view}") == 1
        assert await session.cleanup_session_views() == 1


async def test_a_forked_child_drops_nothing(pool: Pool):
    """In a child cleaning up is refused, closing does nothing: the parent's views."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 1 AS one")

        async def in_child() -> int:
            for clean in (session.cleanup_session_views, session.cleanup_on_close):
                with pytest.raises(ForkedProcess):
                    await clean()
            await session.aclose()
            return 7

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork and threads
            child = os.fork()
        if child == 0:
            asyncio.events._set_running_loop(None)
            code = 1
            try:
                code = asyncio.new_event_loop().run_until_complete(in_child())
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert session.get_session_views() == [str(view)]
        assert await pool.fetchval(f"SELECT one FROM {view}") == 1


async def _gives(made: object) -> object:
    return made


async def _refused() -> object:
    raise ConnectionRefusedError(111, "refused")


@pytest.mark.parametrize(
    ("provider", "error", "said"),
    [
        (lambda: 7, ConfigurationInvalid, "returned a int, not an awaitable"),
        (partial(_gives, 7), ConfigurationInvalid, "gave a int"),
        (partial(_gives, None), ConfigurationInvalid, "gave a NoneType"),
        (_refused, ConnectionFailed, "made no connection .*refused"),
        (partial(asyncpg.connect, "http://no"), StorageError, "session provider"),
    ],
    ids=["not async", "a number", "nothing", "refused", "the driver's"],
)
async def test_what_gives_no_connection_is_named(provider, error, said):
    """A provider's failures are typed, and the session still closes."""
    config = SessionConfig(reap_interval=0)
    session = PostgresSessionManager(provider, config=config)
    with pytest.raises(error, match=said):
        await session.create_view("SELECT 1 AS one")
    await session.aclose()


async def test_a_connection_of_the_drivers_pool_will_do(dsn):
    """Its proxy is looked through."""
    async with (
        asyncpg.create_pool(dsn) as provider,
        PostgresSessionManager(provider.acquire) as session,
    ):
        view = await session.create_view("SELECT $1::int AS one", 1)
        assert session.get_session_views() == [str(view)]
        assert await session.cleanup_session_views() == 1


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, 5], ids=repr)
async def test_a_given_name_is_used_or_refused(pool: Pool, name):
    """What cannot be a name is never replaced by one of ours."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(InvalidName):
            await session.create_view("SELECT 1 AS one", name=name)
        assert session.get_session_views() == []


@pytest.mark.parametrize("indexes", ["UNIQUE (one)", [b"one"], [1]], ids=repr)
async def test_indexes_are_a_list_of_texts(pool: Pool, indexes):
    """One text is not taken for a list of one-letter indexes."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(ConfigurationInvalid, match="indexes="):
            await session.create_view(
                "SELECT 1 AS one", materialized=True, indexes=indexes
            )


async def test_values_without_parameters_are_refused(pool: Pool):
    """The message says that there are no parameters."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(InvalidRecord, match="no parameters, but 1 value"):
            await session.create_view("SELECT 1 AS one", 2)


@pytest.mark.parametrize("name", [None, "given"])
async def test_a_view_that_was_not_made_cannot_be_used(name):
    """Without PostgreSQL the view is false, and formatting it says why."""
    async with PostgresSessionManager(None) as session:
        view = await session.create_view("SELECT 1 AS one", name=name)
    assert not view
    for use in (str, format, lambda it: it.sql):
        with pytest.raises(InvalidName, match="not available"):
            use(view)
    assert "oid=0" in repr(view)


async def test_a_session_shows_its_state_and_views(pool: Pool):
    """Its repr tells state, number of views and schema."""
    async with PostgresSessionManager(pool) as session:
        await session.create_view("SELECT 1 AS one")
        assert "open, 1 view(s) in filtermate_temp" in repr(session)
    assert "closed, 0 view(s)" in repr(session)


async def test_a_name_whose_creation_was_given_up_is_free_again(pool: Pool):
    """To be made, or to be dropped, in the same session."""
    slow = "SELECT 1 AS a, pg_sleep(60)::text AS b"
    async with PostgresSessionManager(pool) as session:
        for again in range(2):
            with pytest.raises(QueryTimeout):
                await session.create_view(
                    slow, name="report", materialized=True, timeout=0.2
                )
            if again:
                assert not await session.drop_view("report")
            view = await session.create_view(f"SELECT {again} AS a", name="report")
            assert await pool.fetchval(f"SELECT a FROM {view}") == again
            assert await session.drop_view("report")
        with pytest.raises(InvalidName):
            await session.drop_view("report")


@pytest.mark.parametrize(
    "gone",
    [
        "DROP TABLE fm_storage.session_objects",
        "DROP SCHEMA fm_storage CASCADE",
        "TRUNCATE fm_storage.session_objects",
        "TRUNCATE fm_storage.session_owners CASCADE",
    ],
)
async def test_without_a_registry_a_session_drops_what_it_knows(pool: Pool, gone: str):
    """By oid, its own views and nothing else, newest first."""
    session = await PostgresSessionManager(pool, config=SessionConfig(grace=0.1))
    one = await session.create_view("SELECT 1 AS a")
    two = await session.create_view(f"SELECT * FROM {one}", materialized=True)
    table = await session.create_table("SELECT 1 AS a")
    await pool.execute(f"DROP TABLE {table}; CREATE TABLE {table} (theirs int)")
    alone = await session.create_view("SELECT 1 AS a")
    await pool.execute(gone)
    assert await session.drop_view(alone)
    await session.aclose()
    assert session.last_cleanup.dropped == (str(two), str(one))
    assert session.last_cleanup.already_gone == (str(table),)
    assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_missing_right_is_named(pool: Pool, server, dsn: str):
    """CREATE on the database, or USAGE and CREATE on the schema."""
    await pool.execute(
        "DROP ROLE IF EXISTS t_poor; CREATE ROLE t_poor LOGIN PASSWORD 't_poor'"
        " IN ROLE fm_storage_app"
    )
    config = PostgresConfig(dsn=as_role(server, dsn, "t_poor"))
    async with Pool(config) as poor, PostgresSessionManager(poor) as session:
        with pytest.raises(PermissionDenied, match="GRANT CREATE ON DATABASE"):
            await session.create_view("SELECT 1 AS a")
        await pool.execute("CREATE SCHEMA filtermate_temp")
        with pytest.raises(PermissionDenied, match="USAGE, CREATE ON SCHEMA"):
            await session.create_view("SELECT 1 AS a")
        assert not await session.ensure_schema_exists()
        await pool.execute(
            "GRANT USAGE, CREATE ON SCHEMA filtermate_temp TO fm_storage_app"
        )
        assert await session.create_view("SELECT 1 AS a")
    await pool.execute("DROP OWNED BY t_poor; DROP ROLE t_poor")


@pytest.mark.parametrize("private", [False, True])
async def test_the_group_reads_a_view_unless_it_is_private(
    pool: Pool, server, dsn: str, private: bool
):
    """Any member of fm_storage_app; a table it may write as well."""
    await pool.execute(
        "DROP ROLE IF EXISTS t_other; CREATE ROLE t_other LOGIN PASSWORD 't_other'"
        " IN ROLE fm_storage_app"
    )
    config = PostgresConfig(dsn=as_role(server, dsn, "t_other"))
    async with (
        Pool(config) as other,
        PostgresSessionManager(pool, private=private) as session,
    ):
        view = await session.create_view("SELECT 7 AS a")
        filled = await session.create_view("SELECT 7 AS a", materialized=True)
        table = await session.create_table("SELECT 7 AS a")
        for sql in (
            f"SELECT a FROM {view}",
            f"SELECT a FROM {filled}",
            f"UPDATE {table} SET a = 7 RETURNING a",
        ):
            if private:
                with pytest.raises(PermissionDenied):
                    await other.fetchval(sql)
            else:
                assert await other.fetchval(sql) == 7
    await pool.execute("DROP OWNED BY t_other; DROP ROLE t_other")


async def test_a_schema_that_somebody_else_made_stays(pool: Pool):
    """Only what carries the mark of sessions is dropped."""
    await pool.execute(
        "CREATE SCHEMA filtermate_temp;"
        "COMMENT ON SCHEMA filtermate_temp IS 'made by the administrator'"
    )
    async with PostgresSessionManager(pool) as session:
        await session.create_view("SELECT 1 AS a")
    there = "SELECT to_regnamespace('filtermate_temp') IS NOT NULL"
    assert await pool.fetchval(there)
    await pool.execute("DROP SCHEMA filtermate_temp")
    async with PostgresSessionManager(pool) as session:
        await session.create_view("SELECT 1 AS a")
    assert not await pool.fetchval(there)


async def test_a_view_is_taken_where_a_tables_name_is(pool: Pool, tmp_path: Path):
    """By repositories and by COPY, however it is called."""

    @dataclass(slots=True)
    class Total:
        module: str
        n: int

    sql = "SELECT 'm' AS module, 3::int AS n"
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view(sql, name='odd "name".it')
        totals = Repository(pool, Total, table=view, key="module")
        assert await totals.find_many() == [Total("m", 3)]
        assert await totals.get_by_id("m") == Total("m", 3)
        table = await session.create_table(sql, name="Odd.table")
        row = [("o", 4)]
        assert await pool.copy_records(table, columns=["module", "n"], records=row) == 1
        assert await pool.copy_to(tmp_path / "rows.csv", table=table) == 2
        assert await pool.copy_from(table, tmp_path / "rows.csv") == 2
    with pytest.raises(InvalidName, match="was not made"):
        Repository(pool, Total, table=TempView("s", "x", "view", 0), key="module")
