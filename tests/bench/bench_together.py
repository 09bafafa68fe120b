"""What concurrent tasks gain from writing together, beside plain inserts.

``python tests/bench/bench_together.py [--only record|outbox|handler]``. The peer is
``asyncpg.Pool`` of the same size, each task with a plain insert of the same row.
Both take turns, in random order; a figure is the median of the ratios of a turn.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import asyncpg
import orjson

from fm_storage.catalog import ErrorManager
from fm_storage.config import OutboxConfig, StorageConfig
from fm_storage.manager import StorageManager
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.repositories import ErrorEntry, uuid7
from fm_storage.vector_state import Unembedded
from tests.bench.bench_catalog import PLAIN, entry
from tests.bench.harness import arguments

SIZE = 10
"""Connections of either pool."""

TASKS = {1: 0.95, 16: 2.5, 64: 4.0}
"""Tasks, and the bar for the throughput : that of the peer."""

CPU_BAR = 0.7
PER_TASK = {1: 60, 16: 30, 64: 30}
POINT = (
    "INSERT INTO fm_storage.vector_state (collection, point_id, ver, op, payload) "
    "VALUES ('bench', $1, nextval('fm_storage.vector_version'), 'u', $2)"
)

Write = Callable[[Any], Awaitable[object]]


class Peer:
    """One way to write, and what it cost in each turn."""

    def __init__(self, write: Write, make: Callable[[], object]) -> None:
        self.write = write
        self.make = make
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.waits: list[float] = []

    async def turn(self, tasks: int, each: int) -> None:
        """Let *tasks* write *each* items; what is written was made before."""
        made = [[self.make() for _ in range(each)] for _ in range(tasks)]
        waits: list[float] = []

        async def work(items: Sequence[object]) -> None:
            for item in items:
                mark = time.perf_counter()
                await self.write(item)
                waits.append(time.perf_counter() - mark)

        cpu, begin = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for items in made:
                group.create_task(work(items))
        self.seconds.append((time.perf_counter() - begin) / len(waits))
        self.cpu.append((time.process_time() - cpu) / len(waits))
        self.waits.append(sorted(waits)[len(waits) * 99 // 100])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


async def compare(
    name: str, cycles: int, plain: tuple[Write, Any], ours: tuple[Write, Any]
) -> list[str]:
    """Let both write, and say how they compare."""
    lines: list[str] = []
    for tasks, bar in TASKS.items():
        peers = [Peer(*plain), Peer(*ours)]
        for _ in range(cycles + 1):
            for peer in random.sample(peers, 2):
                await peer.turn(tasks, PER_TASK[tasks])
        for peer in peers:  # the first turn prepares statements
            del peer.seconds[0], peer.cpu[0], peer.waits[0]
        them, us = peers
        gain = ratio(them.seconds, us.seconds)
        cpu, p99 = ratio(us.cpu, them.cpu), ratio(us.waits, them.waits)
        lines.append(
            f"{name}, {tasks:2} tasks: throughput {gain:.2f} (bar {bar}) · client CPU "
            f"{cpu:.2f} ({statistics.median(us.cpu) * 1e6:.0f} µs) · p99 {p99:.2f} · "
            f"{1 / statistics.median(us.seconds):,.0f}/s against "
            f"{1 / statistics.median(them.seconds):,.0f}/s"
        )
    return lines


async def recording(
    storage: StorageManager, pool: asyncpg.Pool, cycles: int
) -> list[str]:
    """Compare ``record()``, and the storing of rows that are masked and grouped."""

    async def plain(made: ErrorEntry) -> None:
        await pool.execute(
            PLAIN.text,
            made.id,
            made.timestamp,
            made.message,
            made.stack_trace,
            made.module,
            made.error_code,
            orjson.dumps(made.manager_context).decode(),
            made.severity,
        )

    async with ErrorManager(storage) as errors:

        async def record(made: ErrorEntry) -> None:
            assert (await errors.record(made)).durable

        return await compare("record()", cycles, (plain, entry), (record, entry))


async def upserting(
    storage: StorageManager, pool: asyncpg.Pool, cycles: int
) -> list[str]:
    """Compare ``outbox.upsert()`` of one point with an insert into one table."""
    payload = {"module": "billing", "severity": 40, "at": 1.5}

    async def plain(point: Unembedded) -> None:
        await pool.execute(POINT, str(point.id), orjson.dumps(point.payload).decode())

    async def upsert(point: Unembedded) -> None:
        await storage.outbox.upsert("bench", [point])

    def make() -> Unembedded:
        return Unembedded(uuid7(), payload)

    return await compare("outbox.upsert()", cycles, (plain, make), (upsert, make))


async def run(base: Path, only: str, cycles: int) -> list[str]:
    """Run what *only* names, or everything."""
    lines: list[str] = []
    async with EmbeddedPostgres(base / "postgres") as dsn:
        config = StorageConfig.model_validate(
            {
                "postgres": {"dsn": dsn, "min_size": SIZE, "max_size": SIZE},
                "qdrant": {"url": "http://127.0.0.1:9"},  # nothing is delivered
                "data_dir": base / "data",
                "outbox": OutboxConfig(drain=False),
            }
        )
        async with (
            StorageManager(config) as storage,
            asyncpg.create_pool(dsn, min_size=SIZE, max_size=SIZE) as pool,
        ):
            await pool.execute("ALTER SYSTEM SET autovacuum = off")
            await pool.execute("SELECT pg_reload_conf()")
            for name, bench in (("record", recording), ("outbox", upserting)):
                if only in name:
                    lines += await bench(storage, pool, cycles)
    return lines


def main() -> int:
    """Read the options, measure, print."""
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as folder:
        base = Path(folder)
        base.chmod(0o755)  # the server runs as another user
        for line in asyncio.run(run(base, options.only, options.cycles)):
            sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
