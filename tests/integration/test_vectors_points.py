"""Ids, vectors and payloads: what is accepted comes back, what is not is named.

Nothing here knows which engine answers.
"""

from __future__ import annotations

import array
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from fm_storage.errors import (
    DimensionMismatch,
    InvalidRecord,
    InvalidVector,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector
from tests.support.vector_rows import A_UUID, START, Colour, Row, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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


@pytest.mark.slow
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
