"""Queries of every kind, and formulas over what a prefetch found.

Nothing here knows which engine answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from fm_storage.errors import (
    InvalidRecord,
)
from fm_storage.vectors import QdrantStore
from tests.support.vector_rows import ROWS, START, Row, fill, unit

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


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
