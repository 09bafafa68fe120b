"""Partitions that come and go while their table is in use.

Writers and readers go on through warm connections; what was acknowledged is there
afterwards, unless it was in a partition that was dropped or detached.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from fm_storage.config import OutboxConfig, PostgresConfig
from fm_storage.errors import CheckViolated, LockTimeout
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.repositories import Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE
from fm_storage.vectors import LexicalVectorizer, QdrantStore

pytestmark = pytest.mark.timeout(120)

WIDTH = 10_000
"""Ids of one partition."""


@dataclass(slots=True)
class Event:
    """A row of the partitioned table."""

    id: int
    name: str
    turn: int = 0


@pytest.fixture
async def events(pool: Pool) -> Repository[Event]:
    """Give a repository of a partitioned table with one partition."""
    await pool.execute(
        "CREATE TABLE event (id bigint PRIMARY KEY, name text NOT NULL, turn int) "
        "PARTITION BY RANGE (id)"
    )
    await pool.execute(made(0))
    return Repository(pool, Event)


def bounds(number: int) -> str:
    """Return the bounds of a partition."""
    return f"FOR VALUES FROM ({number * WIDTH}) TO ({(number + 1) * WIDTH})"


def made(number: int) -> str:
    """Return what makes a partition in its place."""
    return f"CREATE TABLE event_{number} PARTITION OF event {bounds(number)}"


def attached(number: int) -> str:
    """Return what makes a table with columns in another order, and attaches it."""
    return (
        f"CREATE TABLE event_{number} (was int, turn int, name text NOT NULL, "
        f"id bigint PRIMARY KEY); ALTER TABLE event_{number} DROP COLUMN was; "
        f"ALTER TABLE event ATTACH PARTITION event_{number} {bounds(number)}"
    )


@asynccontextmanager
async def impatient(pool: Pool) -> AsyncIterator[Pool]:
    """Open a pool of a migration's kind: it does not wait for locks."""
    config = pool.config.model_copy(
        update={"server_settings": {"lock_timeout": "300ms"}, "max_size": 2}
    )
    async with Pool(config) as other:
        yield other


async def test_every_verb_reaches_a_partition_that_was_attached(
    pool: Pool, events: Repository[Event]
):
    """Rows of a table with another order of columns, also by COPY and a batch."""
    await events.create(Event(1, "a"))
    assert await events.get_by_id(1) == Event(1, "a")  # warm
    with pytest.raises(CheckViolated) as caught:
        await events.create(Event(WIDTH, "nowhere"))
    assert caught.value.table == "event"
    await pool.execute(attached(1))
    first = WIDTH + 1
    assert await events.create(Event(first, "b")) == Event(first, "b")
    assert await events.upsert(Event(first, "c")) == (Event(first, "c"), False)
    assert await events.upsert(Event(first + 1, "d")) == (Event(first + 1, "d"), True)
    assert await events.get_or_create(Event(first, "x")) == (Event(first, "c"), False)
    batch = [Event(WIDTH + 100 + n, "many") for n in range(COPY_ABOVE + 10)]
    await events.create_many(batch)
    changed = [Event(one.id, "again", 1) for one in batch]
    assert all(not new for _, new in await events.upsert_many(changed))
    assert await pool.copy_records(
        "event", columns=["id", "name", "turn"], records=[(first + 2, "copy", 0)]
    )
    assert await pool.copy_records(
        "event_1", columns=["name", "id", "turn"], records=[("own", first + 3, 0)]
    )
    assert await events.update(first + 2, {"turn": 5}) == Event(first + 2, "copy", 5)
    assert await events.update_where(where("name") == "own", {"turn": 6}) == 1
    assert await events.count(where("name") == "again") == len(batch)
    page = await events.page(size=3)
    assert [one.id for one in page.items] == [1, first, first + 1]
    # To another partition: the key is changed by SQL, the row moves.
    await pool.execute("UPDATE event SET id = 2 WHERE id = $1", first)
    assert await events.get_by_id(2) == Event(2, "c")
    assert await events.delete_many([2, first + 1]) == 2
    assert await events.delete_where(where("name") == "again") == len(batch)
    async with events.stream(order_by="id") as rows:
        assert [one.id async for one in rows] == [1, first + 2, first + 3]
    with pytest.raises(CheckViolated) as caught:  # a batch is all or none
        await events.create_many([Event(5, "ok"), Event(9 * WIDTH, "nowhere")])
    assert caught.value.index == 1
    assert await events.find_by_id(5) is None


@pytest.mark.lengthy
async def test_an_open_stream_holds_its_partitions(
    pool: Pool, events: Repository[Event]
):
    """Who takes one away waits, or gives up; the stream is whole; then it goes."""
    await pool.execute(made(1))
    numbers = [*range(500), *range(WIDTH, WIDTH + 500)]
    await events.create_many([Event(n, "x") for n in numbers])
    async with impatient(pool) as other:
        async with events.stream(order_by="id", prefetch=50) as rows:
            seen = [(await anext(rows)).id]
            for away in (
                "ALTER TABLE event DETACH PARTITION event_1",
                "DROP TABLE event_1",
                "TRUNCATE event_1",
            ):
                with pytest.raises(LockTimeout):
                    await other.execute(away)
            await other.execute(attached(2))  # this waits for nobody
            await events.create(Event(2 * WIDTH, "new"))
            seen += [one.id async for one in rows]
        assert seen == numbers
        await other.execute("ALTER TABLE event DETACH PARTITION event_1")
        assert await events.count() == 501
        assert await events.find_by_id(WIDTH) is None
        await other.execute("DROP TABLE event_1")
        assert await events.find_many(where("id") >= WIDTH) == [Event(2 * WIDTH, "new")]


class Storm:
    """Writers and readers, and who takes partitions away and brings others."""

    def __init__(self, events: Repository[Event]) -> None:
        self.events = events
        self.stored: dict[int, Event] = {}
        self.refused = 0
        self.ended = False

    async def work(self, name: int) -> None:
        """Use ids of this task alone, in any partition, there or not."""
        dice, turn = random.Random(name), 0
        while not self.ended:
            turn += 1
            number = dice.randrange(4) * WIDTH + name * 1000 + turn % 1000
            try:
                await self.one(Event(number, "x", turn), turn % 4)
            except CheckViolated:  # its partition is not there
                self.refused += 1

    async def one(self, event: Event, verb: int) -> None:
        """Write *event*, or read."""
        if verb == 0:
            await self.events.upsert(event)
        elif verb == 1:
            await self.events.upsert_many([event])
        elif verb == 2:
            found = await self.events.find_by_id(event.id)
            assert event.id >= WIDTH or found == self.stored.get(event.id)
        else:
            await self.events.find_many(where("id") < 3 * WIDTH, limit=5)
        if verb < 2:
            self.stored[event.id] = event

    async def come_and_go(self, pool: Pool) -> None:
        """Attach, detach in both ways, and drop the partitions 1 to 3."""
        there: set[int] = set()
        for turn in range(24):
            number = 1 + turn % 3
            if number not in there:
                await pool.execute((made, attached)[turn % 2](number))
                there.add(number)
                await asyncio.sleep(0.1)
                continue
            if turn % 2:
                how = " CONCURRENTLY" if turn % 4 == 1 else ""
                await pool.execute(
                    f"ALTER TABLE event DETACH PARTITION event_{number}{how}"
                )
            await pool.execute(f"DROP TABLE event_{number}")
            there.discard(number)
        self.ended = True


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_while_partitions_come_and_go(
    events: Repository[Event], dsn: str
):
    """Eight tasks on warm connections; the partition that stays has all its rows."""
    config = PostgresConfig(dsn=dsn, max_size=4)
    async with Pool(config) as warm, Pool(config) as other:
        storm = Storm(events.bind(warm))
        async with asyncio.TaskGroup() as group:
            for name in range(8):
                group.create_task(storm.work(name))
            await storm.come_and_go(other)
    kept = {one.id: one for one in await events.find_many(where("id") < WIDTH)}
    assert kept == {k: one for k, one in storm.stored.items() if k < WIDTH}
    assert len(kept) > 50
    assert storm.refused


@pytest.mark.slow
async def test_tracked_partitions_come_and_go_under_writers(
    pool: Pool, events: Repository[Event], qdrant: QdrantStore
):
    """After the storm the points are the rows that the table has, all of them."""
    config = OutboxConfig(poll_interval=0.1, max_backoff=0.1)
    async with Outbox(pool, qdrant, config) as outbox:
        await outbox.track(
            "event",
            "events",
            text="name",
            payload=["turn"],
            vectorizer=LexicalVectorizer(),
        )
        ended = False

        async def write(name: int) -> None:
            dice = random.Random(name)
            turn = 0
            while not ended:
                turn += 1
                number = dice.randrange(4) * WIDTH + name * 100 + turn % 100
                try:
                    await events.upsert(Event(number, f"words {turn}", turn))
                    if turn % 5 == 0:
                        await events.delete(number)
                except CheckViolated:
                    pass
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for name in range(3):
                group.create_task(write(name))
            for number in (1, 2, 3):
                await pool.execute((made, attached)[number % 2](number))
            known = "SELECT cardinality(partitions) FROM fm_storage.vector_track"
            async with asyncio.timeout(30):  # until the drainer has looked
                while await pool.fetchval(known) != 5:
                    await asyncio.sleep(0.05)
            await pool.execute("ALTER TABLE event DETACH PARTITION event_1")
            await asyncio.sleep(0.2)
            await pool.execute("DROP TABLE event_2")
            await pool.execute(
                f"ALTER TABLE event ATTACH PARTITION event_1 {bounds(1)}"
            )
            await asyncio.sleep(0.2)
            await pool.execute("DROP TABLE event_3")
            ended = True
        rows = {one.id: one.turn for one in await events.find_many()}
        async with asyncio.timeout(60):
            while True:
                await outbox.drain(timeout=30)
                points = {
                    one.id: one.payload["turn"]
                    async for one in qdrant.iter_points("events")
                }
                if points == rows and (await outbox.verify()).agrees:
                    break
                await asyncio.sleep(0.2)
    assert {key // WIDTH for key in rows} == {0, 1}
