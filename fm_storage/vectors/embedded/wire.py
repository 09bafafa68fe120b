"""What travels between the store and the embedded engine, and its refusals.

Apart from the calls: vectors go as float32 bytes beside the JSON, and come back
so; the engine's words for what went wrong become our errors here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fm_storage.errors import (
    CollectionNotFound,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    RecordNotFound,
    VectorStoreUnavailable,
)
from fm_storage.vectors.points import ScoredPoint, SparseVector, from_wire_id
from fm_storage.vectors.request.points import Encoded, Floats, Terms

__all__ = ["points_from", "raised", "upsert_request", "with_references"]


def upsert_request(batch: Sequence[Encoded]) -> tuple[dict[str, Any], bytes]:
    """Return the request that writes a batch, and its raw part."""
    raw: list[bytes] = []
    dense: dict[str, list[int]] = {}
    sparse: dict[str, list[int]] = {}
    for row, point in enumerate(batch):
        for name, given in point.vectors.items():
            kind = dense if isinstance(given, Floats) else sparse
            kind.setdefault(name, []).append(row)
    dense_parts = []
    for name, rows in dense.items():
        vectors = [batch[row].vectors[name] for row in rows]
        dense_parts.append(
            {
                "name": name,
                "size": len(vectors[0]),
                "rows": None if len(rows) == len(batch) else rows,
            }
        )
        raw.extend(v.data for v in vectors if isinstance(v, Floats))
    sparse_parts = []
    for name, rows in sparse.items():
        lengths = []
        for row in rows:
            vector = batch[row].vectors[name]
            assert isinstance(vector, Terms)
            lengths.append(len(vector))
            raw += (vector.indices.tobytes(), vector.values.tobytes())
        sparse_parts.append({"name": name, "rows": rows, "lengths": lengths})
    request = {
        "ids": [point.id for point in batch],
        "payloads": [orjson.Fragment(point.payload) for point in batch],
        "dense": dense_parts,
        "sparse": sparse_parts,
    }
    return request, b"".join(raw)


def with_references(value: Any, raw: bytearray) -> Any:
    """Move vectors out of a request into its raw part."""
    if isinstance(value, Floats):
        start = len(raw)
        raw += value.data
        return {"@d": [start, len(value)]}
    if isinstance(value, Terms):
        start = len(raw)
        raw += value.indices.tobytes()
        raw += value.values.tobytes()
        return {"@s": [start, len(value)]}
    if isinstance(value, Mapping):
        return {key: with_references(inner, raw) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_references(inner, raw) for inner in value]
    return value


def _vector(reference: Any, raw: memoryview) -> Any:
    if reference is None:
        return None
    if "@d" in reference:
        start, count = reference["@d"]
        return raw[start : start + 4 * count].cast("f").tolist()
    if "@s" in reference:
        start, count = reference["@s"]
        middle = start + 4 * count
        return SparseVector(
            raw[start:middle].cast("I").tolist(),
            raw[middle : middle + 4 * count].cast("f").tolist(),
        )
    return {name: _vector(inner, raw) for name, inner in reference["@n"].items()}


def points_from(answer: Sequence[Any], raw: memoryview) -> list[ScoredPoint]:
    """Return the points of an answer as the application sees them."""
    made = []
    for number, score, payload, vector in answer:
        point = from_wire_id(number, payload)
        made.append(ScoredPoint(point, score, payload or {}, _vector(vector, raw)))
    return made


def raised(
    answer: Mapping[str, Any], operation: str, collection: str | None
) -> Exception:
    """Return our error for an answer that refuses."""
    kind, text = answer["err"], answer["text"]
    name = collection or ""
    if kind == "missing":
        return CollectionNotFound(text, operation=operation)
    if kind == "taken":
        return InvalidName(
            f"alias {text!r} is the name of a collection; choose another"
        )
    if kind == "no_point":
        return RecordNotFound(name, text)
    if kind == "vector":
        return InvalidVector(f"collection {name!r}: {text}", collection=name)
    if kind == "bad":
        return InvalidRecord(f"collection {name!r}: {operation} refused: {text}")
    return VectorStoreUnavailable(
        f"vector engine: {operation} failed ({text}); see its engine.log",
        operation=operation,
        collection=collection,
        retryable=False,
    )
