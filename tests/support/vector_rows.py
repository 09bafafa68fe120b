"""Points of the vector contract: what the expected results are worked out from."""

from __future__ import annotations

import enum
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.vectors import Point, QdrantStore, SparseVector

__all__ = [
    "A_UUID",
    "HYBRID",
    "ROWS",
    "START",
    "Colour",
    "Row",
    "fill",
    "fill_hybrid",
    "row",
    "unit",
]

START = datetime(2026, 1, 1, tzinfo=UTC)


A_UUID = "0b6ccd2f-6b9c-4c4c-9d4b-4a52c1a6b111"


Row = dict[str, Any]


def row(i: int) -> Row:
    """Return the payload of point *i*."""
    made: Row = {
        "n": i,
        "f": i / 2,
        "s": "abc"[i % 3],
        "flag": i % 2 == 0,
        "ts": (START + timedelta(hours=i)).isoformat(),
        "tags": ["even" if i % 2 == 0 else "odd", f"t{i % 4}"],
        "inner": {"k": i % 5},
        "items": [{"a": i % 3, "b": i % 2}, {"a": (i + 1) % 3, "b": 1}],
        "where": {"lon": 2.0 + i, "lat": 48.0},
        "text": ["payment refused", "card expired", "time out"][i % 3],
    }
    if i % 4 == 0:
        made["opt"] = None
    if i % 4 == 1:
        made["opt"] = f"o{i}"
    return made


ROWS = {i: row(i) for i in range(1, 25)}


def unit(i: int) -> list[float]:
    """Return a vector of its own direction for point *i*."""
    return [math.cos(i / 8), math.sin(i / 8), 0.1]


async def fill(store: QdrantStore, name: str, distance: str = "Cosine") -> None:
    """Make a collection with the points of ``ROWS``."""
    await store.ensure_collection_exists(name, 3, distance)
    await store.upsert_points(name, [Point(i, unit(i), r) for i, r in ROWS.items()])


class Colour(enum.Enum):
    """A value that is not JSON by itself."""

    A = "a"


HYBRID = CollectionConfig(
    vectors={"dense": VectorConfig(size=3), "other": VectorConfig(size=2)},
    sparse_vectors={"sparse": SparseVectorConfig(modifier="idf")},
)


async def fill_hybrid(store: QdrantStore, name: str) -> None:
    """Make a collection with named dense and sparse vectors."""
    await store.ensure_collection_exists(name, HYBRID)
    await store.upsert_points(
        name,
        [
            Point(
                i,
                {
                    "dense": unit(i),
                    "sparse": SparseVector([i % 3, 10 + i], [1.0, 2.0]),
                },
                {"n": i},
            )
            for i in range(1, 13)
        ]
        + [Point(50, {"other": [1.0, 0.0]}, {"n": 50})],
    )
