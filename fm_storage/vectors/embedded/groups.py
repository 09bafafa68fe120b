"""Hits by groups, which the embedded engine has no call for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from fm_storage.vectors.points import PointGroup, ScoredPoint
from fm_storage.vectors.request.operations import Query, QueryGroups

Ask = Callable[[Query], Awaitable[Sequence[ScoredPoint]]]


async def grouped(ask: Ask, request: QueryGroups) -> list[PointGroup]:
    """Answer a query by groups with plain queries, as exactly as those are.

    First the best hits, more and more of them, until there are enough groups; then
    the best hits of each group.
    """
    query, field = request.query, request.group_by
    wanted = [query.filter] if query.filter is not None else []
    size = query.limit * request.group_size
    bare = replace(
        query,
        filter={"must": wanted, "must_not": [{"is_empty": {"key": field}}]},
        with_payload={"include": [field]},
        with_vector=False,
    )
    groups: dict[str | int, None] = {}
    while True:
        found = await ask(replace(bare, limit=size))
        values = (value for hit in found for value in _values(hit.payload, field))
        groups = dict.fromkeys(values)
        if len(groups) >= query.limit or len(found) < size:
            break
        size *= 4
    made = []
    for value in list(groups)[: query.limit]:
        only = {"must": [*wanted, {"key": field, "match": {"value": value}}]}
        hits = await ask(replace(query, limit=request.group_size, filter=only))
        made.append(PointGroup(value, tuple(hits)))
    return made


def _values(payload: Any, path: str) -> list[str | int]:
    """Return the texts and integers at a path, those inside lists too."""
    found = _items(payload)
    for name in path.replace("[]", "").split("."):
        inside = [item.get(name.strip('"')) for item in found if isinstance(item, dict)]
        found = [item for value in inside for item in _items(value)]
    return [value for value in found if type(value) in {str, int}]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
