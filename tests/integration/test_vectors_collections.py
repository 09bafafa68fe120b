"""Collections are made once, compared, named otherwise, deleted.

Nothing here knows which engine answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    DimensionMismatch,
    InvalidName,
    InvalidRecord,
)
from fm_storage.vectors import Point, QdrantStore
from tests.support.vector_rows import ROWS, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
    """Shards, replicas, index, quantization reach the engine; a change is reported."""
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
