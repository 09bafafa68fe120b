"""Killing the embedded engine and its client: the model that says what may be there.

Apart from the tests, because a short form runs with every test run and the sweep
with the torture.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

from fm_storage.config import QdrantConfig
from fm_storage.errors import VectorStoreUnavailable
from fm_storage.vectors import Point, QdrantStore

__all__ = ["CLIENT", "Ledger", "kill_engine_sweep"]

COLLECTION = "ledger"
_PER_WORKER = 60
_SIZE = 8


class Ledger:
    """What was acknowledged of each point, and what may have happened since."""

    def __init__(self) -> None:
        self.acked: dict[int, int | None] = {}
        self.maybe: dict[int, set[int | None]] = {}

    def began(self, ids: list[int], value: int | None) -> None:
        """Note an attempt; until it is acknowledged both states are right."""
        for i in ids:
            self.maybe.setdefault(i, set()).add(value)

    def ended(self, ids: list[int], value: int | None) -> None:
        """Note an acknowledgement."""
        for i in ids:
            self.acked[i] = value
            self.maybe[i] = set()

    def wrong(self, found: dict[int, int]) -> list[str]:
        """Return what the store holds and must not, or lacks."""
        problems = []
        for i in sorted({*self.acked, *self.maybe, *found}):
            allowed = {self.acked.get(i), *self.maybe.get(i, set())}
            if found.get(i) not in allowed:
                problems.append(f"point {i}: {found.get(i)!r}, not one of {allowed}")
        return problems


async def _work(
    store: QdrantStore, ledger: Ledger, number: int, until: asyncio.Event
) -> int:
    rng = random.Random(number)
    first = number * _PER_WORKER
    done = 0
    while not until.is_set():
        ids = rng.sample(range(first, first + _PER_WORKER), rng.randint(1, 20))
        value = None if rng.random() < 0.3 else rng.randrange(1_000_000)
        ledger.began(ids, value)
        try:
            if value is None:
                await store.delete_points(COLLECTION, ids)
            else:
                vector = [rng.random() for _ in range(_SIZE)]
                points = [Point(i, vector, {"v": value}) for i in ids]
                await store.upsert_points(COLLECTION, points)
        except VectorStoreUnavailable as exc:
            if not exc.retryable:
                raise
            continue
        ledger.ended(ids, value)
        done += 1
    return done


async def kill_engine_sweep(
    folder: Path, *, kills: int, durability: str = "process", seed: int = 1
) -> dict[str, Any]:
    """Kill the engine *kills* times under three writers; return what was found.

    The index threshold is so low that most kills fall near a build.
    """
    rng = random.Random(seed)
    config = QdrantConfig(durability=durability, index_threshold=40)
    ledger = Ledger()
    over = asyncio.Event()
    async with QdrantStore(config, folder=folder) as store:
        await store.ensure_collection_exists(COLLECTION, _SIZE)
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(_work(store, ledger, number, over))
                for number in range(3)
            ]
            for _ in range(kills):
                await asyncio.sleep(rng.uniform(0.02, 0.4))
                pid = store.statistics().engine_pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.05)
            over.set()
        found = {
            int(p.id): int(str(p.payload["v"]))
            async for p in store.iter_points(COLLECTION)
        }
        restarts = store.statistics().restarts
    return {
        "writes": sum(worker.result() for worker in workers),
        "restarts": restarts,
        "points": len(found),
        "wrong": ledger.wrong(found),
    }


CLIENT = """
import asyncio, sys
from pathlib import Path
from fm_storage.config import QdrantConfig
from fm_storage.vectors import Point, QdrantStore

async def main():
    first = int(sys.argv[2])
    config = QdrantConfig(durability=sys.argv[3])
    async with QdrantStore(config, folder=Path(sys.argv[1])) as store:
        await store.ensure_collection_exists("ledger", 8)
        i = first
        while True:
            batch = [Point(i + k, [1.0] * 8, {"v": i + k}) for k in range(7)]
            await store.upsert_points("ledger", batch)
            print(i, flush=True)
            if i % 3 == 0:
                await store.delete_points("ledger", [i])
                print(-i, flush=True)
            i += 7

asyncio.run(main())
"""
