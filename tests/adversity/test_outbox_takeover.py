"""A killed drainer's batch is taken over at once; a live one's never."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fm_storage.config import OutboxConfig, PostgresConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import queue_of

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

HANGING = """
import asyncio, sys
from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import QdrantStore

class Hanging(QdrantStore):
    async def upsert_points(self, *args, **options):
        print("taken", flush=True)
        await asyncio.sleep(600)

async def main():
    dsn, folder = sys.argv[1:]
    async with (
        Pool(PostgresConfig(dsn=dsn)) as pool,
        Hanging(QdrantConfig(), folder=folder) as store,
        Outbox(pool, store, OutboxConfig(lease=120)) as outbox,
    ):
        await asyncio.sleep(600)

asyncio.run(main())
"""


@asynccontextmanager
async def drainer(dsn: str, folder: Path) -> AsyncIterator[int]:
    """Run a drainer that takes a batch and hangs; give its process number."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(HANGING), dsn, str(folder)),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert (await process.stdout.readline()).strip() == b"taken"
        yield process.pid
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()


async def batch(pool: Pool, qdrant: QdrantStore) -> None:
    """Write twenty points for somebody to take."""
    await qdrant.ensure_collection_exists("things", 2)
    writer = Outbox(pool, None, OutboxConfig(drain=False))
    await writer.upsert("things", [Point(n, [1.0, float(n)], {}) for n in range(20)])
    await writer.aclose()


@pytest.mark.parametrize("idle", [True, False], ids=["idle drainer", "drain()"])
async def test_batch_of_a_killed_drainer_is_delivered_within_five_seconds(
    pool: Pool, qdrant: QdrantStore, dsn: str, vector_folder: Path, idle: bool
):
    """Its lease has two minutes to go, but its session lock is free."""
    await batch(pool, qdrant)
    async with drainer(dsn, vector_folder) as pid:
        config = OutboxConfig(drain=idle, poll_interval=600)
        async with Outbox(pool, qdrant, config) as outbox:
            await asyncio.sleep(3.0)  # others see a live drainer and leave it its batch
            assert (await queue_of(outbox).leases()).count == 20
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            if not idle:
                assert (await outbox.drain(timeout=30)).remaining == 0
            while await outbox.pending():
                await asyncio.sleep(0.02)
            assert time.monotonic() - killed < 5.0
    assert await qdrant.count("things") == 20


async def test_stopped_drainer_keeps_its_lease(
    pool: Pool, qdrant: QdrantStore, dsn: str, vector_folder: Path
):
    """A process that stands still has its connection, and so its lock."""
    await batch(pool, qdrant)
    async with drainer(dsn, vector_folder) as pid:
        os.kill(pid, signal.SIGSTOP)
        outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
        report = await outbox.drain(timeout=6)
        assert (report.delivered, report.leased) == (0, 20)


async def test_behind_a_pooler_leases_end_by_their_time(
    pool: Pool, dsn: str, pgbouncer: Callable[..., str], qdrant: QdrantStore
):
    """No session lock survives there; with a direct address one is held."""
    await qdrant.ensure_collection_exists("things", 2)
    through = PostgresConfig(dsn=pgbouncer(dsn))
    for direct in (None, dsn):
        async with (
            Pool(through) as pooled,
            Outbox(pooled, qdrant, OutboxConfig(), direct_dsn=direct) as outbox,
        ):
            await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
            await outbox.wait_synced(1, timeout=15)
            held = await pool.fetchval("SELECT count(*) FROM fm_storage.vector_drainer")
            assert held == (0 if direct is None else 1)


async def test_lost_lock_is_taken_again(pool: Pool, qdrant: QdrantStore):
    """Its connection was ended by the server; deliveries go on under a new number."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, OutboxConfig()) as outbox:
        await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
        await outbox.wait_synced(1, timeout=15)
        first = queue_of(outbox).holder
        ended = await pool.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name LIKE '%outbox%' AND datname = current_database()"
        )
        assert ended == 1
        await outbox.upsert("things", [Point(2, [1.0, 2.0], {})])
        await outbox.wait_synced(2, timeout=15)
        async with asyncio.timeout(15):
            while queue_of(outbox).holder in {None, first}:
                outbox.wake()
                await asyncio.sleep(0.05)
    held = await pool.fetchval("SELECT count(*) FROM fm_storage.vector_drainer")
    assert held <= 2
