"""What the catalogue costs: recording, logging, ingesting, answering.

``python tests/bench/bench_catalog.py [--only NAME]``; NAME is record, handler,
ingest, answers or million. The README beside it states the bars that it is held
against. Ratios hold on a loaded machine, times do not; FM_BENCH_ENTRIES (100000)
sets the size of the catalogue that is asked.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.record.render import render
from fm_storage.config import OutboxConfig, StorageConfig
from fm_storage.manager import StorageManager
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, uuid7
from tests.bench.harness import Bar, Peer, Table, arguments, finish, measure

ENTRIES = int(os.environ.get("FM_BENCH_ENTRIES", "100000"))
LINES = 60_000
RECORDS = 10_000
RATE = 5_000
OLDEST = 2
TRACE = "\n".join(
    f'  File "app/module_{n}.py", line {n}, in call_{n}' for n in range(16)
)
CONTEXT = {f"key{n}": "some value" for n in range(6)}
PLAIN = Sql(
    "INSERT INTO project_errors (id, timestamp, message, stack_trace, module, "
    "error_code, manager_context, severity) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
)
VERBS = ("read", "write", "open", "close", "fetch", "send", "renew", "lock", "parse")
NOUNS = ("socket", "lease", "block", "ledger", "cart", "index", "queue", "page")
ENDS = ("timed out", "was refused", "is broken", "does not exist", "is full")


@asynccontextmanager
async def opened(base: Path, *, drain: bool) -> AsyncIterator[StorageManager]:
    """Open a manager on engines of our own."""
    config = StorageConfig(
        data_dir=base / f"data-{time.monotonic_ns()}", outbox=OutboxConfig(drain=drain)
    )
    async with StorageManager(config) as storage:
        yield storage


_orders = itertools.count(4711)


def entry() -> ErrorEntry:
    """Return an error as an application has it in hand; each is of another order."""
    order = next(_orders)
    return ErrorEntry(
        message=f"payment of order {order} refused by gateway 10.0.0.{order % 250}",
        module="billing",
        error_code="E42",
        stack_trace=TRACE,
        manager_context=dict(CONTEXT),
    )


async def recording(base: Path, cycles: int) -> tuple[list[Table], list[str]]:
    """Compare ``record()`` of an entry with the plain insert of its row."""
    async with opened(base, drain=False) as storage, ErrorManager(storage) as errors:
        pool = storage.pool
        await pool.execute("ALTER SYSTEM SET autovacuum = off")
        await pool.execute("SELECT pg_reload_conf()")

        async def plain() -> None:
            made = entry()
            await pool.execute(
                PLAIN,
                made.id,
                made.timestamp,
                made.message,
                made.stack_trace,
                made.module,
                made.error_code,
                made.manager_context,
                made.severity,
            )

        async def record() -> None:
            done = await errors.record(entry())
            assert done.durable

        table = await measure(
            "record() of a prepared entry, synchronous_commit on",
            {"plain insert": Peer(plain), "record()": Peer(record)},
            baseline="plain insert",
            cycles=cycles,
            bars=[Bar("record()", wall=1.25)],
        )
    try:
        raise ValueError("x") from OSError("y")
    except ValueError as exc:
        begin = time.process_time()
        for _ in range(1000):
            render(exc)
        spent = (time.process_time() - begin) * 1000
    return [table], [f"rendering a chained exception: {spent:.0f} µs"]


async def logging_handler(base: Path) -> list[str]:
    """Send records through the handler at a fixed rate; watch the loop."""
    async with opened(base, drain=True) as storage, ErrorManager(storage) as errors:
        logger = logging.getLogger("bench.catalog")
        logger.propagate = False
        logger.addHandler(errors.handler())
        gaps: list[float] = []
        waits: list[float] = []
        pauses: list[float] = []

        def collecting(phase: str, about: dict[str, int]) -> None:
            # The collector stops the whole process, no matter who made its work.
            if about["generation"] == OLDEST:
                now = time.perf_counter()
                pauses.append(now if phase == "start" else now - pauses.pop())

        gc.callbacks.append(collecting)
        done = asyncio.Event()

        async def breathe() -> None:
            last = time.perf_counter()
            while not done.is_set():
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last - 0.001)
                last = now

        ticker = asyncio.create_task(breathe())
        begin = time.perf_counter()
        for n in range(RECORDS):
            mark = time.perf_counter()
            logger.error("order %d of shop %d refused", n, n % 7)
            waits.append(time.perf_counter() - mark)
            late = begin + n / RATE - time.perf_counter()
            if late > 0:
                await asyncio.sleep(late)
        sent = time.perf_counter() - begin
        assert await errors.flush(60)
        flushed = time.perf_counter() - begin
        done.set()
        await ticker
        gc.callbacks.remove(collecting)
        count = await storage.error_entries.count()
        assert count == RECORDS, count
        gaps.sort()
        said = (
            f"handler: {RECORDS} records in {sent:.2f} s ({RECORDS / sent:,.0f}/s), "
            f"all stored after {flushed:.2f} s; emit() median "
            f"{sorted(waits)[RECORDS // 2] * 1e6:.0f} µs; loop gap p99 "
            f"{gaps[len(gaps) * 99 // 100] * 1000:.1f} ms, longest "
            f"{gaps[-1] * 1000:.1f} ms (bar 20 ms); full garbage collections of "
            f"{', '.join(f'{pause * 1000:.0f}' for pause in pauses) or 'no'} ms"
        )
        return [said]


async def server_cpu(storage: StorageManager) -> float:
    """Return the processor seconds of the server's living processes."""
    backend = await storage.pool.fetchval("SELECT pg_backend_pid()")
    postmaster = _stat(backend)[1]
    ticks = 0
    for path in Path("/proc").glob("[0-9]*"):  # noqa: ASYNC240 - memory, not a disk
        try:
            found = _stat(int(path.name))
        except OSError:
            continue
        ticks += found[11] + found[12] if found[1] == postmaster else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, text[1:20])]


def log_lines(count: int) -> list[str]:
    """Return lines of a plausible service log, every thirtieth with a trace."""
    chance = random.Random(5)
    start = datetime(2024, 1, 2, tzinfo=UTC)
    lines: list[str] = []
    while len(lines) < count:
        at = start + timedelta(milliseconds=37 * len(lines))
        level = chance.choices(("INFO", "WARN", "ERROR"), (60, 30, 10))[0]
        module = f"org.shop.{chance.choice(NOUNS)}.{chance.choice(VERBS).title()}er"
        lines.append(
            f"{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03} {level} "
            f"[worker-{chance.randrange(16)}] {module}: {chance.choice(VERBS)} of "
            f"{chance.choice(NOUNS)} {chance.randrange(10**6)} at 10.0.0."
            f"{chance.randrange(255)}:{chance.randrange(65_535)} "
            f"{chance.choice(ENDS)}\n"
        )
        if level == "ERROR" and chance.random() < 0.3:
            lines.append("java.io.IOException: reset by peer\n")
            lines += [f"\tat org.shop.Call.run{n}(Call.java:{n})\n" for n in range(8)]
    return lines


async def ingesting(base: Path) -> list[str]:
    """Read a log into the catalogue, twice, with and without vectors."""
    path = base / "service.log"
    path.write_text("".join(log_lines(LINES)))
    said: list[str] = []
    for drain in (False, True):
        async with (
            opened(base, drain=drain) as storage,
            ErrorManager(storage) as errors,
        ):
            server = await server_cpu(storage)
            cpu = time.process_time()
            report = await errors.ingest(path)
            cpu = time.process_time() - cpu
            server = await server_cpu(storage) - server
            again = await errors.ingest(path)
            assert (again.added, report.added) == (0, report.entries)
            said.append(
                f"ingest (drainer {'on' if drain else 'off'}): {report.lines:,} lines, "
                f"{report.entries:,} entries in {report.seconds:.2f} s = "
                f"{report.lines / report.seconds:,.0f} lines/s "
                f"({cpu:.2f} s CPU here, {server:.2f} s of PostgreSQL; "
                "bar 20,000/s); again, adding nothing: "
                f"{again.seconds:.2f} s"
            )
    return said


async def answers(base: Path) -> list[str]:
    """Ask a catalogue of ENTRIES errors everything."""
    said: list[str] = []

    async def timed(name: str, ask: Callable[[], Awaitable[object]], bar: str) -> None:
        await ask()
        spent: list[float] = []
        for _ in range(5):
            mark = time.perf_counter()
            await ask()
            spent.append(time.perf_counter() - mark)
        said.append(f"{name}: median {sorted(spent)[2]:.3f} s{bar}")

    async with opened(base, drain=True) as storage, ErrorManager(storage) as errors:
        await errors.ingest(iter(log_lines(ENTRIES)), source="big")
        mark = time.perf_counter()
        await storage.outbox.drain(timeout=3600)
        said.append(f"draining the vectors: {time.perf_counter() - mark:.1f} s")
        count = await storage.error_entries.count()
        await storage.pool.execute("ANALYZE")
        said.append(f"catalogue of {count:,} errors:")
        spent: list[float] = []
        for line in log_lines(3000)[::15]:
            mark = time.perf_counter()
            await errors.find_similar(line[24:], limit=5)
            spent.append(time.perf_counter() - mark)
        spent.sort()
        said.append(
            f"find_similar(): p50 {spent[len(spent) // 2] * 1000:.1f} ms, p95 "
            f"{spent[len(spent) * 95 // 100] * 1000:.1f} ms (bar 30 ms)"
        )
        analyzer = errors.analyzer
        await timed("groups()", errors.groups, " (bar 0.3 s)")
        await timed("report()", errors.report, " (bar 1 s)")
        await timed("patterns()", analyzer.patterns, "")
        await timed("frequencies()", analyzer.frequencies, "")
        await timed("timeline()", analyzer.timeline, "")
        await timed("correlations()", analyzer.correlations, "")
        now = datetime(2024, 1, 2, tzinfo=UTC)
        await timed("new_since()", lambda: analyzer.new_since(now), "")
    return said


_MILLION = """WITH made AS (
  INSERT INTO fm_storage.error_fingerprints
  SELECT gen_random_uuid(), hash % 500, '2024-01-01T00:00Z'::timestamptz
    + (n / 8) * interval '1 second' + hash % 7 * interval '1 second',
    (ARRAY[20, 20, 20, 30, 40, 50])[1 + hash % 6]
  FROM generate_series(1, 1000000) AS n,
    LATERAL (SELECT abs(hashint4(n)::bigint) AS hash) AS h RETURNING 1
), named AS (
  INSERT INTO fm_storage.fingerprints
  SELECT n, 'module ' || n % 30, 'E' || n, 'template ' || n
  FROM generate_series(0, 499) AS n RETURNING 1
) SELECT count(*) FROM made"""


async def million(base: Path) -> list[str]:
    """Ask the analyzer about a million errors."""
    said: list[str] = []
    async with opened(base, drain=False) as storage, ErrorManager(storage) as errors:
        await storage.pool.execute(_MILLION, timeout=600)
        await storage.pool.execute("VACUUM ANALYZE fm_storage.error_fingerprints")
        ask = errors.analyzer
        half = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=60_000)
        day = timedelta(hours=12)
        for name, question in (
            ("patterns", ask.patterns),
            ("frequencies", ask.frequencies),
            ("frequencies by hour", lambda: ask.frequencies("hour")),
            ("timeline", ask.timeline),
            ("correlations of a minute", ask.correlations),
            ("new_since", lambda: ask.new_since(half)),
            ("growing", lambda: ask.growing(day, until=half)),
            ("heat", ask.heat),
        ):
            await question()
            mark = time.perf_counter()
            await question()
            said.append(f"  {name}: {time.perf_counter() - mark:.2f} s")
    return ["of 1,000,000 errors in 500 groups:", *said]


async def run(base: Path, only: str, cycles: int) -> tuple[list[Table], list[str]]:
    """Run what *only* names, or everything."""
    tables: list[Table] = []
    lines: list[str] = []
    if only in "record":
        tables, lines = await recording(base, cycles)
    if only in "handler":
        lines += await logging_handler(base)
    if only in "ingest":
        lines += await ingesting(base)
    if only in "answers":
        lines += await answers(base)
    if only in "million":
        lines += await million(base)
    return tables, lines


def main() -> int:
    """Read the options, measure, print; return the exit status."""
    options = arguments(__doc__ or "").parse_args()
    uuid7()
    logging.getLogger("fm_storage").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as folder:
        base = Path(folder)
        base.chmod(0o755)  # the server runs as another user
        tables, lines = asyncio.run(run(base, options.only, options.cycles))
    for table in tables:
        sys.stdout.write(table.text() + "\n")
    for line in lines:
        sys.stdout.write(line + "\n")
    return finish(tables, options)


if __name__ == "__main__":
    sys.exit(main())
