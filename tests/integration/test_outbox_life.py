"""How an outbox opens, is woken, waits, and closes."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, LockTimeout
from fm_storage.hooks import ShutdownHooks
from fm_storage.outbox import Outbox, drain_now
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import drainer_of, queue_of, side_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

RARELY = OutboxConfig(poll_interval=600)


def point(number: int) -> Point:
    """Give a point."""
    return Point(number, [1.0, float(number)], {})


async def listening(pool: Pool) -> bool:
    """Whether a connection of this database listens."""
    found: int = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    return found > 0


async def delivered(outbox: Outbox) -> bool:
    """Whether nothing is left to deliver."""
    return await outbox.pending() == 0


async def test_other_processes_wake_the_drainer_by_notify(
    pool: Pool, qdrant: QdrantStore, dsn: str
):
    """With a poll every ten minutes, only the notification can have done it."""
    await qdrant.ensure_collection_exists("things", 2)
    async with (
        Outbox(pool, qdrant, RARELY) as draining,
        Pool(PostgresConfig(dsn=dsn)) as elsewhere,
    ):
        await draining.upsert("things", [point(1)])
        await draining.wait_synced(1, timeout=15)
        waking = drainer_of(draining)
        waking.looks.failures = 30
        waking.woken.set()
        await until(lambda: listening(pool))
        await until(lambda: not waking.woken.is_set())
        other = Outbox(elsewhere, None, OutboxConfig(drain=False))
        await other.upsert("things", [point(2), point(3)])
        await until(lambda: delivered(draining))
        await other.aclose()
        assert await qdrant.count("things") == 3


async def test_wake_before_the_commit_is_enough(pool: Pool, qdrant: QdrantStore):
    """What is announced inside a transaction is delivered soon after its end."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, RARELY) as outbox:
        async with pool.transaction() as tx:
            await outbox.bind(tx).upsert("things", [point(1)])
            await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            while await outbox.pending():
                await asyncio.sleep(0.01)


async def test_opening_touches_no_vector_store(pool: Pool, vector_folder: Path):
    """The engine starts when there is something to deliver, not before."""
    async with QdrantStore(QdrantConfig(), folder=vector_folder) as store:
        async with Outbox(pool, store, OutboxConfig()) as outbox:
            await outbox.drain(timeout=1)
            assert (await outbox.health())[0] == "ok"
            assert (await outbox.status()).drainer == "idle"
        assert store.statistics().engine_pid is None


async def test_closing_delivers_what_is_due(pool: Pool, qdrant: QdrantStore):
    """The bounded flush: everything written before arrives before closing ends."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, RARELY) as outbox:
        await outbox.upsert("things", [point(n) for n in range(1200)])
    assert await qdrant.count("things") == 1200
    assert await outbox.pending() == 0


async def test_shutdown_hook_closes_the_outbox(pool: Pool, qdrant: QdrantStore):
    """Given hooks, the drainer stops with them."""
    await qdrant.ensure_collection_exists("things", 2)
    hooks = ShutdownHooks()
    outbox = Outbox(pool, qdrant, RARELY, hooks=hooks)
    await outbox.open()
    await outbox.open()
    await outbox.upsert("things", [point(1)])
    await hooks.aclose()
    assert await qdrant.count("things") == 1
    assert (await outbox.status()).drainer == "off"


async def test_without_a_vector_store_writing_works_and_the_rest_says_why(pool: Pool):
    """Qdrant switched off: state is kept for a process that has it."""
    async with Outbox(pool, None, OutboxConfig()) as outbox:
        await outbox.upsert("things", [point(1)])
        assert await outbox.pending() == 1
        for call in (
            outbox.drain(),
            outbox.verify(),
            outbox.repair(),
            outbox.adopt(),
            outbox.rebuild("things"),
        ):
            with pytest.raises(ConfigurationInvalid, match="switched off"):
                await call


async def test_arguments_of_another_type_are_named(pool: Pool, qdrant: QdrantStore):
    """Before anything is written or delivered."""
    outbox: Any = Outbox(pool, qdrant, OutboxConfig(drain=False))
    calls = {
        "collection": lambda bad: outbox.upsert(bad, []),
        "ids": lambda bad: outbox.delete("c", bad),
        "timeout": lambda bad: outbox.drain(timeout=bad),
        "progress": lambda bad: outbox.drain(progress=bad),
        "batch_size": lambda bad: outbox.backfill("c", batch_size=bad),
        "spec": lambda bad: outbox.rebuild("c", spec=bad),
    }
    for argument, call in calls.items():
        for bad in (5j, object()):
            with pytest.raises((ConfigurationInvalid, InvalidRecord), match=argument):
                await call(bad)
    for call in (outbox.quarantine_retry, outbox.quarantine_discard):
        with pytest.raises(InvalidRecord, match="ids"):
            await call(ids=5j)


async def test_several_drainers_share_the_queue(pool: Pool, qdrant: QdrantStore):
    """Each point is delivered by one of them, and by one only."""
    await qdrant.ensure_collection_exists("things", 2)
    writer = Outbox(pool, None, OutboxConfig(drain=False))
    await writer.upsert("things", [point(n) for n in range(1000)])
    drainers = [
        Outbox(pool, qdrant, OutboxConfig(drain=False, batch_size=50)) for _ in range(4)
    ]
    reports = await asyncio.gather(*(one.drain(timeout=20) for one in drainers))
    assert sum(report.delivered for report in reports) == 1000
    assert await qdrant.count("things") == 1000


async def test_statistics_count_and_time(pool: Pool, qdrant: QdrantStore):
    """Delivered, batches, and the lag from writing to arriving."""
    await qdrant.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    assert outbox.statistics().lag_p50 is None
    await outbox.upsert("things", [point(n) for n in range(10)])
    await asyncio.sleep(0.05)
    await outbox.drain(timeout=15)
    counted = outbox.statistics()
    assert (counted.delivered, counted.batches) == (10, 1)
    assert counted.lag_p50 is not None
    assert counted.lag_p99 is not None
    assert 0.05 <= counted.lag_p50 <= counted.lag_p99


async def test_lease_shorter_than_a_call_is_warned_about(
    pool: Pool, qdrant: QdrantStore, caplog: pytest.LogCaptureFixture
):
    """A lease that a slow call outlives means double work."""
    with caplog.at_level(logging.WARNING, "fm_storage.outbox"):
        async with Outbox(pool, qdrant, OutboxConfig(lease=1)):
            pass
    assert "should be longer than qdrant.timeout" in caplog.text


async def test_one_rebuild_at_a_time(pool: Pool, qdrant: QdrantStore):
    """A second one is refused by name, not queued."""
    await qdrant.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await outbox.upsert("things", [point(1)])
    await outbox.drain(timeout=15)
    async with side_of(outbox).rebuilder._alone("things"):
        with pytest.raises(LockTimeout, match="another process is rebuilding"):
            await outbox.rebuild("things")


@pytest.mark.slow
async def test_drain_does_not_sit_out_the_lease_of_a_killed_drainer(
    pool: Pool, qdrant: QdrantStore, monkeypatch: pytest.MonkeyPatch
):
    """It says how many points are on lease and until when; a short one it awaits."""
    monkeypatch.setattr(drain_now, "STILL", 0.3)
    await qdrant.ensure_collection_exists("things", 2)
    killed = Outbox(pool, qdrant, OutboxConfig(drain=False, lease=3600))
    await killed.upsert("things", [point(1), point(2)])
    assert len(await queue_of(killed).claim(10)) == 2
    after = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await after.upsert("things", [point(3)])
    async with asyncio.timeout(60):
        report = await after.drain(timeout=600)
    assert (report.delivered, report.remaining, report.leased) == (1, 2, 2)
    assert report.leased_until is not None
    assert report.leased_until > datetime.now(UTC) + timedelta(minutes=50)
    await pool.execute(
        "UPDATE fm_storage.vector_queue SET due_at = now() + interval '1 s'"
    )
    report = await after.drain(timeout=600)
    assert (report.delivered, report.remaining, report.leased) == (2, 0, 0)
    assert report.leased_until is None
