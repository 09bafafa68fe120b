"""Vectors: our embedded engine beside the client's local mode, and REST beside raw.

Times are taken in one run on the same data; each side in a process of its own,
so that the memory of all its processes can be measured. Run it as a script::

    python tests/bench/bench_vectors.py --points 100000

``--only lone`` compares one search with qdrant-edge's own in a process, and no more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path

from tests.bench.vectors_data import (  # noqa: E402 - the same
    PROBES,
    K,
    data,
    memory,
    spread,
    timed,
    truth,
)


async def ours(folder: Path, points: int, size: int, *, wait: float) -> dict[str, Any]:
    """Measure the embedded engine, first exact, then indexed."""
    from fm_storage.config import QdrantConfig
    from fm_storage.vectors import Point, QdrantStore

    vectors, probes, payloads = data(points, size)
    result: dict[str, Any] = {}
    config = QdrantConfig(timeout=600)
    # "Before" means before: no index is built beside the measurement.
    patient = QdrantConfig(timeout=600, index_threshold=10 * points)
    async with QdrantStore(patient, folder=folder) as store:
        await store.ensure_collection_exists(
            "a", size, payload_indexes={"cat": "integer"}
        )
        began = time.perf_counter()
        for start in range(0, points, 10_000):
            end = min(points, start + 10_000)
            await store.upsert_points(
                "a", [Point(i, vectors[i], payloads[i]) for i in range(start, end)]
            )
        result["ingest"] = points / (time.perf_counter() - began)

        async def exact(probe: Any) -> Any:
            return await store.search("a", probe, K)

        await timed(exact, probes[:20])
        taken, answers = await timed(exact, probes)
        result["exact"] = spread(taken)
    async with QdrantStore(config, folder=folder) as store:

        async def search(probe: Any) -> Any:
            return await store.search("a", probe, K)

        async def filtered(probe: Any) -> Any:
            return await store.search("a", probe, K, {"cat": 7})

        during: list[float] = []
        until = time.monotonic() + wait
        while time.monotonic() < until:
            info = await store.collection_info("a")
            if info.indexed >= info.total:
                break
            taken, _ = await timed(search, probes[:5])
            during += taken
            await asyncio.sleep(0.2)
        info = await store.collection_info("a")
        result["indexed"] = f"{info.indexed}/{info.total}"
        if during:
            result["during"] = spread(during)
        # The graph's pages come into the process by being searched.
        await timed(search, vectors[:PROBES])
        taken, answers = await timed(search, probes)
        result["search"] = spread(taken)
        right = truth(vectors, probes)
        hits = [{p.id for p in found} for found in answers]
        result["recall"] = statistics.mean(
            len(a & b) / K for a, b in zip(hits, right, strict=True)
        )
        await timed(filtered, probes[:20])
        taken, _ = await timed(filtered, probes)
        result["filtered"] = spread(taken)
    began = time.perf_counter()
    async with QdrantStore(config, folder=folder) as store:
        await store.search("a", probes[0], K)
        result["reopen"] = time.perf_counter() - began
    return result


async def lone(folder: Path, points: int, size: int, *, wait: float) -> dict[str, Any]:
    """Compare a lone search with qdrant-edge's own here, on a copy of the shard."""
    import qdrant_edge as edge

    from fm_storage.config import QdrantConfig
    from fm_storage.vectors import QdrantStore

    del wait
    _, probes, _ = data(points, size)
    kept = folder / "qdrant"
    catalogue = json.loads((kept / "catalogue.json").read_bytes())
    shutil.copytree(
        kept / "shards" / catalogue["collections"]["a"]["folder"], folder / "copy"
    )
    shard = edge.EdgeShard.load(str(folder / "copy"))

    async def own(probe: Any) -> Any:
        query = edge.Query.Nearest(probe, using="")
        found = shard.query(edge.QueryRequest(limit=K, query=query, with_payload=True))
        return [(hit.id, hit.score, hit.payload) for hit in found]

    walls, cpus, spent = [], [], []
    async with QdrantStore(QdrantConfig(), folder=folder) as store:

        async def ours(probe: Any) -> Any:
            return await store.search("a", probe, K)

        for side in (own, ours, own, ours):
            await timed(side, probes)
        engine = store.statistics().engine_pid
        assert engine is not None

        def cpu() -> float:  # of both processes, to the nanosecond (Linux)
            return time.process_time() + time.clock_gettime((~engine << 3) | 2)

        rng = np.random.default_rng(1)
        for _ in range(100):
            block = rng.choice(probes, 20)
            took: dict[Any, tuple[float, float]] = {}
            for side in [own, ours] if rng.random() < 0.5 else [ours, own]:
                before = cpu()
                times, _ = await timed(side, block)
                await asyncio.sleep(0.001)  # what the engine does after its answer
                took[side] = statistics.median(times), (cpu() - before) / len(block)
            walls.append(took[ours][0] / took[own][0])
            cpus.append(took[ours][1] / took[own][1])
            spent.append([took[own][0], took[ours][0]])
    shard.close()
    shutil.rmtree(folder / "copy")
    own_ms, our_ms = np.median(spent, axis=0) * 1000
    return {
        "lone": statistics.median(walls),
        "lone_cpu": statistics.median(cpus),
        "lone_ms": f"{our_ms:.2f} : {own_ms:.2f} ms",
    }


async def again(folder: Path, points: int, size: int, *, wait: float) -> dict[str, Any]:
    """Tell the memory of what ``ours()`` left, beside no data of the measurement."""
    from fm_storage.config import QdrantConfig
    from fm_storage.vectors import QdrantStore

    del points, wait
    probes = np.random.default_rng(8).normal(size=(PROBES, size)).astype("f4")
    result: dict[str, Any] = {}
    async with QdrantStore(QdrantConfig(), folder=folder) as store:
        await timed(lambda probe: store.search("a", probe, K), probes)
        engine = store.statistics().engine_pid
        result["engine_memory"] = memory([engine or 0])
        result["memory"] = memory([engine or 0, os.getpid()])
    return result


async def local(folder: Path, points: int, size: int, *, wait: float) -> dict[str, Any]:
    """Measure the client's local mode with its ``path=``."""
    from qdrant_client import AsyncQdrantClient, models

    warnings.simplefilter("ignore")
    del wait
    vectors, probes, payloads = data(points, size)
    result: dict[str, Any] = {}
    client = AsyncQdrantClient(path=str(folder))
    await client.create_collection(
        "a",
        vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE),
    )
    # Its ingest is linear and limited by syncs: a part tells the rate, and the
    # rest goes in without syncs, or the whole would take half an hour.
    part = min(points, 2000)
    began = time.perf_counter()
    for start in range(0, points, 1000):
        end = min(points, start + 1000)
        await client.upsert(
            "a",
            points=[
                models.PointStruct(
                    id=i, vector=vectors[i].tolist(), payload=payloads[i]
                )
                for i in range(start, end)
            ],
        )
        if end == part:
            result["ingest"] = part / (time.perf_counter() - began)
            inner: Any = client._client
            storage = inner.collections["a"].storage
            storage.storage.execute("PRAGMA synchronous=OFF")
    chosen = models.Filter(
        must=[models.FieldCondition(key="cat", match=models.MatchValue(value=7))]
    )
    few = probes[:30]
    taken, _ = await timed(
        lambda probe: client.query_points("a", query=probe, limit=K), few
    )
    result["search"] = spread(taken)
    taken, _ = await timed(
        lambda probe: client.query_points(
            "a", query=probe, limit=K, query_filter=chosen
        ),
        few[:8],
    )
    result["filtered"] = spread(taken)
    await client.close()
    del vectors, payloads
    began = time.perf_counter()
    client = AsyncQdrantClient(path=str(folder))
    await client.query_points("a", query=probes[0], limit=K)
    result["reopen"] = time.perf_counter() - began
    result["memory"] = memory([os.getpid()])
    await client.close()
    return result


async def rest(folder: Path, points: int, size: int, *, wait: float) -> dict[str, Any]:
    """Compare a call through the store with the raw client's, over REST."""
    import httpx
    from qdrant_client import AsyncQdrantClient, models

    from fm_storage.config import QdrantConfig
    from fm_storage.vectors import Point, QdrantStore

    del folder, points, wait
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage.testing"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    vectors, probes, payloads = data(1000, size)
    raw = AsyncQdrantClient(
        url=url,
        check_compatibility=False,
        limits=httpx.Limits(max_connections=10, max_keepalive_connections=10),
    )
    ratios: dict[str, list[float]] = {"search": [], "retrieve": [], "upsert of 100": []}
    async with QdrantStore(QdrantConfig(url=url), folder=None) as store:
        await store.ensure_collection_exists("a", size)
        await store.upsert_points(
            "a", [Point(i, vectors[i], payloads[i]) for i in range(1000)]
        )
        hundred = [Point(i, vectors[i].tolist(), payloads[i]) for i in range(100)]

        async def raw_upsert(_: Any) -> None:
            await raw.upsert(
                "a",
                points=[
                    models.PointStruct(id=p.id, vector=p.vector, payload=p.payload)
                    for p in hundred
                ],
                wait=True,
            )

        sides: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
            "search": (
                lambda probe: store.search("a", probe.tolist(), K),
                lambda probe: raw.query_points("a", query=probe.tolist(), limit=K),
            ),
            "retrieve": (
                lambda _: store.retrieve("a", [1, 2, 3]),
                lambda _: raw.retrieve("a", ids=[1, 2, 3]),
            ),
            "upsert of 100": (
                lambda _: store.upsert_points("a", hundred),
                raw_upsert,
            ),
        }
        rng = np.random.default_rng(1)
        for name, (mine, theirs) in sides.items():
            await timed(mine, probes[:10])
            await timed(theirs, probes[:10])
            for _ in range(20):
                block = probes[:5] if name.startswith("upsert") else probes[:20]
                order = [mine, theirs] if rng.random() < 0.5 else [theirs, mine]
                took = {id(side): (await timed(side, block))[0] for side in order}
                ratios[name].append(
                    statistics.median(took[id(mine)])
                    / statistics.median(took[id(theirs)])
                )
    await raw.close()
    await server.communicate(b"")
    return {name: statistics.median(values) for name, values in ratios.items()}


SIDES = {"ours": ours, "lone": lone, "again": again, "local": local, "rest": rest}


def measured(sides: list[str], points: int, size: int, wait: float) -> dict[str, Any]:
    """Run sides on one folder, each in a process of its own."""
    folder = tempfile.mkdtemp(prefix="bench-vectors-")
    found: dict[str, Any] = {}
    try:
        for side in sides:
            done = subprocess.run(
                [
                    *(sys.executable, __file__, "--side", side, "--folder", folder),
                    *("--points", str(points), "--size", str(size)),
                    *("--wait", str(wait)),
                ],
                check=True,
                stdout=subprocess.PIPE,
            )
            found |= json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def table(mine: dict[str, Any], theirs: dict[str, Any], raw: dict[str, Any]) -> int:
    """Print the table; return how many bars were missed."""
    missed = 0

    def line(what: str, ours_: str, other: str, ratio: float, bar: float) -> None:
        nonlocal missed
        met = ratio >= bar
        missed += not met
        verdict = "met" if met else "MISSED"
        print(f"{what:<32}{ours_:>14}{other:>14}{ratio:>9.1f}×  ≥ {bar:g}× {verdict}")

    def bound(what: str, value: float, bar: float, unit: str, *, least: bool) -> None:
        nonlocal missed
        met = value >= bar if least else value <= bar
        missed += not met
        sign, verdict = "≥" if least else "≤", "met" if met else "MISSED"
        print(f"{what:<32}{value:>14.3f} {unit:<22} {sign} {bar:g} {verdict}")

    print(f"{'':<32}{'ours':>14}{'local path=':>14}{'ratio':>10}")
    line(
        "ingest, fsync a batch (points/s)",
        f"{mine['ingest']:.0f}",
        f"{theirs['ingest']:.0f}",
        mine["ingest"] / theirs["ingest"],
        15,
    )
    for key, label, bar in (("exact", "before", 8), ("search", "indexed", 40)):
        line(
            f"search p50, {label} (ms)",
            f"{mine[key]['p50']:.2f}",
            f"{theirs['search']['p50']:.1f}",
            theirs["search"]["p50"] / mine[key]["p50"],
            bar,
        )
    line(
        "reopen and first search (s)",
        f"{mine['reopen']:.2f}",
        f"{theirs['reopen']:.2f}",
        theirs["reopen"] / mine["reopen"],
        20,
    )
    bound("filtered search p95", mine["filtered"]["p95"], 5, "ms", least=False)
    bound("recall@10", mine["recall"], 0.98, "", least=True)
    bound("memory of all processes", mine["memory"], 600, "MB", least=False)
    bound("lone search : in process, wall", mine["lone"], 1.3, "×", least=False)
    print(f"the same, CPU: {mine['lone_cpu']:.2f}; {mine['lone_ms']}")
    if "during" in mine:
        bound("search p95 during build", mine["during"]["p95"], 100, "ms", least=False)
    for name, ratio in raw.items():
        bound(f"REST {name}, to raw client", ratio, 1.05, "×", least=False)
    print(f"indexed: {mine['indexed']}; engine alone {mine['engine_memory']:.0f} MB")
    return missed


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--wait", type=float, default=600.0, help="for the index")
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--only", choices=["lone"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--strict", action="store_true", help="fail on a missed bar")
    options = parser.parse_args()
    if options.side:
        found = asyncio.run(
            SIDES[options.side](
                options.folder, options.points, options.size, wait=options.wait
            )
        )
        print(json.dumps(found))
        return 0
    arguments = (options.points, options.size, options.wait)
    if options.only:
        found = measured(["ours", "lone"], *arguments)
        print(f"wall {found['lone']:.2f}, CPU {found['lone_cpu']:.2f}, bar 1.3")
        print(f"{found['lone_ms']}; indexed: {found['indexed']}")
        return 1 if found["lone"] > 1.3 and options.strict else 0
    mine = measured(["ours", "lone", "again"], *arguments)
    theirs = measured(["local"], *arguments)
    raw = measured(["rest"], *arguments)
    assert math.isfinite(mine["ingest"])
    missed = table(mine, theirs, raw)
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    raise SystemExit(main())
