"""Definitions and parameters as the types of qdrant-edge.

Runs in the engine's process only. This file and the ``edge_*.py`` beside it
are the only places that know the names of qdrant-edge, which drift between its
minor releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge

Json = Mapping[str, Any]


class BadRequest(Exception):
    """The request names something that the engine does not have or know."""


_THREADS = 2
"""Of a shard: a query goes over the indexed and the new part side by side."""
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
        max_search_threads=_THREADS,
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


def _quantization(given: Json | None) -> Any:
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


def index_params(given: str | Json) -> Any:
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
    if "stopwords" in options:
        options["stopwords"] = _stopwords(options["stopwords"])
    if "stemmer" in options:
        language = str(options["stemmer"]["language"]).capitalize()
        made = getattr(edge.SnowballLanguage, language)
        options["stemmer"] = edge.SnowballParams(made)
    return getattr(edge, f"{kind}IndexParams")(**options)


def _stopwords(given: Any) -> Any:
    if isinstance(given, str):
        return getattr(edge.Language, given.capitalize())
    languages = given.get("languages") or ()
    return edge.StopwordsSet(
        languages={getattr(edge.Language, name.capitalize()) for name in languages},
        custom=set(given.get("custom") or ()),
    )
