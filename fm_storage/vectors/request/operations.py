"""One frozen request per operation, checked, as every engine is handed it.

An operation is known to an engine by its name: the key of a backend's table and
the ``op`` of the embedded engine's protocol. Filters are in the form of Qdrant's
REST API, ids are native, vectors are encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fm_storage.vectors.request.points import Encoded

Json: TypeAlias = "Mapping[str, Any]"
Ids: TypeAlias = "Sequence[int | str]"


@dataclass(frozen=True, slots=True)
class Upsert:
    """Write one batch.

    A stored point is replaced only where it matches *condition*, and is older by
    *newer_by*.
    """

    points: Sequence[Encoded]
    newer_by: str | None = None
    condition: Json | None = None

    @property
    def conditional(self) -> bool:
        """Whether stored points may stay as they are."""
        return self.newer_by is not None or self.condition is not None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete points by id or filter; *up_to* spares newer ones, one bound per id."""

    ids: Ids | None
    filter: Json | None
    newer_by: str | None = None
    up_to: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class SetPayload:
    """Merge into, or replace, the payload (JSON text) of points."""

    payload: bytes
    ids: Ids | None
    filter: Json | None
    key: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class DeletePayload:
    """Remove fields from the payload of points."""

    keys: Sequence[str]
    ids: Ids | None
    filter: Json | None


@dataclass(frozen=True, slots=True)
class UpdateVectors:
    """Replace vectors of points that are there, and match *condition*."""

    points: Sequence[Encoded]
    condition: Json | None = None


@dataclass(frozen=True, slots=True)
class DeleteVectors:
    """Remove named vectors from points."""

    names: Sequence[str]
    ids: Ids | None
    filter: Json | None


@dataclass(frozen=True, slots=True)
class Query:
    """One query with its prefetch stages; answered by a list of hits."""

    limit: int
    offset: int
    using: str
    with_payload: Any
    with_vector: Any
    query: Any = None
    prefetch: Any = None
    filter: Json | None = None
    score_threshold: float | None = None
    params: Json | None = None


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Return points by id, in the order asked for."""

    ids: Ids
    with_payload: Any
    with_vector: Any


@dataclass(frozen=True, slots=True)
class Scroll:
    """Return one page of points, and the offset of the next."""

    limit: int
    offset: int | str | None
    filter: Json | None
    with_payload: Any
    with_vector: Any
    order_by: Any = None


@dataclass(frozen=True, slots=True)
class Count:
    """Count matching points, exactly."""

    filter: Json | None


@dataclass(frozen=True, slots=True)
class Facet:
    """Count points by the values of a payload field, the commonest first."""

    key: str
    limit: int
    exact: bool
    filter: Json | None


@dataclass(frozen=True, slots=True)
class QueryGroups:
    """Answer one query by groups of hits with the same value of a payload field."""

    query: Query
    group_by: str
    group_size: int


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Answer several queries in one request."""

    queries: Sequence[Query]


@dataclass(frozen=True, slots=True)
class Create:
    """Create a collection; answered by False when the name is taken."""

    spec: Json


@dataclass(frozen=True, slots=True)
class Index:
    """Index a payload field, or drop its index."""

    field: str
    schema: Any = None


@dataclass(frozen=True, slots=True)
class Alias:
    """Point aliases at collections, or remove them (None), all at once."""

    targets: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Let a name mean *target*; a collection of that name becomes *retired*."""

    target: str
    retired: str


@dataclass(frozen=True, slots=True)
class Marker:
    """Note a small JSON object in the store itself, durably."""

    marker: Json


Request: TypeAlias = (
    "Upsert | Delete | SetPayload | DeletePayload | Query | Retrieve | Scroll | Count"
    " | UpdateVectors | DeleteVectors | Facet | QueryGroups | QueryBatch"
    " | Create | Index | Alias | Exchange | Marker"
)
