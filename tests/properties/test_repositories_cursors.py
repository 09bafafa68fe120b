"""Pages read by cursor while other connections write all around them.

Separate from the oracle, for nothing here takes turns: writers and reader meet
wherever the server lets them, with transactions left open from page to page. What
must hold is a property of any meeting, so no pause decides it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from fm_storage.postgres import Pool, Transaction
from fm_storage.repositories import Order, Repository, asc, desc

WRITERS = 4
ROWS = 320
SIZE = 9
BUDGET = 60
"""Rows that each writer may add or move: so that the pages have an end."""
GHOST = "never committed"

TABLE = """
CREATE TABLE happening (
    id bigint PRIMARY KEY, stamp int8 NOT NULL, rank int8, note text NOT NULL
)
"""


@dataclass(slots=True)
class Happening:
    """A row that shares its place in the order with many others."""

    id: int
    stamp: int
    rank: int | None = None
    note: str = ""


Place = tuple[float, ...]


def ranked(row: Happening) -> Place:
    """Return the place by falling rank, rows without one last, then by stamp."""
    rank = float("inf") if row.rank is None else -row.rank
    return (rank, row.stamp, row.id)


ORDERS: dict[str, tuple[tuple[Order, ...], Callable[[Happening], Place]]] = {
    "upwards": ((asc("stamp"),), lambda row: (row.stamp, row.id)),
    "downwards": ((desc("stamp"),), lambda row: (-row.stamp, -row.id)),
    "both ways": ((desc("rank", nulls="last"), asc("stamp")), ranked),
}


class _Undo(Exception):
    """Rolls a savepoint back."""


class Traffic:
    """Writers on connections of their own, and how far they and the reader are."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.happenings = Repository(pool, Happening)
        self.seed = seed
        self.commits = 0
        self.pages = 0
        self.over = False
        self.moved: set[int] = set()
        self._held: list[int] = []
        self._news = asyncio.Condition()

    async def tell(
        self, *, commits: int = 0, pages: int = 0, over: bool = False
    ) -> None:
        """Count what happened, and wake who waits for it."""
        async with self._news:
            self.commits += commits
            self.pages += pages
            self.over = over or self.over
            self._news.notify_all()

    async def held(self) -> None:
        """Wait, inside a transaction, until one more page was read."""
        wanted = self.pages + 1
        async with self._news:
            self._held.append(wanted)
            self._news.notify_all()
            await self._news.wait_for(lambda: self.over or self.pages >= wanted)
            self._held.remove(wanted)

    async def moving(self, commits: int) -> None:
        """Wait for so many commits, or until every writer waits for a page."""
        async with self._news:
            await self._news.wait_for(
                lambda: (
                    self.commits >= commits
                    or sum(wanted > self.pages for wanted in self._held) == WRITERS
                )
            )

    async def write(self, number: int) -> None:
        """Change rows until the end, each writer its own: none waits for another."""
        rng = random.Random(f"{self.seed} {number}")
        own = [key for key in range(1, ROWS, 2) if key // 2 % WRITERS == number]
        # Before all others, between them and behind them.
        fresh = itertools.chain.from_iterable(
            (n, -n) for n in itertools.count(ROWS + 1 + number, WRITERS)
        )
        left = BUDGET
        await self.held()
        await self.happenings.create_many(late(number))
        await self.tell(commits=1)
        while not self.over:
            growing = left > 0 and rng.random() < 0.7
            ways = ("add", "move", "return") if growing else ("note", "delete")
            left -= growing
            async with self.pool.transaction() as transaction:
                bound = self.happenings.bind(transaction)
                await self._change(bound, rng.choice(ways), own, fresh, rng)
                with contextlib.suppress(_Undo):
                    async with transaction.savepoint() as savepoint:
                        await self._haunt(savepoint, fresh, rng)
                if rng.random() < 0.2:
                    # Open over a page: what it wrote is seen late.
                    await self.held()
            await self.tell(commits=1)

    async def _haunt(
        self, executor: Transaction, fresh: Iterator[int], rng: random.Random
    ) -> None:
        """Write what is never committed."""
        ghosts = self.happenings.bind(executor)
        await ghosts.create(Happening(next(fresh), rng.randrange(5), note=GHOST))
        raise _Undo

    async def _change(
        self,
        bound: Repository[Happening],
        way: str,
        own: list[int],
        fresh: Iterator[int],
        rng: random.Random,
    ) -> None:
        key = rng.choice(own)
        stamp, rank = rng.randrange(5), rng.choice([None, 0, 1, 2])
        if way == "add":
            await bound.create(Happening(next(fresh), stamp, rank))
        elif way == "move":
            # Over the cursor, perhaps: such a row may rightly be met again.
            self.moved.add(key)
            if row := await bound.find_by_id(key):
                await bound.update(replace(row, stamp=stamp, rank=rank))
        elif way == "return":
            await bound.upsert_many([original(one) for one in rng.sample(own, 3)])
        elif way == "note":
            if row := await bound.find_by_id(key):
                await bound.update(key, {"note": row.note + "x"})
        else:
            await bound.delete(key)

    async def read(self, steps: tuple[Order, ...]) -> list[Happening]:
        """Read all pages, each after some more commits of the writers."""
        seen: list[Happening] = []
        cursor = None
        while True:
            assert self.pages < ROWS, "the pages have no end"
            page = await self.happenings.page(order_by=steps, size=SIZE, cursor=cursor)
            seen += page.items
            await self.tell(pages=1)
            cursor = page.next_cursor
            if cursor is None:
                await self.tell(over=True)
                return seen
            # After the first page, all writers have written once.
            await self.moving(self.commits + (2 if len(seen) > SIZE else WRITERS))


def late(number: int) -> list[Happening]:
    """Return what a writer adds after the first page: before all and behind all."""
    return [
        Happening(10**9 + number, 99, note="late"),
        Happening(2 * 10**9 + number, -99, note="late"),
    ]


def original(key: int) -> Happening:
    """Return the row with *key* as it was before the first page."""
    return Happening(key, key * 7 % 5, (None, 0, 1, 2)[key * 3 % 4])


@pytest.mark.parametrize("order", ORDERS)
async def test_pages_lose_and_repeat_nothing_among_concurrent_writers(pool, order):
    """Untouched rows come once, in order; none comes twice; none uncommitted."""
    await pool.execute(TABLE)
    traffic = Traffic(pool, seed=7)
    before = [original(key) for key in range(ROWS)]
    await traffic.happenings.create_many(before)
    steps, place = ORDERS[order]

    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(traffic.write(number))
        reading = group.create_task(traffic.read(steps))
    seen = reading.result()

    untouched = sorted((row for row in before if row.id % 2 == 0), key=place)
    assert [row for row in seen if row.id % 2 == 0 and row.id in range(ROWS)] == (
        untouched
    )
    places = [place(row) for row in seen]
    assert all(one < next_ for one, next_ in itertools.pairwise(places))
    unmoved = [row.id for row in seen if row.id not in traffic.moved]
    assert len(unmoved) == len(set(unmoved))
    assert all(row.note != GHOST for row in seen)
    # What was committed behind the cursor after the first page is there too.
    first = place(seen[SIZE - 1])
    added = [row for number in range(WRITERS) for row in late(number)]
    assert [row for row in seen if row.note == "late"] == sorted(
        (row for row in added if place(row) > first), key=place
    )
    assert traffic.commits > traffic.pages
