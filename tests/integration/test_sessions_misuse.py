"""Sessions used the wrong way: another loop, a forked child, names, indexes."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable
from functools import partial

import asyncpg
import pytest

from fm_storage.config import SessionConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    ForkedProcess,
    InvalidName,
    InvalidRecord,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager

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
