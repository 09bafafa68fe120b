"""Search by one vector, by examples, by several named vectors fused.

Nothing here knows which engine answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fm_storage.errors import (
    InvalidRecord,
    InvalidVector,
    RecordNotFound,
)
from fm_storage.vectors import Embedding, Point, QdrantStore, SparseVector
from tests.support.vector_rows import A_UUID, HYBRID, ROWS, fill, fill_hybrid, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
