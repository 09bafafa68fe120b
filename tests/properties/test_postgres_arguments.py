"""Whatever is given to a public method: one of our errors with a remedy, nothing lost.

Each argument of each method of pool, connection, transaction and session in turn is
replaced by a value of a wrong type or an extreme one; the others are right.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from fm_storage import PostgresConfig, StorageConfig, StorageManager
from fm_storage.errors import StorageError
from fm_storage.postgres import Pool


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


def pool_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
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


POOL_ONLY: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "acquire": ((9,), {}),
    "run_in_transaction": (
        (nothing,),
        {"isolation": None, "readonly": False, "deferrable": False, "attempts": 2},
    ),
    "connect": (("test",), {"dsn": None, "settings": {"work_mem": "4MB"}}),
    "listen": (("some channel",), {}),
    "register_composite": (("point2", Point), {"schema": "public"}),
    "register_type": (
        ("mood",),
        {"encoder": str, "decoder": str, "schema": "public", "format": "text"},
    ),
}
SESSION: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
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


async def wrong_ones(
    owner: Any, calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]], pool: Pool
) -> list[str]:
    """Make every call with every replacement; return what is not as it should be."""
    bad = []
    for name, (args, options) in calls.items():
        for what, given, named in variants(args, options):
            fault = await fault_of(owner, name, given, named)
            if fault is None and owner is pool and pool.statistics().busy:
                fault = "a slot is lost"
            if fault is not None:
                bad.append(f"{name}({what}): {fault}")
    return bad


@pytest.mark.timeout(300)
@pytest.mark.parametrize("on", ["pool", "connection"])
async def test_wrong_arguments_of_verbs(empty_dsn, on, tmp_path, monkeypatch):
    """Of pool and connection."""
    monkeypatch.chdir(tmp_path)  # copy_to() writes files of the names it is given
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=2)) as pool:
        await pool.execute(
            "CREATE TABLE t (a int); CREATE TYPE point2 AS (x int, y int); "
            "CREATE TYPE mood AS ENUM ('ok')"
        )
        calls = pool_calls()
        if on == "pool":
            bad = await wrong_ones(pool, calls | POOL_ONLY, pool)
        else:
            bad = []
            for name, call in calls.items():
                async with pool.acquire() as held:
                    bad += await wrong_ones(held, {name: call}, pool)
        assert not bad, "\n".join(bad)
        async with pool.acquire(), pool.acquire():
            pass


@pytest.mark.timeout(300)
async def test_wrong_arguments_of_a_session(dsn, tmp_path):
    """Of each of its methods; its views are dropped all the same."""
    config = StorageConfig(
        postgres=PostgresConfig(dsn=dsn, max_size=2), qdrant=None, data_dir=tmp_path
    )
    async with StorageManager(config) as storage:
        await storage.pool.execute("CREATE TABLE t (a int)")
        async with storage.session() as session:
            view = await session.create_view("SELECT 1 AS one", name="shared")
            calls = SESSION | {
                "refresh_view": ((view,), {"concurrently": None, "timeout": 9}),
                "drop_view": (("nothing",), {"cascade": False}),
                "add_reference": ((view, "layer"), {}),
                "release_reference": ((view, "layer"), {}),
                "register_temp_view": (("mine",), {}),
                "toggle_auto_cleanup": ((True,), {}),
            }
            calls = {
                name: each for name, each in calls.items() if hasattr(session, name)
            }
            bad = await wrong_ones(session, calls, storage.pool)
        assert not bad, "\n".join(bad)
        assert storage.pool.statistics().busy == 0
