"""Options of collections in the embedded engine, and the life of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fm_storage.config import CollectionConfig, QdrantConfig, SparseVectorConfig
from fm_storage.errors import (
    CollectionMismatch,
    ConfigurationInvalid,
    InvalidRecord,
    InvalidVector,
    StorageClosed,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)

FAST = QdrantConfig(durability="process")


@pytest.mark.parametrize(
    "quantization",
    [
        {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
        {"product": {"compression": "x16"}},
        {"binary": {"always_ram": True}},
    ],
    ids=lambda q: next(iter(q)),
)
async def test_quantized_collection_still_finds(
    qdrant: QdrantStore, quantization: dict[str, Any]
) -> None:
    """Every kind of quantization is taken, remembered, and compared."""
    options: dict[str, Any] = {
        "quantization": quantization,
        "hnsw": {"m": 8, "ef_construct": 32},
    }
    await qdrant.ensure_collection_exists("a", 16, "Dot", **options)
    await qdrant.upsert_points(
        "a", [Point(i, [float(i == j) for j in range(16)]) for i in range(16)]
    )
    params = {"hnsw_ef": 32, "quantization": {"rescore": True, "oversampling": 2.0}}
    (best,) = await qdrant.search(
        "a", [float(j == 7) for j in range(16)], 1, params=params
    )
    assert best.id == 7
    assert not await qdrant.ensure_collection_exists("a", 16, "Dot", **options)
    with pytest.raises(CollectionMismatch, match="quantization"):
        await qdrant.ensure_collection_exists(
            "a", 16, "Dot", quantization={"scalar": {"type": "int8", "quantile": 0.5}}
        )


async def test_unknown_quantization_is_refused(qdrant: QdrantStore) -> None:
    """What the engine does not know is reported, and nothing was made."""
    with pytest.raises((InvalidRecord, ConfigurationInvalid)):
        await qdrant.ensure_collection_exists("a", 4, quantization={"turbo": {}})
    assert await qdrant.list_collections() == []


async def test_text_index_takes_its_options(qdrant: QdrantStore) -> None:
    """A text index with a tokenizer of its own finds beginnings of words."""
    schema = {"type": "text", "tokenizer": "prefix", "lowercase": True}
    await qdrant.ensure_collection_exists("a", 2, payload_indexes={"t": schema})
    await qdrant.upsert_points(
        "a", [Point(1, [1, 0], {"t": "Payment refused"}), Point(2, [1, 0], {"t": "no"})]
    )
    assert await qdrant.count("a", {"t": {"text": "pay"}}) == 1
    await qdrant.delete_payload_index("a", "t")
    assert (await qdrant.collection_info("a")).payload_indexes == {}


async def test_sparse_vectors_may_lie_on_the_disk(qdrant: QdrantStore) -> None:
    """A sparse part on the disk is searched like any other."""
    spec = CollectionConfig(
        sparse_vectors={"s": SparseVectorConfig(modifier="idf", on_disk=True)}
    )
    await qdrant.ensure_collection_exists("a", spec)
    await qdrant.upsert_points(
        "a", [Point(i, {"s": SparseVector([i, 99], [1.0, 0.1])}) for i in range(5)]
    )
    (best,) = await qdrant.search("a", SparseVector([3], [1.0]), 1, using="s")
    assert best.id == 3


async def test_several_rows_are_no_vector(qdrant: QdrantStore) -> None:
    """A list of rows is refused with the point that holds it."""
    await qdrant.ensure_collection_exists("a", 2)
    rows: Any = [[1, 2], [3, 4]]
    with pytest.raises(InvalidVector, match="one row of numbers") as caught:
        await qdrant.upsert_points("a", [Point(1, [1, 2]), Point(2, rows)])
    assert caught.value.index == 1
    assert await qdrant.count("a") == 0


async def test_store_opens_once_and_closes_twice(vector_folder: Path) -> None:
    """Opening an open store and closing a closed one change nothing."""
    store = QdrantStore(FAST, folder=str(vector_folder))  # text is a path, too
    await store.open()
    await store.open()
    assert store.native is None
    await store.ensure_collection_exists("a", 2)
    await store.aclose()
    await store.aclose()
    with pytest.raises(StorageClosed):
        _ = store.native


async def test_configured_collection_that_differs_closes_the_store(
    vector_folder: Path,
) -> None:
    """Opening fails with the difference, and leaves no engine behind."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
    other = FAST.model_copy(update={"collections": {"a": CollectionConfig(size=3)}})
    store = QdrantStore(other, folder=vector_folder)
    with pytest.raises(CollectionMismatch, match="size"):
        await store.open()
    with pytest.raises(StorageClosed):
        await store.count("a")


def test_embedded_engine_needs_a_folder() -> None:
    """Without a folder the setting that names one is reported."""
    from fm_storage.vectors.backend import backend_for

    with pytest.raises(ConfigurationInvalid, match="embedded:PATH"):
        backend_for(QdrantConfig(url="embedded:"), None)


async def test_filter_that_chooses_everything_deletes_nothing(
    qdrant: QdrantStore,
) -> None:
    """An empty filter is taken for a mistake; one id needs no list."""
    await qdrant.ensure_collection_exists("a", 2)
    await qdrant.upsert_points("a", [Point(i, [1, 2], {"n": i}) for i in range(3)])
    with pytest.raises(InvalidRecord, match=r"delete_collection\(\)"):
        await qdrant.delete_points("a", {})
    await qdrant.delete_points("a", [])
    await qdrant.set_payload("a", {"x": 1}, [])
    await qdrant.delete_payload("a", ["n"], [])
    assert await qdrant.count("a") == 3
    await qdrant.set_payload("a", {"x": 1}, {"n": {"gte": 1}})
    await qdrant.delete_payload("a", ["n"], {"x": 1})
    found = await qdrant.retrieve("a", [0, 1, 2])
    assert [p.payload for p in found] == [{"n": 0}, {"x": 1}, {"x": 1}]
    await qdrant.set_payload("a", {"y": 2}, {"x": 1}, overwrite=True)
    assert await qdrant.count("a", {"y": 2}) == 2
    one: Any = 1
    await qdrant.delete_points("a", one)
    assert await qdrant.count("a") == 2
