"""One point as the statements take it: id, vectors, payload and its digest.

A writer runs this for each record before anything is sent, so it is kept fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from fm_storage._typing import JSON_DEPTH
from fm_storage.errors import InvalidRecord
from fm_storage.vector_state.frames import VectorLike, encode_vectors
from fm_storage.vector_state.identifiers import encode_id
from fm_storage.vector_state.shapes import Shape

VERSION_KEY = "_ver"
"""Payload key under which a point carries its version."""

_RESERVED = "_fm_id"
"""Payload key under which the vector store keeps an id that it had to map."""

_AS_IT_IS = frozenset({str, int, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A point whose vectors the drainer makes, in batches and off the caller's path."""

    id: int | str | UUID
    payload: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class StateRow:
    """Parameters of one point, ready for the statements of this package."""

    point_id: str
    vectors: bytes | None
    payload: dict[str, Any]
    payload_hash: bytes


def state_row(
    point_id: object,
    vector: VectorLike | None,
    payload: Mapping[str, object] | None = None,
    *,
    collection: str = "?",
    index: int | None = None,
    shape: Shape | None = None,
) -> StateRow:
    """Validate one point and return its parameters; nothing is sent.

    Raises:
        InvalidRecord: The id or the payload cannot be stored.
        InvalidVector: A vector is not finite, or not one that *shape* knows.
        DimensionMismatch: A vector's length is not the one *shape* says.
    """
    encoded = None
    if vector is not None:
        encoded = encode_vectors(
            vector, collection=collection, index=index, shape=shape
        )
    kept, digest = stored_payload(payload, index=index)
    return StateRow(encode_id(point_id, index=index), encoded, kept, digest)


def stored_payload(
    payload: Mapping[str, object] | None, *, index: int | None = None
) -> tuple[dict[str, Any], bytes]:
    """Return a payload as it is stored, and its digest.

    Raises:
        InvalidRecord: It is no JSON object, or uses the reserved key.
    """
    try:
        kept: dict[str, Any] = {} if payload is None else dict(payload)
    except (TypeError, ValueError) as exc:
        raise _not_json(exc, index) from exc
    if _RESERVED in kept:
        raise InvalidRecord(
            f"payload{_at(index)}: it uses the reserved key {_RESERVED!r}; rename it",
            field=f"payload.{_RESERVED}",
            index=index,
        )
    return kept, payload_digest(kept, index=index)


def payload_digest(
    payload: Mapping[str, object] | None, *, index: int | None = None
) -> bytes:
    """Return a digest that is equal for payloads that JSON cannot tell apart.

    Numbers are normalised, because PostgreSQL, Qdrant and Python write one
    number in different ways (``1e16``, ``10000000000000000``) and differ in the
    last digit; keys that begin with ``_ver`` or ``_fm_`` do not count.

    Raises:
        InvalidRecord: The payload is no JSON object.
    """
    try:
        plain = {
            key: value if type(value) in _AS_IT_IS else _canonical(value)
            for key, value in (payload or {}).items()
            if key[:1] != "_" or (key != VERSION_KEY and key[:4] != "_fm_")
        }
        data = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except (TypeError, AttributeError, RecursionError) as exc:  # orjson's: TypeError
        raise _not_json(exc, index) from exc
    return blake2b(data, digest_size=16).digest()


def _not_json(exc: Exception, index: int | None) -> InvalidRecord:
    return InvalidRecord(
        f"payload{_at(index)}: it is not JSON ({exc}); "
        "give a mapping of text to plain values",
        field="payload",
        index=index,
    )


def _at(index: int | None) -> str:
    return "" if index is None else f" of point {index}"


def _canonical(value: object, depth: int = 2) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError("NaN and infinity have no JSON form")
        if value.is_integer() and abs(value) < 2.0**63:
            return int(value)
        return float(f"{value:.12g}")
    if isinstance(value, dict | list | tuple) and depth > JSON_DEPTH:
        raise TypeError(f"it is nested deeper than {JSON_DEPTH} levels")
    if isinstance(value, dict):
        return {key: _canonical(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner, depth + 1) for inner in value]
    return value
