"""One contract on every kind of table that PostgreSQL has."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import DuplicateRecord, InvalidRecord, QueryFailed
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE

COLUMNS = "id int PRIMARY KEY, name text, version int NOT NULL, gone timestamptz"
KINDS = {
    "plain": f"CREATE TABLE thing ({COLUMNS})",
    "partitioned": f"CREATE TABLE thing ({COLUMNS}) PARTITION BY RANGE (id); "
    "CREATE TABLE low PARTITION OF thing FOR VALUES FROM (-10) TO (100); "
    "CREATE TABLE high PARTITION OF thing FOR VALUES FROM (100) TO (1000000)",
    "view": f"CREATE TABLE base ({COLUMNS}, hidden int DEFAULT 7); "
    "CREATE VIEW thing AS SELECT id, name, version, gone FROM base",
    "row_security": f"CREATE TABLE thing ({COLUMNS}); "
    "ALTER TABLE thing ENABLE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON thing USING (id > -5) WITH CHECK (id > -5)",
    "inherited": "CREATE TABLE parent (id int, name text); "
    f"CREATE TABLE thing ({COLUMNS}) INHERITS (parent)",
    "trigger": f"CREATE TABLE thing ({COLUMNS}); "
    "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN NEW.name := NEW.name || ''; RETURN NEW; END $$; "
    "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON thing "
    "FOR EACH ROW EXECUTE FUNCTION touch()",
    "unlogged": f"CREATE UNLOGGED TABLE thing ({COLUMNS})",
}


@dataclass(slots=True)
class Thing:
    """What every kind of table keeps."""

    id: Annotated[int, Column(type="int4")]
    name: str | None = None
    version: Annotated[int, Column(type="int4")] = 1
    gone: dt.datetime | None = None


@pytest.fixture(params=KINDS)
async def things(request, pool: Pool, dsn: str) -> AsyncIterator[Repository[Thing]]:
    """Give a table of each kind to a role that is neither owner nor superuser."""
    role = f"twin_{uuid.uuid4().hex[:8]}"
    await pool.execute(KINDS[request.param])
    await pool.execute(f"CREATE ROLE {role}; GRANT ALL ON thing TO {role}")
    config = PostgresConfig(dsn=dsn, max_size=4, server_settings={"role": role})
    try:
        async with Pool(config) as as_role:
            yield Repository(as_role, Thing, version="version", deleted="gone")
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_one_by_one(things):
    """Each verb for one record means the same on every kind."""
    one = Thing(1, "a")
    assert await things.create(one) == one
    with pytest.raises(DuplicateRecord):
        await things.create(one)
    assert await things.upsert(Thing(1, "b")) == (Thing(1, "b", version=2), False)
    assert await things.upsert(Thing(200, "c")) == (Thing(200, "c"), True)
    assert await things.get_or_create(Thing(200, "x")) == (Thing(200, "c"), False)
    assert await things.get_or_create(Thing(3, "d")) == (Thing(3, "d"), True)
    changed = await things.update(3, {"name": "e"})
    assert changed == Thing(3, "e", version=2)
    assert await things.delete(3)
    assert await things.find_by_id(3) is None
    assert (await things.get_or_create(Thing(3, "f")))[1]
    assert await things.delete(3)
    assert (await things.restore(3)).name == "f"
    assert await things.erase(3)
    assert [one.id for one in await things.find_many(order_by="id")] == [1, 200]


async def test_upserts_in_one_transaction_tell_new_rows_from_old(things):
    """A row found by one statement makes no later one look found."""
    async with things.executor.transaction() as transaction:
        bound = things.bind(transaction)
        found = [(await bound.upsert(Thing(n % 3, "x")))[1] for n in range(6)]
        assert found == [True] * 3 + [False] * 3
        assert (await bound.upsert(Thing(9, "new")))[1]
        many = await bound.upsert_many([Thing(n) for n in (10, 1, 11, 0)])
    assert [created for _, created in many] == [True, False, True, False]


@pytest.mark.parametrize("count", [3, COPY_ABOVE + 1])
async def test_batches(things, count):
    """Batches of every size, inside and outside a transaction."""
    batch = [Thing(n, f"n{n}") for n in range(count)]
    assert await things.create_many(batch) == batch
    async with things.executor.transaction() as transaction:
        bound = things.bind(transaction)
        more = [Thing(count + n, "y") for n in range(count)]
        await bound.create_many(more)
        again = await bound.upsert_many([*more[:2], Thing(3 * count, "z")])
        with pytest.raises(DuplicateRecord) as caught:
            await bound.create_many([Thing(4 * count), *batch])
    assert caught.value.index == 1
    assert [created for _, created in again] == [False, False, True]
    assert await things.count() == 2 * count + 1
    assert await things.count(where("name") == "y") == count
    assert await things.delete_many([one.id for one in batch]) == count
    assert await things.count() == count + 1


SKIP = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.name = 'bad' THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE TABLE ticket (id serial PRIMARY KEY, name text UNIQUE);
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON ticket
FOR EACH ROW EXECUTE FUNCTION skip()
"""


@dataclass(slots=True)
class Ticket:
    """A record whose key the server gives."""

    name: str
    id: Annotated[int, Column(generated=True, type="int4")] = 0


async def test_a_suppressed_row_is_an_error_and_undoes_its_batch(pool):
    """A trigger that returns NULL is neither a crash nor a row."""
    await pool.execute(SKIP)
    tickets = Repository(pool, Ticket)
    for call in (
        lambda: tickets.create(Ticket("bad")),
        lambda: tickets.create_many([Ticket("good"), Ticket("bad")]),
        lambda: tickets.upsert(Ticket("bad"), on="name"),
        lambda: tickets.upsert_many([Ticket("good"), Ticket("bad")], on="name"),
        lambda: tickets.get_or_create(Ticket("bad"), on="name"),
    ):
        with pytest.raises(QueryFailed, match="suppressed") as caught:
            await call()
        assert not caught.value.retryable
    assert await tickets.count() == 0

    made = await tickets.create(Ticket("good"))
    with pytest.raises(QueryFailed, match="suppressed"):
        await tickets.update(made, {"name": "bad"})


class Mood(enum.Enum):
    """Kept in a type of the database's own."""

    SAD = "sad"
    OK = "ok"


@dataclass(slots=True)
class Entry:
    """Types that only the catalogue knows."""

    id: int
    mood: Mood
    moods: list[Mood]
    amount: Decimal
    address: str
    pair: Annotated[tuple[int, str] | None, Column(type="pair")] = None
    grid: list[list[int]] | None = None


TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(8, 2) CHECK (VALUE >= 0);
CREATE TABLE entry (id int PRIMARY KEY, mood mood, moods mood[], amount price,
  address character(6), pair pair, grid int[])
"""


async def test_the_catalogue_names_the_types_of_a_batch(pool):
    """What create() takes, batches take, whatever the declaration leaves open."""
    await pool.execute(TYPES)
    entries = Repository(pool, Entry)
    extra = {"pair": (1, "x"), "grid": [[1, 2], [3, 4]]}

    def entry(number: int) -> Entry:
        values = (number, Mood.OK, [Mood.SAD, Mood.OK], Decimal("1.50"), "abcdef")
        return Entry(*values, **extra)

    await entries.create(entry(1))
    await entries.create_many([entry(2), entry(3)])
    found = await entries.upsert_many([entry(3), entry(4)])
    assert [created for _, created in found] == [False, True]
    await entries.create_many([entry(n) for n in range(10, 10 + COPY_ABOVE + 1)])
    rows = await entries.find_many(where("id") < 12, order_by="id")
    assert rows == [entry(n) for n in (1, 2, 3, 4, 10, 11)]

    with pytest.raises(InvalidRecord) as caught:
        await entries.create_many(
            [entry(20_000), dataclasses.replace(entry(20_001), pair=("no", "x"))]
        )
    assert (caught.value.index, caught.value.field) == (1, "pair")
    assert await entries.count(where("id") >= 20_000) == 0


async def test_a_type_that_changed_is_looked_up_again(pool):
    """A batch after ALTER TYPE is written as the new type."""
    await pool.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, name text, version int,"
        " gone timestamptz)"
    )
    things = Repository(pool, Thing)
    await things.create_many([Thing(1, "ok")])
    await pool.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); "
        "ALTER TABLE thing ALTER name TYPE mood USING name::mood"
    )
    assert await things.create_many([Thing(2, "sad")]) == [Thing(2, "sad")]
    assert (await things.get_by_id(2)).name == "sad"


async def test_rows_come_back_by_position_however_they_are_stored(pool):
    """Rounded, padded and folded keys find their records."""

    @dataclass(slots=True)
    class Price:
        k: Decimal
        n: int

    await pool.execute("CREATE TABLE price (k numeric(12, 2) PRIMARY KEY, n int)")
    prices = Repository(pool, Price, key="k")
    await prices.create(Price(Decimal("1.00"), 0))
    found = await prices.upsert_many(
        [Price(Decimal("1.004"), 7), Price(Decimal("0.501"), 8)]
    )
    assert found == [
        (Price(Decimal("1.00"), 7), False),
        (Price(Decimal("0.50"), 8), True),
    ]
    assert await prices.upsert(Price(Decimal("1.001"), 9)) == (
        Price(Decimal("1.00"), 9),
        False,
    )
    assert await prices.get_or_create(Price(Decimal("0.499"), 1)) == (
        Price(Decimal("0.50"), 8),
        False,
    )
    with pytest.raises(QueryFailed):
        await prices.upsert_many(
            [Price(Decimal("1.001"), 1), Price(Decimal("1.002"), 2)]
        )
    assert (await prices.get_by_id(Decimal(1))).n == 9
