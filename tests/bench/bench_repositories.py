"""Repositories beside the driver and other libraries, on one table and server.

``python tests/bench/bench_repositories.py`` starts an embedded server of its own
(or takes ``--dsn``), prints a table per operation and the bars that are broken.
Every peer decodes JSON with orjson and gives all eight columns; the object
mappers are used as their documentation shows (a session per operation, a pool of
one). The last lines say what is compared with what.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_type_hints
from uuid import UUID

import asyncpg

from fm_storage.repositories import ErrorEntry
from tests.bench.harness import Bar, Peer, Table, arguments, finish, measure
from tests.bench.peers import others
from tests.bench.repositories_data import (
    COLUMNS,
    NAMES,
    Bench,
    entry,
    json_row,
    opened,
    row,
)

if TYPE_CHECKING:
    from tests.bench.peers import Library

INSERT = f"INSERT INTO project_errors ({NAMES}) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)"
GET = f"SELECT {NAMES} FROM project_errors WHERE id = $1"
RECENT = (
    f"SELECT {NAMES} FROM project_errors ORDER BY timestamp DESC, id DESC LIMIT 1000"
)
UPSERT = (
    f"INSERT INTO project_errors ({NAMES}) "
    "SELECT c1, c2, c3, c4, c5, c6::jsonb, c7, c8 "
    "FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], "
    "$6::text[], $7::timestamptz[], $8::uuid[]) AS u (c1, c2, c3, c4, c5, c6, c7, c8) "
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS[:-1])
    + f" RETURNING {NAMES}"
)


def writing(peer: Library, todo: list[Any]) -> Callable[[], Any]:
    """Return the creation of the next entry by *peer*."""
    return lambda: peer.create(todo.pop())


def reading(peer: Library, next_id: Callable[[], UUID]) -> Callable[[], Any]:
    """Return the reading of the next entry by *peer*."""
    return lambda: peer.get(next_id())


async def same_answers(bench: Bench, more: Mapping[str, Library]) -> None:
    """Look that every peer writes the row we read, and reads the rows we wrote."""
    newest = [row(one) for one in await bench.loose.get_recent_errors(1000)]
    written = entry(next(bench.fresh))
    for name, peer in more.items():
        found = [values_of(one) for one in await peer.recent()]
        assert found == newest, f"{name} reads other rows"
        await peer.create(written)
        stored = await bench.loose.get_by_id(written.id)
        assert row(stored) == row(written), f"{name} writes another row"
        got = values_of(await peer.get(written.id))
        assert got == row(written), f"{name} reads another row"
        await bench.loose.delete(written.id)


def values_of(one: object) -> tuple[Any, ...]:
    """Return the values of a library's object in the order of ``row()``."""
    return tuple(getattr(one, name) for name in COLUMNS)


async def single(bench: Bench) -> list[Table]:
    """Measure one-row operations and the list of 1,000, beside other libraries."""
    cycles = bench.options.cycles
    await bench.fill(bench.scaled(20_000))
    raw, held, loose, next_id = bench.raw, bench.held, bench.loose, bench.ids()
    todo = bench.todo

    async with others(bench.dsn) as (more, absent):
        if absent:
            say(f"not installed and left out: {', '.join(absent)}")
        await same_answers(bench, more)
        create = {
            "asyncpg": Peer(
                lambda: raw.execute(INSERT, *row(todo.pop())), bench.prepare
            ),
            "fm_storage, held": Peer(lambda: held.create(todo.pop()), bench.prepare),
            "fm_storage, pool": Peer(lambda: loose.create(todo.pop()), bench.prepare),
        }
        get = {
            "asyncpg": Peer(lambda: raw.fetchrow(GET, next_id())),
            "fm_storage, held": Peer(lambda: held.get_by_id(next_id())),
            "fm_storage, pool": Peer(lambda: loose.get_by_id(next_id())),
        }
        recent = {
            "asyncpg": Peer(lambda: raw.fetch(RECENT)),
            "fm_storage, held": Peer(lambda: held.get_recent_errors(1000)),
            "fm_storage, pool": Peer(lambda: loose.get_recent_errors(1000)),
        }
        for name, peer in more.items():
            create[name] = Peer(writing(peer, todo), bench.prepare)
            get[name] = Peer(reading(peer, next_id))
            recent[name] = Peer(peer.recent)
        bars = (Bar("fm_storage, held", 1.10, 1.15), Bar("fm_storage, pool", 1.15))
        return [
            await measure(
                "create", create, baseline="asyncpg", cycles=cycles, bars=bars
            ),
            await measure(
                "get_by_id", get, baseline="asyncpg", cycles=cycles, bars=bars
            ),
            await measure(
                "find 1,000 entries",
                recent,
                baseline="asyncpg",
                cycles=cycles,
                block=1,
                bars=[Bar("fm_storage, held", 1.15), Bar("fm_storage, pool", 1.15)],
            ),
        ]


@dataclass(slots=True)
class Narrow:
    """Five columns that the driver reads fast."""

    id: int
    name: str
    score: float
    valid: bool
    number: int


Open = make_dataclass("Open", get_type_hints(Narrow).items())
"""The same without slots."""


@dataclass(slots=True)
class Wide(Narrow):
    """Eight columns, one of them a moment and one that may be NULL."""

    moment: datetime
    note: str | None
    more: str


NARROW = (
    "SELECT n AS id, 'name ' || n AS name, n / 3.0::float8 AS score, "
    "n % 2 = 0 AS valid, n * 7 AS number"
)
WIDE = f"{NARROW}, now() AS moment, nullif('x', left('xy', n % 3)) AS note, 'm' AS more"
ROWS = "FROM generate_series(1, 1000) AS n"


async def own(bench: Bench) -> list[Table]:
    """Measure typed rows of one's own SQL, beside the driver's records."""

    def reads(columns: str, *models: type[Any]) -> dict[str, Peer]:
        sql = f"{columns} {ROWS}"
        return {"asyncpg": Peer(lambda: bench.raw.fetch(sql))} | {
            model.__name__: Peer(lambda model=model: bench.pool.fetch_as(model, sql))
            for model in models
        }

    return [
        await measure(
            f"fetch_as of 1,000 rows, {columns} columns",
            peers,
            baseline="asyncpg",
            block=5,
            cycles=bench.options.cycles,
            bars=[Bar(bar, 1.15)],
        )
        for columns, bar, peers in (
            (5, "Narrow", reads(NARROW, Narrow, Open)),
            (8, "Wide", reads(WIDE, Wide)),
        )
    ]


async def bulk(bench: Bench) -> list[Table]:
    """Measure create_many(), upsert_many() and delete_many()."""
    rounds = max(3, bench.options.cycles // 10)
    return [
        await create_many(bench, rounds),
        await upsert_many(bench, rounds),
        await delete_many(bench, rounds),
    ]


async def create_many(bench: Bench, rounds: int) -> Table:
    """Compare with COPY of tuples that are ready, and with COPY from entries."""
    count = bench.scaled(100_000)
    batch = [entry(n) for n in range(count)]
    ready = [json_row(one) for one in batch]
    copying = await asyncpg.connect(bench.dsn)

    async def empty(_count: int) -> None:
        await bench.raw.execute("TRUNCATE project_errors")

    async def written() -> None:
        assert await bench.loose.count() == count

    async def copy(rows: Any) -> None:
        await copying.copy_records_to_table(
            "project_errors", records=rows, columns=COLUMNS
        )

    title = f"create_many({count:,})"
    try:
        return await measure(
            title,
            {
                "asyncpg COPY of entries": Peer(
                    lambda: copy(map(json_row, batch)), empty, written, count
                ),
                "asyncpg COPY, tuples ready": Peer(
                    lambda: copy(ready), empty, written, count
                ),
                "fm_storage": Peer(
                    lambda: bench.loose.create_many(batch), empty, written, count
                ),
            },
            baseline="asyncpg COPY of entries",
            block=1,
            cycles=rounds,
            warmup=1,
            bars=[Bar("fm_storage", 1.10)],
        )
    finally:
        await copying.close()


async def upsert_many(bench: Bench, rounds: int) -> Table:
    """Compare with UNNEST by hand, rows returned and made entries."""
    count = bench.scaled(10_000)
    batch = [entry(n) for n in range(count)]

    async def half(_count: int) -> None:
        await bench.raw.execute("TRUNCATE project_errors")
        await bench.loose.create_many(batch[::2])

    async def by_hand() -> None:
        columns = list(zip(*map(json_row, batch), strict=True))
        rows = await bench.raw.fetch(UPSERT, *columns)
        assert len([ErrorEntry(*values) for values in rows]) == count

    async def ours() -> None:
        found = await bench.loose.upsert_many(batch)
        assert sum(created for _, created in found) == count // 2

    return await measure(
        f"upsert_many({count:,}), half existing",
        {
            "asyncpg UNNEST": Peer(by_hand, half, None, count),
            "fm_storage": Peer(ours, half, None, count),
        },
        baseline="asyncpg UNNEST",
        block=1,
        cycles=rounds,
        warmup=1,
        bars=[Bar("fm_storage", 1.20)],
    )


async def delete_many(bench: Bench, rounds: int) -> Table:
    """Compare with ``= ANY($1)``."""
    count = bench.scaled(10_000)
    batch = [entry(n) for n in range(count)]
    ids = [one.id for one in batch]

    async def full(_count: int) -> None:
        await bench.raw.execute("TRUNCATE project_errors")
        await bench.loose.create_many(batch)

    return await measure(
        f"delete_many({count:,})",
        {
            "asyncpg = ANY": Peer(
                lambda: bench.raw.execute(
                    "DELETE FROM project_errors WHERE id = ANY($1)", ids
                ),
                full,
                None,
                count,
            ),
            "fm_storage": Peer(lambda: bench.loose.delete_many(ids), full, None, count),
        },
        baseline="asyncpg = ANY",
        block=1,
        cycles=rounds,
        warmup=1,
        bars=[Bar("fm_storage", 1.50)],
    )


async def large(bench: Bench) -> list[Table]:
    """Measure late pages and streams at a million rows."""
    count = bench.scaled(1_000_000)
    await bench.fill(count)
    loose = bench.loose
    cursors: list[str | None] = [None]
    size = 50
    for _ in range(1000):
        page = await loose.page(order_by="-timestamp", size=size, cursor=cursors[-1])
        if page.next_cursor is None:
            break
        cursors.append(page.next_cursor)

    def paged(cursor: str | None) -> Callable[[], Any]:
        return lambda: loose.page(order_by="-timestamp", size=size, cursor=cursor)

    async def offset() -> None:
        await bench.raw.fetch(
            f"SELECT {NAMES} FROM project_errors ORDER BY timestamp DESC, id DESC "
            "LIMIT $1 OFFSET $2",
            size,
            (len(cursors) - 1) * size,
        )

    pages = await measure(
        f"page of {size} of {count:,} rows",
        {
            "page 1": Peer(paged(None)),
            f"page {len(cursors)}": Peer(paged(cursors[-1])),
            f"asyncpg OFFSET, page {len(cursors)}": Peer(offset),
        },
        baseline="page 1",
        block=5,
        cycles=bench.options.cycles,
        bars=[Bar(f"page {len(cursors)}", 1.5)],
    )
    return [pages, await streams(bench, count)]


async def streams(bench: Bench, count: int) -> Table:
    """Compare a stream with fetching all, and say what memory it takes."""

    async def all_at_once() -> None:
        rows = await bench.raw.fetch(f"SELECT {NAMES} FROM project_errors")
        assert len([ErrorEntry(*values) for values in rows]) == count

    async def streamed() -> None:
        seen = 0
        async with bench.loose.stream() as records:
            async for _ in records:
                seen += 1
        assert seen == count

    gc.collect()
    tracemalloc.start()
    await streamed()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    say(f"stream of {count:,} rows: {peak / 2**20:.1f} MiB of Python objects at most")
    return await measure(
        f"stream of {count:,} rows",
        {
            "asyncpg fetch, entries": Peer(all_at_once, operations=count),
            "fm_storage": Peer(streamed, operations=count),
        },
        baseline="asyncpg fetch, entries",
        block=1,
        cycles=3,
        warmup=1,
        bars=[Bar("fm_storage", 1.25)],
    )


def say(text: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


PARTS = {"single": single, "own": own, "bulk": bulk, "large": large}


async def main() -> int:
    """Run the chosen parts and print their tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--scale", type=float, default=1.0, help="of the row counts")
    options = parser.parse_args()
    tables: list[Table] = []
    async with opened(options) as bench:
        for name, part in PARTS.items():
            if options.only in name:
                for table in await part(bench):
                    say(table.text())
                    tables.append(table)
    return finish(tables, options)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
