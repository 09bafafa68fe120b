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
from fm_storage.errors import (
    DuplicateRecord,
    InvalidRecord,
    QueryFailed,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE

COLUMNS = "id int PRIMARY KEY, name text, version int NOT NULL, gone timestamptz"
TRIM = """
CREATE FUNCTION trim_name() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN NEW.name := rtrim(NEW.name, '!'); RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT OR UPDATE ON {}
  FOR EACH ROW EXECUTE FUNCTION trim_name()
"""
KINDS = {
    "plain": f"CREATE TABLE thing ({COLUMNS})",
    "partitioned": f"CREATE TABLE thing ({COLUMNS}) PARTITION BY RANGE (id); "
    "CREATE TABLE low PARTITION OF thing FOR VALUES FROM (-10) TO (100); "
    "CREATE TABLE high PARTITION OF thing FOR VALUES FROM (100) TO (1000000)",
    "partition": f"CREATE TABLE whole ({COLUMNS}) PARTITION BY RANGE (id); "
    "CREATE TABLE thing PARTITION OF whole FOR VALUES FROM (-10) TO (1000000)",
    "partitioned_with_trigger": f"CREATE TABLE thing ({COLUMNS}) "
    "PARTITION BY HASH (id); "
    "CREATE TABLE odd PARTITION OF thing FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
    "CREATE TABLE even PARTITION OF thing FOR VALUES WITH (MODULUS 2, REMAINDER 1); "
    + TRIM.format("thing"),
    "view": f"CREATE TABLE base ({COLUMNS}, hidden int DEFAULT 7); "
    "CREATE VIEW thing AS SELECT id, name, version, gone FROM base",
    "checked_view": f"CREATE TABLE base ({COLUMNS}); CREATE VIEW thing AS SELECT * "
    "FROM base WHERE id > -5 WITH CASCADED CHECK OPTION",
    "view_with_trigger": f"CREATE TABLE base ({COLUMNS}); "
    "CREATE VIEW thing AS SELECT * FROM base; " + TRIM.format("base"),
    "row_security": f"CREATE TABLE thing ({COLUMNS}); "
    "ALTER TABLE thing ENABLE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON thing USING (id > -5) WITH CHECK (id > -5)",
    "forced_row_security": f"CREATE TABLE thing ({COLUMNS}) PARTITION BY RANGE (id); "
    "CREATE TABLE every PARTITION OF thing DEFAULT; "
    "ALTER TABLE thing ENABLE ROW LEVEL SECURITY; "
    "ALTER TABLE thing FORCE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON thing USING (true)",
    "inherited": "CREATE TABLE parent (id int, name text); "
    f"CREATE TABLE thing ({COLUMNS}) INHERITS (parent)",
    "parent": f"CREATE TABLE thing ({COLUMNS}); "
    "CREATE TABLE child (more int) INHERITS (thing)",
    "typed": "CREATE TYPE row_type AS "
    "(id int, name text, version int, gone timestamptz); "
    "CREATE TABLE thing OF row_type (PRIMARY KEY (id))",
    "trigger": f"CREATE TABLE thing ({COLUMNS}); " + TRIM.format("thing"),
    "unlogged": f"CREATE UNLOGGED TABLE thing ({COLUMNS})",
    "more_columns": f"CREATE TABLE thing (more serial, {COLUMNS}, "
    "made timestamptz NOT NULL DEFAULT now(), "
    "size int GENERATED ALWAYS AS (length(name)) STORED, "
    "number int GENERATED ALWAYS AS IDENTITY)",
    "dropped_columns": f"CREATE TABLE thing (a int, {COLUMNS}, b jsonb); "
    "ALTER TABLE thing DROP a, DROP b",
    "odd_names": 'CREATE SCHEMA "Odd ""one"""; CREATE TABLE "Odd ""one"""."sel.ect" '
    '("ID" int PRIMARY KEY, "order by" text, "ver\'sion" int NOT NULL, '
    '"größe{}%s$1" timestamptz); CREATE VIEW thing AS SELECT 1',
}


@dataclass(slots=True)
class Thing:
    """What every kind of table keeps."""

    id: Annotated[int, Column(type="int4")]
    name: str | None = None
    version: Annotated[int, Column(type="int4")] = 1
    gone: dt.datetime | None = None


ODD = {
    "id": Column(name="ID", type="int4"),
    "name": "order by",
    "version": Column(name="ver'sion", type="int4"),
    "gone": "größe{}%s$1",
}


@pytest.fixture(params=KINDS)
async def things(request, pool: Pool, dsn: str) -> AsyncIterator[Repository[Thing]]:
    """Give a table of each kind to a role that is neither owner nor superuser."""
    role = f"twin_{uuid.uuid4().hex[:8]}"
    await pool.execute(KINDS[request.param])
    odd = request.param == "odd_names"
    places = await pool.fetch(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = relnamespace WHERE relkind = 'S' AND nspname = 'public'"
        " OR relname IN ('thing', 'sel.ect')"
    )
    await pool.execute(f"CREATE ROLE {role}")
    for (place,) in places:
        kind = "SEQUENCE" if place.endswith("_seq") else "TABLE"
        await pool.execute(f"GRANT ALL ON {kind} {place} TO {role}")
    if odd:
        await pool.execute(f'GRANT USAGE ON SCHEMA "Odd ""one""" TO {role}')
    config = PostgresConfig(dsn=dsn, max_size=4, server_settings={"role": role})
    try:
        async with Pool(config) as as_role:
            yield Repository(
                as_role,
                Thing,
                table=_Odd() if odd else None,
                columns=ODD if odd else None,
                version="version",
                deleted="gone",
            )
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


class _Odd:
    """A table whose names hold dots and quotes."""

    schema, name = 'Odd "one"', "sel.ect"
    sql = '"Odd ""one"""."sel.ect"'


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


async def test_what_comes_back_is_what_is_stored(things):
    """Of a row that a trigger changes, too: never the values that were given."""
    given = [
        await things.upsert(Thing(1, "a!")),
        await things.upsert(Thing(1, "b!")),
        await things.get_or_create(Thing(2, "c!")),
        await things.get_or_create(Thing(2, "d!")),
        *await things.upsert_many([Thing(4, "e!"), Thing(2, "f!")]),
    ]
    updated = await things.update(4, {"name": "g!"})
    last = {one.id: one for one, _ in given} | {4: updated}
    assert await things.find_many(order_by="id") == [last[n] for n in sorted(last)]
    assert [created for _, created in given] == [True, False, True, False, True, False]
    stored = "b" if given[0][0].name == "a" else "b!"
    assert (await things.get_by_id(1)).name == given[1][0].name == stored


async def test_reading(things):
    """Filters, orders, pages, streams and locks on every kind."""
    batch = [Thing(n, f"n{n % 5}" if n % 7 else None) for n in range(150)]
    await things.create_many(batch)
    named = where("name") == "n1"
    expected = [one for one in batch if one.name == "n1"]
    assert await things.find_many(named, order_by="id") == expected
    assert await things.find_many(order_by="-id", limit=3) == batch[:-4:-1]
    assert await things.count(named) == len(expected)
    assert await things.exists(where("id").in_([3, 999]))
    assert not await things.exists(where("id") > 999)
    assert await things.get_by_id(77) == batch[77]
    with pytest.raises(RecordNotFound):
        await things.get_by_id(999)
    seen: list[Thing] = []
    cursor = None
    while True:
        page = await things.page(order_by=["name", "-id"], size=40, cursor=cursor)
        seen += page.items
        if (cursor := page.next_cursor) is None:
            break
    known = sorted((one for one in batch if one.name), key=lambda one: -one.id)
    known.sort(key=lambda one: one.name or "")
    assert [one for one in seen if one.name] == known
    assert sorted(one.id for one in seen) == list(range(150))
    async with things.stream(named, order_by="id", prefetch=4) as records:
        assert [one async for one in records] == expected
    async with things.executor.transaction() as transaction:
        bound = things.bind(transaction)
        assert await bound.get_by_id(1, for_update=True) == batch[1]
        locked = await bound.find_many(
            named, order_by="id", for_update=True, skip_locked=True
        )
        assert locked == expected
        other = where("id").in_([1, 2])
        async with things.executor.transaction() as second:
            free = await things.bind(second).find_many(
                other, for_update=True, skip_locked=True
            )
            assert [one.id for one in free] == [2]


async def test_by_filter_and_for_good(things):
    """Changes and deletions of many rows on every kind."""
    batch = [Thing(n, f"n{n}") for n in range(20)]
    await things.create_many(batch)
    assert await things.update_where(where("id") < 5, {"name": "low"}) == 5
    assert await things.get_by_id(4) == Thing(4, "low", version=2)
    assert await things.delete_where(where("name") == "low") == 5
    assert await things.delete_many([5, 6, 999]) == 2
    assert await things.count() == 13
    assert await things.with_deleted().count() == 20
    assert (await things.restore(6)).version == 3
    assert await things.purge(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == 6
    assert await things.with_deleted().count() == 14
    stale = await things.get_by_id(7)
    await things.update(stale, {"name": "x"})
    with pytest.raises(StaleRecord):
        await things.update(stale, {"name": "y"})
    with pytest.raises(StaleRecord):
        await things.delete(stale)
    assert await things.update_where([], {"name": "all"}, everything=True) == 14
    assert await things.delete_where([], everything=True) == 14


async def test_hooks(things):
    """Hooks see what is stored, on every kind."""
    seen = []

    @things.before("create", "upsert")
    async def correct(_transaction, change):
        for record in change.records:
            record.name = f"{record.name}+"

    @things.after()
    async def note(_transaction, change):
        seen.append((change.operation, [one.name for one in change.records]))

    await things.create(Thing(1, "a"))
    await things.create_many([Thing(2, "b"), Thing(3, "c")])
    await things.upsert_many([Thing(3, "d"), Thing(4, "e")])
    await things.update(4, {"name": "f"})
    await things.update_where(where("id") == 4, {"name": "g"})
    await things.delete_where(where("id") == 4)
    assert seen == [
        ("create", ["a+"]),
        ("create", ["b+", "c+"]),
        ("upsert", ["d+", "e+"]),
        ("update", ["f"]),
        ("update", ["g"]),
        ("delete", []),
    ]


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


@dataclass(slots=True)
class Seen:
    """A record that has a point."""

    id: int
    name: str | None = None
    version: Annotated[int, Column(type="int4")] = 1
    gone: dt.datetime | None = None


@pytest.mark.parametrize(
    "kind", ["partitioned", "partitioned_with_trigger", "view_with_trigger", "parent"]
)
async def test_points(storage, kind):
    """Record and point are one statement on every kind."""
    await storage.pool.execute(KINDS[kind].replace("id int", "id bigint"))
    await storage.qdrant.ensure_collection_exists("c", 2)
    seen = storage.repository(
        Seen, table="thing", collection="c", version="version", deleted="gone"
    )
    vector = [1.0, 0.0]
    await seen.create(Seen(1, "a!"), vector=vector)
    await seen.create_many([Seen(n) for n in (2, 3)], vectors=[vector] * 2)
    found, _ = await seen.upsert(Seen(1, "b!"), vector=vector, payload={"n": 1})
    many = await seen.upsert_many([Seen(150), Seen(2)], vectors=[vector] * 2)
    assert [created for _, created in many] == [True, False]
    assert found == await seen.get_by_id(1)
    await seen.delete_where(where("id") == 3)
    await storage.outbox.drain()
    points = await storage.qdrant.retrieve("c", [1, 2, 3, 150])
    assert sorted(point.id for point in points) == [1, 2, 150]


async def test_a_view_of_a_session_is_read_by_a_repository(storage):
    """And the model's own table stays what its name alone means."""
    await storage.pool.execute(KINDS["plain"])
    things = storage.repository(Thing, version="version")
    await things.create_many([Thing(n, f"n{n}") for n in range(5)])
    async with storage.session() as session:
        view = await session.create_view("SELECT * FROM thing WHERE id > $1", 2)
        some = storage.repository(Thing, table=view)
        assert [one.id for one in await some.find_many(order_by="id")] == [3, 4]
        assert (await some.get_by_id(3)).name == "n3"
        assert (await some.page(size=1)).has_more
    assert storage.repository(Thing) is things


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


KEEPING = f"""
{KINDS["plain"]}; CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN RETURN NULL; END $$
"""
KEPT = "CREATE TRIGGER k BEFORE {} ON thing FOR EACH ROW EXECUTE FUNCTION keep()"


async def test_a_row_that_a_trigger_keeps_was_not_deleted(pool):
    """Neither True, nor False as for a row that is not there."""
    await pool.execute(f"{KEEPING}; {KEPT.format('DELETE')}")
    plain, soft = (
        Repository(pool, Thing, version="version", deleted=mark)
        for mark in (None, "gone")
    )
    one = await plain.create(Thing(1, "a"))
    for call in (lambda: plain.delete(1), lambda: plain.delete(one)):
        with pytest.raises(QueryFailed, match="suppressed"):
            await call()
    with pytest.raises(QueryFailed, match="suppressed"):
        await soft.erase(1)
    assert await plain.delete_many([1]) == 0
    assert not await plain.delete(2)
    assert await plain.count() == 1
    assert await soft.delete(1)
    assert not await soft.delete(1)
    await pool.execute(KEPT.replace("k BEFORE", "u BEFORE").format("UPDATE"))
    with pytest.raises(QueryFailed, match="suppressed"):
        await soft.restore(1)
    with pytest.raises(QueryFailed, match="suppressed"):
        await soft.with_deleted().update(1, {"name": "b"})
    await soft.create(Thing(3))
    with pytest.raises(QueryFailed, match="suppressed"):
        await soft.delete(3)
    assert await soft.count() == 1


RAISING = f"""
{KINDS["plain"]}; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN IF NEW.id < -5 THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON thing
  FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize(
    "things", ["row_security", "checked_view", "partitioned"], indirect=True
)
@pytest.mark.parametrize("count", [3, COPY_ABOVE + 1])
async def test_a_policy_or_view_or_partition_names_the_row_that_it_refuses(
    things, count
):
    """As constraints do; so does what a trigger raises."""
    batch = [Thing(n, "x") for n in range(count)]
    for call in (
        lambda: things.create_many([*batch, Thing(-20), Thing(-21)]),
        lambda: things.upsert_many([*batch, Thing(-20)]),
    ):
        with pytest.raises(QueryFailed) as caught:
            await call()
        assert caught.value.index == count
    assert await things.count() == 0


async def test_a_trigger_names_the_row_that_it_refuses(pool):
    """What it raises is about a row."""
    await pool.execute(RAISING)
    things = Repository(pool, Thing)
    with pytest.raises(QueryFailed, match=r"record 1.*not this one") as caught:
        await things.create_many([Thing(1), Thing(-6), Thing(2)])
    assert caught.value.index == 1
    assert await things.count() == 0


LEFT_OUT = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.name = 'bad' THEN RETURN NULL; END IF; RETURN NEW; END $$;
"""
ON = "CREATE TRIGGER s BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION "
RULE = "CREATE RULE r AS ON INSERT TO thing WHERE new.name = 'bad' DO INSTEAD NOTHING"
SUPPRESSING = {
    "trigger": f"{KINDS['plain']}; {ON.format('thing')} skip()",
    "trigger_of_a_partition": f"{KINDS['partition']}; {ON.format('thing')} skip(); "
    "ALTER TABLE thing RENAME TO lower; ALTER TABLE whole RENAME TO thing",
    "trigger_below_a_view": f"{KINDS['view']}; {ON.format('base')} skip()",
    "rule": f"{KINDS['plain']}; {RULE}",
}


@pytest.mark.parametrize("kind", SUPPRESSING)
@pytest.mark.parametrize("within", [False, True])
async def test_a_row_left_out_is_an_error_where_nothing_is_read_back(
    pool, kind, within
):
    """By arrays, by COPY and alone; the rest of the batch is undone."""
    await pool.execute(LEFT_OUT + SUPPRESSING[kind])
    things = Repository(pool, Thing)
    large = [Thing(n, "good") for n in range(COPY_ABOVE + 1)]
    for call in (
        lambda bound: bound.create(Thing(1, "bad")),
        lambda bound: bound.create_many([Thing(1, "good"), Thing(2, "bad")]),
        lambda bound: bound.create_many([*large, Thing(900_000, "bad")]),
    ):
        with pytest.raises(QueryFailed, match="suppressed"):
            if within:
                async with pool.transaction() as transaction:
                    await call(things.bind(transaction))
            else:
                await call(things)
        assert await things.count() == 0
    assert await things.create_many([Thing(1, "good")]) == [Thing(1, "good")]
    assert await things.create_many(large[2:]) == large[2:]


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


async def test_an_identity_that_is_always_generated(pool):
    """Refused alike where the model gives it, by COPY too; else given by the server."""

    @dataclass
    class Given:
        text: str
        id: int = 1

    @dataclass
    class Taken:
        text: str
        id: Annotated[int, Column(generated=True)] = 0

    await pool.execute(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text)"
    )
    given = Repository(pool, Given, table="t")
    many = [Given("x", n) for n in range(COPY_ABOVE + 1)]
    for call in (
        lambda: given.create(many[0]),
        lambda: given.create_many(many[:2]),
        lambda: given.create_many(many),
        lambda: given.upsert(many[0]),
    ):
        with pytest.raises(QueryFailed) as caught:
            await call()
        assert caught.value.sqlstate == "428C9"
    taken = Repository(pool, Taken, table="t")
    created = await taken.create_many([Taken("x"), Taken("y")])
    assert await taken.find_many(order_by="id") == created
