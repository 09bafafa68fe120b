"""Points and hits, as the application sees them.

The same frozen dataclasses come out of the embedded engine, a server over REST
or gRPC, and the client's local mode: no caller ever holds an object of one engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from uuid import UUID

from fm_storage._typing import Json, JsonObject
from fm_storage.errors import RecordNotFound

PointId: TypeAlias = "int | str | UUID"
"""Integers and UUIDs are native to Qdrant; any other string is mapped."""


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
    """A hit: a point, its score, and the vectors that were asked for.

    *marks* has what fm_storage itself keeps with the whole payload of a point, if
    anything: ``_ver``, the version under which the outbox delivered it.
    """

    id: int | str
    score: float
    payload: JsonObject = field(default_factory=dict)
    vector: Vector | None = None
    marks: Mapping[str, Json] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PointGroup:
    """Hits that have the same value in a payload field, the best first."""

    value: int | str
    hits: tuple[ScoredPoint, ...]


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
        status: ``green``; ``yellow`` while an index is being built; ``red`` when
            its files are damaged.
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


def no_point(collection: str, key: object) -> RecordNotFound:
    """Return the error for a point that is not there."""
    return RecordNotFound(collection, key, "retrieve() leaves absent points out")
