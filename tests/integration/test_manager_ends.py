"""How a manager ends: forgotten, cancelled, ill; and what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fm_storage import StorageClosed, StorageConfig, StorageManager, WrongLoop
from fm_storage.manager import Health, PartHealth
from fm_storage.manager.health import probe
from tests.fix_process import Child

Start = Callable[..., Awaitable[Child]]

_FORGOTTEN = """
import asyncio
from fm_storage import StorageManager

async def main():
    storage = await StorageManager()
    session = await storage.session()
    print(await session.create_view("SELECT 1 AS one"), flush=True)

    async def hook():
        print("hook", await storage.pool.fetchval("SELECT 1"), flush=True)

    storage.hooks.register(hook)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_forgotten_manager_closes_at_the_loops_end(
    child: Start, storage_config: StorageConfig, storage: StorageManager
):
    """No ``aclose()``: hooks still run with the pool, views still go."""
    assert storage_config.postgres is not None
    process = await child(
        _FORGOTTEN,
        FM_STORAGE_POSTGRES__DSN=storage_config.postgres.dsn,
        FM_STORAGE_QDRANT="none",
    )
    view = await process.line()
    assert await process.line() == "hook 1"
    assert await process.wait() == 0

    assert await process.errors() == ""
    assert await storage.pool.fetchval("SELECT to_regclass($1)", view) is None


async def test_a_cancelled_opening_closes_what_was_open(
    storage_config: StorageConfig, storage: StorageManager
):
    """Wherever the cancellation falls, no connection is left on the server."""
    name = "fm_cancelled"
    assert storage_config.postgres is not None
    config = storage_config.model_copy(
        update={
            "postgres": storage_config.postgres.model_copy(
                update={"application_name": name}
            )
        }
    )
    for delay in (0.0, 0.005, 0.02, 0.05):
        opening = asyncio.ensure_future(_open(config))
        await asyncio.sleep(delay)
        opening.cancel()
        with pytest.raises((asyncio.CancelledError, StorageClosed)):
            _ = (await opening).pool
    async with asyncio.timeout(20):
        while await storage.pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE $1",
            f"{name}%",
        ):
            await asyncio.sleep(0.05)


async def _open(config: StorageConfig) -> StorageManager:
    storage = await StorageManager(config)
    await storage.aclose()
    return storage


async def test_lifespan_opens_for_the_application(storage_config: StorageConfig):
    """``FastAPI(lifespan=storage.lifespan)``: open inside, closed after."""
    storage = StorageManager(storage_config)

    async with storage.lifespan(object()):
        assert await storage.pool.fetchval("SELECT 1") == 1

    with pytest.raises(StorageClosed):
        _ = storage.pool


async def test_statistics_count_every_part(storage: StorageManager):
    """One snapshot, no I/O."""
    await storage.pool.fetchval("SELECT 1")

    counted = storage.statistics()

    assert counted.pool is not None
    assert counted.pool.size >= 1
    assert counted.qdrant is not None
    assert counted.outbox is not None
    assert counted.sessions is not None


async def test_session_and_repository_come_from_the_manager(storage: StorageManager):
    """Both work without further assembly, inside and outside a transaction."""
    async with storage.session() as session:
        assert session.is_available
    async with storage.transaction() as tx:
        assert await tx.error_entries.count() == 0


@pytest.mark.slow
async def test_health_tells_a_store_that_cannot_be_reached(dsn: str, tmp_path: Path):
    """PostgreSQL is fine, Qdrant is down: said part by part, quickly."""
    config = StorageConfig(
        postgres={"dsn": dsn},
        qdrant={"url": "http://127.0.0.1:1", "timeout": 1.0},
        outbox={"flush_timeout": 0.1},
        data_dir=tmp_path,
    )
    async with StorageManager(config) as storage:
        health = await storage.health(timeout=3)

    assert health["postgres"].status == "ok"
    assert health["qdrant"].status == "down"
    assert health.status == "down"
    assert not health.ok


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        (["ok", "off"], "ok"),
        (["ok", "degraded"], "degraded"),
        (["degraded", "down", "ok"], "down"),
    ],
)
def test_the_worst_part_counts(statuses: list[Any], worst: str):
    """A part that is off counts for nothing."""
    health = Health(tuple(PartHealth(s, s) for s in statuses))

    assert health.status == worst
    assert health.ok is (worst == "ok")
    with pytest.raises(KeyError):
        health["none"]


async def test_a_probe_never_raises():
    """Slow, failing and silent parts are answers."""

    async def slow() -> tuple[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def failing() -> tuple[str, str]:
        raise OSError("disk")

    async def silent() -> tuple[str, str]:
        raise KeyError

    late = await probe("slow", slow, timeout=0.01)
    assert (late.status, late.detail) == ("down", "no answer within 0.01 s")
    assert (await probe("f", failing, timeout=1)).detail == "disk"
    assert (await probe("s", silent, timeout=1)).detail == "KeyError"


async def test_a_failing_hook_hides_nothing_that_ended_the_block(
    storage_config: StorageConfig, caplog: pytest.LogCaptureFixture
):
    """Failures of hooks are raised by aclose() alone; a block's end logs them."""

    def fails() -> None:
        raise ValueError("of the hook")

    with pytest.raises(KeyError):
        async with StorageManager(storage_config) as storage:
            storage.hooks.register(fails)
            raise KeyError
    assert "of the hook" in caplog.text
    caplog.clear()
    async with StorageManager(storage_config) as storage:
        storage.hooks.register(fails)
    assert "of the hook" in caplog.text
    storage = await StorageManager(storage_config)
    storage.hooks.register(fails)
    with pytest.raises(ExceptionGroup) as caught:
        await storage.aclose()
    assert caught.group_contains(ValueError, match="of the hook")


def test_without_a_loop_of_asyncio_it_says_so():
    """As under trio: what is missing, and what to run it with."""
    opening = StorageManager(StorageConfig(data_dir=Path("unused"))).__aenter__()
    with pytest.raises(WrongLoop, match="trio is not supported"):
        opening.send(None)
