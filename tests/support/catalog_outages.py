"""A server that goes away while errors are recorded: played short and long.

The ordinary suite runs two seconds of it, the torture suite a minute.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.manager import StorageManager
from tests.support.inside import recorder_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fix_cluster import TestCluster
    from tests.fix_process import Child

__all__ = ["play_kill", "play_outage"]

_WORKERS = 6
_COUNTS = (
    "SELECT array_agg(message) FROM project_errors WHERE module <> 'fm_storage.start'"
)

_VICTIM = """
import asyncio, sys
from pathlib import Path
from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.manager import StorageManager

async def main():
    settings = StorageConfig(
        postgres={"dsn": sys.argv[1], "connect_timeout": 2},
        qdrant=None,
        data_dir=Path(sys.argv[2]),
    )
    async with StorageManager(settings) as storage:
        errors = await ErrorManager(storage, timeout=0.5)

        async def work(worker):
            n = 0
            while True:
                n += 1
                done = await errors.record(f"worker {worker} error {n}", module="m")
                kept = "durable" if done.durable else "spooled"
                print(f"{kept} worker {worker} error {n}")
                await asyncio.sleep(0.005)

        await asyncio.gather(*(work(worker) for worker in range(4)))

asyncio.run(main())
"""


def settings_for(cluster: TestCluster, folder: Path) -> StorageConfig:
    """Return the settings of a manager on *cluster*, without vectors."""
    return StorageConfig(
        postgres={"dsn": cluster.dsn, "connect_timeout": 2},
        qdrant=None,
        data_dir=folder,
    )


async def play_outage(cluster: TestCluster, folder: Path, seconds: float) -> int:
    """Record and log while the server is stopped; return how many were kept.

    Asserts that each arrived, and arrived once.
    """
    given: list[str] = []
    log = logging.getLogger("outage.catalog_test")
    log.propagate = False
    end = asyncio.Event()
    spooled = asyncio.Event()
    async with (
        StorageManager(settings_for(cluster, folder)) as storage,
        ErrorManager(storage, timeout=0.5) as errors,
    ):
        handler = errors.handler()
        log.addHandler(handler)

        async def record(worker: int) -> None:
            n = 0
            while not end.is_set():
                n += 1
                message = f"worker {worker} error {n}"
                done = await errors.record(message, module="m")
                given.append(message)
                if not done.durable:
                    spooled.set()
                await asyncio.sleep(0.002)

        async def write_log() -> None:
            n = 0
            while not end.is_set():
                for _ in range(5):
                    n += 1
                    log.error("line %d of the log", n)
                    given.append(f"line {n} of the log")
                await asyncio.sleep(0.01)

        try:
            async with asyncio.TaskGroup() as group:
                for worker in range(_WORKERS):
                    group.create_task(record(worker))
                group.create_task(write_log())
                await until(lambda: len(given) > 100)
                await cluster.stop("immediate")
                await asyncio.wait_for(spooled.wait(), 60)
                await asyncio.sleep(seconds)
                await cluster.start()
                mark = len(given)
                await until(lambda: len(given) > mark + 100)
                end.set()
        finally:
            log.removeHandler(handler)
        assert await errors.flush(120)
        stored = await storage.pool.fetchval(_COUNTS)
        assert sorted(stored) == sorted(given)
        assert not recorder_of(errors).spool.has_any()
    return len(given)


async def play_kill(
    cluster: TestCluster,
    child: Callable[..., Awaitable[Child]],
    folder: Path,
    seconds: float,
) -> int:
    """Kill a recording process while the server is away; return how many it kept.

    Asserts that the next process brings in everything that was said to be kept,
    and nothing twice.
    """
    victim = await child(_VICTIM, cluster.dsn, folder)
    kept: list[str] = []
    heard = {"durable": asyncio.Event(), "spooled": asyncio.Event()}

    async def listen() -> None:
        while line := await victim.line(120):
            state, _, message = line.partition(" ")
            kept.append(message)
            heard[state].set()

    listening = asyncio.create_task(listen())
    await asyncio.wait_for(heard["durable"].wait(), 60)
    await cluster.stop("immediate")
    await asyncio.wait_for(heard["spooled"].wait(), 60)
    await asyncio.sleep(seconds)
    await victim.kill()
    await listening
    await cluster.start()
    async with (
        StorageManager(settings_for(cluster, folder)) as storage,
        ErrorManager(storage) as errors,
    ):
        assert await errors.flush(120)
        stored = await storage.pool.fetchval(_COUNTS)
        assert len(stored) == len(set(stored))
        assert set(stored) >= set(kept)
        # What was under way when it was killed may have arrived, and no more.
        assert len(stored) - len(kept) <= 2 * _WORKERS
        assert not recorder_of(errors).spool.has_any()
    return len(kept)
