"""From a row of ``vector_state`` to a point, and from a collection to its definition.

Apart because delivering and rebuilding do it alike, and because the vectors'
room is loaded only when the first point travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fm_storage.config import CollectionConfig
from fm_storage.vector_state import VERSION_KEY, decode_id, decode_vectors

if TYPE_CHECKING:
    from fm_storage.vectors import CollectionInfo, Point

__all__ = ["point_of", "spec_of"]


def point_of(
    point_id: str,
    version: int,
    vectors: bytes,
    payload: Mapping[str, Any] | None,
) -> Point:
    """Return the point that a row describes, its version in the payload."""
    from fm_storage.vectors import Point, SparseVector  # noqa: PLC0415 - loaded late

    named: dict[str, Any] = {
        name: SparseVector(*found) if isinstance(found, tuple) else found
        for name, found in decode_vectors(vectors).items()
    }
    return Point(
        decode_id(point_id),
        named[""] if set(named) == {""} else named,
        {**(payload or {}), VERSION_KEY: version},
    )


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
