"""Points, hits and their ids, as the application sees them.

Apart from the engines, so that no caller ever holds an object of one engine:
the same frozen dataclasses come out of the embedded engine, a server over REST
or gRPC, and the client's local mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from uuid import UUID, uuid5

from fm_storage._typing import JsonObject
from fm_storage.errors import InvalidRecord

__all__ = [
    "CollectionInfo",
    "Dense",
    "Point",
    "PointId",
    "ScoredPoint",
    "SparseVector",
    "Vector",
    "VectorStatistics",
    "from_wire_id",
    "to_wire_id",
]

PointId: TypeAlias = "int | str | UUID"
"""Integers and UUIDs are native to Qdrant; any other string is mapped."""

RESERVED_ID = "_fm_id"
"""Payload key that keeps a string id as the application wrote it."""

_NAMESPACE = UUID("7e9d2a52-6c1b-5f0e-9a43-0f2d4c6b8e11")
_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
_MAX_INTEGER = 2**64


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A sparse vector: distinct term numbers below 2**32, and their weights."""

    indices: Sequence[int]
    values: Sequence[float]


Dense: TypeAlias = "Sequence[float]"
"""A list, tuple, ``array('f')``, numpy array or any buffer of numbers."""

Vector: TypeAlias = "Dense | SparseVector | Mapping[str, Dense | SparseVector]"
"""One unnamed vector, or named ones."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point: an id, its vector or named vectors, and a JSON payload.

    Read back, UUIDs are text in canonical form, integers are integers, and any
    other string is the one that was written.
    """

    id: PointId
    vector: Vector
    payload: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoredPoint:
    """A hit: a point, its score, and the vectors that were asked for."""

    id: int | str
    score: float
    payload: JsonObject = field(default_factory=dict)
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection is and how much it holds.

    Attributes:
        name: Its own name, also when an alias was asked for.
        points: Number of points.
        indexed: Number of vectors inside an HNSW or sparse index.
        total: Number of vectors; search is exact for those not indexed.
        vectors: ``{name: {"size": …, "distance": …}}``; ``""`` is the unnamed one.
        sparse_vectors: ``{name: {"modifier": …}}``.
        payload_indexes: ``{field: type}``.
        status: ``green``, or ``yellow`` while an index is being built.
        aliases: Other names of the collection.
    """

    name: str
    points: int
    indexed: int
    total: int
    vectors: Mapping[str, Mapping[str, object]]
    sparse_vectors: Mapping[str, Mapping[str, object]]
    payload_indexes: Mapping[str, str]
    status: str = "green"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VectorStatistics:
    """A snapshot of what one store has done since it opened.

    Attributes:
        calls: Calls answered, by operation.
        errors: Calls that raised, by operation.
        retries: Attempts repeated after a failure that may pass.
        restarts: Times an embedded engine was started anew after a crash.
        engine: Which engine answers: ``embedded``, ``server`` or ``memory``.
        engine_pid: Process of the embedded engine, while one is connected.
    """

    calls: Mapping[str, int]
    errors: Mapping[str, int]
    retries: int
    restarts: int
    engine: str
    engine_pid: int | None = None


def to_wire_id(value: object, *, index: int | None = None) -> tuple[int | str, bool]:
    """Return the id that an engine understands, and whether it was mapped.

    Args:
        value: Integer, UUID, or text.
        index: Position in the batch, for the message.

    Raises:
        InvalidRecord: It is none of these, negative, or above 64 bits.
    """
    if isinstance(value, UUID):
        return str(value), False
    if isinstance(value, str):
        if _UUID.fullmatch(value):
            return value.lower(), False
        if not value:
            raise InvalidRecord(
                f"point id{_at(index)}: it is empty; give every point an id",
                field="id",
                index=index,
            )
        try:
            return str(uuid5(_NAMESPACE, value)), True
        except UnicodeEncodeError:
            raise InvalidRecord(
                f"point id{_at(index)}: {value!r} holds a lone surrogate; "
                "give valid text",
                field="id",
                index=index,
            ) from None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidRecord(
            f"point id{_at(index)}: {type(value).__name__} is no id; "
            "give an int, a UUID or text",
            field="id",
            index=index,
        )
    number = value.__index__()
    if not 0 <= number < _MAX_INTEGER:
        raise InvalidRecord(
            f"point id{_at(index)}: {number} is outside 0 … 2**64-1; "
            "give a non-negative 64-bit integer, a UUID or text",
            field="id",
            index=index,
        )
    return int(number), False


def from_wire_id(value: object, payload: JsonObject | None) -> int | str:
    """Return the id as the application knows it; *payload* loses the kept one."""
    if payload is not None and RESERVED_ID in payload:
        kept = payload.pop(RESERVED_ID)
        if isinstance(kept, str):
            return kept
    return value if isinstance(value, int) else str(value)


def _at(index: int | None) -> str:
    return "" if index is None else f" of point {index}"
