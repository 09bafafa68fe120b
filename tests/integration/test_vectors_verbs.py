"""Verbs beyond the first ones: single vectors, groups, facets, batches, conditions.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.errors import (
    DimensionMismatch,
    InvalidRecord,
    InvalidVector,
    RecordNotFound,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector
from tests.support.vector_rows import ROWS, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)

TWO = CollectionConfig(
    vectors={"a": VectorConfig(size=2), "b": VectorConfig(size=3)},
    sparse_vectors={"s": SparseVectorConfig()},
)


async def test_one_vector_is_replaced_and_the_rest_stays(
    any_store: QdrantStore, name: str
) -> None:
    """Other vectors and the payload are as they were; an absent point is named."""
    await any_store.ensure_collection_exists(name, TWO)
    terms = SparseVector([1], [1.0])
    points = [
        Point(i, {"a": [1, 0], "b": [0, 0, 1], "s": terms}, {"n": i}) for i in (1, 2)
    ]
    await any_store.upsert_points(name, [*points, Point("text", {"a": [1, 0]})])
    await any_store.update_vectors(name, [Point(1, {"a": [0.0, 1.0]})])
    found = await any_store.retrieve(name, [1, 2], with_vectors=True)
    vectors: list[Any] = [point.vector for point in found]
    assert [v["a"] for v in vectors] == [[0, 1], [1, 0]]
    assert vectors[0]["b"] == [0, 0, 1]
    assert [point.payload for point in found] == [{"n": 1}, {"n": 2}]
    with pytest.raises(RecordNotFound, match="nobody"):
        await any_store.update_vectors(
            name, [Point("nobody", {"a": [1, 1]}), Point(2, {"a": [0.0, 1.0]})]
        )
    hits = await any_store.search(name, [0, 1], 2, using="a")
    assert {hit.id for hit in hits} == {1, 2}
    await any_store.update_vectors(
        name,
        [Point(i, {"b": [1, 0, 0]}) for i in (1, 2)],
        update_filter={"n": {"gte": 2}},
    )
    hits = await any_store.search(name, [1, 0, 0], 1, using="b")
    assert hits[0].id == 2
    with pytest.raises(DimensionMismatch):
        await any_store.update_vectors(name, [Point(1, {"a": [1.0]})])
    with pytest.raises(InvalidRecord):
        await any_store.update_vectors(name, [Point(1, {})])


async def test_one_vector_is_removed_and_the_point_stays(
    any_store: QdrantStore, name: str
) -> None:
    """By id or by filter; absent ids are skipped, unknown names are not."""
    await any_store.ensure_collection_exists(name, TWO)
    await any_store.upsert_points(
        name, [Point(i, {"a": [1, 0], "b": [0, 0, 1]}, {"n": i}) for i in (1, 2, 3)]
    )
    await any_store.delete_vectors(name, ["a"], [1, 77])
    await any_store.delete_vectors(name, ["b"], {"n": 3})
    found = await any_store.retrieve(name, [1, 2, 3], with_vectors=True)
    names: list[Any] = [point.vector for point in found]
    assert [sorted(each) for each in names] == [["b"], ["a", "b"], ["a"]]
    assert await any_store.count(name) == 3
    with pytest.raises(InvalidVector):
        await any_store.delete_vectors(name, ["nothing"], [1])
    with pytest.raises(InvalidRecord):
        await any_store.delete_vectors(name, [], [1])


async def test_point_may_lack_its_unnamed_vector(
    any_store: QdrantStore, name: str
) -> None:
    """It is counted and read, and no search finds it until it has one."""
    await any_store.ensure_collection_exists(name, 2)
    await any_store.upsert_points(name, [Point(1, {}, {"n": 1}), Point(2, [1.0, 0.0])])
    assert await any_store.count(name) == 2
    assert [hit.id for hit in await any_store.search(name, [1.0, 0.0])] == [2]
    await any_store.update_vectors(name, [Point(1, [1.0, 0.0])])
    assert len(await any_store.search(name, [1.0, 0.0])) == 2


async def test_hits_come_by_groups(any_store: QdrantStore, name: str) -> None:
    """The groups of the best hits, each with its own best ones."""
    await fill(any_store, name)
    await any_store.create_payload_index(name, "s", "keyword")
    await any_store.create_payload_index(name, "tags", "keyword")
    ranked = [hit.id for hit in await any_store.search(name, unit(9), 24, exact=True)]
    groups = await any_store.search_groups(
        name, unit(9), "s", 2, {"n": {"lte": 20}}, group_size=3, exact=True
    )
    rows = [(i, ROWS[int(i)]) for i in ranked if ROWS[int(i)]["n"] <= 20]
    expected = list(dict.fromkeys(row["s"] for _, row in rows))[:2]
    assert [group.value for group in groups] == expected
    for group in groups:
        best = [i for i, row in rows if row["s"] == group.value][:3]
        assert [hit.id for hit in group.hits] == best
        assert group.hits[0].payload == ROWS[int(best[0])]
    many = await any_store.search_groups(name, unit(9), "tags", 10, group_size=1)
    assert {g.value for g in many} == {"even", "odd", "t0", "t1", "t2", "t3"}
    assert await any_store.search_groups(name, unit(9), "nothing") == []
    with pytest.raises(InvalidRecord):
        await any_store.search_groups(name, unit(9), "s", group_size=0)
    with pytest.raises(DimensionMismatch):
        await any_store.search_groups(name, [1.0], "s")


async def test_values_are_counted(any_store: QdrantStore, name: str) -> None:
    """The commonest first, of the points that match."""
    await fill(any_store, name)
    for field, kind in (("tags", "keyword"), ("n", "integer"), ("flag", "bool")):
        await any_store.create_payload_index(name, field, kind)
    expected = Counter(tag for r in ROWS.values() if r["n"] > 3 for tag in r["tags"])
    found = await any_store.facet(name, "tags", filter={"n": {"gt": 3}}, exact=True)
    assert found == dict(expected)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len(await any_store.facet(name, "n", limit=5)) == 5
    assert await any_store.facet(name, "flag") == {True: 12, False: 12}
    if any_store.statistics().engine != "memory":
        with pytest.raises(InvalidRecord):
            await any_store.facet(name, "text")


async def test_queries_are_answered_in_one_request(
    any_store: QdrantStore, name: str
) -> None:
    """Each as it would be alone; one wrong query keeps all of them back."""
    await fill(any_store, name)
    queries: list[dict[str, Any]] = [
        {"query": unit(5), "limit": 3},
        {"query": 7, "limit": 2, "filter": {"s": "a"}},
        {"prefetch": [{"query": unit(2), "limit": 5}], "fusion": "rrf", "limit": 4},
        {"query": unit(3), "limit": 100, "with_vectors": True},
    ]
    answers = await any_store.query_batch(name, queries)
    for query, answer in zip(queries, answers, strict=True):
        alone = await any_store.query(name, **query)
        assert [hit.id for hit in answer] == [hit.id for hit in alone]
    short = await any_store.query_batch(name, queries[:2])
    assert [len(answer) for answer in short] == [3, 2]
    assert await any_store.query_batch(name, []) == []
    for wrong in ({"query": [1.0]}, {"nothing": 1}, {"limit": 0}, 5):
        with pytest.raises((InvalidRecord, InvalidVector)):
            await any_store.query_batch(name, [queries[0], wrong])


async def test_upsert_spares_what_does_not_match(
    any_store: QdrantStore, name: str
) -> None:
    """New points are written, stored ones replaced only where the filter matches."""
    await any_store.ensure_collection_exists(name, 2)
    await any_store.upsert_points(
        name, [Point(i, [1, i], {"n": i, "v": 1}) for i in (1, 2)]
    )
    await any_store.upsert_points(
        name,
        [Point(i, [1, i], {"n": i, "v": 2}) for i in (1, 2, 3)],
        update_filter={"n": 2},
    )
    found = await any_store.retrieve(name, [1, 2, 3])
    assert [point.payload["v"] for point in found] == [1, 2, 2]
    await any_store.upsert_points(
        name,
        [Point(i, [1, i], {"n": i, "v": 5}) for i in (1, 2, 3)],
        update_filter={"n": {"lte": 2}},
        newer_by="v",
    )
    await any_store.upsert_points(
        name, [Point(1, [1, 1], {"n": 1, "v": 4})], newer_by="v", update_filter={"n": 1}
    )
    found = await any_store.retrieve(name, [1, 2, 3])
    assert [point.payload["v"] for point in found] == [5, 5, 2]


async def test_differing_hits_come_without_unasked_vectors(
    any_store: QdrantStore, name: str
) -> None:
    """By dense and by sparse vectors: two alike are not both among the first."""
    await any_store.ensure_collection_exists(
        name,
        CollectionConfig(
            vectors={"d": VectorConfig(size=2, distance="Dot")},
            sparse_vectors={"s": SparseVectorConfig()},
        ),
    )
    rows = {1: (1.0, 0.9), 2: (1.0, 0.89), 3: (1.0, -0.2)}
    await any_store.upsert_points(
        name,
        [
            Point(i, {"d": list(v), "s": SparseVector([1, 2], list(v))})
            for i, v in rows.items()
        ],
    )
    for using, vector in (("d", [1.0, 0.5]), ("s", SparseVector([1, 2], [1.0, 0.5]))):
        query = {"nearest": vector, "mmr": {"diversity": 0.7, "candidates_limit": 10}}
        found = await any_store.query(name, query, using=using, limit=2)
        assert [hit.id for hit in found] == [1, 3]
        assert all(hit.vector is None for hit in found)
        found = await any_store.query(
            name, query, using=using, limit=2, with_vectors=["d"]
        )
        assert [set(hit.vector or {}) for hit in found] == [{"d"}, {"d"}]


async def test_text_index_takes_stopwords_and_phrases(
    any_store: QdrantStore, name: str
) -> None:
    """Words in order; and the options of an index are taken by every engine."""
    await fill(any_store, name)
    await any_store.create_payload_index(
        name,
        "text",
        {
            "type": "text",
            "tokenizer": "word",
            "lowercase": True,
            "stopwords": {"languages": ["english"], "custom": ["zz"]},
            "phrase_matching": True,
        },
    )
    many = sum(row["text"] == "payment refused" for row in ROWS.values())
    assert await any_store.count(name, {"text": {"phrase": "payment refused"}}) == many
    assert await any_store.count(name, {"text": {"phrase": "refused payment"}}) == 0
    assert await any_store.count(name, {"text": {"text": "refused payment"}}) == many


async def test_our_own_keys_are_in_no_answer(any_store: QdrantStore, name: str) -> None:
    """What the outbox and a text id keep in a payload is not the application's."""
    await any_store.ensure_collection_exists(
        name, 3, payload_indexes={"_ver": "integer"}
    )
    points = [Point(i, unit(i), {"n": i, "s": "a", "_ver": 7 + i}) for i in (1, 2)]
    points.append(Point("text", unit(3), {"n": 3, "_ver": 9}))
    await any_store.upsert_points(name, points, newer_by="_ver")
    await any_store.create_payload_index(name, "s", "keyword")
    selectors: list[Any] = [
        True,
        ["n", "_ver"],
        {"exclude": ["s"]},
        {"include": ["_ver"]},
    ]
    for chosen in selectors:
        found = await any_store.search(name, unit(1), with_payload=chosen)
        found += await any_store.query(name, with_payload=chosen)
        found += (await any_store.scroll(name, with_payload=chosen))[0]
        found += await any_store.retrieve(name, [1, "text"], with_payload=chosen)
        found += await any_store.recommend(name, [1], with_payload=chosen)
        groups = await any_store.search_groups(name, unit(1), "s", with_payload=chosen)
        found += [hit for group in groups for hit in group.hits]
        arguments = {"query": unit(1), "with_payload": chosen}
        [many] = await any_store.query_batch(name, [arguments])
        found += many
        assert len(found) > 15
        assert not [hit for hit in found if hit.payload.keys() & {"_ver", "_fm_id"}]
    [seen] = await any_store.retrieve(name, ["text"])
    assert (seen.payload, seen.marks) == ({"n": 3}, {"_ver": 9})
    assert await any_store.count(name, {"_ver": {"gt": 8}}) == 2
    for key in ("_ver", "_fm_id"):
        with pytest.raises(InvalidRecord, match="kept by fm_storage"):
            await any_store.facet(name, key)
        with pytest.raises(InvalidRecord, match="kept by fm_storage"):
            await any_store.search_groups(name, unit(1), key)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "high", True])
async def test_wrong_threshold_is_refused(
    any_store: QdrantStore, name: str, threshold: Any
) -> None:
    """What no score can be compared with is named."""
    await fill(any_store, name)
    with pytest.raises(InvalidRecord) as caught:
        await any_store.search(name, unit(1), score_threshold=threshold)
    assert caught.value.field == "score_threshold"


async def test_vector_too_long_to_be_normalised_is_refused(
    any_store: QdrantStore, name: str
) -> None:
    """Under Cosine it would be stored as zeros; under Dot it is what it is."""
    await any_store.ensure_collection_exists(name, 2)
    await any_store.ensure_collection_exists(f"{name}_dot", 2, "Dot")
    with pytest.raises(InvalidVector, match="too long"):
        await any_store.upsert_points(name, [Point(1, [3e38, 3e38])])
    with pytest.raises(InvalidVector, match="too long"):
        await any_store.search(name, [3e38, 3e38])
    await any_store.upsert_points(name, [Point(1, [1e18, 1e18])])
    await any_store.upsert_points(f"{name}_dot", [Point(1, [3e38, 0.0])])
    assert len(await any_store.search(name, [1.0, 1.0])) == 1


async def test_every_form_of_a_uuid_is_that_uuid(
    any_store: QdrantStore, name: str
) -> None:
    """Given as it was written, found by any of its forms."""
    await any_store.ensure_collection_exists(name, 2)
    plain = "0b6ccd2f-6b9c-4c4c-9d4b-4a52c1a6b111"
    forms = [plain.replace("-", ""), f"urn:uuid:{plain}", plain.upper(), plain]
    for form in forms:
        await any_store.upsert_points(name, [Point(form, [1.0, 0.0])])
        [found] = await any_store.retrieve(name, [plain])
        assert found.id in {form, plain}
        assert await any_store.count(name, {"has_id": [form]}) == 1
    assert await any_store.count(name) == 1


async def test_missing_example_is_named_as_it_was_given(
    any_store: QdrantStore, name: str
) -> None:
    """Also in one query of several, and where hits come by groups."""
    await any_store.ensure_collection_exists(name, 2)
    await any_store.upsert_points(name, [Point(1, [1.0, 0.0], {"k": "a"})])
    with pytest.raises(RecordNotFound, match="'gone'"):
        await any_store.query_batch(name, [{"query": 1}, {"query": "gone"}])
    with pytest.raises(RecordNotFound, match="'gone'"):
        await any_store.search_groups(name, "gone", "k")


@pytest.mark.parametrize("key", ["_fm_id", "_ver", '"_fm_id"', "", "a b", 5, ["a"]])
async def test_only_fields_of_the_application_are_changed(
    any_store: QdrantStore, name: str, key: Any
) -> None:
    """What is no path, or is ours, is refused before anything is sent."""
    await any_store.ensure_collection_exists(name, 2)
    with pytest.raises(InvalidRecord):
        await any_store.set_payload(name, {"x": 1}, [1], key=key)
    with pytest.raises(InvalidRecord):
        await any_store.delete_payload(name, [key], [1])


async def test_points_without_vectors_move_with_the_others(
    any_store: QdrantStore, name: str
) -> None:
    """A reindex copies them, and what they are is the same on every engine."""
    await any_store.ensure_collection_exists(name, 2)
    await any_store.upsert_points(
        name, [Point(1, [1.0, 0.0], {"a": 1}), Point(2, {}, {"b": 1})]
    )
    other = CollectionConfig(size=2, distance="Dot")
    report = await any_store.reindex(name, other)
    assert report.copied == 2
    found = await any_store.retrieve(name, [1, 2], with_vectors=True)
    assert [point.vector for point in found] == [[1.0, 0.0], None]
    assert [point.payload for point in found] == [{"a": 1}, {"b": 1}]


async def test_a_bool_is_no_value_to_start_from(
    any_store: QdrantStore, name: str
) -> None:
    """Refused by name on every engine."""
    await fill(any_store, name)
    await any_store.create_payload_index(name, "n", "integer")
    with pytest.raises(InvalidRecord, match="order_by"):
        await any_store.scroll(name, order_by={"key": "n", "start_from": True})
