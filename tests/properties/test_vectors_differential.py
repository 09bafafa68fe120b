"""The embedded engine against the client's local mode: random data, same answers.

Two implementations that share no line of code agree, or one of them is wrong;
where local mode is known to differ from Qdrant, the comment says so.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fm_storage.config import (
    CollectionConfig,
    QdrantConfig,
    SparseVectorConfig,
    VectorConfig,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector

COUNT = 300
WORDS = ["payment", "refused", "card", "time", "out", "pool", "lock"]
Json = dict[str, Any]
Pair = tuple[QdrantStore, QdrantStore]


def payload(rng: random.Random) -> Json:
    """Return a payload with values of every kind, some missing, some null."""
    made: Json = {}
    for key, value in {
        "n": rng.randint(-5, 20),
        "f": round(rng.uniform(-2, 2), 2),
        "s": rng.choice("abcde"),
        "flag": rng.random() < 0.5,
        "ts": f"2026-01-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:00:00Z",
        "tags": rng.sample("uvwxyz", rng.randint(0, 3)),
        "numbers": [rng.randint(0, 9) for _ in range(rng.randint(0, 3))],
        "text": " ".join(rng.sample(WORDS, 3)),
        # Qdrant's storage may change the last digit of a long float.
        "where": {
            "lon": round(rng.uniform(-10, 10), 3),
            "lat": round(rng.uniform(40, 50), 3),
        },
        "o": {"k": rng.randint(0, 4), "deep": {"x": rng.choice("pq")}},
        "list": [
            {"a": rng.randint(0, 3), "b": rng.choice("pq")}
            for _ in range(rng.randint(0, 3))
        ],
    }.items():
        chance = rng.random()
        if chance < 0.8:
            made[key] = value
        elif chance < 0.9:
            made[key] = None
    return made


def leaf(rng: random.Random) -> Json:
    """Return one condition of any kind."""
    kind = rng.randrange(18)
    low = rng.randint(-5, 15)
    day = f"2026-01-{rng.randint(1, 28):02}T00:00:00Z"
    choices: list[Json] = [
        {"key": "n", "match": {"value": rng.randint(-5, 20)}},
        {"key": "s", "match": {"value": rng.choice("abcdef")}},
        {"key": "flag", "match": {"value": rng.random() < 0.5}},
        {"key": "s", "match": {"any": rng.sample("abcde", 2)}},
        {"key": "n", "match": {"except": [1, 2, 3]}},
        {"key": "n", "range": {"gte": low, "lt": low + 6}},
        {"key": "f", "range": {"gt": round(rng.uniform(-2, 2), 2)}},
        {"key": "ts", "range": {"gte": day}},
        {"key": "tags", "match": {"value": rng.choice("uvwxyz")}},
        {"key": "numbers", "range": {"lte": rng.randint(0, 5)}},
        {"key": "tags", "values_count": {"gte": rng.randint(0, 3)}},
        {"key": "o.deep.x", "match": {"value": rng.choice("pqr")}},
        {"key": "list[].b", "match": {"value": rng.choice("pq")}},
        {
            "nested": {
                "key": "list",
                "filter": {
                    "must": [
                        {"key": "a", "match": {"value": rng.randint(0, 3)}},
                        {"key": "b", "match": {"value": rng.choice("pq")}},
                    ]
                },
            }
        },
        {"is_empty": {"key": rng.choice(["s", "tags", "nothing"])}},
        {"is_null": {"key": rng.choice(["s", "n", "nothing"])}},
        {"has_id": rng.sample(range(COUNT), 40)},
        {
            "key": "where",
            "geo_bounding_box": {
                "top_left": {"lon": rng.uniform(-10, 0), "lat": rng.uniform(45, 50)},
                "bottom_right": {"lon": rng.uniform(0, 10), "lat": 40.0},
            },
        },
    ]
    return choices[kind]


def compound(rng: random.Random, depth: int = 2) -> Json:
    """Return a filter of nested clauses."""
    made: Json = {}
    for clause in ("must", "should", "must_not"):
        if rng.random() < 0.5:
            made[clause] = [
                compound(rng, depth - 1) if depth and rng.random() < 0.25 else leaf(rng)
                for _ in range(rng.randint(1, 3))
            ]
    if not made:
        made["must"] = [leaf(rng)]
    return made


def vector(rng: random.Random, size: int) -> list[float]:
    """Return a random vector."""
    return [rng.gauss(0, 1) for _ in range(size)]


def sparse(rng: random.Random) -> SparseVector:
    """Return a random sparse vector."""
    terms = rng.sample(range(40), rng.randint(1, 6))
    return SparseVector(terms, [round(rng.uniform(0.1, 2), 3) for _ in terms])


SPEC = CollectionConfig(
    vectors={"v": VectorConfig(size=8), "e": VectorConfig(size=4, distance="Euclid")},
    sparse_vectors={"s": SparseVectorConfig()},
)


@pytest.fixture
async def pair(vector_folder: Path) -> AsyncIterator[Pair]:
    """Give both stores, filled alike."""
    rng = random.Random(11)
    points = [
        Point(
            i,
            {"v": vector(rng, 8), "e": vector(rng, 4), "s": sparse(rng)},
            payload(rng),
        )
        for i in range(COUNT)
    ]
    async with (
        QdrantStore(QdrantConfig(durability="process"), folder=vector_folder) as one,
        QdrantStore(QdrantConfig(url=":memory:")) as two,
    ):
        for store in (one, two):
            await store.ensure_collection_exists("d", SPEC)
            await store.upsert_points("d", points)
        yield one, two


async def ids(store: QdrantStore, chosen: Json) -> list[int | str]:
    """Return the ids that a filter chooses."""
    return [
        p.id
        async for p in store.iter_points(
            "d", filter=chosen, with_payload=False, page=COUNT
        )
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_six_hundred_filters_choose_alike(pair: Pair) -> None:
    """Every kind of condition, alone and nested, chooses the same points."""
    one, two = pair
    rng = random.Random(23)
    filters = [{"must": [leaf(rng)]} for _ in range(300)]
    filters += [compound(rng) for _ in range(320)]
    for chosen in filters:
        assert await ids(one, chosen) == await ids(two, chosen), chosen


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_payload_indexes_change_no_answer(pair: Pair) -> None:
    """The same filters, with every field indexed."""
    one, two = pair
    for field, schema in {
        "n": "integer",
        "f": "float",
        "s": "keyword",
        "flag": "bool",
        "ts": "datetime",
        "tags": "keyword",
        "numbers": "integer",
        "where": "geo",
        "o.deep.x": "keyword",
    }.items():
        await one.create_payload_index("d", field, schema)
    rng = random.Random(29)
    for _ in range(250):
        chosen = compound(rng)
        assert await ids(one, chosen) == await ids(two, chosen), chosen


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_searches_rank_alike(pair: Pair) -> None:
    """Dense and sparse searches, filtered or not: the same order, the same scores."""
    one, two = pair
    rng = random.Random(31)
    for turn in range(150):
        probe: Any = vector(rng, 8)
        using = "v"
        if turn % 3 == 1:
            probe, using = vector(rng, 4), "e"
        elif turn % 3 == 2:
            probe, using = sparse(rng), "s"
        chosen = compound(rng) if turn % 2 else None
        left, right = [
            await store.search("d", probe, 15, chosen, using=using)
            for store in (one, two)
        ]
        assert [h.score for h in left] == pytest.approx(
            [h.score for h in right], abs=1e-5
        )
        # Equal scores may come in either order.
        if len({round(h.score, 4) for h in left}) == len(left):
            assert [h.id for h in left] == [h.id for h in right]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_fusions_agree(pair: Pair) -> None:
    """RRF of dense and sparse gives the same scores."""
    one, two = pair
    rng = random.Random(37)
    for _ in range(100):
        stages = [
            {"query": vector(rng, 8), "using": "v", "limit": 20},
            {"query": vector(rng, 4), "using": "e", "limit": 20},
        ]
        left, right = [
            await store.query("d", prefetch=stages, fusion="rrf", limit=10)
            for store in (one, two)
        ]
        assert [h.score for h in left] == pytest.approx([h.score for h in right])


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_random_writes_leave_the_same_points(pair: Pair) -> None:
    """Upserts, conditional upserts, deletes and payload changes, step by step."""
    one, two = pair
    rng = random.Random(41)
    for step in range(60):
        some = rng.sample(range(COUNT + 40), 12)
        kind = rng.randrange(5)
        if kind <= 1:
            batch = [
                Point(i, {"v": vector(rng, 8)}, {"_ver": rng.randint(0, 30), "n": step})
                for i in some
            ]
            newer = "_ver" if kind else None
            for store in pair:
                await store.upsert_points("d", batch, newer_by=newer)
        elif kind == 2:
            up_to: dict[Any, int] = {i: rng.randint(0, 30) for i in some}
            for store in pair:
                await store.delete_points("d", some, newer_by="_ver", up_to=up_to)
        elif kind == 3:
            for store in pair:
                await store.set_payload("d", {"step": step}, some)
        else:
            chosen = {"must": [{"key": "n", "range": {"lt": -3}}, leaf(rng)]}
            for store in pair:
                await store.delete_points("d", chosen)
    left, right = [
        [(p.id, p.payload) async for p in store.iter_points("d")]
        for store in (one, two)
    ]
    assert left == right
