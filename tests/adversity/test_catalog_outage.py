"""Both stores fail in turn while errors are recorded: none is lost, none doubled."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from fm_storage.catalog import ErrorManager, spool_failed_start
from fm_storage.catalog.record.row import prepare
from fm_storage.catalog.record.spool import Spool
from fm_storage.config import StorageConfig
from fm_storage.errors import ConnectionFailed, StorageError
from fm_storage.manager import StorageManager
from tests.support.inside import recorder_of

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def config(dsn, tcp_proxy, vector_folder, tmp_path):
    """Give a configuration whose PostgreSQL is reached through a proxy."""
    proxy = tcp_proxy(dsn)
    return proxy, StorageConfig(
        postgres={"dsn": proxy.dsn(dsn), "connect_timeout": 2},
        qdrant={"url": f"embedded:{vector_folder}", "durability": "process"},
        data_dir=tmp_path / "data",
    )


async def test_while_postgres_is_away_errors_are_spooled_and_replayed(config):
    """Away, not durable, on disk; back again, durable, exactly once."""
    proxy, settings = config
    async with (
        StorageManager(settings) as storage,
        ErrorManager(storage, timeout=0.5) as errors,
    ):
        before = await errors.record("before", module="m")
        assert before.durable
        proxy.refuse()
        proxy.cut()
        during = [await errors.record(f"during {n}", module="m") for n in range(20)]
        assert not any(recorded.durable for recorded in during)
        proxy.accept()
        assert await errors.flush(60)
        after = await errors.record("after", module="m")
        assert after.durable
        ids = {r.id for r in (before, *during, after)}
        rows = await storage.pool.fetch("SELECT id FROM project_errors")
        assert sorted(row["id"] for row in rows) == sorted(ids)
        hits = await errors.find_similar("during outage", limit=5)
        assert any(hit.entry.message.startswith("during") for hit in hits)
        assert not list(recorder_of(errors).spool.folder.iterdir())


async def test_nothing_is_lost_or_doubled_while_the_line_is_cut_again_and_again(config):
    """Ten workers record while the line is cut every moment; replay is by id."""
    proxy, settings = config
    async with (
        StorageManager(settings) as storage,
        ErrorManager(storage, timeout=0.5) as errors,
    ):
        given: set[object] = set()
        stop = time.monotonic() + 2.5

        async def work(worker):
            n = 0
            while time.monotonic() < stop:
                n += 1
                given.add((await errors.record(f"w{worker} n{n}", module="m")).id)
                await asyncio.sleep(0.01)

        async def trouble():
            while time.monotonic() < stop:
                await asyncio.sleep(0.2)
                proxy.cut()

        await asyncio.gather(trouble(), *(work(n) for n in range(10)))
        proxy.accept()
        assert await errors.flush(60)
        rows = await storage.pool.fetch("SELECT id FROM project_errors")
        assert {row["id"] for row in rows} == given
        assert len(rows) == len(given)


async def test_while_qdrant_is_away_recording_goes_on(config):
    """Scenario 4.4: the vectors wait in the outbox, and are found afterwards."""
    _, settings = config
    async with (
        StorageManager(settings) as storage,
        ErrorManager(storage, freshness=0.2) as errors,
    ):
        await errors.record("first connection refused", module="db")
        await errors.find_similar("connection")
        pid = storage.qdrant.statistics().engine_pid
        assert pid is not None
        await storage.qdrant.aclose()
        recorded = await errors.record("second connection refused", module="db")
        assert recorded.durable
        with pytest.raises(StorageError):
            await errors.find_similar("connection")
    async with StorageManager(settings) as storage, ErrorManager(storage) as errors:
        await storage.outbox.drain()
        found = await errors.find_similar("connection refused", limit=5)
        assert {hit.entry.message for hit in found} >= {
            "first connection refused",
            "second connection refused",
        }


async def test_what_one_process_spooled_the_next_one_brings_in(config):
    """Closed while PostgreSQL was away: the next start replays it all."""
    proxy, settings = config
    storage = await StorageManager(settings)
    errors = await ErrorManager(storage, timeout=0.3)
    await errors.record("fine", module="m")
    proxy.refuse()
    proxy.cut()
    lost = await errors.record("while away", module="m")
    assert not lost.durable
    await errors.aclose()
    await storage.aclose()
    with pytest.raises(ConnectionFailed) as caught:
        await StorageManager(settings)
    folder = spool_failed_start(settings, caught.value)
    assert folder is not None
    proxy.accept()
    async with StorageManager(settings) as again, ErrorManager(again) as errors:
        assert await errors.flush(60)
        modules = {g.module: g for g in await errors.groups()}
        assert modules["fm_storage.start"].severity == "CRITICAL"
        assert await again.error_entries.get_by_id(lost.id) == lost.entry


async def test_an_entry_that_the_database_refuses_stops_no_other(storage):
    """It is set aside with the reason; its neighbours arrive."""
    async with ErrorManager(storage) as errors:
        await storage.pool.execute(
            "ALTER TABLE project_errors ADD CHECK (message <> 'poison') NOT VALID"
        )
        spool = recorder_of(errors).spool
        rows = [prepare(f"m{n}") for n in range(5)]
        rows.insert(2, prepare("poison"))
        spool.append(rows)
        recorder_of(errors).wake_replay()
        assert await errors.flush(60)
        assert await storage.error_entries.count() == 5
        [path] = spool.folder.iterdir()
        assert b"poison" in path.read_bytes()


async def test_without_disk_and_database_the_caller_gets_the_error(config, tmp_path):
    """Neither place took it: the database's error is raised."""
    proxy, settings = config
    async with (
        StorageManager(settings) as storage,
        ErrorManager(storage, timeout=0.3) as errors,
    ):
        folder = recorder_of(errors).spool.folder
        folder.parent.mkdir(parents=True)
        folder.write_text("a file in the way")
        proxy.refuse()
        proxy.cut()
        with pytest.raises(StorageError):
            await errors.record("x", module="m")
        folder.unlink()
        proxy.accept()
    assert (
        spool_failed_start(
            StorageConfig(qdrant=None, data_dir=_blocked(tmp_path)), ValueError("x")
        )
        is None
    )


def _blocked(tmp_path):
    path = tmp_path / "file"
    path.write_text("a file")
    return path / "below"


async def test_a_cancelled_record_is_stored_wholly_or_not_at_all(storage):
    """Cancelled at any moment: error, group and vector state agree."""
    async with ErrorManager(storage) as errors:
        await errors.record("warm", module="m")
        for n in range(40):
            task = asyncio.create_task(errors.record(f"c {n}", module="m"))
            await asyncio.sleep(n * 0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await errors.flush()
        counts = await storage.pool.fetchrow(
            "SELECT (SELECT count(*) FROM project_errors), "
            "(SELECT count(*) FROM fm_storage.error_fingerprints), "
            "(SELECT count(*) FROM fm_storage.vector_state)"
        )
        assert len(set(counts)) == 1


async def test_a_spool_of_another_database_is_left_alone(storage):
    """Entries go only where they were meant to go."""
    async with ErrorManager(storage) as errors:
        own = recorder_of(errors).spool.folder
        other = Spool(own.parent / "other")
        other.append([prepare("elsewhere", timestamp=datetime(2024, 1, 2, tzinfo=UTC))])
        other.close()
        assert await errors.flush()
        assert await storage.error_entries.count() == 0
        assert other.has_any()
