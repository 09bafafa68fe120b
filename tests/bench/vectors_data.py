"""Data of the vector measurements, and how times and memory are taken.

Apart from the sides that are compared, which all use the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PROBES", "K", "data", "memory", "spread", "timed", "truth"]

K = 10
PROBES = 200


def data(points: int, size: int) -> tuple[Any, Any, list[dict[str, object]]]:
    """Return clustered vectors, held-out probes, and payloads."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(2000, size)).astype("f4")
    chosen = rng.integers(0, 2000, points + PROBES)
    whole = centres[chosen] + 0.7 * rng.normal(size=(points + PROBES, size))
    whole = whole.astype("f4")
    payloads: list[dict[str, object]] = [
        {"cat": int(i % 100), "msg": f"payment {i} refused", "ts": 1_700_000_000 + i}
        for i in range(points)
    ]
    return whole[:points], whole[points:], payloads


def truth(vectors: Any, probes: Any) -> list[set[int]]:
    """Return the exact nearest neighbours by cosine."""
    base = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for probe in probes:
        scores = base @ (probe / np.linalg.norm(probe))
        found.append({int(i) for i in np.argpartition(-scores, K)[:K]})
    return found


def memory(pids: list[int]) -> float:
    """Return the resident memory of processes in MB, shared pages counted once."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


async def timed(
    ask: Callable[[Any], Awaitable[Any]],
    probes: Any,
) -> tuple[list[float], list[Any]]:
    """Return the seconds that each probe took, and the answers."""
    taken, answers = [], []
    for probe in probes:
        began = time.perf_counter()
        answers.append(await ask(probe))
        taken.append(time.perf_counter() - began)
    return taken, answers


def spread(taken: list[float]) -> dict[str, float]:
    """Return median and 95th percentile in milliseconds."""
    ordered = sorted(taken)
    return {
        "p50": 1000 * statistics.median(ordered),
        "p95": 1000 * ordered[int(0.95 * (len(ordered) - 1))],
    }
