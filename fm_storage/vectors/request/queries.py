"""Queries in every accepted form, checked and made one.

Vectors inside come out encoded, ids as ``{"@id": …}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.request.filters import Filter, as_json, normal_filter
from fm_storage.vectors.request.operations import Query
from fm_storage.vectors.request.points import RESERVED_ID, encode_vector, to_wire_id

__all__ = [
    "Asked",
    "hybrid",
    "ids_in",
    "normal_prefetch",
    "normal_query",
    "payload_selector",
    "query_parameters",
    "vector_selector",
]

_PLAIN = frozenset({"order_by", "sample", "formula", "fusion", "rrf"})
_STRATEGIES = frozenset({"average_vector", "best_score", "sum_scores"})
_STAGE = frozenset(
    {"query", "using", "filter", "limit", "prefetch", "params", "score_threshold"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A query as the application gave it; the names are those of ``store.query()``."""

    query: Any = None
    prefetch: Any = None
    fusion: str | Mapping[str, object] | None = None
    limit: int = 10
    filter: Filter = None
    using: str = ""
    offset: int = 0
    score_threshold: float | None = None
    with_payload: bool | Sequence[str] = True
    with_vectors: bool | Sequence[str] = False
    exact: bool = False
    params: Mapping[str, object] | None = None

    def encoded(self, spec: Mapping[str, Any], collection: str) -> Query:
        """Check it; return the request to a collection with this definition.

        Raises:
            InvalidRecord: Something in it is wrong.
            InvalidVector: A vector in it does not fit.
        """
        limit, offset = query_parameters(self.limit, self.offset)
        return Query(
            limit=limit,
            offset=offset,
            using=self.using,
            with_payload=payload_selector(self.with_payload),
            with_vector=vector_selector(self.with_vectors),
            query=normal_query(self.query, self.fusion, spec, collection, self.using),
            prefetch=normal_prefetch(self.prefetch, spec, collection),
            filter=normal_filter(self.filter),
            score_threshold=self.score_threshold,
            params={**(self.params or {}), **({"exact": True} if self.exact else {})},
        )


def hybrid(
    collection: str,
    embedding: Any,
    *,
    limit: int,
    filter: Filter,
    dense: str,
    sparse: str,
    candidates: int | None,
) -> Asked | None:
    """Return the query by both parts of an embedding; None when it is empty."""
    if not (hasattr(embedding, "dense") and hasattr(embedding, "sparse")):
        raise InvalidRecord(
            f"collection {collection!r}: search_hybrid() takes an Embedding, not a "
            f"{type(embedding).__name__}; write [embedding] = await "
            "vectorizer.embed([text]), or search() for a single vector",
            field="embedding",
        )
    stages = [
        {"query": part, "using": name}
        for part, name in ((embedding.dense, dense), (embedding.sparse, sparse))
        if part is not None and (name == dense or len(part.indices))
    ]
    if not stages:
        return None
    if len(stages) == 1:
        return Asked(
            stages[0]["query"], using=stages[0]["using"], limit=limit, filter=filter
        )
    take = candidates or max(20, 5 * limit)
    return Asked(
        prefetch=[{**stage, "limit": take, "filter": filter} for stage in stages],
        fusion="rrf",
        limit=limit,
    )


def payload_selector(given: bool | Sequence[str]) -> bool | list[str]:
    """Return the fields to ask for; a mapped id lives in the payload."""
    if given is True:
        return True
    return [*given, RESERVED_ID] if given else [RESERVED_ID]


def vector_selector(given: bool | Sequence[str]) -> bool | list[str]:
    """Return the vectors to ask for."""
    return given if isinstance(given, bool) else list(given)


def query_parameters(limit: object, offset: object) -> tuple[int, int]:
    """Check a limit and an offset.

    Raises:
        InvalidRecord: The limit is not positive, or the offset negative.
    """
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidRecord(
                f"query: {name} is {value!r}; give an integer from {least}",
                field=name,
            )
    assert isinstance(limit, int)
    assert isinstance(offset, int)
    return limit, offset


def normal_query(  # noqa: C901, PLR0912 - one branch per kind of query
    query: Any,
    fusion: str | Mapping[str, object] | None,
    spec: Mapping[str, Any],
    collection: str,
    using: str,
) -> dict[str, Any] | None:
    """Return a query in REST form with its vectors encoded.

    Raises:
        InvalidRecord: It is no query.
        InvalidVector: A vector in it does not fit.
    """
    if fusion is not None:
        if query is not None:
            message = "query: give either a query or a fusion, not both"
            raise InvalidRecord(message, field="fusion")
        if isinstance(fusion, str):
            if fusion not in {"rrf", "dbsf"}:
                message = f"query: fusion {fusion!r} is not known; rrf or dbsf"
                raise InvalidRecord(message, field="fusion")
            return {"fusion": fusion}
        plain = as_json(fusion)
        return plain if "rrf" in plain or "fusion" in plain else {"rrf": plain}
    if query is None:
        return None

    def one(given: Any) -> Any:
        return _vector_or_id(given, spec, collection, using)

    if hasattr(query, "model_dump") and not hasattr(query, "indices"):
        query = query.model_dump(exclude_none=True, by_alias=True)
    if not isinstance(query, Mapping):
        return {"nearest": one(query)}
    if len(query) == 0:
        message = "query: it is empty"
        raise InvalidRecord(message, field="query")
    name = next(iter(query))
    if name in _PLAIN:
        plain = as_json(query)
        return dict(plain)
    if name == "nearest":
        rest = {k: as_json(v) for k, v in query.items() if k != "nearest"}
        return {"nearest": one(query["nearest"]), **rest}
    if name == "recommend":
        return {"recommend": _recommend(query["recommend"], one)}
    if name == "discover":
        inner = query["discover"]
        return {
            "discover": {
                "target": one(inner["target"]),
                "context": _pairs(inner.get("context") or [], one),
            }
        }
    if name == "context":
        return {"context": _pairs(query["context"], one)}
    if {"indices", "values"} <= query.keys():
        return {"nearest": one(_Sparse(query["indices"], query["values"]))}
    message = f"query: {name!r} is not known"
    raise InvalidRecord(message, field="query")


class _Sparse:
    def __init__(self, indices: Sequence[int], values: Sequence[float]) -> None:
        self.indices, self.values = indices, values


def _vector_or_id(
    given: Any,
    spec: Mapping[str, Any],
    collection: str,
    using: str,
) -> Any:
    if isinstance(given, str | int | UUID):
        return {"@id": to_wire_id(given)[0]}
    if isinstance(given, Mapping) and {"indices", "values"} <= given.keys():
        given = _Sparse(given["indices"], given["values"])
    return encode_vector(given, spec, collection, name=using)


def _recommend(given: Mapping[str, Any], one: Any) -> dict[str, Any]:
    positive = [one(example) for example in given.get("positive") or ()]
    negative = [one(example) for example in given.get("negative") or ()]
    strategy = as_json(given.get("strategy")) or "average_vector"
    if strategy not in _STRATEGIES:
        message = f"recommend: strategy {strategy!r}; one of {', '.join(_STRATEGIES)}"
        raise InvalidRecord(message, field="strategy")
    if not positive and (strategy == "average_vector" or not negative):
        message = "recommend: there is no example; give ids or vectors"
        raise InvalidRecord(message, field="positive")
    return {"positive": positive, "negative": negative, "strategy": strategy}


def _pairs(given: Any, one: Any) -> list[dict[str, Any]]:
    many = [given] if isinstance(given, Mapping) else given
    return [
        {"positive": one(pair["positive"]), "negative": one(pair["negative"])}
        for pair in many
    ]


def ids_in(*given: Any) -> dict[str, int | str | UUID]:
    """Return ``{id as the engine knows it: id as the caller wrote it}``."""
    found: dict[str, int | str | UUID] = {}
    for value in given:
        if isinstance(value, str | int | UUID) and not isinstance(value, bool):
            with suppress(InvalidRecord):
                found[str(to_wire_id(value)[0])] = value
        elif hasattr(value, "model_dump"):
            found |= ids_in(value.model_dump(exclude_none=True))
        elif isinstance(value, Mapping):
            found |= ids_in(*value.values())
        elif isinstance(value, list | tuple):
            found |= ids_in(*value)
    return found


def normal_prefetch(
    prefetch: Any,
    spec: Mapping[str, Any],
    collection: str,
) -> list[dict[str, Any]] | None:
    """Return prefetch stages in REST form with their vectors encoded.

    Raises:
        InvalidRecord: A stage is wrong.
        InvalidVector: A vector in it does not fit.
    """
    if prefetch is None:
        return None
    if isinstance(prefetch, Mapping) or hasattr(prefetch, "model_dump"):
        prefetch = [prefetch]
    stages = []
    for given in prefetch:
        stage = given
        if hasattr(stage, "model_dump"):
            stage = {name: getattr(stage, name) for name in type(stage).model_fields}
        unknown = {k for k, v in stage.items() if v is not None} - _STAGE
        if unknown:
            message = f"prefetch: {min(unknown)!r} is not known"
            raise InvalidRecord(message, field="prefetch")
        using = stage.get("using") or ""
        limit, _ = query_parameters(stage.get("limit") or 10, 0)
        made = {
            "query": normal_query(stage.get("query"), None, spec, collection, using),
            "using": using,
            "filter": normal_filter(stage.get("filter")),
            "limit": limit,
            "prefetch": normal_prefetch(stage.get("prefetch"), spec, collection),
            "params": as_json(stage.get("params")),
            "score_threshold": stage.get("score_threshold"),
        }
        stages.append({k: v for k, v in made.items() if v is not None})
    return stages
