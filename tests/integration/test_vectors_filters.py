"""Filters choose exactly their points, on every engine alike.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from fm_storage.errors import (
    InvalidRecord,
)
from fm_storage.vectors import Point, QdrantStore
from tests.support.vector_rows import A_UUID, ROWS, START, Colour, Row, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
