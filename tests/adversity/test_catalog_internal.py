"""The storage's own failures are in the catalogue, and none of them makes another."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fm_storage import IntegratedManager, MappingConfigManager
from fm_storage.errors import ConnectionFailed
from tests.support.waiting import until

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def start(dsn, tcp_proxy, vector_folder, tmp_path):
    """Give the line to PostgreSQL, and a function that makes an integrated manager."""
    proxy = tcp_proxy(dsn)
    values = {
        "postgres.dsn": proxy.dsn(dsn),
        "postgres.connect_timeout": 2,
        "qdrant.url": f"embedded:{vector_folder}",
        "qdrant.durability": "process",
        "outbox.max_backoff": 0.2,
        "data_dir": str(tmp_path / "data"),
    }
    return proxy, lambda **more: IntegratedManager(
        MappingConfigManager({**values, **more})
    )


async def modules(integrated):
    """Return what the catalogue holds, counted by module."""
    assert await integrated.errors.flush(60)
    return await integrated.errors.analyzer.frequencies("module")


async def test_a_lost_line_is_catalogued_once_and_does_not_feed_itself(start, caplog):
    """Reconnecting fails again and again: a handful of entries, none of the catalogue.

    The failure itself cannot be stored at that moment: it goes to the spool, and
    storing it fails in turn, which must not be recorded again.
    """
    proxy, made = start
    async with made() as integrated:
        await integrated.errors.record("before", module="shop")
        with caplog.at_level(logging.WARNING, "fm_storage"):
            proxy.refuse()
            proxy.cut()
            for n in range(30):
                with pytest.raises(ConnectionFailed):
                    await integrated.storage.pool.fetchval("SELECT 1", timeout=0.2)
                await integrated.errors.record(f"during {n}", module="shop")
            proxy.accept()
        found = await modules(integrated)
        warnings = [r for r in caplog.records if r.name == "fm_storage.postgres"]
    assert warnings
    assert found["shop"] == 31
    assert 1 <= found["fm_storage.postgres"] <= len(warnings)
    assert "fm_storage.catalog" not in found
    assert sum(found.values()) < 31 + 20


async def test_a_drain_that_fails_is_catalogued(start):
    """Without the vector store the outbox waits, and the catalogue says so."""
    _, made = start
    async with made() as integrated:
        await integrated.errors.record("first", module="shop")
        await integrated.storage.qdrant.aclose()
        await integrated.errors.record("second", module="shop")

        async def noted():
            return "fm_storage.outbox" in await modules(integrated)

        await until(noted)
        groups = await integrated.errors.groups(module="fm_storage.outbox")
        found = await modules(integrated)
    assert groups[0].example.manager_context["internal"] == "outbox"
    assert found["fm_storage.outbox"] <= 3
    assert "fm_storage.catalog" not in found


async def test_a_reap_that_fails_is_catalogued(start, monkeypatch):
    """A reaper that stumbles over a fault of its own goes on; the fault is kept."""
    from fm_storage.sessions.reaper import Reaper

    async def broken(self):
        del self
        raise RuntimeError("a fault in the reaper")

    monkeypatch.setattr(Reaper, "look", broken)
    _, made = start
    async with made(**{"sessions.reap_interval": 0.05}) as integrated:
        async with integrated.storage.session():
            pass

        async def noted():
            return "fm_storage.sessions" in await modules(integrated)

        await until(noted)
        await asyncio.sleep(0.3)
        found = await modules(integrated)
        [group] = await integrated.errors.groups(module="fm_storage.sessions")
    assert found["fm_storage.sessions"] == 1
    assert "a fault in the reaper" in group.example.message


async def test_a_start_without_a_server_is_catalogued_by_the_next(start):
    """The line is down: the failure waits on disk, masked, and is recorded later."""
    proxy, made = start
    proxy.refuse()
    with pytest.raises(ConnectionFailed):
        await made()
    proxy.accept()
    async with made() as integrated:

        async def replayed():
            return "fm_storage.start" in await modules(integrated)

        await until(replayed)
        [group] = await integrated.errors.groups(module="fm_storage.start")
    assert group.severity == "CRITICAL"
    assert group.example.error_code.endswith("ConnectionFailed")
