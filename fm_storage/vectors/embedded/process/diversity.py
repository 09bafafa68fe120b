"""Maximal marginal relevance over sparse vectors.

qdrant-edge has it for dense ones only. Runs in the engine's process only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def diverse(
    found: Sequence[Any], using: str, diversity: float, count: int
) -> list[Any]:
    """Return *count* of the hits, each the best by relevance and by difference.

    Args:
        found: Hits with their vectors, the most relevant first.
        using: Name of the sparse vector.
        diversity: From 0 (relevance alone) to 1 (difference alone).
        count: How many at most.
    """
    vectors = [_terms(hit.vector, using) for hit in found]
    left = list(range(len(found)))
    likest = [0.0] * len(found)
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(
            left,
            key=lambda at: (1 - diversity) * found[at].score - diversity * likest[at],
        )
        left.remove(best)
        chosen.append(best)
        for at in left:
            likest[at] = max(likest[at], _product(vectors[at], vectors[best]))
    return [found[at] for at in chosen]


def _terms(vector: Any, using: str) -> dict[int, float]:
    sparse = vector[using]
    return dict(zip(sparse.indices, sparse.values, strict=True))


def _product(one: dict[int, float], other: dict[int, float]) -> float:
    return sum(value * other.get(term, 0.0) for term, value in one.items())
