"""The store as a whole: identity, statistics, errors, its end.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from fm_storage.config import CollectionConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    DimensionMismatch,
    InvalidRecord,
    StorageClosed,
)
from fm_storage.vectors import Point, QdrantStore
from tests.support.vector_rows import fill

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)
SPEC = CollectionConfig(size=4)


@pytest.mark.usefixtures("alone_with_the_marker")
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


WRONG: list[tuple[str, Callable[[Any, str, Any], Awaitable[object]]]] = [
    ("timeout", lambda store, _, bad: store.ready(timeout=bad)),
    ("marker", lambda store, _, bad: store.set_marker(bad)),
    ("targets", lambda store, _, bad: store.set_aliases(bad)),
    ("field", lambda store, name, bad: store.create_payload_index(name, bad, "float")),
    ("field", lambda store, name, bad: store.delete_payload_index(name, bad)),
    ("positive", lambda store, name, bad: store.recommend(name, bad)),
    ("negative", lambda store, name, bad: store.recommend(name, [1], bad)),
    ("definition", lambda store, name, bad: store.reindex(name, bad)),
    ("embed", lambda store, name, bad: store.reindex(name, SPEC, bad)),
    ("progress", lambda store, name, bad: store.upsert_points(name, [], progress=bad)),
    ("newer_by", lambda store, name, bad: store.upsert_points(name, [], newer_by=bad)),
]


@pytest.mark.parametrize("bad", [5j, object()], ids=["complex", "object"])
async def test_arguments_of_another_type_are_named(
    any_store: QdrantStore, name: str, bad: object
) -> None:
    """Before anything is sent: no error from inside, nothing half written."""
    await fill(any_store, name)
    for argument, call in WRONG:
        with pytest.raises((InvalidRecord, ConfigurationInvalid), match=argument):
            await call(any_store, name, bad)


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
