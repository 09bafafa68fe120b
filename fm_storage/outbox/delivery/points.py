"""From a row of ``vector_state`` to a point, and from a collection to its definition.

Delivery and rebuild share it; the vectors' room is loaded with the first point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from fm_storage.concurrency.pacing import in_chunks
from fm_storage.config import CollectionConfig
from fm_storage.vector_state import VERSION_KEY, decode_id, decode_vectors

if TYPE_CHECKING:
    from fm_storage.vectors import CollectionInfo, Point

State: TypeAlias = "tuple[str, int, bytes, Mapping[str, Any] | None]"
"""Encoded id, version, vectors and payload of one row."""


async def points_of(states: Sequence[State]) -> list[Point]:
    """Return the points that rows describe, their versions in the payloads.

    The loop has its turns meanwhile. Points with equal vectors share them: a burst
    of one error is one text, and so one vector, many times.
    """
    from fm_storage.vectors import Point

    shared: dict[bytes, Any] = {}
    points: list[Point] = []
    async for some in in_chunks(states):
        for point_id, version, data, payload in some:
            vector = shared.get(data)
            if vector is None:
                vector = shared[data] = _decoded(data)
            marked = {**_as_written(payload or {}), VERSION_KEY: version}
            points.append(Point(decode_id(point_id), vector, marked))
    return points


def _decoded(data: bytes) -> Any:
    from fm_storage.vectors import SparseVector

    named: dict[str, Any] = {
        name: SparseVector(*found) if isinstance(found, tuple) else found
        for name, found in decode_vectors(data).items()
    }
    return named[""] if named.keys() == {""} else named


def spec_of(present: CollectionInfo) -> CollectionConfig:
    """Return the definition of a collection as it is."""
    sparse: dict[str, Any] = {
        name: _known(one, {"modifier"}) for name, one in present.sparse_vectors.items()
    }
    dense = {
        name: _known(one, {"size", "distance"}) for name, one in present.vectors.items()
    }
    settings: dict[str, Any] = {
        "sparse_vectors": sparse,
        "payload_indexes": dict(present.payload_indexes),
    }
    if set(dense) == {""}:
        settings |= dense[""]
    else:
        settings["vectors"] = dense
    return CollectionConfig(**settings)


def _known(settings: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in keys and value}


def _as_written(value: Any) -> Any:
    """Return a payload with its large floats, which jsonb writes out as integers."""
    if isinstance(value, dict):
        return {key: _as_written(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_written(inner) for inner in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    return value
