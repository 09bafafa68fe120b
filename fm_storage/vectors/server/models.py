"""Definitions and requests as objects of ``qdrant_client.models``, both ways.

The names of the client's models are written down here only. Loaded together with
the client.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from qdrant_client import models

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.points import ScoredPoint, SparseVector
from fm_storage.vectors.request.definitions import present
from fm_storage.vectors.request.points import Floats, Terms
from fm_storage.vectors.request.points import point_from as _point_from

Json = Mapping[str, Any]

_QUERY: TypeAdapter[Any] = TypeAdapter(models.Query)
_SCHEMA: TypeAdapter[Any] = TypeAdapter(models.PayloadFieldSchema)
_QUANTIZATION: TypeAdapter[Any] = TypeAdapter(models.QuantizationConfig)


def creation(spec: Json) -> dict[str, Any]:
    """Return the arguments that create a collection."""
    dense = {name: _vector_params(given) for name, given in spec["vectors"].items()}
    sparse = {
        name: models.SparseVectorParams(
            index=None
            if given.get("on_disk") is None
            else models.SparseIndexParams(on_disk=given["on_disk"]),
            modifier=models.Modifier(given.get("modifier", "none")),
        )
        for name, given in spec["sparse_vectors"].items()
    }
    made: dict[str, Any] = {
        "vectors_config": dense[""] if set(dense) == {""} else dense,
        "sparse_vectors_config": sparse or None,
        "hnsw_config": _hnsw(spec.get("hnsw")),
        "quantization_config": _quantization(spec.get("quantization")),
        "sharding_method": None
        if spec.get("sharding_method") is None
        else models.ShardingMethod(spec["sharding_method"]),
    }
    for key in (
        "shard_number",
        "replication_factor",
        "write_consistency_factor",
        "on_disk_payload",
    ):
        made[key] = spec.get(key)
    return {key: value for key, value in made.items() if value is not None}


def _vector_params(given: Json) -> models.VectorParams:
    return models.VectorParams(
        size=given["size"],
        distance=models.Distance(given["distance"]),
        on_disk=given.get("on_disk"),
        hnsw_config=_hnsw(given.get("hnsw")),
        quantization_config=_quantization(given.get("quantization")),
    )


def _hnsw(given: Json | None) -> models.HnswConfigDiff | None:
    return None if given is None else _checked(models.HnswConfigDiff, given, "hnsw")


def _quantization(given: Json | None) -> Any:
    if given is None:
        return None
    try:
        return _QUANTIZATION.validate_python(dict(given))
    except ValidationError as exc:
        raise _refused("quantization", exc) from None


def _checked(model: Any, given: Json, what: str) -> Any:
    try:
        return model.model_validate(dict(given))
    except ValidationError as exc:
        raise _refused(what, exc) from None


def _refused(what: str, exc: ValidationError) -> InvalidRecord:
    first = exc.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return InvalidRecord(f"{what}: {path}: {first['msg']}", field=what)


def field_schema(given: Any) -> Any:
    """Return the description of a payload index.

    Raises:
        InvalidRecord: It is not known.
    """
    try:
        return _SCHEMA.validate_python(given)
    except ValidationError as exc:
        raise _refused("schema", exc) from None


def filter_model(given: Json | None) -> models.Filter | None:
    """Return a filter.

    Raises:
        InvalidRecord: It is not one that Qdrant knows.
    """
    return None if not given else _checked(models.Filter, given, "filter")


def query_model(given: Any) -> Any:
    """Return a query of the client's kind for one in REST form.

    Raises:
        InvalidRecord: It is not one that Qdrant knows.
    """
    if given is None:
        return None
    try:
        return _QUERY.validate_python(given)
    except ValidationError as exc:
        raise _refused("query", exc) from None


def plain_request(value: Any, *, dense: Any) -> Any:
    """Return a request with its vectors written out and its ids bare.

    Args:
        value: Request in plain form, vectors encoded.
        dense: What a dense vector becomes: a function of ``Floats``.
    """
    if isinstance(value, Floats):
        return dense(value)
    if isinstance(value, Terms):
        return {"indices": value.indices.tolist(), "values": value.values.tolist()}
    if isinstance(value, Mapping):
        if "@id" in value:
            return value["@id"]
        return {k: plain_request(v, dense=dense) for k, v in value.items()}
    if isinstance(value, list):
        return [plain_request(item, dense=dense) for item in value]
    return value


def spec_from(info: models.CollectionInfo) -> dict[str, Any]:
    """Return a server's definition in plain form."""
    config = info.config
    params = config.params
    given = params.vectors or {}
    dense: Mapping[str, models.VectorParams] = (
        {"": given} if isinstance(given, models.VectorParams) else given
    )
    spec: dict[str, Any] = {
        "vectors": {
            name: present(
                {
                    "size": vector.size,
                    "distance": vector.distance.value,
                    "on_disk": vector.on_disk,
                    "hnsw": _dump(vector.hnsw_config),
                    "quantization": _dump(vector.quantization_config),
                }
            )
            for name, vector in dense.items()
        },
        "sparse_vectors": {
            name: present(
                {
                    "modifier": sparse.modifier.value if sparse.modifier else "none",
                    "on_disk": sparse.index.on_disk if sparse.index else None,
                }
            )
            for name, sparse in (params.sparse_vectors or {}).items()
        },
        "payload_indexes": {
            field: schema.data_type.value
            for field, schema in (info.payload_schema or {}).items()
        },
        "hnsw": _dump(config.hnsw_config),
        "quantization": _dump(config.quantization_config),
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "on_disk_payload": params.on_disk_payload,
        "sharding_method": params.sharding_method.value
        if params.sharding_method
        else None,
    }
    return present(spec)


def _dump(model: Any) -> Any:
    return None if model is None else model.model_dump(mode="json", exclude_none=True)


def vector_from(given: Any) -> Any:
    """Return a vector as the application sees it: float32 numbers."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        if given.keys() == {"indices", "values"}:
            return SparseVector(list(given["indices"]), _float32(given["values"]))
        return {name: vector_from(value) for name, value in given.items()}
    if isinstance(given, models.SparseVector):
        return SparseVector(list(given.indices), _float32(given.values))
    return _float32(given)


def _float32(values: Sequence[float]) -> list[float]:
    # The same doubles as the embedded engine gives, not the shortest text's.
    return array("f", values).tolist()


def point_from(
    number: Any,
    score: float,
    payload: dict[str, Any] | None,
    vector: Any,
) -> ScoredPoint:
    """Return a hit as the application sees it."""
    shown = vector_from(vector) or None
    return _point_from(number, array("f", [score])[0], payload, shown)
