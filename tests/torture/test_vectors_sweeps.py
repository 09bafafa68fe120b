"""The full-size kill sweeps of the embedded vector engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fm_storage.config import QdrantConfig
from fm_storage.vectors import QdrantStore
from tests.fix_process import Child
from tests.torture.vectors_kills import CLIENT, kill_engine_sweep


@pytest.mark.timeout(600)
@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_fifty_kills_of_the_engine_lose_nothing(
    vector_folder: Path, durability: str
) -> None:
    """Every awaited write is there, nothing deleted comes back."""
    found = await kill_engine_sweep(vector_folder, kills=50, durability=durability)
    assert found["wrong"] == []
    assert found["restarts"] >= 25
    assert found["writes"] > 20


@pytest.mark.timeout(600)
async def test_fifty_kills_of_the_client_lose_nothing(
    vector_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """Whatever the dying client had been told is there when the next one looks."""
    rng = random.Random(3)  # noqa: S311 - repeatable
    acked: dict[int, bool] = {}
    first = 1
    for _ in range(50):
        process = await child(CLIENT, vector_folder, first, "process")
        highest = first
        for _ in range(rng.randint(1, 12)):
            said = int(await process.line() or 0)
            if said > 0:
                acked |= dict.fromkeys(range(said, said + 7), True)
                highest = said
            else:
                acked[-said] = False
        await asyncio.sleep(rng.uniform(0, 0.02))
        await process.kill()
        while line := await process.line():
            said = int(line)
            if said > 0:
                acked |= dict.fromkeys(range(said, said + 7), True)
                highest = said
            else:
                acked[-said] = False
        # The batch under way when it died may be there or not: not asked about.
        first = highest + 70
    async with QdrantStore(QdrantConfig(), folder=vector_folder) as store:
        found = {p.id async for p in store.iter_points("ledger")}
    missing = {i for i, there in acked.items() if there} - found
    maybe_deleted = {i for i in missing if i % 3 == 0}
    assert missing == maybe_deleted
    assert len(maybe_deleted) <= 50
    assert not {i for i, there in acked.items() if not there} & found
