"""What reading and writing points on a server means, whatever carries it.

Apart from its two carriers: JSON over REST, and the client's methods for gRPC
and local mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded

__all__ = ["PointsWire", "by_version", "not_newer", "older_than"]

Json = Mapping[str, Any]
Ids = Sequence[int | str]


class PointsWire(Protocol):
    """Points of one server. Errors are ours."""

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch, conditionally with *newer_by*."""

    async def put_meta(
        self, collection: str, number: int, payload: Json, *, replace: bool
    ) -> None:
        """Write one point of our own; keep an existing one unless *replace*."""

    async def delete(
        self, collection: str, *, ids: Ids | None, chosen: Json | None
    ) -> None:
        """Delete by ids or by filter."""

    async def delete_up_to(
        self, collection: str, ids: Ids, field: str, bounds: Sequence[int]
    ) -> None:
        """Delete points whose number is not greater than the bound."""

    async def set_payload(
        self,
        collection: str,
        payload: bytes,
        *,
        chosen: Json,
        key: str | None,
        overwrite: bool,
    ) -> None:
        """Merge into, or replace, payloads."""

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        chosen: Json,
    ) -> None:
        """Remove fields from payloads."""

    async def query(self, collection: str, request: Json) -> list[ScoredPoint]:
        """Answer one query."""

    async def retrieve(
        self, collection: str, ids: Ids, request: Json
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for."""

    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page and the offset of the next."""

    async def count(self, collection: str, chosen: Json | None) -> int:
        """Count matching points."""


def older_than(field: str, version: float) -> dict[str, Any]:
    """Return the filter that a stored point must match to be replaced."""
    return {
        "should": [
            {"key": field, "range": {"lt": version}},
            {"is_empty": {"key": field}},
        ]
    }


def not_newer(field: str, bound: float, ids: Ids) -> dict[str, Any]:
    """Return the filter that a stored point must match to be deleted."""
    return {
        "must": [{"has_id": list(ids)}],
        "should": [
            {"key": field, "range": {"lte": bound}},
            {"is_empty": {"key": field}},
        ],
    }


def by_version(batch: Iterable[Encoded]) -> dict[Any, list[Encoded]]:
    """Group points by version: one condition serves a whole group."""
    groups: dict[Any, list[Encoded]] = {}
    for point in batch:
        groups.setdefault(point.version, []).append(point)
    return groups
