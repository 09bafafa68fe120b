"""Every type of column by every way of writing and reading: one meaning.

What ``create()`` takes, every other way takes, stores alike and gives back as the
annotation names it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress as ip
import operator
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from asyncpg import (
    BitString,
    Box,
    Circle,
    Line,
    LineSegment,
    Path,
    Point,
    Polygon,
    Range,
)

from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Column, Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE


class Mood(enum.Enum):
    """Members of an enum type, and of text."""

    SAD = "sad"
    OK = "ok"


class Level(enum.IntEnum):
    """Members stored as numbers."""

    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    """Members that combine."""

    READ = 1
    WRITE = 2


class Share(enum.Enum):
    """Members stored as numbers with fractions."""

    HALF = 0.5
    WHOLE = 1.0


class Known(enum.Enum):
    """Members stored as uuid."""

    FIRST = uuid.UUID(int=1)
    SECOND = uuid.UUID(int=2)


class Kind(NamedTuple):
    """A column's type, its annotation and two values, the lesser first.

    Attributes:
        compared: Whether the server has ``=`` for it.
        paged: Whether pages can go by it.
    """

    sql: str
    annotation: Any
    low: Any
    high: Any
    compared: bool = True
    paged: bool = True


def other(sql: str, low: Any, high: Any, **more: bool) -> Kind:
    """Return a type that only its name tells."""
    annotation = Annotated[Any, Column(type=sql)]
    return Kind(sql, annotation, low, high, **{"paged": False, **more})


UTC = dt.UTC
DAY, NEXT = dt.date(2026, 1, 1), dt.date(2026, 1, 2)
NOON = dt.datetime(2026, 1, 1, 12, 0, 0, 5)
AWARE = NOON.replace(tzinfo=UTC)
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
EAST = dt.timezone(dt.timedelta(hours=2))
HOUR = dt.timedelta(hours=1)
ENDS = (dt.datetime.min.replace(tzinfo=UTC), dt.datetime.max.replace(tzinfo=UTC))
SCALARS = [
    Kind("smallint", int, -5, 7),
    Kind("integer", int, -5, 7),
    Kind("bigint", int, -(2**63), 2**63 - 1),
    Kind("numeric", int, 1, 2**40),
    Kind("float8", int, 1, 2**40),
    Kind("oid", int, 1, 2**32 - 1),
    Kind("numeric", Decimal, Decimal("-1.50"), Decimal("1E+20")),
    Kind("numeric", Decimal, Decimal("1E-300"), Decimal("NaN"), paged=False),
    Kind("numeric(12, 2)", Decimal, Decimal("0.10"), Decimal("9999999999.99")),
    Kind("real", float, 0.5, 1024.25),
    Kind("float8", float, -0.1, float("inf")),
    Kind("numeric", float, 0.5, 2.25),
    Kind("boolean", bool, False, True),
    Kind("text", str, "a'b", "ü%_\\"),
    Kind("varchar(20)", str, "a", "b" * 20),
    Kind("char(5)", str, "abcde", "bcdef"),
    Kind("name", str, "a", "b"),
    Kind("citext", str, "a", "B"),
    Kind("ltree", str, "top.a", "top.b"),
    Kind("money", str, "$1.00", "$2.50"),
    Kind("tsvector", str, "'a' 'b'", "'a' 'c'"),
    Kind("tsquery", str, "'a'", "'a' & 'b'"),
    Kind("macaddr", str, "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    Kind("macaddr8", str, "08:00:2b:ff:fe:01:02:03", "08:00:2b:ff:fe:01:02:04"),
    Kind("uuid", uuid.UUID, ONE, TWO),
    Kind("uuid", str, str(ONE), str(TWO)),
    Kind("text", Mood, Mood.OK, Mood.SAD),
    Kind("mood", Mood, Mood.SAD, Mood.OK),
    Kind("mood", str, "sad", "ok"),
    Kind("integer", Level, Level.LOW, Level.HIGH),
    Kind("integer", Access, Access.READ, Access.READ | Access.WRITE),
    Kind("float8", Share, Share.HALF, Share.WHOLE),
    Kind("uuid", Known, Known.FIRST, Known.SECOND),
    Kind("integer", Literal[1, 2], 1, 2),
    Kind("text", operator.getitem(Literal, ("a", "b", None)), "a", "b"),
    Kind("text", Literal[Mood.OK, Mood.SAD], Mood.OK, Mood.SAD),
    Kind("grade", int, 1, 5),
    Kind("word", str, "a", "b"),
    Kind("bytea", bytes, b"\0\xff", b"a"),
    Kind("date", dt.date, DAY, NEXT),
    Kind("time", dt.time, dt.time(1), dt.time(2, 0, 0, 5)),
    Kind(
        "timestamp", Annotated[dt.datetime, Column(type="timestamp")], NOON, NOON + HOUR
    ),
    Kind("timestamptz", dt.datetime, AWARE, AWARE + HOUR),
    Kind("timestamptz", dt.datetime, *ENDS),
    Kind("interval", dt.timedelta, -HOUR, HOUR * 50),
    Kind(
        "inet", ip.IPv4Address, ip.IPv4Address("10.0.0.1"), ip.IPv4Address("10.0.0.2")
    ),
    Kind("inet", ip.IPv6Address, ip.IPv6Address("::1"), ip.IPv6Address("::2")),
    Kind(
        "inet",
        ip.IPv4Interface,
        ip.IPv4Interface("10.0.0.1/8"),
        ip.IPv4Interface("10.0.0.1/9"),
    ),
    Kind("inet", str, "10.0.0.1", "10.0.0.2"),
    Kind(
        "cidr",
        ip.IPv4Network,
        ip.IPv4Network("10.0.0.0/8"),
        ip.IPv4Network("11.0.0.0/8"),
    ),
    Kind("cidr", str, "10.0.0.0/8", "11.0.0.0/8"),
]
CONTAINERS = [
    Kind("jsonb", dict[str, Any], {"a": 1}, {"a": [2, None, 2**70]}, paged=False),
    Kind("jsonb", list[Any], [1], [1, "x"], paged=False),
    Kind("jsonb", list[int], [1], [1, 2], paged=False),
    Kind("jsonb", dict[str, int], {"a": 1}, {"b": 2}, paged=False),
    other("jsonb", 5, {"a": 1}),
    Kind(
        "json",
        Annotated[dict[str, Any], Column(type="json")],
        {"a": 1},
        {},
        compared=False,
        paged=False,
    ),
    Kind("jsonb[]", list[dict[str, Any]], [{"a": 1}], [{"a": 2}, {}], paged=False),
    Kind("integer[]", list[int], [1], [1, 2], paged=False),
    Kind("bigint[]", tuple[int, ...], (1,), (1, 2), paged=False),
    Kind(
        "smallint[]",
        Annotated[set[int], Column(type="smallint[]")],
        {1},
        {1, 2},
        paged=False,
    ),
    Kind("text[]", list[str], ["a", 'b"\\'], ["b", "{,}"], paged=False),
    Kind("text[]", list[str | None], ["a"], [None, "NULL"], paged=False),
    Kind("varchar(9)[]", list[str], ["a"], ["b"], paged=False),
    Kind("uuid[]", list[uuid.UUID], [ONE], [TWO, ONE], paged=False),
    Kind("boolean[]", list[bool], [False], [True], paged=False),
    Kind("float8[]", list[float], [0.1], [0.5, float("inf")], paged=False),
    Kind("numeric[]", list[Decimal], [Decimal("0.10")], [Decimal(5)], paged=False),
    Kind("bytea[]", list[bytes], [b"\0"], [b"a", b""], paged=False),
    Kind("date[]", list[dt.date], [DAY], [NEXT], paged=False),
    Kind("timestamptz[]", list[dt.datetime], [AWARE], [AWARE + HOUR], paged=False),
    Kind("interval[]", list[dt.timedelta], [HOUR], [HOUR * 2], paged=False),
    Kind("mood[]", list[Mood], [Mood.SAD], [Mood.OK, Mood.SAD], paged=False),
    Kind("mood[]", list[str], ["sad"], ["ok"], paged=False),
    Kind("grade[]", list[int], [1], [2, 3], paged=False),
    Kind(
        "inet[]",
        list[ip.IPv4Address],
        [ip.IPv4Address("10.0.0.1")],
        [ip.IPv4Address("10.0.0.2")],
        paged=False,
    ),
    Kind("citext[]", list[str], ["a"], ["b"], paged=False),
    Kind("integer[]", list[list[int]], [[1, 2], [3, 4]], [[5]], paged=False),
    Kind("text[]", list[list[str]], [["a"], ["b"]], [["c"]], paged=False),
    Kind("integer[]", tuple[int, int], (1, 2), (3, 4), paged=False),
    Kind("jsonb[]", list[int], [1], [2, 3], paged=False),
    Kind("jsonb[]", list[str], ["a"], ["1", "b"], paged=False),
    Kind("json[]", list[dict[str, int]], [{"a": 1}], [], compared=False, paged=False),
    Kind("integer[]", list[int], [], [None, 1], paged=False),
    Kind("real[]", list[float], [0.5], [float("inf"), 1024.25], paged=False),
    Kind("uuid[]", list[str], [str(ONE)], [str(TWO), None], paged=False),
    Kind("numeric[]", list[int], [1], [2, None], paged=False),
    Kind("float8[]", tuple[Decimal, ...], (Decimal("0.5"),), (), paged=False),
    Kind("timestamptz[]", list[dt.datetime], [ENDS[0]], [ENDS[1], AWARE], paged=False),
    Kind(
        "timestamptz[]",
        Annotated[list[list[dt.datetime]], Column(type="timestamptz[]")],
        [[AWARE]],
        [[AWARE + HOUR], [ENDS[1]]],
        paged=False,
    ),
    Kind(
        "timetz[]",
        Annotated[list[dt.time], Column(type="timetz[]")],
        [dt.time(1, tzinfo=EAST)],
        [dt.time(2, tzinfo=EAST), None],
        paged=False,
    ),
]
OTHERS = [
    other("text", "a", "b", paged=True),
    other("varchar(3)", "abc", "b", paged=True),
    other("bytea", b"a", b"b\0", paged=True),
    other("date", DAY, NEXT, paged=True),
    other("time", dt.time(1), dt.time(2), paged=True),
    other("timestamp", NOON, NOON + HOUR, paged=True),
    other("timestamptz", *ENDS, paged=True),
    other("timestamptz(3)", ENDS[0], AWARE.replace(microsecond=5000), paged=True),
    other("interval", HOUR, HOUR * 2, paged=True),
    other("integer", -5, 7),
    other("real", 0.5, 1024.25),
    other("numeric(12, 2)", Decimal("0.10"), Decimal("NaN")),
    other("integer[]", [[1, 2], [3, 4]], [None, 1]),
    other("numeric[]", [Decimal("1.50")], [[Decimal(2)], [None]]),
    other("timestamptz[]", [ENDS[0], None], [AWARE]),
    other("pg_lsn", 16, 32),
    other("timetz", dt.time(1, tzinfo=EAST), dt.time(2, tzinfo=EAST)),
    other("bit(4)", BitString("1010"), BitString("1111")),
    other("varbit(9)", BitString("1"), BitString("10101")),
    other("int4range", Range(1, 5), Range(2, 9)),
    other("int8range", Range(1, 5), Range(2, None)),
    other("numrange", Range(Decimal(1), Decimal(5)), Range(Decimal(2), Decimal(9))),
    other("daterange", Range(DAY, NEXT), Range(NEXT, None)),
    other("tsrange", Range(NOON, NOON + HOUR), Range(NOON + HOUR, None)),
    other("tstzrange", Range(AWARE, AWARE + HOUR), Range(AWARE + HOUR, None)),
    other("int4multirange", [Range(1, 5)], [Range(2, 3), Range(7, 9)]),
    other("pair", (1, "a"), (2, None)),
    other("pair[]", [(1, "a")], [(2, "b"), (3, "c")]),
    other("point", Point(1, 2), Point(3, 4), compared=False),
    other("lseg", LineSegment((1, 2), (3, 4)), LineSegment((1, 2), (3, 5))),
    other("box", Box((3, 4), (1, 2)), Box((5, 6), (1, 2)), compared=False),
    other("path", Path((1, 2), (3, 4)), Path((1, 2), (3, 4), (5, 6)), compared=False),
    other(
        "polygon",
        Polygon((1, 2), (3, 4), (5, 0)),
        Polygon((1, 2), (3, 9), (5, 0)),
        compared=False,
    ),
    other("circle", Circle((1, 2), 3), Circle((1, 2), 4), compared=False),
    other("line", Line(1, 2, 3), Line(1, 2, 4), compared=False),
    other("jsonpath", '$."a"', '$."b"', compared=False),
]
KINDS = [*SCALARS, *CONTAINERS, *OTHERS]
TYPES = """
CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN grade AS integer CHECK (VALUE > 0); CREATE DOMAIN word AS text
"""


def test_there_are_enough_types():
    """The matrix stays wide."""
    assert len({(kind.sql, str(kind.annotation)) for kind in KINDS}) >= 70


def same(found: Any, wanted: Any) -> bool:
    """Return whether two values are equal, of one class, and NaN is itself."""
    if isinstance(wanted, Decimal) and wanted.is_nan():
        return isinstance(found, Decimal) and found.is_nan()
    plain = (str, int, float, Decimal, dict, list, tuple, set, enum.Enum, dt.date)
    right = not isinstance(wanted, plain) or isinstance(found, type(wanted))
    return found == wanted and (right or not isinstance(found, plain))


@pytest.mark.parametrize(
    "kind", KINDS, ids=[f"{at}-{kind.sql}" for at, kind in enumerate(KINDS)]
)
async def test_one_meaning(pool, kind: Kind):
    """By every way of writing, and of reading back."""
    sql, low, high = kind.sql, kind.low, kind.high
    await pool.execute(f"{TYPES}; CREATE TABLE t (id int PRIMARY KEY, v {sql})")
    model = dataclasses.make_dataclass(
        "Row", [("id", int), ("v", kind.annotation | None)]
    )
    rows: Repository[Any] = Repository(pool, model, table="t")

    await rows.create(model(1, low))
    await rows.create_many([model(2, high), model(3, low)])
    await rows.upsert(model(4, high))
    await rows.upsert_many([model(5, low), model(4, low)])
    await rows.upsert_many([model(4, high)])
    await rows.create(model(6, None))
    await rows.update(6, {"v": high})
    many = [model(n, low if n % 2 else high) for n in range(10, 11 + COPY_ABOVE)]
    await rows.create_many(many)
    await rows.create_many([model(7, None), model(8, low)])

    wanted = {1: low, 2: high, 3: low, 4: high, 5: low, 6: high, 7: None, 8: low}
    wanted |= {10: high, 11: low}
    few = where("id") < 12
    found = await rows.find_many(few, order_by="id")
    async with rows.stream(few, order_by="id") as records:
        streamed = [record async for record in records]
    typed = await pool.fetch_as(model, "SELECT v, id FROM t WHERE id < 12 ORDER BY id")
    single = [await rows.get_by_id(n) for n in wanted]
    for read in (found, streamed, typed, single):
        assert [record.id for record in read] == list(wanted)
        for record in read:
            assert same(record.v, wanted[record.id]), (record, wanted[record.id])
    stored = await pool.fetch("SELECT id, v::text FROM t ORDER BY id")
    texts = {row[1] for row in stored if row[0] != 7}
    assert len(texts) == 2, texts

    if kind.compared:
        lows = [n for n, value in wanted.items() if value is not None and value is low]
        where_low = await rows.find_many(few, where("v") == low, order_by="id")
        among = await rows.find_many(few, where("v").in_([low, None]), order_by="id")
        assert [record.id for record in where_low] == lows
        assert [record.id for record in among] == sorted([*lows, 7])
    if kind.paged:
        ordered = await rows.find_many(few, order_by=("v", "id"))
        seen, cursor = [], None
        while True:
            page = await rows.page(few, order_by=("v", "id"), size=3, cursor=cursor)
            seen += page.items
            if (cursor := page.next_cursor) is None:
                break
        assert seen == ordered


GAPS = memoryview(b"abcd")[::2]
NETWORK = ip.IPv4Interface("10.0.0.1/8")
OTHER_INT = Annotated[int, Column(type="oid")]


@pytest.mark.parametrize(
    ("sql", "annotation", "wrong"),
    [
        ("int2", int, 1 << 15),
        ("int2[]", list[int], [1, 1 << 15]),
        ("int4", int, 1 << 31),
        ("int4[]", list[int], [-1 - (1 << 31)]),
        ("oid", OTHER_INT, 1 << 32),
        ("oid[]", list[OTHER_INT], [-1]),
        ("real", float, 1e40),
        ("real[]", list[float], [0.5, -1e40]),
        ("bytea[]", list[bytes], [GAPS, "text"]),
        ("inet", ip.IPv4Address, NETWORK),
        ("inet[]", list[ip.IPv4Address], [NETWORK]),
    ],
)
async def test_one_refusal(pool, sql: str, annotation: Any, wrong: Any):
    """What a column cannot hold is refused alike by every way, and nothing stays."""
    await pool.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {sql})")
    model = dataclasses.make_dataclass("Row", [("id", int), ("v", annotation | None)])
    rows: Repository[Any] = Repository(pool, model, table="t")
    await rows.create(model(0, None))
    bad = model(1, wrong)
    good = [model(n, None) for n in range(2, 3 + COPY_ABOVE)]
    for call in (
        lambda: rows.create(bad),
        lambda: rows.create_many([good[0], bad]),
        lambda: rows.create_many([*good, bad]),
        lambda: rows.upsert(bad),
        lambda: rows.upsert_many([good[0], bad]),
        lambda: rows.get_or_create(bad),
        lambda: rows.update(0, {"v": wrong}),
        lambda: rows.update_where([], {"v": wrong}, everything=True),
        lambda: rows.find_many(where("v") == wrong),
        lambda: rows.find_many(where("v").in_([wrong])),
    ):
        with pytest.raises(InvalidRecord):
            await call()
    assert await rows.find_many() == [model(0, None)]
    with pytest.raises(InvalidRecord) as caught:
        await rows.create_many([good[0], bad])
    assert (caught.value.index, caught.value.field) == (1, "v")


@pytest.mark.parametrize(
    ("sql", "annotation", "stored"),
    [
        ("jsonb", list[dt.datetime], '["2026-05-01"]'),
        ("jsonb", dict[str, int], "[1]"),
        ("date", dt.datetime, "2026-05-01"),
        ("text", dt.date, "2026-05-01"),
        ("text", uuid.UUID, "00000000-0000-0000-0000-000000000001"),
        ("integer", bool, "1"),
        ("text", bytes, "a"),
        ("integer", list[int], "1"),
    ],
)
async def test_another_type_than_annotated(pool, sql: str, annotation: Any, stored):
    """A column of another type than the field's: the row and the field are named."""
    await pool.execute(f"CREATE TABLE t AS SELECT 7 AS id, '{stored}'::{sql} AS v")
    model = dataclasses.make_dataclass("Row", [("id", int), ("v", annotation)])
    rows: Repository[Any] = Repository(pool, model, table="t")
    for call in (
        lambda: rows.get_by_id(7),
        rows.find_many,
        lambda: pool.fetch_as(model, "SELECT id, v FROM t"),
        lambda: pool.fetchrow_as(model, "SELECT id, v FROM t"),
    ):
        with pytest.raises(InvalidRecord, match="is no Row") as at:
            await call()
        assert at.value.field == "v"


@pytest.mark.parametrize("sql", ["date[]", "int4range", "pair", "xml"])
async def test_a_value_that_contains_itself_is_refused(pool, sql: str):
    """In a field whose type only the name tells, by every way of writing."""
    await pool.execute(f"{TYPES}; CREATE TABLE t (id int PRIMARY KEY, v {sql})")
    model = dataclasses.make_dataclass(
        "Row", [("id", int), ("v", Annotated[Any, Column(type=sql)])]
    )
    rows: Repository[Any] = Repository(pool, model, table="t")
    endless: list[Any] = []
    endless.append(endless)
    bad = model(1, endless)
    for call in (
        lambda: rows.create(bad),
        lambda: rows.create_many([bad]),
        lambda: rows.create_many([bad] * (COPY_ABOVE + 1)),
        lambda: rows.upsert(bad),
        lambda: rows.upsert_many([bad]),
        lambda: rows.update(1, {"v": endless}),
        lambda: rows.update_where([], {"v": endless}, everything=True),
        lambda: rows.find_many(where("v") == endless),
    ):
        with pytest.raises(InvalidRecord):
            await call()
    assert await rows.find_many() == []


LARGEST, SMALLEST = Decimal("9E+131071"), Decimal("-1E-16383")
BOTH = Decimal(f"{10**100}.{'0' * 99}1")


async def test_numeric_to_its_limits(pool):
    """What it holds is kept exactly by every way; what it does not is refused."""

    @dataclasses.dataclass
    class Number:
        id: int
        v: Decimal
        many: list[Decimal]

    await pool.execute(
        "CREATE TABLE number (id int PRIMARY KEY, v numeric, many numeric[])"
    )
    numbers = Repository(pool, Number)
    values = [LARGEST, SMALLEST, BOTH, Decimal("Infinity"), Decimal("-Infinity")]
    stored = [Number(n, v, [v]) for n, v in enumerate(values)]
    await numbers.create(stored[0])
    await numbers.create_many(stored[1:3])
    await numbers.upsert(stored[3])
    await numbers.upsert_many(stored[3:])
    more = [Number(10 + n, values[2 + n % 3], []) for n in range(COPY_ABOVE)]
    await numbers.create_many([*more, Number(9, LARGEST, [SMALLEST])])
    assert await numbers.find_many(where("id") < 9, order_by="id") == stored
    assert await numbers.count(where("v") == LARGEST) == 2
    assert await numbers.count(where("v") > Decimal("1E+131070")) >= 2
    for wrong in ("1E+131072", "1E+200000", "1E-16384", "sNaN"):
        bad = Number(99, Decimal(wrong), [])
        inside = Number(99, Decimal(1), [Decimal(wrong)])
        for call in (
            lambda bad=bad: numbers.create(bad),
            lambda inside=inside: numbers.create(inside),
            lambda bad=bad: numbers.create_many([stored[0], bad]),
            lambda inside=inside: numbers.create_many([inside] * (COPY_ABOVE + 1)),
            lambda bad=bad: numbers.upsert(bad),
            lambda bad=bad: numbers.upsert_many([bad]),
            lambda bad=bad: numbers.update(0, {"v": bad.v}),
            lambda bad=bad: numbers.find_many(where("v") == bad.v),
            lambda bad=bad: numbers.find_many(where("v").in_([bad.v])),
            lambda bad=bad: numbers.update_where([], {"v": bad.v}, everything=True),
        ):
            with pytest.raises(InvalidRecord):
                await call()
    assert await numbers.count(where("id") < 10) == 6


def named(sql: str, *values: Any) -> list[tuple[str, Any, Any]]:
    """Return values of a type that only its name tells."""
    return [(sql, Annotated[Any, Column(type=sql)], value) for value in values]


TOO_FINE = dt.timezone(dt.timedelta(hours=1, seconds=3))
REFUSED = [
    ("real[]", list[float], [1e39]),
    ("smallint[]", list[int], [2**15]),
    ("integer[]", list[int], [2**31]),
    ("oid[]", list[int], [-1]),
    ("grade[]", list[int], [2**31]),
    ("text[]", list[int], [1]),
    ("integer[]", list[str], ["1"]),
    ("date[]", list[str], ["2026-01-01"]),
    ("timestamp[]", list[dt.datetime], [AWARE]),
    ("timetz[]", list[dt.time], [dt.time(1)]),
    ("bytea[]", list[str], ["a"]),
    ("float8", float, 2**53 + 1),
    ("numeric", float, 10**400),
    ("date", dt.date, NOON),
    ("real", Annotated[float, Column(type="real")], 1e-50),
    ("real[]", Annotated[list[float], Column(type="real[]")], [1e39]),
    ("real[]", Annotated[list[float], Column(type="real[]")], [1e-50]),
    ("timetz", Annotated[dt.time, Column(type="timetz")], dt.time(1)),
    ("timetz", Annotated[dt.time, Column(type="timetz")], dt.time(1, tzinfo=TOO_FINE)),
    (
        "date[]",
        Annotated[list[list[dt.date]], Column(type="date[]")],
        [[NOON]],
    ),
    *named("integer", 1.5, Decimal("1.5"), 2**31, "1", float("nan")),
    *named("integer[]", [1.5], [[2**31]]),
    *named("real", 1e39, 1e-50),
    *named("float8", 2**53 + 1, Decimal("1E+400")),
    *named("numeric", Decimal("1E+200000"), Decimal("sNaN"), Decimal("1E-20000")),
    *named("numeric[]", [Decimal("1E+200000")], [[Decimal("sNaN")]]),
    *named("numrange", Range(Decimal(1), Decimal("1E+200000"))),
    *named("int4range", Range(1.5, 3), Range(1, 2**31)),
    *named("text", "\0", "\ud800"),
    *named("varchar(3)", "abcd", "\0"),
    *named("name", "\0"),
    *named("text[]", ["\0"], [["\ud800"]]),
    *named("mood[]", ["\0"]),
    *named("pair", (1, "\0"), (1, "\ud800"), (2**31, "a")),
    *named("pair[]", [(1, "\0")]),
    *named("hstore", {"a": "\0"}, {"\0": "a"}),
    *named("date", NOON),
    *named("date[]", [NOON]),
    *named("daterange", Range(NOON, None)),
    *named("time", dt.time(1, tzinfo=UTC)),
    *named("timetz", dt.time(1), dt.time(1, tzinfo=dt.timezone(16 * HOUR))),
    *named("timestamp", AWARE, DAY),
    *named("timestamptz", NOON, DAY),
    *named("timestamptz[]", [NOON], [[NOON]]),
    *named("tstzrange", Range(NOON, None)),
]


@pytest.mark.parametrize(
    ("sql", "annotation", "value"),
    REFUSED,
    ids=[f"{at}-{row[0]}" for at, row in enumerate(REFUSED)],
)
async def test_refused_before_anything_is_sent(
    pool, sql: str, annotation: Any, value: Any
):
    """What a column would not keep as it is: by every way, also in a transaction."""
    await pool.execute(f"{TYPES}; CREATE TABLE t (id int PRIMARY KEY, v {sql})")
    await pool.execute("INSERT INTO t VALUES (1)")
    model = dataclasses.make_dataclass("Row", [("id", int), ("v", annotation | None)])
    rows: Repository[Any] = Repository(pool, model, table="t")
    few = [model(2, None), model(3, value)]
    many = [*(model(n, None) for n in range(10, 11 + COPY_ABOVE)), model(3, value)]
    async with pool.transaction() as transaction:
        inside = rows.bind(transaction)
        for call in (
            lambda: inside.create(model(3, value)),
            lambda: inside.create_many(few),
            lambda: inside.create_many(many),
            lambda: inside.upsert(model(3, value)),
            lambda: inside.upsert_many(few),
            lambda: inside.update(1, {"v": value}),
            lambda: inside.update_where(where("id") == 1, {"v": value}),
            lambda: inside.get_or_create(model(3, value)),
        ):
            with pytest.raises(InvalidRecord) as caught:
                await call()
            assert caught.value.field == "v"
        assert await transaction.fetch("SELECT id, v::text FROM t") == [(1, None)]


async def test_whole_numbers_of_floats_stay_floats(pool):
    """Also after records of the same classes went through."""
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v numeric)")
    model = dataclasses.make_dataclass("Row", [("id", int), ("v", float)])
    rows: Repository[Any] = Repository(pool, model, table="t")
    for n in range(3):
        await rows.create(model(n, 2**60))
        with pytest.raises(InvalidRecord):
            await rows.create(model(9, 2**60 + 1))
    assert await rows.count(where("v") == 2**60) == 3


@pytest.mark.parametrize("kind", [bytearray, memoryview], ids=str)
async def test_bytes_in_any_wrapping(pool, kind):
    """Views that are not contiguous among them."""
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v bytea, many bytea[])")
    model = dataclasses.make_dataclass(
        "Row", [("id", int), ("v", bytes), ("many", list[bytes])]
    )
    rows: Repository[Any] = Repository(pool, model, table="t")
    odd = kind(b"aXbXc")[::2]
    await rows.create(model(1, odd, [odd]))
    await rows.create_many([model(2, odd, [odd])])
    await rows.create_many([model(n, odd, [odd]) for n in range(3, 5 + COPY_ABOVE)])
    assert await rows.count(where("v") == b"abc", where("many") == [b"abc"]) == (
        4 + COPY_ABOVE
    )


async def test_composites_that_are_null(pool):
    """Where no row has a value, arrays of them look like any other."""
    await pool.execute(f"{TYPES}; CREATE TABLE t (id int PRIMARY KEY, v pair)")
    model = dataclasses.make_dataclass(
        "Row", [("id", int), ("v", Annotated[Any, Column(type="pair")], None)]
    )
    rows: Repository[Any] = Repository(pool, model, table="t")
    await rows.create_many([model(1), model(2)])
    await rows.upsert_many([model(2), model(3)])
    await rows.create_many([model(n) for n in range(10, 11 + COPY_ABOVE)])
    await rows.create_many([model(4, {"a": 1, "b": "x"}), model(5, (1, "x"))])
    assert await rows.count(where("v") == (1, "x")) == 2
