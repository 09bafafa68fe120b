"""What a vector store does, on every engine alike.

Nothing here knows which engine answers; expected results are worked out in
Python from the data below.
"""

from __future__ import annotations

import array
import asyncio
import enum
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pytest

from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    DimensionMismatch,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    RecordNotFound,
    StorageClosed,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector

if TYPE_CHECKING:
    from fm_storage.vectors.vectorizers.lexical import Embedding

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)

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


# Filters

Check = Callable[[Row], bool]
FILTERS: list[tuple[str, Any, Check]] = [
    ("equal text", {"s": "a"}, lambda r: r["s"] == "a"),
    ("equal integer", {"n": 7}, lambda r: r["n"] == 7),
    ("equal true", {"flag": True}, lambda r: r["flag"] is True),
    ("equal false", {"flag": False}, lambda r: r["flag"] is False),
    ("one is not true", {"n": 1, "flag": False}, lambda r: r["n"] == 1),
    ("equal float", {"f": 3.5}, lambda r: r["f"] == 3.5),
    ("one of texts", {"s": ["a", "b"]}, lambda r: r["s"] in "ab"),
    ("one of one", {"s": ["c"]}, lambda r: r["s"] == "c"),
    ("one of integers", {"n": [1, 5, 99]}, lambda r: r["n"] in {1, 5}),
    (
        "one of mixed",
        {"n": [1, 2.5, "x"]},
        lambda r: r["n"] == 1,
    ),
    ("one of none", {"s": []}, lambda _: False),
    ("not one", {"s": {"not": "a"}}, lambda r: r["s"] != "a"),
    ("not several", {"s": {"not": ["a", "b"]}}, lambda r: r["s"] == "c"),
    ("not true", {"flag": {"not": True}}, lambda r: not r["flag"]),
    ("from", {"n": {"gte": 20}}, lambda r: r["n"] >= 20),
    ("between", {"n": {"gt": 3, "lte": 6}}, lambda r: 3 < r["n"] <= 6),
    ("below float", {"f": {"lt": 2.25}}, lambda r: r["f"] < 2.25),
    (
        "times",
        {"ts": {"gte": START + timedelta(hours=20)}},
        lambda r: r["n"] >= 20,
    ),
    (
        "times as text",
        {"ts": {"lt": "2026-01-01T05:00:00Z"}},
        lambda r: r["n"] < 5,
    ),
    (
        "times of another zone",
        {"ts": {"lt": "2026-01-01T07:00:00+02:00"}},
        lambda r: r["n"] < 5,
    ),
    ("inside an object", {"inner.k": 3}, lambda r: r["inner"]["k"] == 3),
    ("in a list", {"tags": "even"}, lambda r: "even" in r["tags"]),
    ("any in a list", {"tags": ["t0", "t3"]}, lambda r: r["n"] % 4 in {0, 3}),
    (
        "in a list of objects",
        {"items[].a": 2},
        lambda r: any(x["a"] == 2 for x in r["items"]),
    ),
    ("words", {"text": {"text": "refused"}}, lambda r: "refused" in r["text"]),
    ("no value", {"opt": None}, lambda r: r.get("opt") is None),
    ("some value", {"opt": {"exists": True}}, lambda r: r.get("opt") is not None),
    ("absent", {"opt": {"exists": False}}, lambda r: r.get("opt") is None),
    (
        "null",
        {"must": [{"is_null": {"key": "opt"}}]},
        lambda r: "opt" in r and r["opt"] is None,
    ),
    (
        "empty",
        {"must": [{"is_empty": {"key": "opt"}}]},
        lambda r: r.get("opt") is None,
    ),
    ("ids", {"has_id": [1, 2, 500]}, lambda r: r["n"] in {1, 2}),
    (
        "several fields",
        {"s": "a", "flag": True, "n": {"lt": 13}},
        lambda r: r["s"] == "a" and r["flag"] and r["n"] < 13,
    ),
    (
        "must",
        {"must": [{"key": "s", "match": {"value": "a"}}]},
        lambda r: r["s"] == "a",
    ),
    (
        "must, one condition",
        {"must": {"key": "s", "match": {"value": "a"}}},
        lambda r: r["s"] == "a",
    ),
    (
        "should",
        {
            "should": [
                {"key": "s", "match": {"value": "a"}},
                {"key": "n", "range": {"gt": 22}},
            ]
        },
        lambda r: r["s"] == "a" or r["n"] > 22,
    ),
    (
        "must not",
        {"must_not": [{"key": "flag", "match": {"value": True}}]},
        lambda r: not r["flag"],
    ),
    (
        "min should",
        {
            "min_should": {
                "conditions": [
                    {"key": "s", "match": {"value": "a"}},
                    {"key": "flag", "match": {"value": True}},
                    {"key": "n", "range": {"lt": 10}},
                ],
                "min_count": 2,
            }
        },
        lambda r: (r["s"] == "a") + r["flag"] + (r["n"] < 10) >= 2,
    ),
    (
        "nested clauses",
        {
            "must": [
                {"key": "flag", "match": {"value": True}},
                {
                    "should": [
                        {"key": "n", "match": {"value": 4}},
                        {"must_not": [{"key": "n", "range": {"lt": 20}}]},
                    ]
                },
            ]
        },
        lambda r: r["flag"] and (r["n"] == 4 or r["n"] >= 20),
    ),
    (
        "nested objects",
        {
            "must": [
                {
                    "nested": {
                        "key": "items",
                        "filter": {
                            "must": [
                                {"key": "a", "match": {"value": 0}},
                                {"key": "b", "match": {"value": 0}},
                            ]
                        },
                    }
                }
            ]
        },
        lambda r: any(x["a"] == 0 and x["b"] == 0 for x in r["items"]),
    ),
    (
        "except",
        {"must": [{"key": "s", "match": {"except": ["a", "b"]}}]},
        lambda r: r["s"] == "c",
    ),
    (
        "count of values",
        {"tags": {"values_count": {"gte": 2}}},
        lambda _: True,
    ),
    (
        "box",
        {
            "where": {
                "geo_bounding_box": {
                    "top_left": {"lon": 5.5, "lat": 49.0},
                    "bottom_right": {"lon": 8.5, "lat": 47.0},
                }
            }
        },
        lambda r: 5.5 <= r["where"]["lon"] <= 8.5,
    ),
    (
        "circle",
        {
            "where": {
                "geo_radius": {"center": {"lon": 4.0, "lat": 48.0}, "radius": 1000}
            }
        },
        lambda r: r["n"] == 2,
    ),
    (
        "polygon",
        {
            "where": {
                "geo_polygon": {
                    "exterior": {
                        "points": [
                            {"lon": 4.5, "lat": 47.0},
                            {"lon": 4.5, "lat": 49.0},
                            {"lon": 6.5, "lat": 49.0},
                            {"lon": 6.5, "lat": 47.0},
                            {"lon": 4.5, "lat": 47.0},
                        ]
                    }
                }
            }
        },
        lambda r: r["n"] in {3, 4},
    ),
    ("nothing", {}, lambda _: True),
    ("none", None, lambda _: True),
]


@pytest.mark.parametrize(
    ("chosen", "check"),
    [pytest.param(f, c, id=i.replace(" ", "_")) for i, f, c in FILTERS],
)
async def test_filter_chooses_exactly_its_points(
    any_store: QdrantStore, name: str, chosen: Any, check: Check
) -> None:
    """A filter finds the same points by count, scroll and search."""
    await fill(any_store, name)
    expected = {i for i, r in ROWS.items() if check(r)}
    assert await any_store.count(name, chosen) == len(expected)
    found = [point.id async for point in any_store.iter_points(name, filter=chosen)]
    assert found == sorted(expected)
    hits = await any_store.search(name, unit(3), 100, chosen)
    assert {hit.id for hit in hits} == expected


async def test_filters_of_the_client_are_accepted(
    any_store: QdrantStore, name: str
) -> None:
    """A ``Filter`` of ``qdrant_client.models`` works as its plain form does."""
    from qdrant_client import models

    await fill(any_store, name)
    chosen = models.Filter(
        must=[
            models.FieldCondition(key="s", match=models.MatchValue(value="a")),
            models.FieldCondition(key="n", range=models.Range(gte=6, lt=13)),
        ],
        must_not=[models.HasIdCondition(has_id=[9])],
    )
    assert await any_store.count(name, chosen) == 2
    hits = await any_store.search(name, unit(3), 10, chosen)
    assert {hit.id for hit in hits} == {6, 12}
    within = models.Filter(
        must=[
            models.FieldCondition(
                key="ts", range=models.DatetimeRange(lt=START + timedelta(hours=3))
            )
        ]
    )
    assert await any_store.count(name, within) == 2


class Colour(enum.Enum):
    """A value that is not JSON by itself."""

    A = "a"


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({"s": Colour.A}, id="enum"),
        pytest.param({"n": np.int64(3)}, id="numpy"),
        pytest.param({"s": ("a", "b")}, id="tuple"),
        pytest.param({"u": UUID(A_UUID)}, id="uuid"),
    ],
)
async def test_filter_values_of_python_are_accepted(
    any_store: QdrantStore, name: str, chosen: Any
) -> None:
    """Enums, numbers of numpy, tuples and UUIDs may stand in a filter."""
    await fill(any_store, name)
    await any_store.upsert_points(name, [Point(90, unit(1), {"u": A_UUID})])
    assert await any_store.count(name, chosen) > 0


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param("s = 'a'", id="text"),
        pytest.param({"s": {}}, id="no_condition"),
        pytest.param({"s": {"like": "a"}}, id="unknown_condition"),
        pytest.param({"must": [], "s": "a"}, id="clause_beside_field"),
        pytest.param({"must": ["a"]}, id="no_mapping"),
        pytest.param({"must": [{"what": 1}]}, id="unknown_key"),
        pytest.param({"must": [{"key": "s", "equals": 1}]}, id="unknown_match"),
        pytest.param({"n": float("nan")}, id="nan"),
        pytest.param({"n": object()}, id="object"),
        pytest.param({"ts": {"gte": datetime(2026, 1, 1)}}, id="naive"),
        pytest.param({"has_id": [-1]}, id="bad_id"),
        pytest.param({"s": {"any": "a"}}, id="any_no_list"),
        pytest.param({"must": [{"key": "s", "match": {"lookslike": 1}}]}, id="match"),
    ],
)
async def test_wrong_filter_is_refused(
    any_store: QdrantStore, name: str, chosen: Any
) -> None:
    """What is no filter raises ``InvalidRecord``."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.count(name, chosen)


# Ids


@pytest.mark.parametrize(
    ("given", "back"),
    [
        (0, 0),
        (1, 1),
        (2**63, 2**63),
        (2**64 - 1, 2**64 - 1),
        (np.int32(9), 9),
        (UUID(A_UUID), A_UUID),
        (A_UUID, A_UUID),
        (A_UUID.upper(), A_UUID),
        ("error-17", "error-17"),
        ("with space / slash", "with space / slash"),
        ("été", "été"),
        (A_UUID.replace("-", ""), A_UUID.replace("-", "")),
        ("17", "17"),
    ],
)
async def test_id_comes_back_as_it_was_given(
    any_store: QdrantStore, name: str, given: Any, back: Any
) -> None:
    """Integers and UUIDs are native; any other text is kept and given back."""
    await any_store.ensure_collection_exists(name, 3)
    await any_store.upsert_points(name, [Point(given, unit(1), {"x": 1})])
    (hit,) = await any_store.search(name, unit(1), 5)
    assert (hit.id, hit.payload) == (back, {"x": 1})
    (point,) = await any_store.retrieve(name, [given], with_payload=False)
    assert (point.id, point.payload) == (back, {})
    assert [p.id async for p in any_store.iter_points(name)] == [back]
    assert await any_store.count(name, {"has_id": [given]}) == 1
    await any_store.delete_points(name, [given])
    assert await any_store.count(name) == 0


@pytest.mark.parametrize(
    "wrong", [-1, 2**64, True, 1.5, None, "", b"x", [1], "a\ud800"]
)
async def test_wrong_id_is_refused(
    any_store: QdrantStore, name: str, wrong: Any
) -> None:
    """An id that no engine can hold is refused by name, before anything is sent."""
    await any_store.ensure_collection_exists(name, 3)
    with pytest.raises(InvalidRecord) as caught:
        await any_store.upsert_points(name, [Point(1, unit(1)), Point(wrong, unit(2))])
    assert (caught.value.field, caught.value.index) == ("id", 1)
    assert await any_store.count(name) == 0


# Vectors


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        array.array("f", [1, 2, 3]),
        array.array("d", [1, 2, 3]),
        np.array([1, 2, 3], dtype=np.float32),
        np.array([1, 2, 3], dtype=np.float64),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([1, 2, 3], dtype=np.int64),
        np.array([1, 0, 2, 0, 3, 0], dtype=np.float32)[::2],
        np.array([3, 2, 1], dtype=np.float32)[::-1],
        memoryview(array.array("f", [1, 2, 3])),
        range(1, 4),
        [np.float32(1), np.float64(2), 3],
    ],
)
async def test_vectors_of_every_kind_are_accepted(
    any_store: QdrantStore, name: str, vector: Any
) -> None:
    """Lists, tuples, arrays, numpy and buffers all say the same."""
    await any_store.ensure_collection_exists(name, 3, "Euclid")
    await any_store.upsert_points(name, [Point(1, vector)])
    (point,) = await any_store.retrieve(name, [1], with_vectors=True)
    assert point.vector == [1.0, 2.0, 3.0]
    (hit,) = await any_store.search(name, vector, 1)
    assert hit.score == 0.0


BAD_VECTORS = [
    ([1.0, 2.0], DimensionMismatch),
    ([1.0] * 4, DimensionMismatch),
    ([], DimensionMismatch),
    ([1.0, float("nan"), 0.0], InvalidVector),
    ([1.0, float("inf"), 0.0], InvalidVector),
    ([1.0, float("-inf"), 0.0], InvalidVector),
    ([1.0, 1e300, 0.0], InvalidVector),
    (np.array([1, np.nan, 2], dtype=np.float32), InvalidVector),
    (np.ones((1, 3), dtype=np.float32), InvalidVector),
    (["a", "b", "c"], InvalidVector),
    ("abc", InvalidVector),
    (b"raw", InvalidVector),
    (None, InvalidVector),
    (7, InvalidVector),
    ([[1.0], [2.0], [3.0]], InvalidVector),
    ({"other": [1.0, 2.0, 3.0]}, InvalidVector),
    ({}, InvalidVector),
    (SparseVector([1], [1.0]), InvalidVector),
]


@pytest.mark.parametrize(("vector", "error"), BAD_VECTORS)
async def test_one_bad_vector_keeps_the_whole_batch_out(
    any_store: QdrantStore, name: str, vector: Any, error: type[InvalidVector]
) -> None:
    """The error names index and field, and nothing of the batch is written."""
    await any_store.ensure_collection_exists(name, 3)
    points = [Point(i, unit(i)) for i in range(20)]
    points[13] = Point(13, vector)
    with pytest.raises(error) as caught:
        await any_store.upsert_points(name, points)
    assert caught.value.index == 13
    assert caught.value.collection == name
    assert caught.value.field
    assert await any_store.count(name) == 0


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        ([1.0, 2.0], DimensionMismatch),
        ([1.0, float("nan"), 0.0], InvalidVector),
        (["a", "b", "c"], InvalidVector),
        (SparseVector([1], [1.0]), InvalidVector),
    ],
)
async def test_bad_query_vector_is_refused(
    any_store: QdrantStore, name: str, vector: Any, error: type[InvalidVector]
) -> None:
    """A query vector is held to the same rules; its error has no index."""
    await fill(any_store, name)
    with pytest.raises(error) as caught:
        await any_store.search(name, vector, 3)
    assert caught.value.index is None


async def test_one_bad_point_among_ten_thousand_is_named(
    any_store: QdrantStore, name: str
) -> None:
    """A large batch is checked to its end before its first request leaves."""
    await any_store.ensure_collection_exists(name, 3)
    points = [Point(i, [1.0, 0.5, 0.25]) for i in range(10_000)]
    points[9_876] = Point(9_876, [1.0, 0.5])
    with pytest.raises(DimensionMismatch) as caught:
        await any_store.upsert_points(name, points)
    assert (caught.value.index, caught.value.field) == (9_876, "vector")
    assert (caught.value.expected, caught.value.got) == (3, 2)
    assert await any_store.count(name) == 0


# Payloads

PAYLOADS: list[Row] = [
    {},
    {"a": None},
    {"a": True, "b": False},
    {"a": -(2**63), "b": 2**63 - 1},
    {"a": 0.1, "b": -1e-300, "c": 1e300},
    {"a": "été \u4e2d\u6587 \U0001f600", "b": ""},
    {"a": "nul \x00 and \x1b[31m"},
    {"a": [1, [2, [3]], {"b": [None, True]}]},
    {"é à": {"deep": {"er": {"x": 1}}}},
    {"a.b": 1},
    {"text": "x" * 20_000},
]


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_payload_comes_back_as_it_was_given(
    any_store: QdrantStore, name: str, payload: Row
) -> None:
    """JSON values of every kind survive the way there and back."""
    await any_store.ensure_collection_exists(name, 3)
    await any_store.upsert_points(name, [Point(1, unit(1), payload)])
    (point,) = await any_store.retrieve(name, [1])
    assert point.payload == payload
    assert [type(v) for v in point.payload.values()] == [
        type(v) for v in payload.values()
    ]


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"a": float("nan")}, "payload.a"),
        ({"a": {"b": [1, float("inf")]}}, "payload.a.b"),
        ({1: "a"}, "payload"),
        ({"a": {2: "b"}}, "payload.a"),
        ({"a": object()}, "payload"),
        ({"a": {1, 2}}, "payload"),
        ({"a": b"raw"}, "payload"),
        ({"a": 2**80}, "payload"),
        ({"a": "lone \ud800"}, "payload"),
        ("text", "payload"),
        ([1], "payload"),
        ({"_fm_id": "x"}, "payload._fm_id"),
        ({"text": "x" * 5_000_000}, "payload"),
    ],
)
async def test_wrong_payload_is_refused(
    any_store: QdrantStore, name: str, payload: Any, field: str
) -> None:
    """What JSON cannot say, or is too long, is refused by field and index."""
    await any_store.ensure_collection_exists(name, 3)
    with pytest.raises(InvalidRecord) as caught:
        await any_store.upsert_points(
            name, [Point(1, unit(1)), Point(2, unit(2), payload)]
        )
    assert (caught.value.field, caught.value.index) == (field, 1)
    assert await any_store.count(name) == 0


async def test_dates_and_uuids_become_text_in_a_payload(
    any_store: QdrantStore, name: str
) -> None:
    """Values that JSON writes as text are stored so, and can be filtered."""
    await any_store.ensure_collection_exists(name, 3)
    payload = {"at": START, "id": UUID(A_UUID), "colour": Colour.A, "t": (1, 2)}
    await any_store.upsert_points(name, [Point(1, unit(1), payload)])
    (point,) = await any_store.retrieve(name, [1])
    assert point.payload == {
        "at": "2026-01-01T00:00:00+00:00",
        "id": A_UUID,
        "colour": "a",
        "t": [1, 2],
    }
    assert await any_store.count(name, {"at": {"lte": START}}) == 1


# Search


def score(distance: str, a: list[float], b: list[float]) -> float:
    """Return Qdrant's score of two vectors."""
    x, y = np.array(a), np.array(b)
    return float(
        {
            "Cosine": lambda: x @ y / np.linalg.norm(x) / np.linalg.norm(y),
            "Dot": lambda: x @ y,
            "Euclid": lambda: np.linalg.norm(x - y),
            "Manhattan": lambda: np.abs(x - y).sum(),
        }[distance]()
    )


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid", "Manhattan"])
async def test_search_ranks_by_the_distance(
    any_store: QdrantStore, name: str, distance: str
) -> None:
    """Best first, with the score of the distance that the collection has."""
    await fill(any_store, name, distance)
    probe = [0.9, 0.45, 0.2]
    found = await any_store.search(name, probe, 7)
    scores = {i: score(distance, probe, unit(i)) for i in ROWS}
    order = sorted(
        scores, key=scores.__getitem__, reverse=distance in {"Cosine", "Dot"}
    )
    assert [hit.id for hit in found] == order[:7]
    for hit in found:
        assert isinstance(hit.id, int)
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-5)


@pytest.mark.parametrize(("offset", "limit"), [(0, 5), (5, 5), (20, 10), (24, 5)])
async def test_search_goes_by_pages(
    any_store: QdrantStore, name: str, offset: int, limit: int
) -> None:
    """An offset skips the best, a limit ends the list."""
    await fill(any_store, name)
    whole = await any_store.search(name, unit(2), 100)
    part = await any_store.search(name, unit(2), limit, offset=offset)
    assert [h.id for h in part] == [h.id for h in whole][offset : offset + limit]


async def test_search_stops_at_a_threshold(any_store: QdrantStore, name: str) -> None:
    """Worse points than the threshold are left out."""
    await fill(any_store, name)
    found = await any_store.search(name, unit(4), 100, score_threshold=0.9)
    assert 0 < len(found) < len(ROWS)
    assert all(hit.score >= 0.9 for hit in found)


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (True, set(ROWS[1])),
        (False, set()),
        (["n", "s"], {"n", "s"}),
        (["missing"], set()),
    ],
)
async def test_payload_is_returned_as_asked(
    any_store: QdrantStore, name: str, wanted: Any, keys: set[str]
) -> None:
    """All of it, none of it, or some fields."""
    await fill(any_store, name)
    (hit,) = await any_store.search(name, unit(1), 1, with_payload=wanted)
    assert set(hit.payload) == keys
    (point,) = await any_store.retrieve(name, [1], with_payload=wanted)
    assert set(point.payload) == keys


async def test_vectors_are_returned_as_asked(any_store: QdrantStore, name: str) -> None:
    """Without being asked for, vectors stay where they are."""
    await fill(any_store, name, "Dot")
    (hit,) = await any_store.search(name, unit(1), 1, {"n": 1})
    assert hit.vector is None
    (hit,) = await any_store.search(name, unit(1), 1, {"n": 1}, with_vectors=True)
    assert hit.vector == pytest.approx(unit(1))


async def test_search_by_id_leaves_the_example_out(
    any_store: QdrantStore, name: str
) -> None:
    """A stored point can stand for its vector; it is not its own neighbour."""
    await fill(any_store, name)
    found = await any_store.search(name, 5, 3)
    assert {hit.id for hit in found} == {4, 6, 3} or {hit.id for hit in found} == {
        4,
        6,
        7,
    }
    with pytest.raises(RecordNotFound):
        await any_store.search(name, 4711, 3)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True, None])
async def test_wrong_limit_is_refused(
    any_store: QdrantStore, name: str, limit: Any
) -> None:
    """A limit is a positive integer."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.search(name, unit(1), limit)


@pytest.mark.parametrize("strategy", ["average_vector", "best_score", "sum_scores"])
async def test_recommend_goes_from_examples(
    any_store: QdrantStore, name: str, strategy: str
) -> None:
    """Points like the positive and unlike the negative examples come first."""
    await fill(any_store, name)
    found = await any_store.recommend(name, [3, 4], [20], strategy=strategy, limit=4)
    assert {hit.id for hit in found} & {2, 5}
    assert not {hit.id for hit in found} & {3, 4, 20}
    mixed = await any_store.recommend(name, [unit(3), 4], strategy=strategy, limit=2)
    assert len(mixed) == 2


async def test_recommend_needs_an_example(any_store: QdrantStore, name: str) -> None:
    """No example, an unknown strategy or an unknown point are refused."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.recommend(name, [])
    with pytest.raises(InvalidRecord):
        await any_store.recommend(name, [1], strategy="best")
    with pytest.raises(RecordNotFound):
        await any_store.recommend(name, [4711])


@pytest.mark.parametrize("unknown", [4711, "an entry", A_UUID])
async def test_unknown_example_is_named_as_it_was_given(
    any_store: QdrantStore, name: str, unknown: int | str
) -> None:
    """The error shows the caller's id, not what the engine makes of it."""
    await fill(any_store, name)
    calls = [
        lambda: any_store.recommend(name, [3, unknown]),
        lambda: any_store.search(name, unknown, 3),
        lambda: any_store.query(
            name, prefetch=[{"query": unknown}], fusion="rrf", limit=3
        ),
    ]
    for call in calls:
        with pytest.raises(RecordNotFound) as caught:
            await call()
        assert caught.value.key == unknown
        assert caught.value.table == name


# Named and sparse vectors

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


async def test_named_vectors_are_searched_by_name(
    any_store: QdrantStore, name: str
) -> None:
    """Each vector is its own space; points without it are not found there."""
    await fill_hybrid(any_store, name)
    found = await any_store.search(name, unit(6), 3, using="dense")
    assert found[0].id == 6
    (only,) = await any_store.search(name, [1.0, 1.0], 3, using="other")
    assert only.id == 50
    by_term = await any_store.search(name, SparseVector([17], [1.0]), 5, using="sparse")
    assert [hit.id for hit in by_term] == [7]
    for wrong in ("", "nope"):
        with pytest.raises(InvalidVector):
            await any_store.search(name, unit(6), 3, using=wrong)


async def test_named_vectors_come_back_by_name(
    any_store: QdrantStore, name: str
) -> None:
    """Sparse ones as ``SparseVector``, dense ones as lists."""
    await fill_hybrid(any_store, name)
    (point,) = await any_store.retrieve(name, [2], with_vectors=True)
    assert isinstance(point.vector, dict)
    assert point.vector["sparse"] == SparseVector([2, 12], [1.0, 2.0])
    assert set(point.vector) == {"dense", "sparse"}
    (part,) = await any_store.retrieve(name, [2], with_vectors=["dense"])
    assert isinstance(part.vector, dict)
    assert set(part.vector) == {"dense"}


async def test_fusion_joins_two_searches(any_store: QdrantStore, name: str) -> None:
    """A point that both parts rank first leads; ranks decide, not scores."""
    await fill_hybrid(any_store, name)
    stages = [
        {"query": unit(4), "using": "dense", "limit": 5},
        {"query": SparseVector([14], [1.0]), "using": "sparse", "limit": 5},
    ]
    for fusion in ("rrf", "dbsf"):
        found = await any_store.query(name, prefetch=stages, fusion=fusion, limit=3)
        assert found[0].id == 4
    weighted = await any_store.query(
        name, prefetch=stages, fusion={"rrf": {"k": 10}}, limit=3
    )
    assert weighted[0].id == 4


async def test_hybrid_search_takes_an_embedding(
    any_store: QdrantStore, name: str
) -> None:
    """Dense and sparse part are fused; one part alone will do."""
    from fm_storage.vectors import Embedding

    await fill_hybrid(any_store, name)
    both = Embedding(dense=unit(4), sparse=SparseVector([14], [1.0]))
    found = await any_store.search_hybrid(name, both, 3, {"n": {"lt": 12}})
    assert found[0].id == 4
    one: Embedding = Embedding(dense=None, sparse=SparseVector([15], [1.0]))
    assert [h.id for h in await any_store.search_hybrid(name, one, 3)] == [5]
    assert await any_store.search_hybrid(name, Embedding(), 3) == []


async def test_hybrid_search_of_a_plain_vector_names_the_remedy(
    any_store: QdrantStore, name: str
) -> None:
    """A list instead of an embedding is refused, with the call that was meant."""
    await fill_hybrid(any_store, name)
    for wrong in (unit(4), None, SparseVector([1], [1.0])):
        with pytest.raises(InvalidRecord, match=r"embed\(\[text\]\)"):
            await any_store.search_hybrid(name, wrong, 3)


async def test_prefetch_is_ranked_again(any_store: QdrantStore, name: str) -> None:
    """An outer query ranks what the inner one chose, and its filter counts."""
    await fill_hybrid(any_store, name)
    found = await any_store.query(
        name,
        unit(9),
        using="dense",
        prefetch={
            "query": unit(2),
            "using": "dense",
            "limit": 4,
            "filter": {"n": {"not": 2}},
        },
        limit=10,
    )
    assert len(found) == 4
    assert found[0].id in {4, 5}
    assert 2 not in {hit.id for hit in found}


@pytest.mark.parametrize(
    "vector",
    [
        SparseVector([1, 1], [1.0, 2.0]),
        SparseVector([1, 2], [1.0]),
        SparseVector([-1], [1.0]),
        SparseVector([2**32], [1.0]),
        SparseVector([1], [float("nan")]),
        [1.0, 2.0, 3.0],
    ],
)
async def test_bad_sparse_vector_is_refused(
    any_store: QdrantStore, name: str, vector: Any
) -> None:
    """Terms are distinct 32-bit numbers with finite weights."""
    await any_store.ensure_collection_exists(name, HYBRID)
    with pytest.raises(InvalidVector) as caught:
        await any_store.upsert_points(name, [Point(1, {"sparse": vector})])
    assert (caught.value.index, caught.value.field) == (0, "sparse")


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": [1.0, 0.0, 0.0], "fusion": "rrf"},
        {"fusion": "best"},
        {"query": {"unknown": 1}},
        {"query": {}},
        {"prefetch": {"query": [1.0, 0.0, 0.0], "where": 1}},
    ],
)
async def test_wrong_query_is_refused(
    any_store: QdrantStore, name: str, arguments: Any
) -> None:
    """What is no query raises ``InvalidRecord``."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.query(name, **arguments)


# Writing


# Queries of other kinds

QUERIES: list[tuple[str, Any]] = [
    (
        "discover",
        {
            "discover": {
                "target": 5,
                "context": [{"positive": 4, "negative": 20}],
            }
        },
    ),
    ("discover alone", {"discover": {"target": unit(5)}}),
    ("context", {"context": [{"positive": 4, "negative": 20}]}),
    ("one context", {"context": {"positive": unit(4), "negative": 20}}),
    ("sample", {"sample": "random"}),
    ("nearest", {"nearest": unit(5)}),
    ("mmr", {"nearest": unit(5), "mmr": {"diversity": 0.3, "candidates_limit": 24}}),
    ("recommend", {"recommend": {"positive": [4, unit(5)], "negative": [20]}}),
]


@pytest.mark.parametrize(
    "query", [pytest.param(q, id=i.replace(" ", "_")) for i, q in QUERIES]
)
async def test_query_of_every_kind_is_answered(
    any_store: QdrantStore, name: str, query: Any
) -> None:
    """A query finds distinct points and none of its own examples."""
    await fill(any_store, name)
    found = await any_store.query(name, query, limit=6)
    ids = {hit.id for hit in found}
    assert len(ids) == 6
    examples = {i for i in (4, 5, 20) if str(i) in _ids_of(query)}
    assert not ids & examples
    assert all(hit.payload == ROWS[int(hit.id)] for hit in found)


def _ids_of(query: Any) -> set[str]:
    if isinstance(query, dict):
        return {i for value in query.values() for i in _ids_of(value)}
    if isinstance(query, list):
        return {i for value in query for i in _ids_of(value)}
    return {str(query)} if isinstance(query, int) else set()


async def test_query_in_the_order_of_a_field(any_store: QdrantStore, name: str) -> None:
    """``order_by`` takes a field with an index, up or down."""
    await fill(any_store, name)
    await any_store.create_payload_index(name, "n", "integer")
    up = await any_store.query(name, {"order_by": "n"}, limit=3)
    assert [hit.id for hit in up] == [1, 2, 3]
    down = {"order_by": {"key": "n", "direction": "desc"}}
    assert [h.id for h in await any_store.query(name, down, limit=3)] == [24, 23, 22]


async def test_queries_of_the_client_are_accepted(
    any_store: QdrantStore, name: str
) -> None:
    """Objects of ``qdrant_client.models`` mean what their plain form does."""
    from qdrant_client import models

    await fill(any_store, name)
    pair = models.ContextPair(positive=4, negative=20)
    for asked, plain in (
        (models.NearestQuery(nearest=unit(5)), {"nearest": unit(5)}),
        (
            models.DiscoverQuery(
                discover=models.DiscoverInput(target=5, context=[pair])
            ),
            QUERIES[0][1],
        ),
        (
            models.RecommendQuery(
                recommend=models.RecommendInput(
                    positive=[4], strategy=models.RecommendStrategy.BEST_SCORE
                )
            ),
            {"recommend": {"positive": [4], "strategy": "best_score"}},
        ),
    ):
        found = await any_store.query(name, asked, limit=5)
        same = await any_store.query(name, plain, limit=5)
        assert sorted(h.score for h in found) == sorted(h.score for h in same)
    stage = models.Prefetch(query=unit(5), limit=4, filter=models.Filter(must=[]))
    inner = await any_store.query(
        name, unit(2), prefetch=stage, limit=9, params={"exact": True}
    )
    assert len(inner) == 4


@pytest.mark.parametrize(
    ("query", "more"),
    [
        ({}, {}),
        ({"frob": 1}, {}),
        (None, {"fusion": "best"}),
        ([1.0, 0.0, 0.0], {"fusion": "rrf"}),
        ([1.0, 0.0, 0.0], {"prefetch": [{"frob": 1}]}),
        ([1.0, 0.0, 0.0], {"prefetch": [{"query": [1.0, 0, 0], "limit": 0.5}]}),
        ([1.0, 0.0, 0.0], {"offset": -1}),
    ],
)
async def test_malformed_query_is_refused(
    any_store: QdrantStore, name: str, query: Any, more: dict[str, Any]
) -> None:
    """What is no query is a typed error before anything is sent."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.query(name, query, **more)


# Formulas

Value = Callable[[Row], float]
FORMULAS: list[tuple[str, Any, Value]] = [
    ("field", "n", lambda r: r["n"]),
    ("sum", {"sum": ["n", 1.5]}, lambda r: r["n"] + 1.5),
    ("product", {"mult": [2, "f"]}, lambda r: r["n"]),
    ("quotient", {"div": {"left": "n", "right": 4}}, lambda r: r["n"] / 4),
    (
        "quotient by zero",
        {"div": {"left": "n", "right": {"sum": ["n", -7]}, "by_zero_default": 99}},
        lambda r: r["n"] / (r["n"] - 7) if r["n"] != 7 else 99,
    ),
    ("negative", {"neg": "n"}, lambda r: -r["n"]),
    ("absolute", {"abs": {"neg": "n"}}, lambda r: r["n"]),
    ("root", {"sqrt": "n"}, lambda r: math.sqrt(r["n"])),
    ("power", {"pow": {"base": "n", "exponent": 2}}, lambda r: r["n"] ** 2),
    ("exponential", {"exp": {"neg": "f"}}, lambda r: math.exp(-r["f"])),
    ("logarithms", {"sum": [{"ln": "n"}, {"log10": "n"}]}, lambda r: _logs(r["n"])),
    ("inside an object", "inner.k", lambda r: r["inner"]["k"]),
    (
        "condition",
        {"key": "s", "match": {"value": "a"}},
        lambda r: 1.0 if r["s"] == "a" else 0.0,
    ),
    (
        "time",
        {"sum": [{"datetime_key": "ts"}, {"neg": {"datetime": START.isoformat()}}]},
        lambda r: 3600.0 * r["n"],
    ),
    (
        "exponential decay",
        {"exp_decay": {"x": "n", "target": 4, "scale": 5, "midpoint": 0.5}},
        lambda r: 0.5 ** (abs(r["n"] - 4) / 5),
    ),
    (
        "gaussian decay",
        {"gauss_decay": {"x": "n", "target": 4, "scale": 5, "midpoint": 0.25}},
        lambda r: 0.25 ** ((abs(r["n"] - 4) / 5) ** 2),
    ),
    (
        "linear decay",
        {"lin_decay": {"x": "n", "target": 4, "scale": 5}},
        lambda r: max(0.0, 1 - 0.5 * abs(r["n"] - 4) / 5),
    ),
    (
        "distance",
        {"geo_distance": {"origin": {"lon": 3.0, "lat": 48.0}, "to": "where"}},
        lambda r: abs(r["n"] - 1) * 74_500.0,
    ),
]


def _logs(number: float) -> float:
    return math.log(number) + math.log10(number)


@pytest.mark.parametrize(
    ("formula", "value"),
    [pytest.param(f, v, id=i.replace(" ", "_")) for i, f, v in FORMULAS],
)
async def test_formula_ranks_what_a_prefetch_found(
    any_store: QdrantStore, name: str, formula: Any, value: Value
) -> None:
    """A formula's value becomes the score, and the best come first."""
    await fill(any_store, name)
    found = await any_store.query(
        name,
        {"formula": formula},
        prefetch=[{"query": unit(3), "limit": 24}],
        limit=24,
    )
    assert len(found) == 24
    for hit in found:
        expected = value(ROWS[int(hit.id)])
        assert hit.score == pytest.approx(expected, rel=2e-2, abs=1e-5)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


async def test_formula_takes_scores_defaults_and_the_client_s_form(
    any_store: QdrantStore, name: str
) -> None:
    """``$score`` is the prefetch's; a missing field takes its default."""
    from qdrant_client import models

    await fill(any_store, name)
    stage = [{"query": unit(3), "limit": 5}]
    plain = await any_store.search(name, unit(3), 5)
    raised = await any_store.query(
        name,
        {"formula": {"sum": ["$score", "lift"]}, "defaults": {"lift": 10}},
        prefetch=stage,
        limit=5,
    )
    scores = {hit.id: hit.score + 10 for hit in plain}
    assert {hit.id: hit.score for hit in raised} == pytest.approx(scores, abs=1e-4)
    asked = models.FormulaQuery(
        formula=models.SumExpression(
            sum=["$score", models.MultExpression(mult=[100.0, "n"])]
        )
    )
    found = await any_store.query(name, asked, prefetch=stage, limit=5)
    ids = [int(hit.id) for hit in found]
    assert ids == sorted(ids, reverse=True)


@pytest.mark.parametrize(
    "formula", [None, True, {"frob": [1]}, {"sum": 5}, {"div": {"left": 1}}]
)
async def test_wrong_formula_is_refused(
    any_store: QdrantStore, name: str, formula: Any
) -> None:
    """What is no formula is a typed error on every engine."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord):
        await any_store.query(
            name,
            {"formula": formula},
            prefetch=[{"query": unit(3), "limit": 5}],
        )


async def test_upsert_replaces_the_whole_point(
    any_store: QdrantStore, name: str
) -> None:
    """The same id again replaces vector and payload."""
    await any_store.ensure_collection_exists(name, 3, "Dot")
    await any_store.upsert_points(name, [Point(1, unit(1), {"a": 1, "b": 2})])
    await any_store.upsert_points(name, [Point(1, unit(9), {"a": 3})])
    (point,) = await any_store.retrieve(name, [1], with_vectors=True)
    assert point.payload == {"a": 3}
    assert point.vector == pytest.approx(unit(9))


async def test_last_of_equal_ids_in_a_batch_wins(
    any_store: QdrantStore, name: str
) -> None:
    """As if the points had been written one after another."""
    await any_store.ensure_collection_exists(name, 3)
    points = [Point(i % 5, unit(i), {"n": i}) for i in range(50)]
    assert await any_store.upsert_points(name, points) == 50
    found = await any_store.retrieve(name, range(5))
    assert [point.payload["n"] for point in found] == [45, 46, 47, 48, 49]


async def test_empty_batch_is_nothing(any_store: QdrantStore, name: str) -> None:
    """No points, no request, no error."""
    await any_store.ensure_collection_exists(name, 3)
    assert await any_store.upsert_points(name, []) == 0


async def test_upsert_takes_any_iterable(any_store: QdrantStore, name: str) -> None:
    """A generator is as good as a list; progress ends at the total."""
    await any_store.ensure_collection_exists(name, 3)
    said: list[tuple[int, int | None]] = []
    count = await any_store.upsert_points(
        name,
        (Point(i, unit(i)) for i in range(2_500)),
        progress=lambda done, total: said.append((done, total)),
    )
    assert count == await any_store.count(name) == 2_500
    assert said[-1] == (2_500, 2_500)
    assert len(said) >= 3


async def test_client_points_are_accepted(any_store: QdrantStore, name: str) -> None:
    """``PointStruct`` of ``qdrant_client.models`` may be given instead."""
    from qdrant_client import models

    await any_store.ensure_collection_exists(name, 3)
    point = models.PointStruct(id=3, vector=unit(3), payload={"a": 1})
    await any_store.upsert_points(name, [point])  # type: ignore[list-item]  # the point of this test
    assert (await any_store.retrieve(name, [3]))[0].payload == {"a": 1}
    with pytest.raises(InvalidRecord):
        await any_store.upsert_points(name, [{"id": 1}])  # type: ignore[list-item]  # what is refused


async def test_newer_point_replaces_and_older_does_not(
    any_store: QdrantStore, name: str
) -> None:
    """With ``newer_by`` only a greater number replaces; absent points go in."""
    await any_store.ensure_collection_exists(name, 3)
    big = 2**53 - 10

    def point(i: int, version: int, text: str) -> Point:
        return Point(i, unit(i), {"_ver": version, "t": text})

    await any_store.upsert_points(name, [Point(9, unit(9), {"t": "without"})])
    await any_store.upsert_points(
        name, [point(1, 5, "a"), point(2, big, "a"), point(9, 1, "a")], newer_by="_ver"
    )
    await any_store.upsert_points(
        name,
        [point(1, 4, "old"), point(2, big + 1, "new"), point(3, 1, "first")],
        newer_by="_ver",
    )
    await any_store.upsert_points(name, [point(1, 5, "same")], newer_by="_ver")
    found = await any_store.retrieve(name, [1, 2, 3, 9])
    assert [p.payload["t"] for p in found] == ["a", "new", "first", "a"]


async def test_newest_of_equal_ids_in_a_batch_wins(
    any_store: QdrantStore, name: str
) -> None:
    """With ``newer_by`` the order inside a batch does not matter."""
    await any_store.ensure_collection_exists(name, 3)
    points = [Point(1, unit(v), {"_ver": v}) for v in (3, 9, 5)]
    await any_store.upsert_points(name, points, newer_by="_ver")
    assert (await any_store.retrieve(name, [1]))[0].payload["_ver"] == 9


@pytest.mark.parametrize("version", [None, "7", True])
async def test_newer_by_needs_a_number(
    any_store: QdrantStore, name: str, version: Any
) -> None:
    """A point without the number is refused by field."""
    await any_store.ensure_collection_exists(name, 3)
    payload = {} if version is None else {"_ver": version}
    with pytest.raises(InvalidRecord) as caught:
        await any_store.upsert_points(
            name, [Point(1, unit(1), payload)], newer_by="_ver"
        )
    assert caught.value.field == "payload._ver"


async def test_delete_by_id_and_by_filter(any_store: QdrantStore, name: str) -> None:
    """Chosen points go, absent ids are fine, the rest stays."""
    await fill(any_store, name)
    await any_store.delete_points(name, [1, 2, 999])
    await any_store.delete_points(name, 3)
    await any_store.delete_points(name, {"s": "a"})
    left = {i for i, r in ROWS.items() if r["s"] != "a"} - {1, 2, 3}
    assert {p.id async for p in any_store.iter_points(name)} == left
    await any_store.delete_points(name, [])
    everything: Any
    for everything in ({}, None):
        with pytest.raises((InvalidRecord, TypeError)):
            await any_store.delete_points(name, everything)
    assert await any_store.count(name) == len(left)


async def test_delete_spares_newer_points(any_store: QdrantStore, name: str) -> None:
    """With ``up_to`` a point newer than its bound stays."""
    await any_store.ensure_collection_exists(name, 3)
    await any_store.upsert_points(
        name,
        [Point(i, unit(i), {"_ver": 10 * i}) for i in range(1, 5)]
        + [Point("text", unit(5), {"_ver": 7}), Point(6, unit(6))],
    )
    await any_store.delete_points(
        name,
        [1, 2, 3, "text", 6, 77],
        newer_by="_ver",
        up_to={1: 10, 2: 19, 3: 31, "text": 7, 6: 1, 77: 1},
    )
    assert {p.id async for p in any_store.iter_points(name)} == {2, 4}
    with pytest.raises(InvalidRecord):
        await any_store.delete_points(name, [2], newer_by="_ver", up_to={4: 1})
    with pytest.raises(InvalidRecord):
        await any_store.delete_points(name, [2], newer_by="_ver")


async def test_payload_is_merged_or_replaced(any_store: QdrantStore, name: str) -> None:
    """By id or by filter, at the top or below a key; absent ids are skipped."""
    await any_store.ensure_collection_exists(name, 3)
    await any_store.upsert_points(
        name, [Point(i, unit(i), {"a": i, "o": {"x": 1}}) for i in range(1, 5)]
    )
    await any_store.set_payload(name, {"b": 1}, [1, 99])
    await any_store.set_payload(name, {"y": 2}, [2], key="o")
    await any_store.set_payload(name, {"only": True}, {"a": 3}, overwrite=True)
    await any_store.delete_payload(name, ["o"], {"a": 4})
    await any_store.delete_payload(name, ["a"], [4, 98])
    found = await any_store.retrieve(name, [1, 2, 3, 4])
    assert [p.payload for p in found] == [
        {"a": 1, "o": {"x": 1}, "b": 1},
        {"a": 2, "o": {"x": 1, "y": 2}},
        {"only": True},
        {},
    ]


# Reading


async def test_retrieve_keeps_the_order(any_store: QdrantStore, name: str) -> None:
    """Points come in the order of their ids in the call; absent ones are left out."""
    await fill(any_store, name)
    found = await any_store.retrieve(name, [9, 500, 2, 9, 7])
    assert [p.id for p in found] == [9, 2, 7]
    assert await any_store.retrieve(name, []) == []


@pytest.mark.parametrize("page", [1, 5, 24, 1000])
async def test_every_point_is_seen_once(
    any_store: QdrantStore, name: str, page: int
) -> None:
    """Whatever the page, each point comes exactly once."""
    await fill(any_store, name)
    seen = [p.id async for p in any_store.iter_points(name, page=page)]
    assert seen == sorted(ROWS)


async def test_iteration_goes_on_while_points_are_written(
    any_store: QdrantStore, name: str
) -> None:
    """A writer in between neither repeats nor hides what was there before."""
    await fill(any_store, name)
    seen: list[Any] = []
    async for point in any_store.iter_points(name, page=5):
        seen.append(point.id)
        fresh = 1000 + len(seen)
        await any_store.upsert_points(name, [Point(fresh, unit(1))])
        if len(seen) > 60:
            break
    assert [i for i in seen if i < 1000] == sorted(ROWS)
    assert len(seen) == len(set(seen))


async def test_scroll_gives_pages(any_store: QdrantStore, name: str) -> None:
    """A page tells where the next one begins."""
    await fill(any_store, name)
    first, following = await any_store.scroll(name, limit=10)
    assert [p.id for p in first] == list(range(1, 11))
    assert following == 11
    last, following = await any_store.scroll(name, limit=100, offset=following)
    assert (len(last), following) == (14, None)


async def test_scroll_in_the_order_of_a_field(
    any_store: QdrantStore, name: str
) -> None:
    """With an index, points come by a field's value, either way."""
    await fill(any_store, name)
    await any_store.create_payload_index(name, "n", "integer")
    found, _ = await any_store.scroll(
        name, limit=3, order_by={"key": "n", "direction": "desc"}
    )
    assert [p.id for p in found] == [24, 23, 22]
    found, _ = await any_store.scroll(name, limit=2, order_by="n")
    assert [p.id for p in found] == [1, 2]


# Collections


async def test_collection_is_created_once(any_store: QdrantStore, name: str) -> None:
    """The first call creates it; the same definition again is fine."""
    assert await any_store.ensure_collection_exists(name, 3) is True
    assert await any_store.ensure_collection_exists(name, 3) is False
    assert await any_store.ensure_collection_exists(name, vector_size=3) is False
    assert name in await any_store.list_collections()


async def test_twenty_callers_make_one_collection(
    any_store: QdrantStore, name: str
) -> None:
    """However many ask at once: one creates, nobody fails."""
    made = await asyncio.gather(
        *(any_store.ensure_collection_exists(name, 3) for _ in range(20))
    )
    assert sum(made) == 1


@pytest.mark.parametrize(
    ("definition", "fields"),
    [
        (CollectionConfig(size=4), {"size"}),
        (CollectionConfig(size=3, distance="Dot"), {"distance"}),
        (CollectionConfig(size=5, distance="Euclid"), {"size", "distance"}),
        (CollectionConfig(vectors={"v": VectorConfig(size=3)}), {"vectors"}),
        (
            CollectionConfig(size=3, sparse_vectors={"s": SparseVectorConfig()}),
            {"sparse_vectors"},
        ),
    ],
)
async def test_differing_collection_is_refused_by_field(
    any_store: QdrantStore, name: str, definition: Any, fields: set[str]
) -> None:
    """Each differing field is named, and the collection stays as it is."""
    await fill(any_store, name)
    with pytest.raises(CollectionMismatch) as caught:
        await any_store.ensure_collection_exists(name, definition)
    assert set(caught.value.differences) == fields
    assert await any_store.count(name) == len(ROWS)


async def test_scale_out_options_are_passed_on_and_compared(
    any_store: QdrantStore, name: str
) -> None:
    """Shards, replicas, index, quantization reach the engine; a change is told."""
    wanted: dict[str, Any] = {
        "size": 3,
        "shard_number": 2,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
        "hnsw": {"m": 24, "ef_construct": 120},
        "quantization": {"scalar": {"type": "int8", "always_ram": True}},
    }
    assert await any_store.ensure_collection_exists(name, CollectionConfig(**wanted))
    assert not await any_store.ensure_collection_exists(
        name, CollectionConfig(**wanted)
    )
    await any_store.upsert_points(name, [Point(1, unit(1))])
    assert len(await any_store.search(name, unit(1))) == 1
    with pytest.raises(CollectionMismatch) as caught:
        await any_store.ensure_collection_exists(
            name, CollectionConfig(**{**wanted, "shard_number": 3, "hnsw": {"m": 8}})
        )
    assert set(caught.value.differences) == {"shard_number", "hnsw"}


async def test_missing_payload_indexes_are_added(
    any_store: QdrantStore, name: str
) -> None:
    """An index that the definition names is created, or refused on request."""
    await any_store.ensure_collection_exists(name, 3)
    wanted = CollectionConfig(size=3, payload_indexes={"s": "keyword", "n": "integer"})
    with pytest.raises(CollectionMismatch) as caught:
        await any_store.ensure_collection_exists(name, wanted, add_indexes=False)
    assert set(caught.value.differences) == {"payload_indexes.n", "payload_indexes.s"}
    await any_store.ensure_collection_exists(name, wanted)
    await any_store.ensure_collection_exists(name, wanted, add_indexes=False)
    with pytest.raises(CollectionMismatch):
        await any_store.ensure_collection_exists(
            name, CollectionConfig(size=3, payload_indexes={"s": "integer"})
        )


@pytest.mark.parametrize(
    "schema",
    ["keyword", "integer", "float", "bool", "datetime", "uuid", "geo", "text"],
)
async def test_payload_index_of_every_type(
    any_store: QdrantStore, name: str, schema: str
) -> None:
    """An index changes no result; creating it again is fine."""
    if any_store.statistics().engine == "memory":
        schema = "keyword"  # local mode has no indexes to tell apart
    await fill(any_store, name)
    await any_store.create_payload_index(name, "s", schema)
    await any_store.create_payload_index(name, "s", schema)
    assert await any_store.count(name, {"n": {"lt": 5}}) == 4
    await any_store.delete_payload_index(name, "s")
    await any_store.delete_payload_index(name, "s")


async def test_unknown_index_type_is_refused(any_store: QdrantStore, name: str) -> None:
    """The type of a payload index is one that Qdrant knows."""
    await any_store.ensure_collection_exists(name, 3)
    with pytest.raises(InvalidRecord):
        await any_store.create_payload_index(name, "s", "colour")


async def test_tenant_index_is_passed_on(any_store: QdrantStore, name: str) -> None:
    """Options of an index reach the engine."""
    await any_store.ensure_collection_exists(
        name, 3, payload_indexes={"org": {"type": "keyword", "is_tenant": True}}
    )
    await any_store.upsert_points(
        name, [Point(i, unit(i), {"org": f"o{i % 2}"}) for i in range(6)]
    )
    assert await any_store.count(name, {"org": "o1"}) == 3


async def test_info_says_what_a_collection_is(
    any_store: QdrantStore, name: str
) -> None:
    """Definition, sizes and aliases."""
    await fill(any_store, name)
    await any_store.set_aliases({f"{name}_a": name})
    info = await any_store.collection_info(f"{name}_a")
    assert (info.name, info.points, info.total) == (name, 24, 24)
    assert info.vectors[""]["size"] == 3
    assert info.vectors[""]["distance"] == "Cosine"
    assert info.aliases == (f"{name}_a",)
    assert info.status == "green"


@pytest.mark.parametrize("wrong", ["", "a/b", "x" * 256, "a\nb", "..", 'q"', None, 5])
async def test_wrong_name_is_refused(any_store: QdrantStore, wrong: Any) -> None:
    """Names that Qdrant would misread are refused here."""
    with pytest.raises(InvalidName):
        await any_store.ensure_collection_exists(wrong, 3)
    with pytest.raises(InvalidName):
        await any_store.count(wrong)


@pytest.mark.parametrize("wrong", [0, -3, 70_000, "x"])
async def test_wrong_size_is_refused(
    any_store: QdrantStore, name: str, wrong: Any
) -> None:
    """A definition is checked before anything is sent."""
    with pytest.raises(ConfigurationInvalid):
        await any_store.ensure_collection_exists(name, wrong)


async def test_deleted_collection_is_gone(any_store: QdrantStore, name: str) -> None:
    """With its points and aliases; deleting twice says False."""
    await fill(any_store, name)
    await any_store.set_aliases({f"{name}_a": name})
    assert await any_store.delete_collection(name) is True
    assert await any_store.delete_collection(name) is False
    assert name not in await any_store.list_collections()
    with pytest.raises(CollectionNotFound):
        await any_store.count(f"{name}_a")
    await any_store.ensure_collection_exists(name, 5)
    await any_store.upsert_points(name, [Point(1, [1.0] * 5)])
    assert await any_store.count(name) == 1


MISSING: dict[str, Callable[[QdrantStore, str], Any]] = {
    "upsert": lambda s, n: s.upsert_points(n, [Point(1, unit(1))]),
    "search": lambda s, n: s.search(n, unit(1), 1),
    "query": lambda s, n: s.query(n, unit(1)),
    "recommend": lambda s, n: s.recommend(n, [1]),
    "retrieve": lambda s, n: s.retrieve(n, [1]),
    "count": lambda s, n: s.count(n),
    "scroll": lambda s, n: s.scroll(n),
    "delete": lambda s, n: s.delete_points(n, [1]),
    "delete_by_filter": lambda s, n: s.delete_points(n, {"a": 1}),
    "set_payload": lambda s, n: s.set_payload(n, {"a": 1}, [1]),
    "delete_payload": lambda s, n: s.delete_payload(n, ["a"], [1]),
    "create_index": lambda s, n: s.create_payload_index(n, "a", "keyword"),
    "info": lambda s, n: s.collection_info(n),
    "alias": lambda s, n: s.set_aliases({f"{n}_a": n}),
}


@pytest.mark.parametrize("operation", MISSING)
async def test_missing_collection_is_named(
    any_store: QdrantStore, name: str, operation: str
) -> None:
    """Every method says ``CollectionNotFound``, on every engine."""
    with pytest.raises(CollectionNotFound) as caught:
        await MISSING[operation](any_store, name)
    assert caught.value.collection == name


async def test_alias_stands_for_its_collection(
    any_store: QdrantStore, name: str
) -> None:
    """Reading, writing and switching through an alias."""
    old, new, alias = f"{name}_old", f"{name}_new", f"{name}_a"
    await fill(any_store, old)
    await any_store.ensure_collection_exists(new, 3)
    await any_store.set_aliases({alias: old})
    assert (await any_store.list_aliases())[alias] == old
    assert await any_store.count(alias) == 24
    await any_store.set_aliases({alias: new})
    assert await any_store.count(alias) == 0
    await any_store.upsert_points(alias, [Point(1, unit(1))])
    assert await any_store.count(new) == 1
    assert alias not in await any_store.list_collections()
    with pytest.raises(InvalidName):
        await any_store.set_aliases({old: new})
    await any_store.set_aliases({alias: None})
    await any_store.set_aliases({alias: None})
    with pytest.raises(CollectionNotFound):
        await any_store.count(alias)


async def test_alias_may_lead_to_another_dimension(
    any_store: QdrantStore, name: str
) -> None:
    """After a switch, vectors are checked against the new target."""
    alias = f"{name}_a"
    await any_store.ensure_collection_exists(name, 3)
    await any_store.ensure_collection_exists(f"{name}_b", 5)
    await any_store.set_aliases({alias: name})
    await any_store.upsert_points(alias, [Point(1, unit(1))])
    await any_store.set_aliases({alias: f"{name}_b"})
    await any_store.upsert_points(alias, [Point(1, [1.0] * 5)])
    with pytest.raises(DimensionMismatch):
        await any_store.upsert_points(alias, [Point(1, unit(1))])


# The store as a whole


async def test_identity_stays(any_store: QdrantStore) -> None:
    """The same store has the same identity; a marker is kept beside it."""
    first = await any_store.identity()
    assert str(UUID(first)) == first
    assert await any_store.identity() == first
    await any_store.set_marker({"system": "1", "ver": 2**60})
    assert await any_store.get_marker() == {"system": "1", "ver": 2**60}
    await any_store.set_marker({"ver": 1})
    assert await any_store.get_marker() == {"ver": 1}
    assert await any_store.identity() == first
    assert "fm_storage_meta" not in await any_store.list_collections()


async def test_ready_says_what_answers(any_store: QdrantStore) -> None:
    """A line for a health page."""
    assert await any_store.ready()


async def test_statistics_count_calls_and_errors(
    any_store: QdrantStore, name: str
) -> None:
    """Each call is counted under its name, each failure too."""
    await fill(any_store, name)
    with pytest.raises(DimensionMismatch):
        await any_store.search(name, [1.0], 1)
    statistics = any_store.statistics()
    assert statistics.calls["upsert_points"] == 1
    assert statistics.errors == {"search": 1}


async def test_errors_name_the_method_and_the_collection(
    any_store: QdrantStore, name: str
) -> None:
    """Every engine names what the user called, not a request inside it."""
    await fill(any_store, name)
    wrong: list[tuple[type[Any], str, str, Callable[[], Awaitable[object]]]] = [
        (CollectionNotFound, "search", "no", lambda: any_store.search("no", [1.0], 1)),
        (CollectionNotFound, "count", "no", lambda: any_store.count("no")),
        (
            DimensionMismatch,
            "upsert_points",
            name,
            lambda: any_store.upsert_points(name, [Point(1, [1.0])]),
        ),
        (
            CollectionMismatch,
            "ensure_collection_exists",
            name,
            lambda: any_store.ensure_collection_exists(name, 17),
        ),
    ]
    for kind, operation, collection, call in wrong:
        with pytest.raises(kind) as caught:
            await call()
        named = (caught.value.operation, caught.value.collection)
        assert named == (operation, collection)
        assert not caught.value.retryable
        if kind is CollectionNotFound:
            assert f"({operation})" in str(caught.value)


async def test_closed_store_says_so(any_store: QdrantStore, name: str) -> None:
    """After closing, every call names the remedy; closing twice is fine."""
    await any_store.ensure_collection_exists(name, 3)
    await any_store.aclose()
    await any_store.aclose()
    with pytest.raises(StorageClosed):
        await any_store.count(name)
    await any_store.open()
    if any_store.statistics().engine != "memory":
        await any_store.delete_collection(name)
