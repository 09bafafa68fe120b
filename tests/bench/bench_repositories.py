"""Repositories beside the driver and other libraries, on one table and server.

``python tests/bench/bench_repositories.py`` starts an embedded server of its own
(or takes ``--dsn``), prints a table per operation and the bars that are broken.
Every peer decodes JSON with orjson and gives all eight columns; the object
mappers are used as their documentation shows (a session per operation, a pool of
one). The last lines say what is compared with what.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import shutil
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import orjson

from fm_storage.config import PostgresConfig
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded import EmbeddedPostgres
from fm_storage.repositories import ErrorEntry, ErrorEntryRepository, Severity
from tests.bench.harness import Bar, Peer, Table, arguments, finish, measure

if TYPE_CHECKING:
    from tests.bench.peers import Library

COLUMNS = (
    "message",
    "module",
    "error_code",
    "severity",
    "stack_trace",
    "manager_context",
    "timestamp",
    "id",
)
NAMES = ", ".join(COLUMNS)
INSERT = f"INSERT INTO project_errors ({NAMES}) VALUES ($1,$2,$3,$4,$5,$6,$7,$8)"  # noqa: S608 - constants
GET = f"SELECT {NAMES} FROM project_errors WHERE id = $1"  # noqa: S608 - constants
RECENT = (
    f"SELECT {NAMES} FROM project_errors ORDER BY timestamp DESC, id DESC LIMIT 1000"  # noqa: S608 - constants
)
UPSERT = (
    f"INSERT INTO project_errors ({NAMES}) "  # noqa: S608 - constants
    "SELECT c1, c2, c3, c4, c5, c6::jsonb, c7, c8 "
    "FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], "
    "$6::text[], $7::timestamptz[], $8::uuid[]) AS u (c1, c2, c3, c4, c5, c6, c7, c8) "
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS[:-1])
    + f" RETURNING {NAMES}"
)
TABLE = """
CREATE TABLE project_errors (
    id UUID PRIMARY KEY, timestamp TIMESTAMPTZ NOT NULL, message TEXT NOT NULL,
    stack_trace TEXT, module VARCHAR(255) NOT NULL, error_code VARCHAR(100) NOT NULL,
    manager_context JSONB, severity VARCHAR(50) NOT NULL
);
CREATE INDEX ON project_errors (timestamp, id);
"""
TRACE = "".join(
    f'  File "/srv/app/module_{n}.py", line {n * 7}, in handle\n    return call(n)\n'
    for n in range(8)
)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def entry(number: int) -> ErrorEntry:
    """Return an entry of about 0.9 kB."""
    return ErrorEntry(
        f"request {number} failed: connection refused by upstream",
        f"module_{number % 50}",
        f"E{number % 200}",
        severity=Severity.ERROR,
        stack_trace=TRACE,
        manager_context={
            "request": number,
            "user": "ann",
            "ratio": 0.25,
            "retry": True,
            "tags": ["a", "b"],
            "host": "app-7",
        },
        timestamp=NOON + timedelta(seconds=number),
    )


def row(one: ErrorEntry) -> tuple[Any, ...]:
    """Return an entry's values, as one writes it by hand."""
    return (
        one.message,
        one.module,
        one.error_code,
        one.severity,
        one.stack_trace,
        one.manager_context,
        one.timestamp,
        one.id,
    )


def json_row(one: ErrorEntry) -> tuple[Any, ...]:
    """Return an entry's values with its JSON as text, which COPY wants."""
    values = list(row(one))
    values[5] = orjson.dumps(one.manager_context).decode()
    return tuple(values)


@dataclass
class Bench:
    """The connections of all peers, and the rows they work on."""

    dsn: str
    raw: asyncpg.Connection[Any]
    pool: Pool
    held: ErrorEntryRepository
    loose: ErrorEntryRepository
    options: argparse.Namespace
    entries: list[ErrorEntry] = field(default_factory=list)
    fresh: Any = field(default_factory=lambda: itertools.count(10_000_000))
    todo: list[Any] = field(default_factory=list)

    def ids(self) -> Callable[[], UUID]:
        """Return a function that gives stored ids in turn."""
        turn = itertools.cycle([one.id for one in self.entries])
        return lambda: next(turn)

    async def prepare(self, count: int) -> None:
        """Make the entries that the next block writes."""
        self.todo[:] = [entry(next(self.fresh)) for _ in range(count)]

    async def fill(self, count: int) -> None:
        """Put *count* rows into the table, and nothing else."""
        await self.raw.execute("TRUNCATE project_errors")
        self.entries = []
        for start in range(0, count, 50_000):
            part = [entry(n) for n in range(start, min(start + 50_000, count))]
            await self.loose.create_many(part)
            self.entries += part[:2000]
        await self.raw.execute("VACUUM ANALYZE project_errors")

    def scaled(self, count: int) -> int:
        """Return *count*, made smaller by ``--scale``."""
        return max(100, int(count * self.options.scale))


@asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncIterator[Bench]:
    """Give a bench on the server that *options* name, or on one of its own."""
    async with AsyncExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            folder = Path(tempfile.mkdtemp(prefix="fm-bench-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            dsn = await stack.enter_async_context(EmbeddedPostgres(folder))
        admin = await asyncpg.connect(dsn)
        await admin.execute("DROP DATABASE IF EXISTS fm_bench WITH (FORCE)")
        await admin.execute("CREATE DATABASE fm_bench")
        await admin.execute("ALTER DATABASE fm_bench SET synchronous_commit = off")
        await admin.close()
        dsn = with_database(dsn, "fm_bench")
        raw = await asyncpg.connect(dsn)
        stack.push_async_callback(raw.close)
        await raw.execute(TABLE)
        await raw.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=orjson.loads,
        )
        pool = await stack.enter_async_context(Pool(PostgresConfig(dsn=dsn)))
        connection = await stack.enter_async_context(pool.acquire())
        yield Bench(
            dsn,
            raw,
            pool,
            ErrorEntryRepository(connection),
            ErrorEntryRepository(pool),
            options,
        )


def with_database(dsn: str, name: str) -> str:
    """Return *dsn* on another database."""
    head, _, query = dsn.partition("?")
    head = head.rsplit("/", 1)[0]
    return f"{head}/{name}" + (f"?{query}" if query else "")


def writing(peer: Library, todo: list[Any]) -> Callable[[], Any]:
    """Return the creation of the next entry by *peer*."""
    return lambda: peer.create(todo.pop())


def reading(peer: Library, next_id: Callable[[], UUID]) -> Callable[[], Any]:
    """Return the reading of the next entry by *peer*."""
    return lambda: peer.get(next_id())


async def single(bench: Bench) -> list[Table]:
    """Measure one-row operations and the list of 1,000, beside other libraries."""
    from tests.bench.peers import others  # noqa: PLC0415 - loads SQLAlchemy

    cycles = bench.options.cycles
    await bench.fill(bench.scaled(20_000))
    raw, held, loose, next_id = bench.raw, bench.held, bench.loose, bench.ids()
    todo = bench.todo

    async with others(bench.dsn) as more:
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
            f"SELECT {NAMES} FROM project_errors ORDER BY timestamp DESC, id DESC "  # noqa: S608 - constants
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
        rows = await bench.raw.fetch(f"SELECT {NAMES} FROM project_errors")  # noqa: S608 - constants
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


PARTS = {"single": single, "bulk": bulk, "large": large}


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
