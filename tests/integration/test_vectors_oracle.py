"""Each documented condition, query and payload operation against plain Python.

The tables say what is asked and, beside it, what Qdrant's documentation makes of it
in a few lines of Python. Nothing here knows which engine answers.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.vectors import Point, QdrantStore, SparseVector

pytestmark = pytest.mark.timeout(120)

Row = dict[str, Any]
Check = Callable[[Row], bool]
COUNT = 24
DISTANCES = ("Cosine", "Dot", "Euclid", "Manhattan")
SPEC = CollectionConfig(
    vectors={kind: VectorConfig(size=3, distance=kind) for kind in DISTANCES},
    sparse_vectors={"sparse": SparseVectorConfig()},
    payload_indexes={
        "n": "integer",
        "f": "float",
        "ts": "datetime",
        "text": {"type": "text", "tokenizer": "word", "phrase_matching": True},
    },
)


def payload(i: int) -> Row:
    """Return the payload of point *i*."""
    made: Row = {
        "n": i,
        "f": i / 4,
        "k": ["alpha", "beta", "gamma"][i % 3],
        "flag": i % 2 == 0,
        "list": list(range(i % 4)),
        "objects": [{"x": i % 5, "y": i % 2}, {"x": (i + 1) % 5, "y": (i + 1) % 2}],
        "deep": {"a": {"b": i % 6}},
        "text": ["red green blue", "green red", "blue sky at night"][i % 3],
        "ts": f"2026-01-{i:02}T12:00:00Z",
        "where": {"lon": 10.0 * i - 120, "lat": 3.0 * i - 36},
    }
    if i % 4 == 0:
        made["opt"] = None
    elif i % 4 == 1:
        made["opt"] = []
    elif i % 4 == 2:
        made["opt"] = "some"
    return made


ROWS = {i: payload(i) for i in range(1, COUNT + 1)}
_rng = random.Random(5)
DENSE = {i: [round(_rng.gauss(0, 1), 3) for _ in range(3)] for i in ROWS}
SPARSE = {
    i: {t: round(_rng.uniform(0.1, 2), 3) for t in _rng.sample(range(7), 4)}
    for i in ROWS
}
BARE = 24  # has no vector but the one by cosine


def terms(vector: Mapping[int, float]) -> SparseVector:
    """Return a sparse vector as the store takes it."""
    return SparseVector(list(vector), list(vector.values()))


async def fill(store: QdrantStore, name: str) -> None:
    """Make the collection."""
    await store.ensure_collection_exists(name, SPEC)
    points = []
    for i, row in ROWS.items():
        vectors: dict[str, Any] = dict.fromkeys(DISTANCES, DENSE[i])
        vectors["sparse"] = terms(SPARSE[i])
        if i == BARE:
            vectors = {"Cosine": DENSE[i]}
        points.append(Point(i, vectors, row))
    await store.upsert_points(name, points)


# Filters


def day(text: str) -> datetime:
    """Return a day of January."""
    return datetime.fromisoformat(f"2026-01-{text}").replace(tzinfo=UTC)


def when(row: Row) -> datetime:
    """Return the time of a row."""
    return datetime.fromisoformat(row["ts"])


def metres(row: Row, lon: float, lat: float) -> float:
    """Return the distance on a sphere."""
    one, two = math.radians(row["where"]["lat"]), math.radians(lat)
    turn = math.radians(row["where"]["lon"] - lon)
    half = (
        math.sin((two - one) / 2) ** 2
        + math.cos(one) * math.cos(two) * math.sin(turn / 2) ** 2
    )
    return 2 * 6_371_000 * math.asin(math.sqrt(half))


def ring(lon: float, lat: float) -> dict[str, Any]:
    """Return a rectangle around the origin."""
    corners = [(-lon, -lat), (lon, -lat), (lon, lat), (-lon, lat), (-lon, -lat)]
    return {"points": [{"lon": x, "lat": y} for x, y in corners]}


def inside(row: Row, lon: float, lat: float) -> bool:
    """Whether a row lies in that rectangle."""
    return abs(row["where"]["lon"]) < lon and abs(row["where"]["lat"]) < lat


def values(row: Row, key: str) -> int:
    """Return how many values a field has."""
    found = row.get(key)
    return len(found) if isinstance(found, list) else int(found is not None)


def field(key: str, **condition: Any) -> dict[str, Any]:
    """Return a filter of one condition."""
    return {"must": [{"key": key, **condition}]}


FILTERS: list[tuple[str, Any, Check]] = [
    ("value", field("k", match={"value": "beta"}), lambda r: r["k"] == "beta"),
    ("value of a bool", field("flag", match={"value": False}), lambda r: not r["flag"]),
    ("value in a list", field("list", match={"value": 2}), lambda r: 2 in r["list"]),
    ("a path", field("deep.a.b", match={"value": 4}), lambda r: r["n"] % 6 == 4),
    (
        "any place of a list",
        field("objects[].x", match={"value": 3}),
        lambda r: any(o["x"] == 3 for o in r["objects"]),
    ),
    (
        "one place of a list",
        field("objects[1].x", match={"value": 3}),
        lambda r: r["objects"][1]["x"] == 3,
    ),
    ("any", field("n", match={"any": [3, 5, 99]}), lambda r: r["n"] in {3, 5}),
    ("any of none", field("k", match={"any": []}), lambda _: False),
    (
        "except",
        field("k", match={"except": ["beta", "x"]}),
        lambda r: r["k"] != "beta",
    ),
    (
        "except integers",
        field("n", match={"except": [1, 2]}),
        lambda r: r["n"] > 2,
    ),
    ("except, absent", field("nothing", match={"except": ["x"]}), lambda _: False),
    (
        "text",
        field("text", match={"text": "BLUE red"}),
        lambda r: {"blue", "red"} <= set(r["text"].split()),
    ),
    (
        "text, a part of a word",
        field("text", match={"text": "gree"}),
        lambda _: False,
    ),
    (
        "any text",
        field("text", match={"text_any": "night green"}),
        lambda r: bool({"night", "green"} & set(r["text"].split())),
    ),
    (
        "phrase",
        field("text", match={"phrase": "green red"}),
        lambda r: "green red" in r["text"],
    ),
    ("prefix", field("k", match={"prefix": "al"}), lambda r: r["k"] == "alpha"),
    ("substring", field("k", match={"substring": "m"}), lambda r: r["k"] == "gamma"),
    ("range", field("n", range={"gt": 3, "lte": 7}), lambda r: 3 < r["n"] <= 7),
    (
        "range of floats",
        field("f", range={"gte": 1.25, "lt": 2}),
        lambda r: 1.25 <= r["f"] < 2,
    ),
    (
        "range over a list",
        field("list", range={"gte": 2}),
        lambda r: any(x >= 2 for x in r["list"]),
    ),
    (
        "times",
        field("ts", range={"gte": "2026-01-03T12:00:00Z", "lt": "2026-01-09"}),
        lambda r: day("03T12:00:00") <= when(r) < day("09"),
    ),
    (
        "times without a zone",
        field("ts", range={"gt": "2026-01-20T12:00:00"}),
        lambda r: when(r) > day("20T12:00:00"),
    ),
    (
        "box",
        field(
            "where",
            geo_bounding_box={
                "top_left": {"lon": -50.5, "lat": 20},
                "bottom_right": {"lon": 31, "lat": -30},
            },
        ),
        lambda r: -50.5 <= r["where"]["lon"] <= 31 and -30 <= r["where"]["lat"] <= 20,
    ),
    (
        "box over the date line",
        field(
            "where",
            geo_bounding_box={
                "top_left": {"lon": 75, "lat": 80},
                "bottom_right": {"lon": -75, "lat": -80},
            },
        ),
        lambda r: abs(r["where"]["lon"]) >= 75,
    ),
    (
        "circle",
        field(
            "where", geo_radius={"center": {"lon": 5, "lat": 5}, "radius": 3_000_000}
        ),
        lambda r: metres(r, 5, 5) <= 3_000_000,
    ),
    (
        "polygon",
        field("where", geo_polygon={"exterior": ring(75, 30)}),
        lambda r: inside(r, 75, 30),
    ),
    (
        "polygon with a hole",
        field(
            "where",
            geo_polygon={"exterior": ring(75, 30), "interiors": [ring(25, 20)]},
        ),
        lambda r: inside(r, 75, 30) and not inside(r, 25, 20),
    ),
    (
        "count of values",
        field("list", values_count={"gte": 1, "lt": 3}),
        lambda r: 1 <= values(r, "list") < 3,
    ),
    (
        "count of one value",
        field("k", values_count={"gt": 0, "lte": 1}),
        lambda _: True,
    ),
    ("no value", field("opt", values_count={"lt": 1}), lambda r: not values(r, "opt")),
    (
        "empty",
        {"must": [{"is_empty": {"key": "opt"}}]},
        lambda r: not r.get("opt"),
    ),
    (
        "null",
        {"must": [{"is_null": {"key": "opt"}}]},
        lambda r: "opt" in r and r["opt"] is None,
    ),
    ("empty, as a field", field("opt", is_empty=False), lambda r: bool(r.get("opt"))),
    (
        "null, as a field",
        field("opt", is_null=True),
        lambda r: "opt" in r and r["opt"] is None,
    ),
    ("ids", {"must": [{"has_id": [2, 4, 400]}]}, lambda r: r["n"] in {2, 4}),
    ("not ids", {"must_not": [{"has_id": [2, 4]}]}, lambda r: r["n"] not in {2, 4}),
    ("a vector", {"must": [{"has_vector": "Dot"}]}, lambda r: r["n"] != BARE),
    (
        "a sparse vector",
        {"must_not": [{"has_vector": "sparse"}]},
        lambda r: r["n"] == BARE,
    ),
    (
        "nested",
        {
            "must": [
                {
                    "nested": {
                        "key": "objects",
                        "filter": {
                            "must": [{"key": "x", "match": {"value": 2}}],
                            "must_not": [{"key": "y", "match": {"value": 0}}],
                        },
                    }
                }
            ]
        },
        lambda r: any(o["x"] == 2 and o["y"] for o in r["objects"]),
    ),
    (
        "not nested",
        {
            "must_not": [
                {
                    "nested": {
                        "key": "objects[]",
                        "filter": {"must": [{"key": "x", "range": {"lt": 2}}]},
                    }
                }
            ]
        },
        lambda r: all(o["x"] >= 2 for o in r["objects"]),
    ),
    (
        "min should",
        {
            "must": [{"key": "flag", "match": {"value": True}}],
            "min_should": {
                "conditions": [
                    {"key": "n", "range": {"gt": 6}},
                    {"key": "n", "range": {"lt": 18}},
                    {"key": "k", "match": {"value": "beta"}},
                ],
                "min_count": 2,
            },
        },
        lambda r: r["flag"] and (r["n"] > 6) + (r["n"] < 18) + (r["k"] == "beta") >= 2,
    ),
    (
        "all clauses",
        {
            "must": [{"key": "n", "range": {"lt": 20}}],
            "should": [
                {"key": "k", "match": {"value": "alpha"}},
                {"must_not": [{"key": "flag", "match": {"value": True}}]},
            ],
            "must_not": [{"key": "n", "match": {"any": [3, 5]}}],
        },
        lambda r: (
            r["n"] < 20
            and (r["k"] == "alpha" or not r["flag"])
            and r["n"] not in {3, 5}
        ),
    ),
]


@pytest.mark.lengthy
async def test_every_condition_chooses_what_python_chooses(
    any_store: QdrantStore, name: str
) -> None:
    """By count, scroll and search alike."""
    await fill(any_store, name)
    wrong = []
    for label, chosen, check in FILTERS:
        expected = [i for i, row in ROWS.items() if check(row)]
        found, _ = await any_store.scroll(name, limit=COUNT, filter=chosen)
        hits = await any_store.search(name, DENSE[1], COUNT, chosen, using="Cosine")
        if (
            [point.id for point in found] != expected
            or sorted(int(hit.id) for hit in hits) != expected
            or await any_store.count(name, chosen) != len(expected)
        ):
            wrong.append((label, expected, [point.id for point in found]))
    assert not wrong


# Queries


def stored(kind: str, i: int) -> Any:
    """Return a vector as it is stored: of length one for the cosine."""
    if kind == "sparse":
        return SPARSE[i]
    vector = DENSE[i]
    if kind != "Cosine":
        return vector
    return [x / math.hypot(*vector) for x in vector]


def alike(kind: str, one: Any, other: Any) -> float:
    """Return how alike two vectors are; more is better."""
    if kind == "sparse":
        return sum(value * other.get(term, 0.0) for term, value in one.items())
    if kind == "Euclid":
        return -sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    if kind == "Manhattan":
        return -sum(abs(a - b) for a, b in zip(one, other, strict=True))
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.hypot(*one) * math.hypot(*other) if kind == "Cosine" else 1.0
    return product / lengths


def shown(kind: str, score: float) -> float:
    """Return the score of a nearest point as it is given: a distance is positive."""
    return {"Euclid": math.sqrt(abs(score)), "Manhattan": abs(score)}.get(kind, score)


def fast(x: float) -> float:
    """Return Qdrant's quick sigmoid, from -1 to 1."""
    return x / (1 + abs(x))


def half(x: float) -> float:
    """Return it from 0 to 1."""
    return (fast(x) + 1) / 2


def average(kind: str, positive: list[Any], negative: list[Any]) -> Any:
    """Return the vector that is like the positive and unlike the negative ones."""

    def mean(vectors: list[Any], at: Any) -> float:
        sums = (v.get(at, 0.0) if isinstance(v, dict) else v[at] for v in vectors)
        return sum(sums) / len(vectors)

    places: Iterable[Any] = range(3)
    if kind == "sparse":
        places = {term for vector in positive + negative for term in vector}
    made = {
        at: 2 * mean(positive, at) - mean(negative, at)
        if negative
        else mean(positive, at)
        for at in places
    }
    return made if kind == "sparse" else list(made.values())


def sent(kind: str, vector: Any) -> Any:
    """Return a vector as a query has it."""
    return terms(vector) if kind == "sparse" else vector


PROBE: dict[str, Any] = {
    **{key: [0.4, -1.1, 0.7] for key in DISTANCES},
    "sparse": {0: 1.0, 2: 0.3, 5: 1.7},
}


def queries(kind: str) -> list[tuple[str, Any, set[int], Callable[[Any], float]]]:
    """Return label, query, points left out and the score of a stored vector."""
    probe = PROBE[kind]
    two, nine, seven = (stored(kind, i) for i in (2, 9, 7))

    def s(vector: Any, other: Any) -> float:
        return alike(kind, other, vector)

    def best(vector: Any) -> float:
        liked = max(s(vector, two), s(vector, probe))
        unliked = max(s(vector, nine), s(vector, seven))
        return half(liked) if liked > unliked else -half(unliked)

    examples = {"positive": [2, sent(kind, probe)], "negative": [9, 7]}
    pairs = [{"positive": 2, "negative": 9}, {"positive": 7, "negative": 2}]
    wanted = average(kind, [two, probe], [nine, seven])
    towards = average(kind, [two, nine], [])
    return [
        ("nearest", sent(kind, probe), set(), lambda v: shown(kind, s(v, probe))),
        ("nearest to a point", 7, {7}, lambda v: shown(kind, s(v, seven))),
        (
            "average",
            {"recommend": examples},
            {2, 9, 7},
            lambda v: shown(kind, s(v, wanted)),
        ),
        (
            "average of the positive",
            {"recommend": {"positive": [2, 9], "strategy": "average_vector"}},
            {2, 9},
            lambda v: shown(kind, s(v, towards)),
        ),
        (
            "best score",
            {"recommend": {**examples, "strategy": "best_score"}},
            {2, 9, 7},
            best,
        ),
        (
            "best score, negative only",
            {"recommend": {"negative": [9, 7], "strategy": "best_score"}},
            {9, 7},
            lambda v: -half(max(s(v, nine), s(v, seven))),
        ),
        (
            "sum of scores",
            {"recommend": {**examples, "strategy": "sum_scores"}},
            {2, 9, 7},
            lambda v: s(v, two) + s(v, probe) - s(v, nine) - s(v, seven),
        ),
        (
            "discover",
            {"discover": {"target": sent(kind, probe), "context": pairs}},
            {2, 9, 7},
            lambda v: (
                (1 if s(v, two) > s(v, nine) else -1)
                + (1 if s(v, seven) > s(v, two) else -1)
                + half(s(v, probe))
            ),
        ),
        (
            "context",
            {"context": pairs},
            {2, 9, 7},
            lambda v: (
                fast(min(s(v, two) - s(v, nine), 0.0))
                + fast(min(s(v, seven) - s(v, two), 0.0))
            ),
        ),
    ]


@pytest.mark.parametrize("kind", [*DISTANCES, "sparse"])
async def test_every_query_scores_as_python_does(
    any_store: QdrantStore, name: str, kind: str
) -> None:
    """The best of all points, each with its own score, the best first."""
    await fill(any_store, name)
    wrong = []
    for label, query, left_out, value in queries(kind):
        points = [i for i in ROWS if i not in left_out]
        if kind != "Cosine":
            points.remove(BARE)
        scores = {i: value(stored(kind, i)) for i in points}
        if kind == "sparse" and label.startswith("nearest"):
            scores = {i: x for i, x in scores.items() if x}  # a term in common
        small = label.startswith(("nearest", "average"))
        upwards = small and kind in {"Euclid", "Manhattan"}
        expected = sorted(scores.values(), reverse=not upwards)[:10]
        found = await any_store.query(name, query, limit=10, using=kind)
        right = [hit.score for hit in found] == pytest.approx(expected, abs=2e-5)
        if not right or any(
            hit.score != pytest.approx(scores.get(int(hit.id)), abs=2e-5)
            for hit in found
        ):
            wrong.append((label, expected, [(hit.id, hit.score) for hit in found]))
    assert not wrong


@pytest.mark.parametrize("kind", ["Cosine", "Dot", "sparse"])
@pytest.mark.parametrize("candidates", [None, 15])
async def test_differing_hits_are_chosen_as_python_chooses(
    any_store: QdrantStore, name: str, kind: str, candidates: int | None
) -> None:
    """MMR among as many candidates as are asked for, or as hits are wanted."""
    await fill(any_store, name)
    probe, diversity, limit = PROBE[kind], 0.6, 6
    ids = [i for i in ROWS if kind == "Cosine" or i != BARE]
    ids.sort(key=lambda i: -alike(kind, probe, stored(kind, i)))
    left, chosen = ids[: candidates or limit], list[int]()
    while left and len(chosen) < limit:

        def value(i: int) -> float:
            likest = max(
                (alike(kind, stored(kind, i), stored(kind, j)) for j in chosen),
                default=0.0,
            )
            near = alike(kind, probe, stored(kind, i))
            return near if not chosen else (1 - diversity) * near - diversity * likest

        chosen.append(max(left, key=value))
        left.remove(chosen[-1])
    mmr: dict[str, Any] = {"diversity": diversity}
    if candidates is not None:
        mmr["candidates_limit"] = candidates
    query = {"nearest": sent(kind, probe), "mmr": mmr}
    found = await any_store.query(name, query, limit=limit, using=kind)
    assert [hit.id for hit in found] == chosen


@pytest.mark.lengthy
async def test_fusions_score_as_python_does(any_store: QdrantStore, name: str) -> None:
    """Reciprocal ranks, with a constant and weights of one's own; spread of scores."""
    await fill(any_store, name)
    stages = [
        {"query": PROBE["Cosine"], "using": "Cosine", "limit": 8},
        {"query": PROBE["Dot"], "using": "Dot", "limit": 6},
    ]
    lists = []
    for stage in stages:
        kind, limit = str(stage["using"]), int(str(stage["limit"]))
        near = [(alike(kind, PROBE[kind], stored(kind, i)), i) for i in ROWS]
        if kind != "Cosine":
            near = [pair for pair in near if pair[1] != BARE]
        lists.append(sorted(near, reverse=True)[:limit])

    def by_rank(k: float, weights: list[float]) -> dict[int, float]:
        made: dict[int, float] = {}
        for weight, ranked in zip(weights, lists, strict=True):
            for place, (_, i) in enumerate(ranked):
                made[i] = made.get(i, 0.0) + 1 / (k + (place + 1) / weight - 1)
        return made

    def by_spread() -> dict[int, float]:
        made: dict[int, float] = {}
        for ranked in lists:
            scores = [score for score, _ in ranked]
            mean = sum(scores) / len(scores)
            spread = math.sqrt(sum((x - mean) ** 2 for x in scores) / (len(scores) - 1))
            for score, i in ranked:
                own = (score - (mean - 3 * spread)) / (6 * spread)
                made[i] = made.get(i, 0.0) + own
        return made

    fusions: list[tuple[Any, dict[int, float]]] = [
        ("rrf", by_rank(2, [1, 1])),
        ({"rrf": {"k": 40}}, by_rank(40, [1, 1])),
        ({"rrf": {"k": 2, "weights": [3.0, 1.0]}}, by_rank(2, [3, 1])),
        ("dbsf", by_spread()),
    ]
    for fusion, expected in fusions:
        found = await any_store.query(name, prefetch=stages, fusion=fusion, limit=COUNT)
        assert {hit.id: hit.score for hit in found} == pytest.approx(expected, abs=1e-4)
        scores = [hit.score for hit in found]
        assert scores == sorted(scores, reverse=True)


ORDERS: list[tuple[Any, Callable[[Row], Any], bool, Check]] = [
    ("n", lambda r: r["n"], False, lambda _: True),
    ({"key": "f", "direction": "desc"}, lambda r: r["f"], True, lambda _: True),
    (
        {"key": "n", "direction": "asc", "start_from": 7},
        lambda r: r["n"],
        False,
        lambda r: r["n"] >= 7,
    ),
    (
        {"key": "ts", "direction": "desc", "start_from": "2026-01-09T12:00:00Z"},
        lambda r: r["ts"],
        True,
        lambda r: r["n"] <= 9,
    ),
]


@pytest.mark.parametrize("order", range(len(ORDERS)))
async def test_orders_are_python_s(
    any_store: QdrantStore, name: str, order: int
) -> None:
    """As a query and as a scroll, up and down, from a value on."""
    await fill(any_store, name)
    by, key, down, check = ORDERS[order]
    flags = {"flag": True}
    rows = [row for row in ROWS.values() if check(row) and row["flag"]]
    expected = [row["n"] for row in sorted(rows, key=key, reverse=down)][:5]
    asked = {"order_by": by}
    found = await any_store.query(name, asked, limit=5, filter=flags)
    assert [hit.id for hit in found] == expected
    page, following = await any_store.scroll(name, limit=5, order_by=by, filter=flags)
    assert [point.id for point in page] == expected
    assert following is None


async def test_a_sample_is_of_matching_points(
    any_store: QdrantStore, name: str
) -> None:
    """Each at most once, of those that match, and not the same each time."""
    await fill(any_store, name)
    seen = set()
    for _ in range(10):
        found = await any_store.query(
            name, {"sample": "random"}, limit=4, filter={"flag": True}
        )
        ids = [int(hit.id) for hit in found]
        assert len(set(ids)) == 4
        assert all(i % 2 == 0 for i in ids)
        seen.add(tuple(ids))
    assert len(seen) > 1


# Payloads

Change = Callable[[QdrantStore, str], Any]
Then = Callable[[Row], object]


def put(row: Row, *path: str | int, **fields: Any) -> Row:
    """Merge into the object at a path."""
    here: Any = row
    for step in path[:-1]:
        here = here[step]
    if path:
        here = here[path[-1]]
    here.update(fields)
    return row


def without(row: Row, *keys: str) -> Row:
    """Remove fields."""
    for key in keys:
        row.pop(key, None)
    return row


def become(row: Row, **fields: Any) -> None:
    """Replace the whole payload."""
    row.clear()
    row.update(fields)


IDS: list[Any] = [2, "twenty", 4, 999]
PAYLOADS: list[tuple[str, Change, Then]] = [
    (
        "set",
        lambda s, c: s.set_payload(c, {"n": -1, "new": [1]}, IDS),
        lambda r: put(r, n=-1, new=[1]),
    ),
    (
        "set by filter",
        lambda s, c: s.set_payload(c, {"n": -1}, {"has_id": IDS}),
        lambda r: put(r, n=-1),
    ),
    (
        "set below a key",
        lambda s, c: s.set_payload(c, {"c": 1}, IDS, key="deep.a"),
        lambda r: put(r, "deep", "a", c=1),
    ),
    (
        "set below a new key",
        lambda s, c: s.set_payload(c, {"c": 1}, IDS, key="fresh.one"),
        lambda r: put(r, fresh={"one": {"c": 1}}),
    ),
    (
        "set in one place of a list",
        lambda s, c: s.set_payload(c, {"x": 9}, IDS, key="objects[1]"),
        lambda r: put(r, "objects", 1, x=9),
    ),
    (
        "set in each place of a list",
        lambda s, c: s.set_payload(c, {"x": 9}, IDS, key="objects[]"),
        lambda r: [put(each, x=9) for each in r["objects"]],
    ),
    (
        "overwrite",
        lambda s, c: s.set_payload(c, {"n": -1}, IDS, overwrite=True),
        lambda r: become(r, n=-1),
    ),
    (
        "overwrite by filter",
        lambda s, c: s.set_payload(c, {"n": -1}, {"has_id": IDS}, overwrite=True),
        lambda r: become(r, n=-1),
    ),
    (
        "delete",
        lambda s, c: s.delete_payload(c, ["n", "k", "nothing"], IDS),
        lambda r: without(r, "n", "k"),
    ),
    (
        "delete one by name",
        lambda s, c: s.delete_payload(c, "list", {"has_id": IDS}),
        lambda r: without(r, "list"),
    ),
    (
        "delete inside",
        lambda s, c: s.delete_payload(c, ["deep.a.b", "objects[].x"], IDS),
        lambda r: [
            without(r["deep"]["a"], "b"),
            *(without(o, "x") for o in r["objects"]),
        ],
    ),
    (
        "clear",
        lambda s, c: s.set_payload(c, {}, IDS, overwrite=True),
        become,
    ),
    (
        "clear by filter",
        lambda s, c: s.set_payload(c, {}, {"has_id": IDS}, overwrite=True),
        become,
    ),
]


async def test_every_payload_operation_leaves_what_python_leaves(
    any_store: QdrantStore, name: str
) -> None:
    """On the points that are chosen and on no other; ids stay, text among them."""
    await any_store.ensure_collection_exists(name, 2)
    keys: list[int | str] = [1, 2, 3, 4, "twenty", "thirty"]
    rows = {key: payload(n) for n, key in enumerate(keys, 1)}
    wrong = []
    for label, change, then in PAYLOADS:
        await any_store.upsert_points(
            name, [Point(key, [1.0, 0.5], row) for key, row in rows.items()]
        )
        await change(any_store, name)
        expected = copy.deepcopy(rows)
        for key in (2, 4, "twenty"):
            then(expected[key])
        found = {p.id: p.payload async for p in any_store.iter_points(name)}
        if found != expected:
            wrong.append(
                (label, {k: v for k, v in found.items() if v != expected.get(k)})
            )
    assert not wrong
