"""Times that Python cannot hold, and the infinities that it can."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any

import pytest
from asyncpg import Range

from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Column, Repository, where

FIRST = dt.datetime.min.replace(tzinfo=dt.UTC)
LAST = dt.datetime.max.replace(tzinfo=dt.UTC)


@dataclass(slots=True)
class Event:
    """Every kind of time."""

    id: int
    at: dt.datetime | None = None
    day: dt.date | None = None
    hour: dt.time | None = None
    span: dt.timedelta | None = None


async def all_of(opened):
    """Read a stream to its end."""
    async with opened as records:
        return [record async for record in records]


BEFORE_17 = "SELECT current_setting('server_version_num')::int < 170000"


@pytest.fixture
async def events(pool):
    """Give events, the first of them an ordinary one."""
    await pool.execute(
        "CREATE TABLE event (id int PRIMARY KEY, at timestamptz, day date, hour time, "
        "span interval); INSERT INTO event VALUES (1, now(), now(), now()::time, '1 h')"
    )
    return Repository(pool, Event)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "0044-03-15 BC"),
        ("at", "20000-01-01"),
        ("day", "0044-03-15 BC"),
        ("day", "20000-01-01"),
        ("hour", "24:00"),
        ("span", "infinity"),
        ("span", "99999999 years"),
    ],
)
async def test_the_row_and_its_column_are_named(events, field, value):
    """From every way of reading; other rows stay readable."""
    pool = events.executor
    if value == "infinity" and await pool.fetchval(BEFORE_17):
        value = "-99999999 years"  # no interval is infinite there
    await pool.execute(f"INSERT INTO event (id, {field}) VALUES (7, '{value}')")
    for call in (
        lambda: events.get_by_id(7),
        lambda: events.find_many(order_by="id"),
        lambda: events.find_many(where("id") > 1),
        lambda: events.page(size=5),
        lambda: all_of(events.stream(order_by="id", prefetch=1)),
    ):
        with pytest.raises(InvalidRecord, match=rf"key '7'.*in {field} ") as caught:
            await call()
        assert caught.value.field == field
    with pytest.raises(InvalidRecord):
        await pool.fetch("SELECT * FROM event")
    sql = "SELECT * FROM event WHERE id > $1 ORDER BY id -- all\n ;"
    for call in (
        lambda: pool.fetch_as(Event, sql, 0),
        lambda: all_of(pool.stream_as(Event, sql.partition(";")[0], 0, prefetch=1)),
    ):
        with pytest.raises(InvalidRecord, match=rf"row 2 .*in {field} ") as caught:
            await call()
        assert (caught.value.field, caught.value.index) == (field, 1)
    async with pool.transaction() as transaction:
        with pytest.raises(InvalidRecord, match="key '7'"):
            await events.bind(transaction).get_by_id(7)
        with pytest.raises(InvalidRecord, match="row 1 "):
            await transaction.fetchrow_as(Event, sql, 6)
        await transaction.execute("UPDATE event SET id = id WHERE FALSE")
        assert await transaction.fetchval("SELECT 1") == 1
    assert [one.id for one in await events.find_many(where("id") < 7)] == [1]
    assert pool.statistics().busy == 0


async def test_infinities_are_one_pair_of_aware_values(events):
    """Alone, in batches of both ways, in filters, orders and pages."""
    pool = events.executor
    await events.create(Event(2, LAST))
    await events.create_many([Event(3, FIRST), Event(4, LAST)])
    await events.create_many([Event(n, LAST) for n in range(10, 5011)])
    await events.upsert(Event(2, FIRST))
    await events.update(2, {"at": LAST})
    texts = await pool.fetch("SELECT DISTINCT at::text FROM event WHERE id > 1")
    assert {row[0] for row in texts} == {"infinity", "-infinity"}
    assert await events.count(where("at") == LAST) == 5003
    assert await events.count(where("at").in_([FIRST])) == 1
    found = await events.find_many(where("id") < 10, order_by="at")
    assert [one.at for one in found if one.id > 1] == [FIRST, LAST, LAST]
    assert min(found, key=lambda one: (one.at, one.id)).id == 3
    seen, cursor = [], None
    while True:
        page = await events.page(
            where("id") < 10, order_by="-at", size=1, cursor=cursor
        )
        seen += [one.id for one in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(seen[:2]) == [2, 4]
    assert seen[2:] == [1, 3]


@dataclass(slots=True)
class Plan:
    """Times inside other values."""

    id: int
    ats: list[dt.datetime]
    days: list[dt.date]
    plain: Annotated[list[dt.datetime], Column(type="timestamp[]")]
    spell: Annotated[Any, Column(type="tstzrange")] = None
    spells: Annotated[Any, Column(type="tstzmultirange")] = None
    hour: Annotated[Any, Column(type="timetz")] = None


PLAN = """
CREATE TABLE plan (id int PRIMARY KEY, ats timestamptz[], days date[],
  plain timestamp[], spell tstzrange, spells tstzmultirange, hour timetz)
"""


@pytest.mark.slow
async def test_infinities_at_every_position(pool):
    """In arrays, ranges and multiranges, by every way of writing."""
    await pool.execute(PLAN)
    plans = Repository(pool, Plan)
    naive = dt.datetime.max, dt.datetime.min

    def plan(n):
        spell = Range(FIRST, LAST)
        days = [dt.date.max, dt.date.min]
        return Plan(n, [LAST, FIRST], days, [*naive], spell, [spell])

    await plans.create(plan(1))
    await plans.create_many([plan(2), plan(3)])
    await plans.upsert_many([plan(3), plan(4)])
    await plans.create_many([plan(n) for n in range(10, 5011)])
    await plans.update(4, {"ats": [LAST, FIRST], "spell": Range(FIRST, LAST)})
    texts = await pool.fetch(
        "SELECT DISTINCT ats::text, days::text, plain::text, spell::text, spells::text"
        " FROM plan"
    )
    assert [tuple(row) for row in texts] == [
        (
            "{infinity,-infinity}",
            "{infinity,-infinity}",
            "{infinity,-infinity}",
            "[-infinity,infinity)",
            "{[-infinity,infinity)}",
        )
    ]
    assert await plans.find_many(where("id") < 5, order_by="id") == [
        plan(n) for n in (1, 2, 3, 4)
    ]
    for condition in (
        where("spell") == Range(FIRST, LAST),
        where("ats").contains([LAST]),
        where("ats").in_([[LAST, FIRST]]),
    ):
        assert await plans.count(condition) == 5005


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ats", "{now,0044-03-15 BC}"),
        ("days", "{20000-01-01}"),
        ("plain", "{20000-01-01}"),
        ("spell", "[0044-03-15 BC,now)"),
        ("spells", "{[now,20000-01-01)}"),
        ("hour", "24:00+00"),
    ],
)
async def test_the_row_is_named_whatever_the_time_stands_in(pool, field, value):
    """Arrays, ranges and times with a zone too."""
    await pool.execute(PLAN)
    plans = Repository(pool, Plan)
    await plans.create(Plan(1, [], [], []))
    await pool.execute(f"INSERT INTO plan (id, {field}) VALUES (7, '{value}')")
    with pytest.raises(InvalidRecord, match=rf"key '7'.*in {field} "):
        await plans.find_many(order_by="id")
    with pytest.raises(InvalidRecord, match=rf"row 2 .*in {field} "):
        await pool.fetch_as(Plan, "SELECT * FROM plan ORDER BY id")


async def test_a_statement_that_writes_is_not_run_again_to_find_the_row(pool):
    """What cannot be read is then refused without its place."""
    await pool.execute(
        "CREATE TABLE event (id serial, at timestamptz);"
        "CREATE FUNCTION add() RETURNS timestamptz LANGUAGE sql AS "
        "$$ INSERT INTO event (at) VALUES ('0044-03-15 BC') RETURNING at $$"
    )

    @dataclass
    class At:
        at: dt.datetime

    for n, sql in enumerate(
        (
            "SELECT add() AS at",
            "INSERT INTO event (at) VALUES ('0044-03-15 BC') RETURNING at",
        ),
        1,
    ):
        with pytest.raises(InvalidRecord, match="result: a value"):
            await pool.fetch_as(At, sql)
        assert await pool.fetchval("SELECT count(*) FROM event") == n


@dataclass(slots=True)
class Shift:
    """Times of day, which have no zone."""

    id: int
    at: dt.time
    more: list[dt.time] = field(default_factory=list)


@pytest.mark.parametrize("wrong", ["at", "more"])
async def test_a_time_of_day_with_a_zone_is_refused_by_every_way_of_writing(
    pool, wrong
):
    """The server would drop the zone in silence."""
    await pool.execute("CREATE TABLE shift (id int PRIMARY KEY, at time, more time[])")
    shifts = Repository(pool, Shift)
    zoned = dt.time(6, tzinfo=dt.UTC)

    def shift(n):
        return Shift(n, dt.time(6), [zoned]) if wrong == "more" else Shift(n, zoned)

    value = [zoned] if wrong == "more" else zoned
    await shifts.create(Shift(0, dt.time(6)))
    for write in (
        lambda: shifts.create(shift(1)),
        lambda: shifts.create_many([shift(1), shift(2)]),
        lambda: shifts.create_many([shift(n) for n in range(1, 5011)]),
        lambda: shifts.upsert(shift(0)),
        lambda: shifts.upsert_many([shift(0), shift(1)]),
        lambda: shifts.update(0, {wrong: value}),
        lambda: shifts.update_where(where("id") == 0, {wrong: value}),
        lambda: shifts.count(where(wrong) == value),
    ):
        with pytest.raises(InvalidRecord, match="time zone, which time drops"):
            await write()
    assert await shifts.find_many(where("id") >= 0) == [Shift(0, dt.time(6))]


@pytest.mark.parametrize(
    "kind", ["timetz", "timetz(0)", "time(3) with time zone", "opening", "timetz[]"]
)
async def test_a_time_with_a_zone_is_kept_where_the_column_has_one(pool, kind):
    """Whatever its type is called, a domain too."""
    await pool.execute("CREATE DOMAIN opening AS timetz")
    await pool.execute(f"CREATE TABLE desk (id int PRIMARY KEY, at {kind})")
    at = dt.time(6, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    annotation = list[dt.time] if kind.endswith("[]") else dt.time
    value = [at, at] if kind.endswith("[]") else at
    desk = make_dataclass(
        "Desk", [("id", int), ("at", Annotated[annotation, Column(type=kind)])]
    )
    desks = Repository(pool, desk, table="desk")
    await desks.create(desk(1, value))
    await desks.create_many([desk(2, value), desk(3, value)])
    await desks.create_many([desk(n, value) for n in range(10, 5020)])
    await desks.upsert(desk(4, value))
    await desks.upsert_many([desk(4, value), desk(5, value)])
    await desks.update(1, {"at": value})
    assert await desks.count(where("at") == value) == 5015
    assert await desks.get_by_id(5) == desk(5, value)


async def test_times_of_day_in_json_stay_json(pool):
    """A declared type other than a time's decides as it did."""
    await pool.execute(
        "CREATE TABLE plot (id int PRIMARY KEY, one jsonb, many jsonb, named jsonb)"
    )

    @dataclass
    class Plot:
        """Times in three shapes."""

        id: int
        one: Annotated[dt.time, Column(type="jsonb")]
        many: Annotated[list[dt.time], Column(type="jsonb")]
        named: Annotated[dict[str, dt.time], Column(type="jsonb")]

    plots = Repository(pool, Plot)
    given = [Plot(n, dt.time(6), [dt.time(7)], {"a": dt.time(8)}) for n in (1, 2, 3)]
    await plots.create(given[0])
    await plots.create_many(given[1:])
    assert await plots.find_many(where("id") > 0, order_by="id") == given
