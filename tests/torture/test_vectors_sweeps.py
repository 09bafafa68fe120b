"""The full-size sweeps: kills of the embedded engine, a server that misbehaves."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fm_storage.config import QdrantConfig
from fm_storage.errors import InvalidRecord
from fm_storage.testing import Fault, QdrantTestServer
from fm_storage.vectors import Point, QdrantStore
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
    """Whatever was acknowledged to the dying client is there for the next one."""
    rng = random.Random(3)
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("by_grpc", [False, True], ids=["rest", "grpc"])
async def test_hundred_thousand_points_pass_a_faulty_server_once(
    by_grpc: bool,
) -> None:
    """All stored, once, ≤ 4 MiB a request, in time; a refusal is said once."""
    async with QdrantTestServer(grpc=by_grpc) as server:
        config = QdrantConfig(
            url=server.url,
            prefer_grpc=by_grpc,
            grpc_port=server.grpc_port or 6334,
            timeout=400,
            max_batch_points=500,
        )
        server.faults.every(
            5,
            Fault.too_many(0),
            Fault.answer(503),
            Fault.reset(),
            Fault.reset(after=True),
            Fault.half_close(),
            Fault.stall(0.5),
        )
        async with QdrantStore(config) as store:
            await store.ensure_collection_exists("a", 64)
            vector = [0.25] * 64
            points = [Point(i, vector, {"n": i}) for i in range(100_000)]
            began = time.monotonic()
            assert await store.upsert_points("a", points) == 100_000
            assert time.monotonic() - began < 400
            assert store.statistics().retries >= 40
            assert max(seen.size for seen in server.seen) <= 4 * 1024 * 1024
            server.faults.clear()
            assert await store.count("a") == 100_000
            found = [p.id async for p in store.iter_points("a", with_payload=False)]
            assert found == list(range(100_000))
            server.seen.clear()
            server.faults.add(Fault.answer(400), times=1000)
            with pytest.raises(InvalidRecord):
                await store.upsert_points("a", points[:10])
            assert [seen.status for seen in server.seen] == [400]
