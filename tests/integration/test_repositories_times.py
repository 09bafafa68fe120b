"""Times that Python cannot hold, and the infinities that it can."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Repository, where

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
    ):
        with pytest.raises(InvalidRecord, match=rf"key '7'.*in {field} ") as caught:
            await call()
        assert caught.value.field == field
    with pytest.raises(InvalidRecord):
        await pool.fetch("SELECT * FROM event")
    async with pool.transaction() as transaction:
        with pytest.raises(InvalidRecord, match="key '7'"):
            await events.bind(transaction).get_by_id(7)
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
