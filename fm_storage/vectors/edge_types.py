"""From requests in the form of Qdrant's REST API to the types of qdrant-edge.

Runs in the engine's process only. Apart from the engine, because this is the
one place that knows the names qdrant-edge gives to things, which drift between
its minor releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as edge

__all__ = [
    "BadRequest",
    "Resolver",
    "edge_config",
    "filter_from",
    "index_config",
    "index_params",
    "order_by_from",
    "prefetch_from",
    "query_from",
    "search_params",
]

Json = Mapping[str, Any]

Resolver = Callable[[Any, str], Any]
"""Turns a reference (``{"@d": …}``, ``{"@s": …}``, ``{"@id": …}``) into a vector."""


class BadRequest(Exception):
    """The request names something that the engine does not have or know."""


_DISTANCES = {
    "Cosine": edge.Distance.Cosine,
    "Euclid": edge.Distance.Euclid,
    "Dot": edge.Distance.Dot,
    "Manhattan": edge.Distance.Manhattan,
}


def edge_config(
    spec: Json, optimizers: edge.EdgeOptimizersConfig | None = None
) -> edge.EdgeConfig:
    """Return the configuration of a new shard."""
    dense = {
        name: edge.EdgeVectorParams(
            size=params["size"],
            distance=_DISTANCES[params["distance"]],
            on_disk=params.get("on_disk"),
            hnsw_config=_hnsw(params.get("hnsw")),
            quantization_config=_quantization(params.get("quantization")),
        )
        for name, params in spec["vectors"].items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(
            on_disk=params.get("on_disk"),
            modifier=edge.Modifier.Idf if params.get("modifier") == "idf" else None,
        )
        for name, params in spec["sparse_vectors"].items()
    }
    return edge.EdgeConfig(
        vectors=dense or None,
        sparse_vectors=sparse or None,
        on_disk_payload=spec.get("on_disk_payload"),
        hnsw_config=_hnsw(spec.get("hnsw")),
        quantization_config=_quantization(spec.get("quantization")),
        optimizers=optimizers,
    )


def index_config(spec: Json) -> edge.EdgeConfig:
    """Return what a shard is loaded with to be indexed: everything, on one thread."""
    hnsw = {"max_indexing_threads": 1, **(spec.get("hnsw") or {})}
    return edge_config(
        {**spec, "hnsw": hnsw},
        edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
    )


def _hnsw(given: Json | None) -> edge.HnswIndexConfig | None:
    if not given:
        return None
    known = {
        "m": 16,
        "ef_construct": 100,
        "full_scan_threshold": 10_000,
        "max_indexing_threads": 1,
        "on_disk": None,
        "payload_m": None,
    }
    return edge.HnswIndexConfig(
        **{key: given.get(key, default) for key, default in known.items()}
    )


def _quantization(given: Json | None) -> Any:  # noqa: ANN401 - one of four classes
    if not given:
        return None
    if "scalar" in given:
        params = given["scalar"] or {}
        return edge.ScalarQuantizationConfig(
            type=edge.ScalarType.Int8,
            quantile=params.get("quantile"),
            always_ram=params.get("always_ram"),
        )
    if "product" in given:
        params = given["product"] or {}
        ratio = str(params.get("compression", "x16")).upper()
        return edge.ProductQuantizationConfig(
            compression=getattr(edge.CompressionRatio, ratio),
            always_ram=params.get("always_ram"),
        )
    if "binary" in given:
        return edge.BinaryQuantizationConfig(
            always_ram=(given["binary"] or {}).get("always_ram")
        )
    message = f"unknown quantization {sorted(given)}"
    raise BadRequest(message)


def filter_from(given: Json | None) -> edge.Filter | None:
    """Return the engine's filter for one in REST form."""
    if not given:
        return None
    unknown = given.keys() - {"must", "should", "must_not", "min_should"}
    if unknown:
        message = f"unknown clause {min(unknown)!r} in a filter"
        raise BadRequest(message)
    least = given.get("min_should")
    return edge.Filter(
        must=_conditions(given.get("must")),
        should=_conditions(given.get("should")),
        must_not=_conditions(given.get("must_not")),
        min_should=None
        if least is None
        else edge.MinShould(
            conditions=_conditions(least["conditions"]) or [],
            min_count=least["min_count"],
        ),
    )


def _conditions(given: Any) -> list[Any] | None:  # noqa: ANN401 - one or several
    if given is None:
        return None
    if isinstance(given, Mapping):
        given = [given]
    return [_condition(item) for item in given]


def _condition(given: Json) -> Any:  # noqa: ANN401, PLR0911 - one of seven classes
    if "key" in given:
        return _field(given)
    if "has_id" in given:
        return edge.HasIdCondition(point_ids=set(given["has_id"]))
    if "is_empty" in given:
        return edge.IsEmptyCondition(key=given["is_empty"]["key"])
    if "is_null" in given:
        return edge.IsNullCondition(key=given["is_null"]["key"])
    if "has_vector" in given:
        return edge.HasVectorCondition(vector=given["has_vector"])
    if "nested" in given:
        inner = given["nested"]
        return edge.NestedCondition(
            key=inner["key"], filter=filter_from(inner["filter"]) or edge.Filter()
        )
    return filter_from(given) or edge.Filter()


def _field(given: Json) -> edge.FieldCondition:
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name == "key" or value is None:
            continue
        if name not in _FIELD:
            message = f"unknown condition {name!r} on field {given['key']!r}"
            raise BadRequest(message)
        made[name] = _FIELD[name](value)
    return edge.FieldCondition(key=given["key"], **made)


def _match(given: Json) -> Any:  # noqa: ANN401 - one of eight classes
    (name, value), *rest = given.items()
    if rest or name not in _MATCHES:
        message = f"unknown match {sorted(given)}"
        raise BadRequest(message)
    if name == "value" and isinstance(value, bool):
        # The engine takes True for the integer 1; numpy's bool is told apart.
        # numpy is loaded only for such a filter: it costs more than the engine.
        import numpy as np  # noqa: PLC0415 - see above

        value = np.bool_(value)
    return _MATCHES[name](value)


def _range(given: Json) -> Any:  # noqa: ANN401 - one of two classes
    bounds = {k: v for k, v in given.items() if v is not None}
    if any(isinstance(value, str) for value in bounds.values()):
        return edge.RangeDateTime(**bounds)
    return edge.RangeFloat(**bounds)


def _geo_point(given: Json) -> edge.GeoPoint:
    return edge.GeoPoint(lon=given["lon"], lat=given["lat"])


def _line(given: Json) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in given["points"]]


_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": edge.MatchValue,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
}

_FIELD: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": lambda box: edge.GeoBoundingBox(
        top_left=_geo_point(box["top_left"]),
        bottom_right=_geo_point(box["bottom_right"]),
    ),
    "geo_radius": lambda circle: edge.GeoRadius(
        center=_geo_point(circle["center"]), radius=circle["radius"]
    ),
    "geo_polygon": lambda polygon: edge.GeoPolygon(
        exterior=_line(polygon["exterior"]),
        interiors=[_line(line) for line in polygon.get("interiors") or []] or None,
    ),
    "values_count": lambda bounds: edge.ValuesCount(
        **{k: v for k, v in bounds.items() if v is not None}
    ),
    "is_empty": bool,
    "is_null": bool,
}


def search_params(given: Json | None) -> edge.SearchParams | None:
    """Return the engine's search parameters."""
    if not given:
        return None
    quantization = given.get("quantization")
    return edge.SearchParams(
        hnsw_ef=given.get("hnsw_ef"),
        exact=bool(given.get("exact")),
        indexed_only=bool(given.get("indexed_only")),
        quantization=None
        if not quantization
        else edge.QuantizationSearchParams(
            ignore=bool(quantization.get("ignore")),
            rescore=quantization.get("rescore"),
            oversampling=quantization.get("oversampling"),
        ),
    )


def order_by_from(given: Any) -> edge.OrderBy | None:  # noqa: ANN401 - text or object
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
            query=query_from(stage.get("query"), stage.get("using") or "", resolve),
            prefetches=prefetch_from(stage.get("prefetch"), resolve),
            params=search_params(stage.get("params")),
            filter=filter_from(stage.get("filter")),
            score_threshold=stage.get("score_threshold"),
        )
        for stage in given
    ]


def query_from(given: Any, using: str, resolve: Resolver) -> Any:  # noqa: ANN401 - any query
    """Return the engine's query for one in REST form."""
    if given is None:
        return None
    if "@d" in given or "@s" in given or "@id" in given:
        return edge.Query.Nearest(resolve(given, using), using=using)
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
            candidates_limit=mmr.get("candidates_limit") or 100,
            using=using,
        )
    if name not in _QUERIES:
        message = f"query {name!r} is not known to the embedded engine"
        raise BadRequest(message)
    return _QUERIES[name](value, using, resolve)


def _fusion(value: str, using: str, resolve: Resolver) -> Any:  # noqa: ANN401 - either fusion
    del using, resolve
    return edge.Fusion.Dbsf() if value == "dbsf" else edge.Fusion.Rrf(k=2)


def _rrf(value: Json, using: str, resolve: Resolver) -> Any:  # noqa: ANN401 - either fusion
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
        wanted = _mean(positive)
        if negative:
            away = _mean(negative)
            wanted = [2 * a - b for a, b in zip(wanted, away, strict=True)]
        return edge.Query.Nearest(wanted, using=using)
    query = edge.RecommendQuery(positives=positive, negatives=negative)
    if strategy == "sum_scores":
        return edge.Query.RecommendSumScores(query, using=using)
    return edge.Query.RecommendBestScore(query, using=using)


def _mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    if isinstance(vectors[0], edge.SparseVector):
        message = "recommend by average takes dense vectors only"
        raise BadRequest(message)
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


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


def _context(value: Any, using: str, resolve: Resolver) -> edge.Query:  # noqa: ANN401 - one or several
    given = [value] if isinstance(value, Mapping) else value
    return edge.Query.Context(
        edge.ContextQuery(pairs=_pairs(given, using, resolve)), using=using
    )


def _order(value: Any, using: str, resolve: Resolver) -> edge.OrderBy | None:  # noqa: ANN401 - text or object
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


def index_params(given: str | Json) -> Any:  # noqa: ANN401 - one of nine classes
    """Return the engine's description of a payload index."""
    if isinstance(given, str):
        given = {"type": given}
    kind = str(given["type"]).capitalize()
    if not hasattr(edge.PayloadSchemaType, kind):
        message = f"unknown type {given['type']!r} of a payload index"
        raise BadRequest(message)
    options = {k: v for k, v in given.items() if k != "type" and v is not None}
    if not options:
        return getattr(edge.PayloadSchemaType, kind)
    if "tokenizer" in options:
        options["tokenizer"] = getattr(
            edge.TokenizerType, str(options["tokenizer"]).capitalize()
        )
    return getattr(edge, f"{kind}IndexParams")(**options)
