"""Whatever is given to a public method: one of our errors with a remedy, nothing lost.

Each argument of each method of pool, connection, transaction and session in turn is
replaced by a value of a wrong type or an extreme one; the others are right.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import pytest

from fm_storage import PostgresConfig, StorageConfig, StorageManager
from fm_storage.errors import QueryFailed, StorageError
from fm_storage.manager.transaction import StorageTransaction
from fm_storage.postgres import Connection, Pool
from fm_storage.sessions import PostgresSessionManager
from tests.support.waiting import until


class Point(NamedTuple):
    """A composite type."""

    x: int
    y: int


class Odd:
    """A value whose every method fails."""

    def __repr__(self) -> str:
        return "Odd()"

    def __str__(self) -> str:
        raise RuntimeError

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


def takes_nothing() -> None:
    """Be called with an argument all the same."""


VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    1.5,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    1e300,
    Decimal("NaN"),
    "",
    " ",
    "x" * 70,
    "x" * 100_000,
    "a\0b",
    "\ud800",
    "é\u202e",
    "; DROP TABLE t; --",
    "$1",
    "%s",
    b"",
    b"\xff",
    bytearray(b"x"),
    (),
    [],
    [None],
    [[]],
    ["a\0b"],
    [b"x"],
    ("a", 1),
    {},
    {1: 2},
    {"a": math.nan},
    set(),
    range(3),
    object(),
    Odd(),
    int,
    type,
    len,
    takes_nothing,
    Path("no such folder/file"),
    UUID(int=0),
    timedelta(days=-1),
    datetime.max.replace(tzinfo=UTC),
    io.StringIO("text"),
    Exception("x"),
    ...,
)


Calls: TypeAlias = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def pool_calls() -> Calls:
    """Return a right call of each verb."""
    return {
        "fetch": (("SELECT $1::int", 1), {"timeout": 9}),
        "fetchrow": (("SELECT $1::text", "x"), {"timeout": 9}),
        "fetchval": (("SELECT $1::jsonb", {}), {"column": 0, "timeout": 9}),
        "execute": (("SELECT $1::date", None), {"timeout": 9}),
        "executemany": (("SELECT $1::int", [(1,)]), {"timeout": 9}),
        "fetch_as": ((Point, "SELECT 1 AS x, 2 AS y"), {"timeout": 9}),
        "fetchrow_as": ((Point, "SELECT 1 AS x, $1::int AS y", 2), {"timeout": 9}),
        "stream_as": ((Point, "SELECT 1 AS x, 2 AS y"), {"prefetch": 5}),
        "stream": (("SELECT $1::int", 1), {"prefetch": 5}),
        "copy_records": (
            ("t",),
            {"columns": ["a"], "records": [(1,)], "schema": "public", "timeout": 9},
        ),
        "copy_from": (
            ("t", io.BytesIO(b"1\n")),
            {
                "columns": ["a"],
                "schema": "public",
                "format": "csv",
                "header": False,
                "delimiter": ",",
                "null": "-",
                "progress": None,
                "timeout": 9,
            },
        ),
        "copy_to": (
            (io.BytesIO(),),
            {
                "query": "SELECT $1::int",
                "args": (1,),
                "format": "csv",
                "header": False,
                "delimiter": ",",
                "null": "-",
                "progress": None,
                "timeout": 9,
            },
        ),
        "transaction": (
            (),
            {"isolation": "serializable", "readonly": True, "deferrable": False},
        ),
    }


async def nothing(_: Any) -> None:
    """Be the body of a transaction."""


POOL_ONLY: Calls = {
    "acquire": ((9,), {}),
    "run_in_transaction": (
        (nothing,),
        {"isolation": None, "readonly": False, "deferrable": False, "attempts": 2},
    ),
    "after": (("0/0",), {}),
    "connect": (("test",), {"dsn": None, "settings": {"work_mem": "4MB"}}),
    "listen": (("some channel",), {}),
    "register_composite": (("point2", Point), {"schema": "public"}),
    "register_type": (
        ("mood",),
        {"encoder": str, "decoder": str, "schema": "public", "format": "text"},
    ),
}
CONNECTION_ONLY: Calls = {
    "reported": (("TimeZone",), {}),
    "add_termination_listener": ((takes_nothing,), {}),
}
CLOSING: Calls = {"aclose": ((), {"timeout": 1})}
TRANSACTION_ONLY: Calls = {"repository": ((Point,), {})}
SESSION: Calls = {
    "create_view": (
        ("SELECT a FROM t WHERE a = $1", 1),
        {
            "name": "v",
            "materialized": True,
            "indexes": ["(a)"],
            "with_data": True,
            "timeout": 9,
            "progress": None,
        },
    ),
    "create_table": (("SELECT 1 AS id",), {"name": "w", "indexes": ["(id)"]}),
    "refresh_view": (("shared",), {"concurrently": None, "timeout": 9}),
    "drop_view": (("nothing",), {"cascade": False}),
    "add_reference": (("shared", "layer"), {}),
    "release_reference": (("shared", "layer"), {}),
    "register_temp_view": (("shared",), {}),
    "unregister_temp_view": (("nothing",), {}),
    "toggle_auto_cleanup": ((True,), {}),
    "cleanup_schema_if_empty": ((None,), {}),
}


def variants(
    args: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Yield the call with one argument replaced, and what was replaced."""
    for value in VALUES:
        for at in range(len(args)):
            yield f"{at}={value!r:.40}", (*args[:at], value, *args[at + 1 :]), options
        for name in options:
            yield f"{name}={value!r:.40}", args, {**options, name: value}


async def called(method: Callable[..., Any], args: Any, options: Any) -> None:
    """Call it, await what it gives, enter and leave what that gives."""
    async with asyncio.timeout(20):
        found = method(*args, **options)
        if inspect.isawaitable(found):
            found = await found
        if isinstance(found, AbstractAsyncContextManager) or hasattr(
            found, "__aenter__"
        ):
            async with found as inner:
                if hasattr(inner, "__anext__"):
                    async for _ in inner:
                        pass
        elif hasattr(found, "aclose"):
            await found.aclose()


def own(value: Any) -> bool:
    """Whether what *value* raises when it is used is the caller's."""
    return isinstance(value, io.StringIO) or any(
        value is each for each in (len, int, type, takes_nothing)
    )


async def fault_of(owner: Any, name: str, args: Any, options: Any) -> str | None:
    """Make one call; return what is not as it should be, if anything."""
    for each in (*args, *options.values()):
        if isinstance(each, io.BytesIO):
            each.seek(0)
    try:
        await called(getattr(owner, name), args, options)
    except StorageError as exc:
        if ";" not in str(exc) and exc.sqlstate is None:
            return f"no remedy: {exc!r:.150}"
    except (OSError, RuntimeError):
        pass  # of the file system, and of Odd
    except Exception as exc:
        # What a function or a file of the caller's raises is the caller's.
        theirs = any(map(own, (*args, *options.values())))
        if not (theirs and isinstance(exc, TypeError)):
            return f"{exc!r:.150}"
    return None


@asynccontextmanager
async def savepoint_of(transaction: Any) -> AsyncIterator[Any]:
    """Open a savepoint; what its block did is undone, even if it failed unseen."""
    with suppress(QueryFailed):
        async with transaction.savepoint() as inner:
            yield inner


async def wrong_ones(
    inside: Callable[[], AbstractAsyncContextManager[Any]], calls: Calls, pool: Pool
) -> list[str]:
    """Make every call with every replacement; return what is not as it should be."""
    bad = []
    usual = pool.statistics().busy
    for name, (args, options) in calls.items():
        for what, given, named in variants(args, options):
            before = pool.statistics()
            usual = min(usual, before.busy)
            async with inside() as owner:
                fault = await fault_of(owner, name, given, named)
            # What is reset after a call, or looks for orphans meanwhile, is not lost.
            with suppress(TimeoutError):
                await until(lambda at_most=usual: pool.statistics().busy <= at_most)
            after = pool.statistics()
            if fault is None and (
                after.busy > usual or after.reconnects != before.reconnects
            ):
                fault = f"a connection is lost: {before} became {after}"
            if fault is not None:
                bad.append(f"{name}({what}): {fault}")
    return bad


@pytest.mark.timeout(300)
@pytest.mark.parametrize("on", ["pool", "connection", "transaction"])
async def test_wrong_arguments_of_verbs(empty_dsn, on, tmp_path, monkeypatch):
    """Of pool, connection and transaction: an error, and nothing else is lost."""
    monkeypatch.chdir(tmp_path)  # copy_to() writes files of the names it is given
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=2)) as pool:
        await pool.execute(
            "CREATE TABLE t (a int); CREATE TYPE point2 AS (x int, y int); "
            "CREATE TYPE mood AS ENUM ('ok')"
        )
        calls = pool_calls()
        bad = []
        inside: Callable[[], AbstractAsyncContextManager[Any]]
        if on == "pool":
            bad = await wrong_ones(lambda: nullcontext(pool), calls | POOL_ONLY, pool)
        elif on == "connection":
            for name, call in (calls | CONNECTION_ONLY).items():
                async with pool.acquire() as held:
                    inside = partial(nullcontext, held)
                    bad += await wrong_ones(inside, {name: call}, pool)
        else:
            for name, call in calls.items():
                async with pool.transaction() as transaction:
                    inside = partial(savepoint_of, transaction)
                    bad += await wrong_ones(inside, {name: call}, pool)
        async with pool.acquire(), pool.acquire():
            pass
        # Last: a number closes it.
        connection = await pool.connect("test")
        for owner in (connection, pool):
            bad += await wrong_ones(partial(nullcontext, owner), CLOSING, pool)
        assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (Pool, pool_calls() | POOL_ONLY | CLOSING),
        (Connection, pool_calls() | CONNECTION_ONLY | CLOSING),
        (StorageTransaction, pool_calls() | TRANSACTION_ONLY),
        (PostgresSessionManager, SESSION),
    ],
)
def test_no_method_is_left_out(kind, calls):
    """Each public method that takes arguments is called with wrong ones."""
    taking = {
        name
        for name, method in inspect.getmembers(kind, callable)
        if not name.startswith("_") and len(inspect.signature(method).parameters) > 1
    }
    assert taking <= calls.keys()


@pytest.mark.timeout(300)
async def test_wrong_arguments_of_a_session(dsn, tmp_path):
    """Of each of its methods; its views are dropped all the same."""
    config = StorageConfig(
        postgres=PostgresConfig(dsn=dsn, max_size=2), qdrant=None, data_dir=tmp_path
    )
    async with StorageManager(config) as storage:
        await storage.pool.execute("CREATE TABLE t (a int)")
        async with storage.session() as session:
            await session.create_view("SELECT 1 AS one", name="shared")
            bad = await wrong_ones(lambda: nullcontext(session), SESSION, storage.pool)
        async with storage.transaction() as transaction:
            inside = partial(savepoint_of, transaction)
            bad += await wrong_ones(inside, TRANSACTION_ONLY, storage.pool)
        assert not bad, "\n".join(bad)
        assert storage.pool.statistics().busy == 0
