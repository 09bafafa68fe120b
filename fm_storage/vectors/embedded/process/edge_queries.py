"""Queries in the form of Qdrant's REST API as the types of qdrant-edge.

Runs in the engine's process only. Vectors and ids inside are references, which
the caller's resolver turns into vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.process.edge_filters import filter_from
from fm_storage.vectors.embedded.process.edge_formulas import formula_from
from fm_storage.vectors.embedded.process.edge_types import BadRequest, search_params

Json = Mapping[str, Any]

Resolver = Callable[[Any, str], Any]
"""Turns a reference (``{"@d": …}``, ``{"@s": …}``, ``{"@id": …}``) into a vector."""


def order_by_from(given: Any) -> edge.OrderBy | None:
    """Return the engine's order."""
    if given is None:
        return None
    if isinstance(given, str):
        return edge.OrderBy(key=given)
    direction = given.get("direction")
    return edge.OrderBy(
        key=given["key"],
        direction=None
        if direction is None
        else (edge.Direction.Desc if direction == "desc" else edge.Direction.Asc),
        start_from=given.get("start_from"),
    )


def prefetch_from(
    given: Sequence[Json] | Json | None, resolve: Resolver
) -> list[edge.Prefetch] | None:
    """Return the engine's prefetch stages."""
    if not given:
        return None
    if isinstance(given, Mapping):
        given = [given]
    return [
        edge.Prefetch(
            limit=stage.get("limit") or 10,
            query=query_from(stage, resolve),
            prefetches=prefetch_from(stage.get("prefetch"), resolve),
            params=search_params(stage.get("params")),
            filter=filter_from(stage.get("filter")),
            score_threshold=stage.get("score_threshold"),
        )
        for stage in given
    ]


def candidates(request: Json) -> int:
    """Return among how many of the nearest points differing ones are chosen."""
    least = int(request.get("limit") or 10) + int(request.get("offset") or 0)
    return request["query"]["mmr"].get("candidates_limit") or least


def query_from(request: Json, resolve: Resolver) -> Any:
    """Return the engine's query for that of a request, or stage, in REST form."""
    given, using = request.get("query"), request.get("using") or ""
    if given is None:
        return None
    if "@d" in given or "@s" in given or "@id" in given:
        return edge.Query.Nearest(resolve(given, using), using=using)
    if "formula" in given:
        return formula_from(given)
    (name, value), *rest = given.items()
    if name == "nearest":
        vector = resolve(value, using)
        mmr = dict(rest).get("mmr")
        if mmr is None:
            return edge.Query.Nearest(vector, using=using)
        diversity = mmr.get("diversity")
        return edge.Mmr(
            vector=vector,
            lambda_=0.5 if diversity is None else 1.0 - diversity,
            candidates_limit=candidates(request),
            using=using,
        )
    if name not in _QUERIES:
        message = f"query {name!r} is not known to the embedded engine"
        raise BadRequest(message)
    return _QUERIES[name](value, using, resolve)


def _fusion(value: str, using: str, resolve: Resolver) -> Any:
    del using, resolve
    return edge.Fusion.Dbsf() if value == "dbsf" else edge.Fusion.Rrf(k=2)


def _rrf(value: Json, using: str, resolve: Resolver) -> Any:
    del using, resolve
    return edge.Fusion.Rrf(k=value.get("k") or 2, weights=value.get("weights"))


def _recommend(value: Json, using: str, resolve: Resolver) -> edge.Query:
    positive = [resolve(item, using) for item in value.get("positive") or []]
    negative = [resolve(item, using) for item in value.get("negative") or []]
    strategy = value.get("strategy") or "average_vector"
    if strategy == "average_vector":
        if not positive:
            message = "recommend by average needs at least one positive example"
            raise BadRequest(message)
        return edge.Query.Nearest(_average(positive, negative), using=using)
    query = edge.RecommendQuery(positives=positive, negatives=negative)
    if strategy == "sum_scores":
        return edge.Query.RecommendSumScores(query, using=using)
    return edge.Query.RecommendBestScore(query, using=using)


def _average(positive: Sequence[Any], negative: Sequence[Any]) -> Any:
    wanted = _mean(positive)
    if negative:
        away = _mean(negative)
        wanted = {
            at: 2 * wanted.get(at, 0.0) - away.get(at, 0.0) for at in wanted | away
        }
    if isinstance(positive[0], edge.SparseVector):
        terms = sorted(wanted)
        return edge.SparseVector(terms, [wanted[term] for term in terms])
    return list(wanted.values())


def _mean(vectors: Sequence[Any]) -> dict[int, float]:
    """Return the average of vectors: values by place, or by term."""
    sums: dict[int, float] = {}
    for vector in vectors:
        for at, value in (
            zip(vector.indices, vector.values, strict=True)
            if isinstance(vector, edge.SparseVector)
            else enumerate(vector)
        ):
            sums[at] = sums.get(at, 0.0) + value
    return {at: value / len(vectors) for at, value in sums.items()}


def _pairs(given: Sequence[Json], using: str, resolve: Resolver) -> list[Any]:
    return [
        edge.ContextPair(
            positive=resolve(pair["positive"], using),
            negative=resolve(pair["negative"], using),
        )
        for pair in given
    ]


def _discover(value: Json, using: str, resolve: Resolver) -> edge.Query:
    pairs = _pairs(value.get("context") or [], using, resolve)
    target = resolve(value["target"], using)
    return edge.Query.Discover(
        edge.DiscoverQuery(target=target, pairs=pairs), using=using
    )


def _context(value: Any, using: str, resolve: Resolver) -> edge.Query:
    given = [value] if isinstance(value, Mapping) else value
    return edge.Query.Context(
        edge.ContextQuery(pairs=_pairs(given, using, resolve)), using=using
    )


def _order(value: Any, using: str, resolve: Resolver) -> edge.OrderBy | None:
    del using, resolve
    return order_by_from(value)


def _sample(value: str, using: str, resolve: Resolver) -> edge.Sample:
    del value, using, resolve
    return edge.Sample.Random


_QUERIES: dict[str, Callable[[Any, str, Resolver], Any]] = {
    "fusion": _fusion,
    "rrf": _rrf,
    "recommend": _recommend,
    "discover": _discover,
    "context": _context,
    "order_by": _order,
    "sample": _sample,
}


def _ids_in(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        if "@id" in given:
            return [given["@id"]]
        return [found for value in given.values() for found in _ids_in(value)]
    if isinstance(given, list):
        return [found for value in given for found in _ids_in(value)]
    return []


def without_examples(request: Json) -> dict[str, Any]:
    """Leave points that serve as examples out of the answer, as the server does."""
    made = dict(request)
    examples = _ids_in(request.get("query"))
    if examples:
        own = made.get("filter")
        made["filter"] = {
            "must": [own] if own else [],
            "must_not": [{"has_id": examples}],
        }
    stages = made.get("prefetch")
    if stages:
        stages = [stages] if isinstance(stages, Mapping) else stages
        made["prefetch"] = [without_examples(stage) for stage in stages]
    return made
