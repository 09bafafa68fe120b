"""Points by id and page by page.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from typing import Any

import pytest

from fm_storage.vectors import Point, QdrantStore
from tests.support.vector_rows import ROWS, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
