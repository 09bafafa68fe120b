"""Reading points: queries encoded, long answers asked for in pages.

An answer is decoded by a thread that holds the interpreter meanwhile, or on the loop
itself: so what an engine is asked for at a time is bounded by bytes, as far as the
points seen before tell how large they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from fm_storage.errors import RecordNotFound
from fm_storage.vectors.points import PointGroup, ScoredPoint, SparseVector, no_point
from fm_storage.vectors.request.operations import (
    Query,
    QueryBatch,
    QueryGroups,
    Retrieve,
    Scroll,
)
from fm_storage.vectors.request.points import RESERVED_ID, to_wire_id
from fm_storage.vectors.request.queries import (
    Asked,
    ids_in,
    query_parameters,
    value_path,
)
from fm_storage.vectors.store.call import Calls

_FEW = 16
"""Points that are asked for at once, however large they are."""
_FIRST = 64
_SAMPLE = 4
_BARE: dict[str, Any] = {"include": [RESERVED_ID]}


async def find(calls: Calls, collection: str, asked: Asked) -> list[ScoredPoint]:
    """See ``QdrantStore.query()``."""

    async def encode(spec: dict[str, Any]) -> Query:
        return asked.encoded(spec, collection)

    request = await calls.fitted(collection, encode)
    try:
        return await _found(calls, collection, request)
    except RecordNotFound as exc:
        raise _named(exc, collection, asked) from exc


async def find_many(
    calls: Calls, collection: str, every: Sequence[Asked]
) -> list[list[ScoredPoint]]:
    """See ``QdrantStore.query_batch()``."""

    async def encode(spec: dict[str, Any]) -> list[Query]:
        return [asked.encoded(spec, collection) for asked in every]

    queries = await calls.fitted(collection, encode)
    try:
        if sum(q.limit for q in queries) > _FIRST:
            return [await _found(calls, collection, query) for query in queries]
        if not queries:
            return []
        answers: list[list[ScoredPoint]] = await calls.ask(
            "query_batch", collection, QueryBatch(queries)
        )
    except RecordNotFound as exc:
        raise _named(exc, collection, *every) from exc
    return answers


async def find_groups(
    calls: Calls, collection: str, asked: Asked, group_by: str, group_size: int
) -> list[PointGroup]:
    """See ``QdrantStore.search_groups()``."""
    size, _ = query_parameters(group_size, 0)
    path = value_path(group_by, "group_by")

    async def encode(spec: dict[str, Any]) -> QueryGroups:
        return QueryGroups(asked.encoded(spec, collection), path, size)

    request = await calls.fitted(collection, encode)
    try:
        groups: list[PointGroup] = await calls.ask("query_groups", collection, request)
    except RecordNotFound as exc:
        raise _named(exc, collection, asked) from exc
    return groups


def _named(exc: RecordNotFound, collection: str, *every: Asked) -> RecordNotFound:
    """Name a missing example as the caller does; the engine knows another id."""
    given = ids_in(*((asked.query, asked.prefetch) for asked in every))
    return no_point(collection, given.get(str(exc.key), exc.key))


async def _found(calls: Calls, collection: str, request: Query) -> list[ScoredPoint]:
    if request.limit <= _FEW:
        few: list[ScoredPoint] = await calls.ask("query", collection, request)
        return few
    if request.limit <= _page(calls, collection, request):
        found: list[ScoredPoint] = await calls.ask("query", collection, request)
        _learn(calls, collection, request, found)
        return found
    bare = replace(request, with_payload=_BARE, with_vector=False)
    hits: list[ScoredPoint] = await calls.ask("query", collection, bare)
    return await _filled(calls, collection, hits, request)


async def retrieve(
    calls: Calls, collection: str, request: Retrieve
) -> list[ScoredPoint]:
    """See ``QdrantStore.retrieve()``."""
    if len(request.ids) <= _FEW:
        few: list[ScoredPoint] = await calls.ask("retrieve", collection, request)
        return few
    found: list[ScoredPoint] = []
    at = 0
    while True:
        many = _page(calls, collection, request)
        part = replace(request, ids=request.ids[at : at + many])
        some: list[ScoredPoint] = await calls.ask("retrieve", collection, part)
        _learn(calls, collection, request, some)
        found += some
        at += many
        if at >= len(request.ids):
            return found


async def page(
    calls: Calls, collection: str, request: Scroll
) -> tuple[list[ScoredPoint], int | str | None]:
    """See ``QdrantStore.scroll()``."""
    if request.order_by is not None and request.limit > _FIRST:
        bare = replace(request, with_payload=_BARE, with_vector=False)
        found, following = await calls.ask("scroll", collection, bare)
        return await _filled(calls, collection, found, request), following
    points: list[ScoredPoint] = []
    offset = request.offset
    while True:
        many = min(_page(calls, collection, request), request.limit - len(points))
        part = replace(request, limit=many, offset=offset)
        some, offset = await calls.ask("scroll", collection, part)
        _learn(calls, collection, request, some)
        points += some
        if offset is None or len(points) >= request.limit:
            return points, offset


async def _filled(
    calls: Calls, collection: str, hits: Sequence[ScoredPoint], request: Query | Scroll
) -> list[ScoredPoint]:
    """Fetch what was asked for beside ids and scores, a page at a time.

    A point that was deleted meanwhile is left out.
    """
    ids = [to_wire_id(hit.id)[0] for hit in hits]
    wanted = Retrieve(ids, request.with_payload, request.with_vector)
    records = {p.id: p for p in await retrieve(calls, collection, wanted)}
    return [
        replace(records[hit.id], score=hit.score) for hit in hits if hit.id in records
    ]


def _page(calls: Calls, collection: str, request: Query | Retrieve | Scroll) -> int:
    """Return how many points may be asked for at once."""
    size = calls.sizes.get(_kind(collection, request))
    return _FIRST if size is None else max(_FEW, int(calls.backend.page_bytes / size))


def _learn(
    calls: Calls,
    collection: str,
    request: Query | Retrieve | Scroll,
    found: Sequence[ScoredPoint],
) -> None:
    if len(found) < _SAMPLE:
        return
    step = len(found) // _SAMPLE
    each = calls.backend.number_bytes
    sizes = [
        64 + len(orjson.dumps(point.payload)) + each * _numbers(point.vector)
        for point in found[::step]
    ]
    kind = _kind(collection, request)
    before = calls.sizes.get(kind, 0.0)
    calls.sizes[kind] = max(sum(sizes) / len(sizes), 0.8 * before)


def _kind(collection: str, request: Query | Retrieve | Scroll) -> tuple[str, str, str]:
    return collection, repr(request.with_payload), repr(request.with_vector)


def _numbers(vector: Any) -> int:
    if vector is None:
        return 0
    if isinstance(vector, SparseVector):
        return 2 * len(vector.indices)
    if isinstance(vector, Mapping):
        return sum(map(_numbers, vector.values()))
    return len(vector)
