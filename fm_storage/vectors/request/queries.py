"""Queries in every accepted form, checked and made one.

Vectors inside come out encoded, ids as ``{"@id": …}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.request.filters import (
    Filter,
    as_json,
    normal_filter,
    payload_path,
)
from fm_storage.vectors.request.formulas import normal_expression
from fm_storage.vectors.request.operations import Query
from fm_storage.vectors.request.points import (
    MARKS,
    RESERVED_ID,
    encode_vector,
    to_wire_id,
)

_MAX_LIMIT = 2**31
_STAGES = 8
_ORDER = frozenset({"key", "direction", "start_from"})
_PARAMETERS: dict[str, Any] = {
    "hnsw_ef": int,
    "exact": bool,
    "indexed_only": bool,
    "quantization": {"ignore": bool, "rescore": bool, "oversampling": int | float},
    "acorn": {"enable": bool, "max_selectivity": int | float},
}
_STRATEGIES = ("average_vector", "best_score", "sum_scores")
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
        query = normal_query(self.query, self.fusion, spec, collection, self.using)
        prefetch = normal_prefetch(self.prefetch, spec, collection)
        require_stages(query, prefetch)
        return Query(
            limit=limit,
            offset=offset,
            using=self.using,
            with_payload=payload_selector(self.with_payload),
            with_vector=vector_selector(self.with_vectors),
            query=query,
            prefetch=prefetch,
            filter=normal_filter(self.filter),
            score_threshold=_threshold(self.score_threshold),
            params=search_parameters(self.params, exact=bool(self.exact)),
        )


def asked_from(given: Any) -> Asked:
    """Return the query with these arguments of ``store.query()``.

    Raises:
        InvalidRecord: An argument is not known.
    """
    wrong = f"{given!r} is no mapping"
    if isinstance(given, Mapping):
        try:
            return Asked(**given)
        except TypeError as exc:
            wrong = str(exc)
    raise InvalidRecord(
        f"query_batch: {wrong}; give the arguments of query() by name", field="queries"
    )


def vector_names(given: Any) -> list[str]:
    """Return names of vectors, checked.

    Raises:
        InvalidRecord: It is no list of names, or empty.
    """
    names = as_json(given, "names")
    if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
        return names
    raise InvalidRecord(f"names: {given!r}; give a list of names", field="names")


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


def payload_selector(given: Any) -> bool | dict[str, list[str]]:
    """Return the fields to ask for; a mapped id lives in the payload.

    Args:
        given: A bool, a list of fields, ``{"include": […]}``, ``{"exclude": […]}``,
            or a selector of ``qdrant_client.models``.
    """
    if given is True:  # nearly always
        return True
    given = as_json(given, "with_payload")
    if isinstance(given, Mapping) and len(given) == 1:
        [(kind, fields)] = given.items()
        if kind == "exclude":
            kept = [path for path in _paths(fields) if path != RESERVED_ID]
            return {"exclude": kept} if kept else True
        given = fields if kind == "include" else given
    return {"include": [*_paths(given or []), RESERVED_ID]}


def _paths(given: Any) -> list[str]:
    if not isinstance(given, list):
        problem = f"{given!r}; give a bool, a list of fields, include or exclude"
        raise InvalidRecord(f"with_payload: {problem}", field="with_payload")
    return [payload_path(path, "with_payload") for path in given]


def value_path(given: Any, field: str, *, changed: bool = False) -> str:
    """Return the path of a payload field whose values are given back, or changed.

    Raises:
        InvalidRecord: It is none, or not the application's.
    """
    path = payload_path(given, field)
    ours = {RESERVED_ID, *(MARKS[:1] if changed else MARKS)}
    if re.split(r"[.\[]", path)[0].strip('"') in ours:
        problem = f"{field}: {path!r} is kept by fm_storage; name a field of yours"
        raise InvalidRecord(problem, field=field)
    return path


def vector_selector(given: Any) -> bool | list[str]:
    """Return the vectors to ask for."""
    if isinstance(given, bool):
        return given
    given = as_json(given, "with_vectors")
    if not isinstance(given, list) or not all(isinstance(n, str) for n in given):
        problem = f"{given!r}; give a bool or a list of names"
        raise InvalidRecord(f"with_vectors: {problem}", field="with_vectors")
    return given


def query_parameters(limit: object, offset: object) -> tuple[int, int]:
    """Check a limit and an offset.

    Raises:
        InvalidRecord: The limit is not positive, or the offset negative.
    """
    return _integer("limit", limit, 1), _integer("offset", offset, 0)


def _integer(name: str, value: object, least: int) -> int:
    if type(value) is int and least <= value < _MAX_LIMIT:
        return value
    raise InvalidRecord(
        f"query: {name} is {value!r}; give an integer from {least} to {_MAX_LIMIT - 1}",
        field=name,
    )


def _threshold(given: Any) -> float | None:
    if given is None:
        return None
    number = as_json(given, "score_threshold")
    if isinstance(number, bool) or not isinstance(number, int | float):
        problem = f"score_threshold is {given!r}; give a number"
        raise InvalidRecord(f"query: {problem}", field="score_threshold")
    return float(number)


def search_parameters(given: Any, *, exact: bool = False) -> dict[str, Any]:
    """Return Qdrant's search parameters, checked.

    Raises:
        InvalidRecord: One is not known, or of another type.
    """
    if given is None:
        return {"exact": True} if exact else {}
    made = as_json(given, "params") or {}
    wrong = _misfit(made, _PARAMETERS)
    if wrong is not None:
        known = ", ".join(sorted(_PARAMETERS))
        problem = f"{wrong}; known are {known}"
        raise InvalidRecord(f"params: {problem}", field="params")
    return {**made, **({"exact": True} if exact else {})}


def _misfit(given: Any, known: Mapping[str, Any]) -> str | None:
    """Say what in *given* is not of the kinds in *known*; None when all is."""
    if not isinstance(given, Mapping):
        return f"{given!r} is no mapping"
    for name, value in given.items():
        kind = known.get(name)
        if kind is None:
            return f"{name!r} is not known"
        if isinstance(kind, Mapping):
            wrong = _misfit(value, kind)
            if wrong is not None:
                return f"{name}: {wrong}"
        elif not _fits(value, kind):
            return f"{name} is {value!r}"
    return None


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if not isinstance(value, kind):
        return False
    return not isinstance(value, int | float) or 0 <= value < _MAX_LIMIT


def order_by(given: Any) -> str | dict[str, Any] | None:
    """Return the order of a scroll or query, checked.

    Args:
        given: A payload field, ``{"key", "direction", "start_from"}``, or an
            ``OrderBy`` of ``qdrant_client.models``.

    Raises:
        InvalidRecord: It is none of these.
    """
    given = as_json(given, "order_by")
    if given is None or isinstance(given, str):
        return given and payload_path(given, "order_by")
    if isinstance(given, Mapping) and given.keys() <= _ORDER and "key" in given:
        start = given.get("start_from")
        if given.get("direction") in (None, "asc", "desc") and (
            start is None
            or (isinstance(start, str | int | float) and not isinstance(start, bool))
        ):
            key = payload_path(given["key"], "order_by")
            return {**{k: v for k, v in given.items() if v is not None}, "key": key}
    problem = f"{given!r}; give a field, or key with direction asc or desc"
    raise InvalidRecord(f"order_by: {problem}", field="order_by")


def normal_query(
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
    if not isinstance(using, str):
        raise _refused(f"using is {using!r}; give the name of a vector", "using")
    if fusion is not None:
        if query is not None:
            raise _refused("give either a query or a fusion, not both", "fusion")
        plain = as_json(fusion, "fusion")
        if isinstance(plain, Mapping) and not plain.keys() & {"rrf", "fusion"}:
            plain = {"rrf": plain}
        query = {"fusion": plain} if isinstance(plain, str) else plain
    if query is None:
        return None

    def one(given: Any) -> Any:
        return _vector_or_id(given, spec, collection, using)

    if hasattr(query, "model_dump") and not hasattr(query, "indices"):
        query = query.model_dump(exclude_none=True, by_alias=True)
    if not isinstance(query, Mapping) or {"indices", "values"} <= query.keys():
        return {"nearest": one(query)}
    name = next((name for name in _QUERIES if name in query), "")
    beside = {"nearest": {"mmr"}, "formula": {"defaults"}}.get(name, set())
    unknown = query.keys() - beside - {name}
    if not name or unknown:
        raise _refused(f"{sorted(map(str, unknown))} is not known", "query")
    return _QUERIES[name](query, one)


def _refused(problem: str, field: str) -> InvalidRecord:
    return InvalidRecord(f"query: {problem}", field=field)


def _nearest(query: Mapping[str, Any], one: Any) -> dict[str, Any]:
    made = {"nearest": one(query["nearest"])}
    mmr = as_json(query.get("mmr"), "mmr")
    if mmr is not None:
        wrong = _misfit(mmr, {"diversity": int | float, "candidates_limit": int})
        if wrong is None and not 0 <= mmr.get("diversity", 0.5) <= 1:
            wrong = "diversity is from 0 to 1"
        if wrong is not None:
            raise _refused(f"mmr: {wrong}", "mmr")
        made["mmr"] = mmr
    return made


def _fusion(query: Mapping[str, Any], _one: Any) -> dict[str, Any]:
    kind = as_json(query["fusion"], "fusion")
    if kind not in ("rrf", "dbsf"):
        raise _refused(f"fusion {kind!r} is not known; rrf or dbsf", "fusion")
    return {"fusion": kind}


def _rrf(query: Mapping[str, Any], _one: Any) -> dict[str, Any]:
    given = as_json(query["rrf"], "fusion")
    wrong = _misfit(given, {"k": int, "weights": list})
    if wrong is None:
        weights = given.get("weights", [])
        if given.get("k") == 0 or not all(
            isinstance(each, int | float) and not isinstance(each, bool) and each >= 0
            for each in weights
        ):
            wrong = "k is from 1, weights are numbers from 0"
    if wrong is not None:
        raise _refused(f"rrf: {wrong}", "fusion")
    return {"rrf": given}


def _order(query: Mapping[str, Any], _one: Any) -> dict[str, Any]:
    made = order_by(query["order_by"])
    if made is None:
        raise _refused("order_by names no field", "order_by")
    return {"order_by": made}


def _sample(query: Mapping[str, Any], _one: Any) -> dict[str, Any]:
    if as_json(query["sample"], "query") != "random":
        raise _refused(f"sample is {query['sample']!r}; it can be 'random'", "query")
    return {"sample": "random"}


def _formula(query: Mapping[str, Any], _one: Any) -> dict[str, Any]:
    made = {"formula": normal_expression(as_json(query["formula"], "formula"))}
    defaults = as_json(query.get("defaults"), "formula")
    if defaults is not None:
        if not isinstance(defaults, Mapping):
            raise _refused(f"defaults is {defaults!r}; give a mapping", "formula")
        made["defaults"] = defaults
    return made


def _discover(query: Mapping[str, Any], one: Any) -> dict[str, Any]:
    inner = _mapping(query["discover"], {"target", "context"}, "discover")
    if inner.get("target") is None:
        raise _refused("discover needs a target", "query")
    context = _pairs(inner.get("context"), one)
    return {"discover": {"target": one(inner["target"]), "context": context}}


def _context(query: Mapping[str, Any], one: Any) -> dict[str, Any]:
    return {"context": _pairs(query["context"], one)}


def _pairs(given: Any, one: Any) -> list[dict[str, Any]]:
    if given is None:
        return []
    many = given if isinstance(given, list | tuple) else [given]
    pairs = []
    for each in many:
        pair = _mapping(each, {"positive", "negative"}, "context")
        if len(pair) != 2:
            raise _refused("context: a pair needs positive and negative", "query")
        pairs.append(
            {"positive": one(pair["positive"]), "negative": one(pair["negative"])}
        )
    return pairs


def _mapping(given: Any, keys: set[str], what: str) -> Mapping[str, Any]:
    if hasattr(given, "model_dump"):
        given = given.model_dump(exclude_none=True, by_alias=True)
    if not isinstance(given, Mapping) or not given.keys() <= keys:
        raise _refused(f"{what}: give a mapping of {', '.join(sorted(keys))}", "query")
    return {name: value for name, value in given.items() if value is not None}


def _recommend(query: Mapping[str, Any], one: Any) -> dict[str, Any]:
    keys = {"positive", "negative", "strategy"}
    given = _mapping(query["recommend"], keys, "recommend")
    examples: dict[str, list[Any]] = {}
    for name in ("positive", "negative"):
        many = given.get(name, ())
        if not isinstance(many, list | tuple):
            raise _refused(f"recommend: {name} is no list of examples", name)
        examples[name] = [one(example) for example in many]
    strategy = as_json(given.get("strategy"), "strategy") or "average_vector"
    if strategy not in _STRATEGIES:
        known = ", ".join(_STRATEGIES)
        message = f"recommend: strategy {strategy!r}; one of {known}"
        raise InvalidRecord(message, field="strategy")
    if not examples["positive"] and (
        strategy == "average_vector" or not examples["negative"]
    ):
        message = "recommend: there is no example; give ids or vectors"
        raise InvalidRecord(message, field="positive")
    return {"recommend": {**examples, "strategy": strategy}}


_QUERIES: dict[str, Callable[[Mapping[str, Any], Any], dict[str, Any]]] = {
    "nearest": _nearest,
    "recommend": _recommend,
    "discover": _discover,
    "context": _context,
    "order_by": _order,
    "sample": _sample,
    "formula": _formula,
    "fusion": _fusion,
    "rrf": _rrf,
}


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
    depth: int = 0,
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
    if not isinstance(prefetch, list | tuple) or depth > _STAGES:
        problem = f"it is a {type(prefetch).__name__}, or nested too deep; give stages"
        raise InvalidRecord(f"prefetch: {problem}", field="prefetch")
    return [_stage(given, spec, collection, depth) for given in prefetch] or None


def _stage(
    stage: Any, spec: Mapping[str, Any], collection: str, depth: int
) -> dict[str, Any]:
    if hasattr(stage, "model_dump"):
        stage = {name: getattr(stage, name) for name in type(stage).model_fields}
    if not isinstance(stage, Mapping):
        message = f"prefetch: a stage is a {type(stage).__name__}; give a mapping"
        raise InvalidRecord(message, field="prefetch")
    given = {name: value for name, value in stage.items() if value is not None}
    unknown = given.keys() - _STAGE
    if unknown:
        message = f"prefetch: {min(map(str, unknown))!r} is not known"
        raise InvalidRecord(message, field="prefetch")
    using = given.get("using", "")
    made = {
        "query": normal_query(given.get("query"), None, spec, collection, using),
        "using": using,
        "filter": normal_filter(given.get("filter")),
        "limit": _integer("limit", given.get("limit", 10), 1),
        "prefetch": normal_prefetch(given.get("prefetch"), spec, collection, depth + 1),
        "params": search_parameters(given.get("params")) or None,
        "score_threshold": _threshold(given.get("score_threshold")),
    }
    require_stages(made["query"], made["prefetch"])
    return {k: v for k, v in made.items() if v is not None}


def require_stages(query: Mapping[str, Any] | None, prefetch: Any) -> None:
    """Refuse stages without a query over them, and a query that needs stages.

    Raises:
        InvalidRecord: One is there without the other.
    """
    name = next(iter(query), "") if query is not None else ""
    if prefetch and query is None:
        raise InvalidRecord(
            "prefetch: there is no query or fusion over it; give one",
            field="query",
        )
    if not prefetch and name in {"fusion", "rrf", "formula"}:
        raise InvalidRecord(
            f"query: {name} ranks what a prefetch has found; give prefetch=",
            field="prefetch",
        )
