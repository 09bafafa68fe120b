"""A million errors: every answer in seconds, and purged without holding anyone up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.config import OutboxConfig, StorageConfig
from fm_storage.manager import StorageManager

pytestmark = pytest.mark.timeout(900)

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)

FILL = """WITH made AS (
  SELECT gen_random_uuid() AS id, '2024-01-01T00:00Z'::timestamptz
      + n * interval '1 second' AS at, abs(hashint4(n)::bigint) % 2000 AS kind
  FROM generate_series(1, 1000000) AS n
), errors AS (
  INSERT INTO project_errors (id, timestamp, message, module, error_code, severity)
  SELECT id, at, 'error of kind ' || kind, 'module ' || kind % 30, 'E' || kind, 'ERROR'
  FROM made
), marks AS (
  INSERT INTO fm_storage.error_fingerprints (error_id, fingerprint, timestamp, severity)
  SELECT id, kind, at, 40 FROM made
), named AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT n, 'module ' || n % 30, 'E' || n, 'error of kind ' || n
  FROM generate_series(0, 1999) AS n
) SELECT count(*) FROM made"""


@pytest.fixture
async def storage(dsn, vector_folder, tmp_path):
    """Give a manager whose catalogue holds a million errors of eleven days."""
    config = StorageConfig(
        postgres={"dsn": dsn},
        qdrant={"url": f"embedded:{vector_folder}", "durability": "process"},
        data_dir=tmp_path / "data",
        outbox=OutboxConfig(drain=False),
    )
    async with StorageManager(config) as opened:
        await opened.pool.execute(FILL, timeout=600)
        await opened.pool.execute("ANALYZE", timeout=100)
        yield opened


async def test_every_answer_about_a_million_errors_takes_seconds(storage):
    """Each question within five seconds, the whole report within fifteen."""
    async with ErrorManager(storage) as errors:
        ask = errors.analyzer
        until = BEGIN + timedelta(seconds=1_000_001)
        questions: dict[str, Callable[[], Awaitable[object]]] = {
            "groups": errors.groups,
            "totals": ask.totals,
            "patterns": ask.patterns,
            "frequencies": ask.frequencies,
            "hours": lambda: ask.frequencies("hour"),
            "timeline": ask.timeline,
            "correlations": ask.correlations,
            "new_since": lambda: ask.new_since(until - timedelta(days=1)),
            "growing": lambda: ask.growing(timedelta(days=1), until=until),
            "heat": ask.heat,
        }
        spent = {}
        for name, question in questions.items():
            begin = time.perf_counter()
            await question()
            spent[name] = time.perf_counter() - begin
        begin = time.perf_counter()
        report = await errors.report()
        spent["report"] = time.perf_counter() - begin
        for name, seconds in spent.items():
            print(f"{name}: {seconds:.2f} s")
        assert report.totals.errors == 1_000_000
        assert spent.pop("report") < 15
        assert max(spent.values()) < 5, spent


async def test_purging_holds_nobody_up(storage):
    """Ninety thousand go with their vectors, while others record and read.

    No statement of theirs waits for a lock that a batch holds: the longest takes
    less than a second, on a machine that does both.
    """
    async with ErrorManager(storage) as errors:
        waits: list[float] = []
        stop = asyncio.Event()

        async def record():
            while not stop.is_set():
                begin = time.perf_counter()
                assert (await errors.record("while purging", module="m")).durable
                waits.append(time.perf_counter() - begin)
                await asyncio.sleep(0.01)

        steps: list[tuple[int, float]] = []
        mark = time.perf_counter()

        def progress(done, total):
            nonlocal mark
            del total
            now = time.perf_counter()
            steps.append((done, now - mark))
            mark = now

        working = asyncio.create_task(record())
        deleted = await errors.purge(
            BEGIN + timedelta(seconds=90_001), progress=progress
        )
        stop.set()
        await working
        assert deleted == 90_000
        tenth = max(len(steps) // 10, 1)
        first = sum(seconds for _, seconds in steps[:tenth]) / tenth
        last = sum(seconds for _, seconds in steps[-tenth:]) / tenth
        print(
            f"{len(steps)} batches, {first * 1000:.0f} ms each at first, "
            f"{last * 1000:.0f} ms at last; a record took "
            f"{sorted(waits)[len(waits) // 2] * 1000:.1f} ms, at most "
            f"{max(waits) * 1000:.0f} ms"
        )
        assert max(seconds for _, seconds in steps) < 5
        assert max(waits) < 2
        left = await storage.pool.fetchval(
            "SELECT count(*) FROM fm_storage.error_fingerprints WHERE timestamp < $1",
            BEGIN + timedelta(seconds=90_001),
        )
        assert left == 0
        gone = await storage.pool.fetchval(
            "SELECT count(*) FROM fm_storage.vector_state WHERE op = 'd'"
        )
        assert gone == 90_000
