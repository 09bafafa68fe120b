"""What dual write costs: the write path, draining, verifying.

``python tests/bench/bench_outbox.py [--only write|track|drain|verify]``. The README
beside it states the bars that it is held against; ratios hold on a loaded machine,
rows per second do not.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fm_storage.config import (
    MigrationsConfig,
    OutboxConfig,
    PostgresConfig,
    QdrantConfig,
)
from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.outbox.agreement.tracking import Tracker
from fm_storage.postgres import Pool, Sql
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.repositories import uuid7
from fm_storage.vector_state import state_row, upsert_ctes
from fm_storage.vectors import Point, QdrantStore
from tests.bench.harness import Bar, Peer, Table, arguments, finish, measure
from tests.support.inside import side_of

SIZE = 384
BACKLOG = 20_000
VERIFIED = 100_000
COPIED = 100_000
COLUMNS = ["id", "title", "body", "year"]
SINK_DELAY = 0.004

TRACE = "\n".join(f'  File "app/module_{n}.py", line {n}, in call' for n in range(16))
PAYLOAD = {"module": "billing", "severity": "ERROR", "error_code": "E42", "ts": 17e8}
VECTOR = [((n * 7919) % 1000) / 1000 - 0.5 for n in range(SIZE)]

_INSERT = (
    "INSERT INTO project_errors (id, timestamp, message, stack_trace, module, "
    "error_code, manager_context, severity) "
    "VALUES ($1, now(), $2, $3, 'billing', 'E42', $4, 'ERROR')"
)
PLAIN = Sql(_INSERT)
# Pinned to be durable, and not: what waits for the disk is compared with its like.
WITH_STATE = {
    durable: Sql(
        f"WITH rec AS ({_INSERT} RETURNING id), "
        + upsert_ctes(
            collection="$5",
            point_id="rec.id::text",
            vectors="$6",
            payload="$7",
            payload_hash="$8",
            source="rec",
            durable=durable,
            last=True,
        )
    )
    for durable in (True, False)
}
CONTEXT = {f"key{n}": "some value" for n in range(6)}


class Sink(QdrantStore):
    """A vector store that only takes its time."""

    async def upsert_points(
        self, collection: str, points: Iterable[Any], **options: Any
    ) -> int:
        """Take as long as a server would."""
        del collection, options
        await asyncio.sleep(SINK_DELAY)
        return len(list(points))


async def plain(pool: Pool) -> None:
    """Insert an error without a vector."""
    await pool.execute(PLAIN, uuid7(), "card refused", TRACE, CONTEXT)


async def with_state(
    pool: Pool, vector: list[float] | None, *, durable: bool = True
) -> None:
    """Insert an error and its desired state."""
    key = uuid7()
    row = state_row(key, vector, PAYLOAD)
    await pool.execute(
        WITH_STATE[durable],
        *(key, "card refused", TRACE, CONTEXT, "errors"),
        *(row.vectors, row.payload, row.payload_hash),
    )


async def two_statements(pool: Pool) -> None:
    """The usual outbox: two statements in a transaction."""
    async with pool.transaction() as tx:
        await tx.execute(PLAIN, uuid7(), "card refused", TRACE, CONTEXT)
        await tx.execute(
            "INSERT INTO events (entity, payload) VALUES ($1, $2)", uuid7(), PAYLOAD
        )


@asynccontextmanager
async def stores(base: Path, **settings: str) -> AsyncIterator[tuple[Pool, str]]:
    """Open an embedded server with the migrations applied."""
    async with EmbeddedPostgres(base / "data") as dsn:
        await Migrator(dsn, MigrationsConfig()).apply()
        config = PostgresConfig(dsn=dsn, max_size=16, server_settings=settings)
        async with Pool(config) as pool:
            await pool.execute("DROP TABLE IF EXISTS events")
            await pool.execute("CREATE TABLE events (entity uuid, payload jsonb)")
            yield pool, dsn


async def write_path(base: Path, cycles: int) -> list[Table]:
    """Measure one connection, with synchronous commit and without, and sixteen."""
    tables = []
    for setting, bar in (("on", 1.15), ("off", 1.5)):
        async with stores(base, synchronous_commit=setting) as (pool, _):
            write = partial(with_state, pool, durable=setting == "on")
            peers = {
                "plain insert": Peer(partial(plain, pool)),
                "with desired state": Peer(partial(write, None)),
                "with 384 floats": Peer(partial(write, VECTOR)),
                "two statements": Peer(partial(two_statements, pool)),
            }
            tables.append(
                await measure(
                    f"write path, synchronous_commit {setting}",
                    peers,
                    baseline="plain insert",
                    block=20,
                    cycles=cycles,
                    bars=[Bar("with desired state", wall=bar)],
                )
            )
            if setting == "on":
                tables.append(await sixteen(pool, cycles))
    return tables


async def sixteen(pool: Pool, cycles: int) -> Table:
    """Measure sixteen connections at once."""

    def together(write: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def worker() -> None:
            for _ in range(10):
                await write()

        async def run() -> None:
            await asyncio.gather(*(worker() for _ in range(16)))

        return run

    return await measure(
        "sixteen connections, synchronous_commit on",
        {
            "plain insert": Peer(together(lambda: plain(pool)), operations=160),
            "with desired state": Peer(
                together(lambda: with_state(pool, None)), operations=160
            ),
        },
        baseline="plain insert",
        block=1,
        cycles=cycles,
        bars=[Bar("with desired state", wall=1 / 0.75)],
    )


async def draining(base: Path, vectors: Path) -> list[str]:
    """Measure a backlog against a 4 ms sink, and against the embedded engine."""
    lines = []
    config = QdrantConfig(durability="process")
    # Every point differs: what repeats is decoded and digested once.
    rows = np.random.default_rng(7).normal(size=(BACKLOG, SIZE)).astype("f4")
    points = [
        Point(number, row, {**PAYLOAD, "order": number})
        for number, row in enumerate(rows, 1)
    ]
    async with stores(base) as (pool, _):
        for name, batch in (("sink", 500), ("sink", 1000), ("engine", 1000)):
            kind = Sink if name == "sink" else QdrantStore
            async with kind(config, folder=vectors) as store:
                await pool.execute(
                    "TRUNCATE fm_storage.vector_state, fm_storage.vector_queue"
                )
                await store.delete_collection("bench")
                await store.ensure_collection_exists("bench", SIZE)
                writer = Outbox(pool, None, OutboxConfig(drain=False))
                await writer.upsert("bench", points)
                await pool.execute("ANALYZE fm_storage.vector_state")
                outbox = Outbox(
                    pool, store, OutboxConfig(batch_size=batch, flush_timeout=120)
                )
                await side_of(outbox).check.ensure()  # not part of the rate
                begun = time.perf_counter()
                async with outbox:
                    pass
                spent = time.perf_counter() - begun
                left = await outbox.pending()
                assert left == 0, left
                rate = outbox.statistics().delivered / spent
                lines.append(f"drain to {name}, batches of {batch}: {rate:,.0f} rows/s")
                if name == "engine":
                    await store.delete_collection("bench")
                    await store.ensure_collection_exists("bench", SIZE)
                    begun = time.perf_counter()
                    for start in range(0, BACKLOG, 1000):
                        part = points[start : start + 1000]
                        await store.upsert_points("bench", part)
                    raw = BACKLOG / (time.perf_counter() - begun)
                    lines.append(
                        f"raw upsert_points: {raw:,.0f} points/s; "
                        f"the drainer has {rate / raw:.0%} of it"
                    )
    return lines


async def verifying(base: Path, vectors: Path) -> list[str]:
    """Measure verify() of 100,000 points, and the loop's longest gap meanwhile."""
    async with (
        stores(base) as (pool, _),
        QdrantStore(QdrantConfig(durability="process"), folder=vectors) as store,
    ):
        await pool.execute("TRUNCATE fm_storage.vector_state, fm_storage.vector_queue")
        await store.delete_collection("bench")
        await store.ensure_collection_exists("bench", 8)
        outbox = Outbox(pool, store, OutboxConfig(drain=False, batch_size=1000))
        for start in range(1, VERIFIED + 1, 10_000):
            numbers = range(start, start + 10_000)
            await outbox.upsert(
                "bench", [Point(n, VECTOR[:8], PAYLOAD) for n in numbers]
            )
            await outbox.drain(timeout=120)
        gap = busy = 0.0
        stop = False

        async def tick() -> None:
            nonlocal gap, busy
            last, used = time.perf_counter(), time.thread_time()
            while not stop:
                await asyncio.sleep(0.001)
                gap = max(gap, time.perf_counter() - last)
                busy = max(busy, time.thread_time() - used)
                last, used = time.perf_counter(), time.thread_time()

        ticker = asyncio.create_task(tick())
        begun = time.perf_counter()
        cpu = time.process_time()
        found = await outbox.verify("bench")
        spent = time.perf_counter() - begun
        cpu = time.process_time() - cpu
        stop = True
        await ticker
        assert found.agrees, found
        took = f"{spent:.2f} s ({cpu:.2f} s CPU here)"
        longest = f"{gap * 1000:.0f} ms, of it {busy * 1000:.0f} ms were its own work"
        what = f"verify {found.checked:,} points: {took}"
        return [f"{what}, longest gap of the loop {longest}"]


async def at_once(pool: Pool, verb: str, name: str, rows: list[Any]) -> None:
    """Write all rows of a table with one statement."""
    if verb == "COPY":
        await pool.copy_records(name, records=rows, columns=COLUMNS)
    elif verb == "UPDATE":
        await pool.execute(f"UPDATE {name} SET year = year + 1")
    else:
        await pool.execute(f"DELETE FROM {name}")


async def tracking(base: Path, cycles: int) -> tuple[list[Table], list[str]]:
    """Measure what a tracked table costs others, and how fast its rows follow."""
    names = ("untracked", "tracked")
    rows = [(n, f"title {n}", "a line of text, as of a note", 7) for n in range(COPIED)]
    inserts = {
        name: Sql(f"INSERT INTO {name} (id, title, body, year) VALUES ($1, $2, $3, $4)")
        for name in names
    }
    lines = []
    async with stores(base, synchronous_commit="on") as (pool, _):
        outbox = Outbox(pool, None, OutboxConfig(drain=False))
        for name in names:
            await pool.execute(f"DROP TABLE IF EXISTS {name}")
            await pool.execute(
                f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, title TEXT, body TEXT, "
                "year INT)"
            )
        await outbox.track(
            "tracked", "docs", text=["title", "body"], payload=["title", "year"]
        )
        ids = count(COPIED)
        table = await measure(
            "a row into a tracked table, synchronous_commit on",
            {
                name: Peer(
                    lambda insert=insert: pool.execute(insert, next(ids), *rows[0][1:])
                )
                for name, insert in inserts.items()
            },
            baseline="untracked",
            block=20,
            cycles=cycles,
            bars=[Bar("tracked", wall=1.35)],
        )
        for verb in ("COPY", "UPDATE", "DELETE"):
            spent: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(12):
                name = names[(turn + turn // 2) % 2]
                await pool.execute(f"DELETE FROM {name}")
                if verb != "COPY":
                    await pool.copy_records(name, records=rows, columns=COLUMNS)
                await pool.execute("TRUNCATE fm_storage.vector_changed")
                begun = time.perf_counter()
                await at_once(pool, verb, name, rows)
                spent[name].append(time.perf_counter() - begun)
            tracked, without = map(statistics.median, (spent[n] for n in names[::-1]))
            lines.append(
                f"{verb} of {COPIED:,} tracked rows: {tracked:.2f} s, "
                f"{tracked / without:.1f} times an untracked one's"
            )
        await pool.copy_records("tracked", records=rows, columns=COLUMNS)
        for what in ("followed", "backfilled"):
            begun = time.perf_counter()
            if what == "backfilled":
                await outbox.backfill("docs")
            while await pool.fetchval(
                "SELECT 1 FROM fm_storage.vector_changed LIMIT 1"
            ):
                await Tracker(pool).follow()
            rate = COPIED / (time.perf_counter() - begun)
            lines.append(f"rows {what}: {rate:,.0f} rows/s")
            await pool.execute(
                "TRUNCATE fm_storage.vector_state, fm_storage.vector_queue"
            )
            # So that the backfill takes them for rows from before.
            await pool.execute("UPDATE fm_storage.vector_track SET since = 2^52")
    return [table], lines


async def run(base: Path, only: str, cycles: int) -> tuple[list[Table], list[str]]:
    """Run what *only* names, or everything."""
    tables: list[Table] = []
    lines: list[str] = []
    if only in "write":
        tables = await write_path(base, cycles)
    if only in "track":
        more, written = await tracking(base, cycles)
        tables += more
        lines += written
    if only in "drain":
        lines += await draining(base, base / "vectors")
    if only in "verify":
        lines += await verifying(base, base / "vectors")
    return tables, lines


def main() -> int:
    """Read the options, measure, print; return the exit status."""
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as folder:
        base = Path(folder)
        base.chmod(0o755)  # the server runs as another user
        (base / "vectors").mkdir()
        tables, lines = asyncio.run(run(base, options.only, options.cycles))
    for table in tables:
        sys.stdout.write(table.text() + "\n")
    for line in lines:
        sys.stdout.write(line + "\n")
    return finish(tables, options)


if __name__ == "__main__":
    sys.exit(main())
