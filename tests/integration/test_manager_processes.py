"""Several processes on one embedded folder, started and killed at will."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fm_storage import StorageConfig, StorageManager
from tests.fix_process import Child

Start = Callable[..., Awaitable[Child]]

_WORK = """
import asyncio, sys
from fm_storage import ErrorManager, StorageManager

async def main():
    async with StorageManager() as storage:
        errors = ErrorManager(storage)
        recorded = await errors.record(f"broken pump {sys.argv[1]}", module="pumps")
        assert recorded.durable
        await errors.find_similar("broken pump", limit=5)
        async with storage.session() as session:
            view = await session.create_view("SELECT * FROM project_errors")
            print("ready", view, flush=True)
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
print("closed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_processes_share_one_embedded_folder(child: Start, tmp_path: Path):
    """Three first starts at once, one killed, two in order: nothing is lost."""
    folder = tmp_path / "data"
    started = await asyncio.gather(
        *(child(_WORK, number, FM_STORAGE_DATA_DIR=str(folder)) for number in range(3))
    )
    said = [await one.line(60) for one in started]
    for one, line in zip(started, said, strict=True):
        assert line.startswith("ready"), await one.errors()

    started[0].signal(signal.SIGKILL)
    for one in started[1:]:
        await one.say()
        assert await one.line(30) == "closed"
        assert await one.wait() == 0

    config = StorageConfig(
        postgres={"dsn": "embedded:"}, qdrant={"url": "embedded:"}, data_dir=folder
    )
    async with StorageManager(config) as storage:
        found = await storage.error_entries.find_by_module("pumps", limit=10)
        assert sorted(entry.message for entry in found) == [
            f"broken pump {number}" for number in range(3)
        ]
        orphan = said[0].split()[1]
        async with asyncio.timeout(20):
            while await storage.pool.fetchval("SELECT to_regclass($1)", orphan):
                await asyncio.sleep(0.1)
        assert (await storage.health()).ok
