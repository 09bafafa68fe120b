"""Points of a server, whatever carries them, and the conditions of its writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from fm_storage.vectors.request.operations import Delete, Ids, Json, Request
from fm_storage.vectors.request.points import Encoded


class PointsWire(Protocol):
    """Operations on the points of one server; errors are ours."""

    async def call(self, operation: str, collection: str, request: Request) -> Any:
        """Carry out one operation."""

    async def put_meta(
        self, collection: str, number: int, payload: Json, *, replace: bool
    ) -> None:
        """Write one point of our own; keep an existing one unless *replace*."""


def by_version(
    points: Iterable[Encoded], field: str, condition: Json | None
) -> list[tuple[list[Encoded], dict[str, Any]]]:
    """Group points by version: one condition on the stored points serves a group."""
    groups: dict[Any, list[Encoded]] = {}
    for point in points:
        groups.setdefault(point.version, []).append(point)
    return [
        (
            group,
            {
                "should": [
                    {"key": field, "range": {"lt": version}},
                    {"is_empty": {"key": field}},
                ],
                **({} if condition is None else {"must": [condition]}),
            },
        )
        for version, group in groups.items()
    ]


def by_bound(request: Delete) -> list[dict[str, Any]]:
    """Return the filters that a conditional deletion goes by, one per bound."""
    groups: dict[int, list[int | str]] = {}
    for number, bound in zip(request.ids or (), request.up_to or (), strict=True):
        groups.setdefault(bound, []).append(number)
    return [
        {
            "must": [{"has_id": group}],
            "should": [
                {"key": request.newer_by, "range": {"lte": bound}},
                {"is_empty": {"key": request.newer_by}},
            ],
        }
        for bound, group in groups.items()
    ]


def by_filter(ids: Ids | None, chosen: Json | None) -> Json:
    """Choose by filter alone: a server refuses a list that names an absent id."""
    return chosen if chosen is not None else {"must": [{"has_id": list(ids or ())}]}
