"""Long answers keep neither the loop nor too many shards."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fm_storage.config import QdrantConfig
from fm_storage.vectors import Point, QdrantStore
from fm_storage.vectors.embedded.process import engine as process
from tests.support import servers

PAYLOAD = {
    "trace": [f"frame {j}" for j in range(600)],
    "context": {str(k): k for k in range(200)},
}
"""15 kB of JSON in 800 values."""


async def longest_gap(work: Any) -> float:
    """Return the longest time of computing between two ticks of the loop."""
    stop, gap = asyncio.Event(), 0.0

    async def tick() -> None:
        nonlocal gap
        last = time.process_time()
        while not stop.is_set():
            await asyncio.sleep(0.001)
            now = time.process_time()
            gap, last = max(gap, now - last), now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    await work
    stop.set()
    await ticker
    return gap


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["embedded", "rest", "grpc"])
async def test_long_answers_keep_the_loop_free(tmp_path: Path, engine: str) -> None:
    """Pages of large payloads and of long vectors: no gap above 50 ms of computing."""
    async with servers.shipped() as (url, port):
        config = {
            "embedded": QdrantConfig(durability="process"),
            "rest": QdrantConfig(url=url, timeout=120),
            "grpc": QdrantConfig(
                url=url, prefer_grpc=True, grpc_port=port, timeout=120
            ),
        }[engine]
        async with QdrantStore(config, folder=tmp_path) as store:
            await store.ensure_collection_exists("payloads", 2)
            await store.ensure_collection_exists("vectors", 1536)
            for start in range(0, 300, 50):
                some = range(start, start + 50)
                points = [Point(i, [1.0, i], PAYLOAD) for i in some]
                await store.upsert_points("payloads", points)
                points = [Point(i, [float(i + 1)] * 1536) for i in some]
                await store.upsert_points("vectors", points)

            async def read() -> None:
                page, _ = await store.scroll("payloads", limit=300)
                assert len(page) == 300
                assert page[7].payload == PAYLOAD
                found = await store.search("payloads", [1.0, 0.0], 150)
                assert len(found) == 150
                assert found[0].payload == PAYLOAD
                page, _ = await store.scroll("vectors", limit=300, with_vectors=True)
                assert len(page) == 300

            gc.collect()
            gc.freeze()
            try:
                gaps = [await longest_gap(read()) for _ in range(2)]
            finally:
                gc.unfreeze()
            assert min(gaps) <= 0.05


def test_unused_shards_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are open at a time, each answers again, and none is when all are idle."""
    monkeypatch.setattr(process, "OPEN", 3)
    engine = process.Engine(tmp_path)
    engine.open()
    spec = {
        "vectors": {"": {"size": 2, "distance": "Dot"}},
        "sparse_vectors": {},
        "payload_indexes": {},
    }
    names = [f"c{i}" for i in range(8)]
    for name in names:
        engine.write({"op": "create", "c": name, "spec": spec}, memoryview(b""))
        upsert = {
            "op": "upsert",
            "c": name,
            "ids": [1],
            "payloads": [{"name": name}],
            "dense": [{"name": "", "size": 2, "rows": None}],
            "sparse": [],
        }
        engine.write(upsert, memoryview(b"\0\0\x80\x3f" * 2))
        assert len(engine.shards) <= 3
    for name in names:
        request = {"op": "retrieve", "c": name, "ids": [1], "with_payload": True}
        answer, _ = engine.read(request)
        assert answer == [[1, 0.0, {"name": name}, None]]
        assert len(engine.shards) <= 3
    monkeypatch.setattr(process, "IDLE", 0.0)
    engine.close_idle()
    assert not engine.shards
    engine.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_two_hundred_collections_take_bounded_threads_and_memory(
    tmp_path: Path,
) -> None:
    """Also when all of them were opened again, one after the other."""

    def used(pid: int, what: str) -> int:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith(what)).split()[1])

    config = QdrantConfig(durability="process")
    async with QdrantStore(config, folder=tmp_path) as store:
        names = [f"c{number}" for number in range(200)]
        for name in names:
            await store.ensure_collection_exists(name, 64)
            await store.upsert_points(name, [Point(1, [1.0] * 64, {"name": name})])
        pid = store.statistics().engine_pid
        assert pid is not None
        for _ in range(2):
            for name in names:
                [hit] = await store.search(name, [1.0] * 64)
                assert hit.payload == {"name": name}
            assert used(pid, "Threads:") <= 3 * process.OPEN
            assert used(pid, "VmRSS:") <= 200 * 1024  # kB; eight times with all open


async def test_server_double_serves_on_without_an_input() -> None:
    """With standard input at /dev/null it serves until a signal ends it."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage.testing"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    async with QdrantStore(QdrantConfig(url=url)) as store:
        assert await store.ready()
    assert server.returncode is None
    server.terminate()
    await server.wait()
