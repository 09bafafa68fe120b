"""Typed rows of one's own SQL, from pool, connection and transaction."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec
import pydantic
import pytest

from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionReleased,
    InvalidName,
    InvalidRecord,
)
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where
from fm_storage.sessions import PostgresSessionManager

T = TypeVar("T")


class Colour(enum.Enum):
    """Stored by value."""

    RED = "red"


@dataclass(slots=True)
class Row:
    """A dataclass whose fields are of several kinds."""

    number: int
    colour: Colour
    meta: dict[str, Any] | None = None
    label: Annotated[str, Column(name="the label")] = ""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A frozen dataclass with keywords only."""

    a: int
    b: str


class Priced(pydantic.BaseModel):
    """A pydantic model."""

    a: int
    b: str


class Noted(msgspec.Struct):
    """A msgspec struct."""

    a: int
    b: str


class Pair(NamedTuple):
    """A named tuple."""

    a: int
    b: str


@dataclass
class Box(Generic[T]):
    """A generic dataclass."""

    a: T
    b: str


SQL = (
    "SELECT 'x' AS \"the label\", '{\"k\": 1}'::jsonb AS meta, n::numeric AS number, "
    "'red' AS colour FROM generate_series($1::int, $2::int) AS n"
)


@asynccontextmanager
async def executor_of(kind: str, pool: Pool) -> AsyncIterator[Any]:
    """Give one of the three kinds of executor."""
    if kind == "pool":
        yield pool
    elif kind == "connection":
        async with pool.acquire() as connection:
            yield connection
    else:
        async with pool.transaction() as transaction:
            yield transaction


@pytest.mark.parametrize("kind", ["pool", "connection", "transaction"])
async def test_rows_are_records_by_the_names_of_their_columns(pool, kind):
    """In any order of the columns, with the types that the fields name."""
    wanted = [Row(n, Colour.RED, {"k": 1}, "x") for n in (1, 2, 3)]
    async with executor_of(kind, pool) as executor:
        found = await executor.fetch_as(Row, SQL, 1, 3)
        assert found == wanted
        assert type(found[0].number) is int
        assert await executor.fetchrow_as(Row, SQL, 2, 3) == wanted[1]
        assert await executor.fetchrow_as(Row, SQL, 2, 1) is None
        assert await executor.fetch_as(Row, SQL, 2, 1) == []
        async with executor.stream_as(Row, SQL, 1, 3, prefetch=2) as records:
            assert [record async for record in records] == wanted
        async with executor.stream_as(Row, SQL, 1, 9, prefetch=2) as records:
            async for record in records:
                assert record == wanted[0]
                break
        assert await executor.fetchval("SELECT 1") == 1


ALONE = """
import asyncio, sys
from typing import NamedTuple
from fm_storage import Pool, PostgresConfig

class One(NamedTuple):
    a: int

async def main():
    async with Pool(PostgresConfig(dsn=sys.argv[1])) as pool:
        assert "fm_storage.repositories" not in sys.modules
        assert await pool.fetch_as(One, "SELECT 1 AS a") == [One(1)]

asyncio.run(main())
"""


@pytest.mark.lengthy
async def test_a_pool_alone_makes_records(dsn):
    """In a process that has loaded nothing else of the package."""
    arguments = (sys.executable, "-c", ALONE, dsn)
    process = await asyncio.create_subprocess_exec(*arguments)

    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (Frozen, Frozen(a=1, b="x")),
        (Priced, Priced(a=1, b="x")),
        (Noted, Noted(1, "x")),
        (Pair, Pair(1, "x")),
        (Box[int], Box(1, "x")),
    ],
    ids=str,
)
async def test_every_kind_of_model(pool, model, made):
    """Whatever a repository takes, in any order of the columns."""
    assert await pool.fetch_as(model, "SELECT 'x' AS b, 1 AS a") == [made]
    assert await pool.fetch_as(model, "SELECT 1 AS a, 'x' AS b") == [made]


async def test_columns_and_fields_that_do_not_match_are_named(pool):
    """Unknown, missing and repeated ones, all of them in one message."""
    with pytest.raises(InvalidName, match=r"'c'.*'b'"):
        await pool.fetch_as(Pair, "SELECT 1 AS a, 2 AS c")
    with pytest.raises(InvalidName, match="'a' occurs more than once"):
        await pool.fetch_as(Pair, "SELECT 1 AS a, 2 AS a, 'x' AS b")
    with pytest.raises(ConfigurationInvalid):
        await pool.fetch_as(dict, "SELECT 1 AS a")


async def test_columns_are_compared_without_rows_too(pool):
    """And before a statement that writes has written."""
    await pool.execute("CREATE TABLE t (a int, b text)")
    for sql in ("SELECT a FROM t", "INSERT INTO t VALUES (1, 'x') RETURNING a"):
        for call in (pool.fetch_as, pool.fetchrow_as):
            with pytest.raises(InvalidName, match="field 'b' has no column"):
                await call(Frozen, sql)
    with pytest.raises(InvalidName, match="field 'b' has no column"):
        async with pool.stream_as(Frozen, "SELECT a FROM t"):
            pass
    assert await pool.fetchval("SELECT count(*) FROM t") == 0
    insert = "INSERT INTO t VALUES ($1, 'x') RETURNING a, b"
    for n in (1, 2):
        assert await pool.fetchrow_as(Frozen, insert, n) == Frozen(a=n, b="x")
    assert await pool.fetch_as(Frozen, "INSERT INTO t VALUES (3, 'x')") == []
    async with pool.transaction() as transaction:
        with pytest.raises(InvalidName):
            await transaction.fetch_as(Frozen, "DELETE FROM t RETURNING a")
        assert await transaction.fetchval("SELECT count(*) FROM t") == 3


@pytest.mark.parametrize("sql", [None, 5, ["SELECT 1"], {"a": 1}])
async def test_what_is_no_statement_is_refused(pool, sql):
    """Whatever it is, as ``fetch()`` does."""
    for call in (pool.fetch_as, pool.fetchrow_as):
        with pytest.raises(InvalidRecord, match="give its text as a str"):
            await call(Frozen, sql)
    with pytest.raises(InvalidRecord, match="give its text as a str"):
        pool.stream_as(Frozen, sql)


async def test_a_stream_that_is_not_open_gives_no_records(pool):
    """Before its block and behind it, where it would seem to be empty."""
    await pool.execute("CREATE TABLE t AS SELECT 1 AS a, 'x' AS b")
    rows = Repository(pool, Frozen, table="t", key="a")
    for open_stream in (lambda: pool.stream_as(Frozen, "TABLE t"), rows.stream):
        with pytest.raises(ConnectionReleased, match="'async with'"):
            async for _ in open_stream():
                pass
        async with open_stream() as records:
            assert await anext(records) == Frozen(a=1, b="x")
        with pytest.raises(ConnectionReleased, match="'async with'"):
            await anext(records)


async def test_values_that_are_not_the_fields_are_refused(pool):
    """The field is named, and never the value."""
    for sql in (
        "SELECT 1.5 AS a, 'secret' AS b",
        "SELECT 1 AS a, DATE '2020-01-01' AS b",
        "SELECT n AS a, 'x' AS b FROM (VALUES (NULL::numeric), (0.5)) AS v (n)",
    ):
        with pytest.raises(InvalidRecord, match="no Pair") as caught:
            await pool.fetch_as(Pair, sql)
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRecord, match="cannot be read"):
        await pool.fetch_as(Pair, "SELECT 1 AS a, TIMESTAMP '0044-03-15 BC' AS b")
    assert pool.statistics().busy == 0


@dataclass(slots=True)
class Seen:
    """Rows of a view."""

    id: int
    amount: Decimal
    at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))


@dataclass
class Changed:
    """A dataclass that has no NULL after all."""

    a: int
    b: str

    def __post_init__(self) -> None:
        self.b = self.b or "none"


@pytest.mark.parametrize("model", [Frozen, Priced, Noted, Pair, Box[int]])
async def test_null_where_none_is_not_annotated_is_refused(pool, model):
    """What a checker of types takes for text is text; the row and field are named."""
    rows = "VALUES (1, 'x'), (2, NULL)"
    with pytest.raises(InvalidRecord, match=r"(?s)row 2.*\bb\b") as refused:
        await pool.fetch_as(model, f"SELECT * FROM ({rows}) AS r (a, b)")
    assert refused.value.index == 1
    with pytest.raises(InvalidRecord, match=r"\bb\b"):
        await pool.fetchrow_as(model, "SELECT 2 AS a, NULL::text AS b")
    async with pool.transaction() as tx:
        stream = tx.stream_as(model, f"SELECT * FROM ({rows}) AS r (a, b)")
        with pytest.raises(InvalidRecord, match=r"(?s)row 2.*\bb\b"):
            async with stream as records:
                assert [record.a async for record in records] == [1]


async def test_what_the_model_makes_of_null_counts(pool):
    """A field may be optional, anything, or given a value by the model itself."""
    assert await pool.fetch_as(Changed, "SELECT 1 AS a, NULL::text AS b") == [
        Changed(1, "none")
    ]
    found = await pool.fetch_as(
        Row,
        "SELECT 1 AS number, 'red' AS colour, NULL::jsonb AS meta, "
        "'x' AS \"the label\"",
    )
    assert found == [Row(1, Colour.RED, None, "x")]


async def test_a_sessions_view_is_a_repositorys_table(pool):
    """Typed rows come out of a temporary view, by filters too."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view(
            "SELECT n AS id, n * 1.5 AS amount, TIMESTAMPTZ '2026-01-01 UTC' AS at "
            "FROM generate_series(1, $1) AS n",
            5,
        )
        seen = Repository(pool, Seen, table=view)
        found = await seen.find_many(where("id") > 3, order_by="id")
        assert [one.amount for one in found] == [Decimal("6.0"), Decimal("7.5")]
        assert await pool.fetch_as(Seen, f"SELECT * FROM {view} WHERE id > 3") == found
