"""Requests of every shape, most of them wrong, for a store of any engine.

Each is made from a right one by putting something else in some places. Whatever it
is, it must be answered or refused by name: never taken for an outage, and never an
error of Python or of a client.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from fm_storage.errors import EmbeddedFailed, StorageError, VectorStoreUnavailable
from fm_storage.vectors import Point, QdrantStore, SparseVector

__all__ = ["prepare", "send_many"]

PARTS: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "n",
    "a[",
    "my field",
    "x" * 300,
    "\0",
    "\ud800",
    b"raw",
    [],
    [1],
    [1.0, 2.0],
    ["a", 1],
    [[]],
    {},
    {"a": 1},
    {"key": "n"},
    {"must": []},
    {"nearest": 1},
    {1: 2},
    (),
    {1},
    object(),
]

CONDITIONS: list[Any] = [
    {"key": "n", "match": {"value": 1}},
    {"key": "t", "match": {"any": ["a", "b"]}},
    {"key": "t", "match": {"except": ["a"]}},
    {"key": "t", "match": {"text": "a"}},
    {"key": "n", "range": {"gte": 1, "lt": 5}},
    {"key": "at", "range": {"gte": "2026-01-01T00:00:00+00:00"}},
    {"key": "at", "geo_radius": {"center": {"lon": 1.0, "lat": 2.0}, "radius": 5.0}},
    {
        "key": "at",
        "geo_bounding_box": {
            "top_left": {"lon": 1.0, "lat": 2.0},
            "bottom_right": {"lon": 2.0, "lat": 1.0},
        },
    },
    {
        "key": "at",
        "geo_polygon": {
            "exterior": {"points": [{"lon": x, "lat": y} for x, y in
                                    ((0, 0), (0, 1), (1, 1), (0, 0))]}
        },
    },
    {"key": "tags", "values_count": {"gte": 1}},
    {"key": "n", "is_null": True},
    {"has_id": [1, 2]},
    {"has_vector": "d"},
    {"is_empty": {"key": "n"}},
    {"is_null": {"key": "n"}},
    {"nested": {"key": "items", "filter": {"must": {"key": "a", "is_null": False}}}},
    {"n": 1},
]  # fmt: skip

QUERIES: list[Any] = [
    [1.0, 2.0],
    1,
    {"nearest": [1.0, 2.0], "mmr": {"diversity": 0.5, "candidates_limit": 10}},
    {"recommend": {"positive": [1], "negative": [2], "strategy": "best_score"}},
    {"discover": {"target": 1, "context": [{"positive": 2, "negative": 3}]}},
    {"context": [{"positive": 2, "negative": [1.0, 1.0]}]},
    {"order_by": {"key": "n", "direction": "desc", "start_from": 3}},
    {"sample": "random"},
    {"formula": {"sum": ["$score", {"mult": [0.5, "n"]}]}, "defaults": {"n": 1.0}},
    {"formula": {"exp_decay": {"x": "n", "target": 3, "scale": 2.0}}},
    {"formula": {"div": {"left": 1, "right": "n", "by_zero_default": 0.0}}},
    {"fusion": "rrf"},
    {"rrf": {"k": 3}},
    SparseVector([1, 2], [1.0, 2.0]),
]


async def prepare(store: QdrantStore, name: str) -> None:
    """Make a collection that every right request fits."""
    await store.ensure_collection_exists(
        name,
        vectors={"d": {"size": 2, "distance": "Dot"}},
        sparse_vectors={"s": {}},
        payload_indexes={"n": "integer", "t": "keyword"},
    )
    await store.upsert_points(
        name,
        [
            Point(
                i,
                {"d": [1.0, float(i)], "s": SparseVector([i], [1.0])},
                {"n": i, "t": "abc"[i % 3], "tags": ["x"] * i, "items": [{"a": i}]},
            )
            for i in range(6)
        ],
    )


def _filter(rng: random.Random) -> Any:
    some = [rng.choice(CONDITIONS[:-1]) for _ in range(rng.randint(1, 2))]
    return rng.choice(
        [
            {rng.choice(["must", "should", "must_not"]): some},
            {"min_should": {"conditions": some, "min_count": 1}},
            rng.choice(CONDITIONS[-1:]),
            {"t": {"not": "a"}, "n": {"gte": 1}},
        ]
    )


def _worse(value: Any, rng: random.Random, chance: float) -> Any:
    """Return *value* with other things in some places."""
    if rng.random() < chance:
        return rng.choice([*PARTS, *CONDITIONS, *QUERIES])
    if isinstance(value, dict):
        made = {key: _worse(inner, rng, chance) for key, inner in value.items()}
        if made and rng.random() < chance:
            made.pop(rng.choice(list(made)))
        if rng.random() < chance:
            made[rng.choice(["key", "must", "limit", "", "nearest", "a"])] = 1
        return made
    if isinstance(value, list):
        return [_worse(inner, rng, chance) for inner in value]
    return value


def _request(
    store: QdrantStore, name: str, rng: random.Random
) -> tuple[str, dict[str, Any], Callable[[], Awaitable[object]]]:
    stage = {"query": rng.choice(QUERIES[:4]), "using": "d", "limit": 5}
    reading: dict[str, Any] = {
        "with_payload": rng.choice([True, False, ["n"], {"exclude": ["n"]}]),
        "with_vectors": rng.choice([True, False, ["d"]]),
    }
    query: dict[str, Any] = {
        "query": rng.choice(QUERIES),
        "using": rng.choice(["d", "d", "s"]),
        "limit": 3,
        "offset": rng.choice([0, 1]),
        "filter": rng.choice([None, _filter(rng)]),
        "score_threshold": rng.choice([None, 0.5]),
        "params": rng.choice([None, {"hnsw_ef": 64, "exact": True}]),
        "prefetch": rng.choice([None, [stage], stage]),
        **reading,
    }
    vector = {"vector": [1.0, 2.0], "limit": 3, "using": "d", "filter": _filter(rng)}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (store.query, query),
        (store.query, query),
        (store.count, {"filter": _filter(rng)}),
        (store.count, {"filter": _filter(rng)}),
        (store.search, {**vector, **reading}),
        (store.scroll, {"limit": 3, "filter": _filter(rng), **reading}),
        (store.scroll, {"order_by": {"key": "n", "direction": "asc"}, **reading}),
        (store.retrieve, {"ids": [1, 2, "text"], **reading}),
        (store.facet, {"key": "t", "filter": _filter(rng), "limit": 3}),
        (store.search_groups, {**vector, "group_by": "t", "group_size": 2}),
        (store.query_batch, {"queries": [query]}),
        (
            store.update_vectors,
            {"points": [Point(1, {"d": [1.0, 1.0]})], "update_filter": _filter(rng)},
        ),
        (store.delete_vectors, {"names": ["s"], "ids_or_filter": [77]}),
        (store.set_payload, {"payload": {"z": 1}, "ids_or_filter": _filter(rng)}),
    ]
    call, given = rng.choice(calls)
    chance = rng.choice([0.03, 0.1, 0.3])
    made = {key: _worse(value, rng, chance) for key, value in given.items()}
    return call.__name__, made, lambda: call(name, **made)


async def send_many(store: QdrantStore, name: str, count: int, seed: int) -> int:
    """Send so many requests; return how many were answered.

    Raises:
        AssertionError: One was neither answered nor refused by name.
    """
    rng = random.Random(seed)
    answered = 0
    for _ in range(count):
        verb, given, send = _request(store, name, rng)
        try:
            await send()
        except (VectorStoreUnavailable, EmbeddedFailed) as exc:
            raise AssertionError(f"an outage: {verb}(**{given!r}): {exc}") from exc
        except StorageError:
            continue
        except Exception as exc:
            raise AssertionError(f"{verb}(**{given!r}): {exc!r}") from exc
        answered += 1
    return answered
