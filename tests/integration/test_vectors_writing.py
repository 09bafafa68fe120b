"""Points are replaced, deleted and changed, by version where asked.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from typing import Any

import pytest

from fm_storage.errors import (
    InvalidRecord,
)
from fm_storage.vectors import Point, QdrantStore
from tests.support.vector_rows import ROWS, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
    await any_store.upsert_points(name, [point])
    assert (await any_store.retrieve(name, [3]))[0].payload == {"a": 1}
    with pytest.raises(InvalidRecord):
        await any_store.upsert_points(name, [{"id": 1}])


async def test_newer_point_replaces_and_older_does_not(
    any_store: QdrantStore, name: str
) -> None:
    """With ``newer_by`` only a greater number replaces; absent points go in."""
    await any_store.ensure_collection_exists(name, 3)
    big = 2**53 - 10

    def point(i: int, version: int, text: str) -> Point:
        return Point(i, unit(i), {"version": version, "t": text})

    await any_store.upsert_points(name, [Point(9, unit(9), {"t": "without"})])
    await any_store.upsert_points(
        name,
        [point(1, 5, "a"), point(2, big, "a"), point(9, 1, "a")],
        newer_by="version",
    )
    await any_store.upsert_points(
        name,
        [point(1, 4, "old"), point(2, big + 1, "new"), point(3, 1, "first")],
        newer_by="version",
    )
    await any_store.upsert_points(name, [point(1, 5, "same")], newer_by="version")
    found = await any_store.retrieve(name, [1, 2, 3, 9])
    assert [p.payload["t"] for p in found] == ["a", "new", "first", "a"]


async def test_newest_of_equal_ids_in_a_batch_wins(
    any_store: QdrantStore, name: str
) -> None:
    """With ``newer_by`` the order inside a batch does not matter."""
    await any_store.ensure_collection_exists(name, 3)
    points = [Point(1, unit(v), {"version": v}) for v in (3, 9, 5)]
    await any_store.upsert_points(name, points, newer_by="version")
    assert (await any_store.retrieve(name, [1]))[0].payload["version"] == 9


@pytest.mark.parametrize("version", [None, "7", True])
async def test_newer_by_needs_a_number(
    any_store: QdrantStore, name: str, version: Any
) -> None:
    """A point without the number is refused by field."""
    await any_store.ensure_collection_exists(name, 3)
    payload = {} if version is None else {"version": version}
    with pytest.raises(InvalidRecord) as caught:
        await any_store.upsert_points(
            name, [Point(1, unit(1), payload)], newer_by="version"
        )
    assert caught.value.field == "payload.version"


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
        [Point(i, unit(i), {"version": 10 * i}) for i in range(1, 5)]
        + [Point("text", unit(5), {"version": 7}), Point(6, unit(6))],
    )
    await any_store.delete_points(
        name,
        [1, 2, 3, "text", 6, 77],
        newer_by="version",
        up_to={1: 10, 2: 19, 3: 31, "text": 7, 6: 1, 77: 1},
    )
    assert {p.id async for p in any_store.iter_points(name)} == {2, 4}
    with pytest.raises(InvalidRecord):
        await any_store.delete_points(name, [2], newer_by="version", up_to={4: 1})
    with pytest.raises(InvalidRecord):
        await any_store.delete_points(name, [2], newer_by="version")


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
