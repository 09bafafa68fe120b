"""Points through the client's own methods: gRPC, and its local mode.

Messages are built off the loop, and gRPC writes are sent through the client's
stubs, because its methods would build them on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from qdrant_client import models

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.operations import (
    Count,
    Delete,
    DeletePayload,
    Ids,
    Json,
    Query,
    Request,
    Retrieve,
    Scroll,
    SetPayload,
    Upsert,
)
from fm_storage.vectors.request.points import Encoded, Floats, Terms
from fm_storage.vectors.retry import time_left
from fm_storage.vectors.server.errors import translated
from fm_storage.vectors.server.models import (
    filter_model,
    plain_request,
    point_from,
    query_model,
)
from fm_storage.vectors.server.protocol import by_bound, by_filter, by_version

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

__all__ = ["GrpcPoints"]

_CHUNK = 64
_NESTED = 94
"""Messages inside each other that one value of a payload may take: the parsers of
gRPC stop at 100, an object takes three and an array two."""
_SHALLOW = _NESTED // 3
_MAX_INTEGER = 2**63
_UNREADABLE = (TypeError, KeyError, IndexError, AttributeError, AssertionError)


def _point(point: Encoded) -> models.PointStruct:
    vectors: dict[str, Any] = {}
    for name, vector in point.vectors.items():
        if isinstance(vector, Terms):
            vectors[name] = models.SparseVector(
                indices=vector.indices.tolist(), values=vector.values.tolist()
            )
        else:
            vectors[name] = vector.tolist()
    return models.PointStruct(
        id=point.id,
        vector=vectors[""] if set(vectors) == {""} else vectors,
        payload=orjson.loads(point.payload),
    )


def _selector(ids: Ids | None, chosen: Json | None) -> Any:
    if chosen is not None:
        return models.FilterSelector(filter=filter_model(chosen) or models.Filter())
    return models.PointIdsList(points=list(ids or ()))


def _carried(
    payload: bytes, *, index: int | None = None, above: int = 0
) -> dict[str, Any]:
    """Return a payload that a message of gRPC can carry.

    Raises:
        InvalidRecord: It is nested deeper, or has a greater integer.
    """
    fields: dict[str, Any] = orjson.loads(payload)
    for key, value in fields.items():
        try:
            depth = _depth(value)
        except OverflowError as exc:
            problem = f"has the integer {exc}, and gRPC carries less than 2**63"
        else:
            if above + depth <= _NESTED:
                continue
            problem = f"is nested deeper than gRPC carries ({_SHALLOW} objects)"
        at = "" if index is None else f" of point {index}"
        field = f"payload.{key}"
        message = f"{field}{at} {problem}; use REST (qdrant.prefer_grpc=false)"
        raise InvalidRecord(message, field=field, index=index)
    return fields


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 3 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 2 + max(map(_depth, value), default=0)
    if isinstance(value, int) and value >= _MAX_INTEGER:
        raise OverflowError(value)
    return 0


def _messages(batch: Sequence[Encoded]) -> list[Any]:
    from qdrant_client.conversions.conversion import RestToGrpc

    for point in batch:
        _carried(point.payload, index=point.index)
    return [RestToGrpc.convert_point_struct(_point(point)) for point in batch]


class GrpcPoints:
    """Points of a server over gRPC, or of local mode."""

    def __init__(self, client: AsyncQdrantClient, *, remote: bool) -> None:
        self._client = client
        self._remote = remote
        self._calls: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
            "count": self._count,
            "delete": self._delete,
            "delete_payload": self._delete_payload,
            "query": self._query,
            "retrieve": self._retrieve,
            "scroll": self._scroll,
            "set_payload": self._set_payload,
            "upsert": self._upsert,
        }

    async def _built(self, batch: Sequence[Encoded]) -> list[Any]:
        make = _messages if self._remote else _structs
        made: list[Any] = []
        for start in range(0, len(batch), _CHUNK):
            made += await asyncio.to_thread(make, batch[start : start + _CHUNK])
        return made

    async def call(self, operation: str, collection: str, request: Request) -> Any:
        """Carry out one operation."""
        try:
            with translated(operation, collection):
                return await self._calls[operation](collection, request)
        except _UNREADABLE as exc:  # by the client's conversions, or local mode
            raise InvalidRecord(
                f"collection {collection!r}: {operation} refused: "
                f"{type(exc).__name__}: {exc}"
            ) from exc

    async def _upsert(self, collection: str, request: Upsert) -> None:
        groups: list[tuple[Sequence[Encoded], Json | None]] = [(request.points, None)]
        if request.newer_by is not None:
            groups = [*by_version(request.points, request.newer_by)]
        for group, chosen in groups:
            condition = filter_model(chosen)
            points = await self._built(group)
            if self._remote:
                await self._upsert_messages(collection, points, condition)
            else:
                await self._client.upsert(
                    collection, points=points, update_filter=condition, wait=True
                )

    async def _upsert_messages(
        self, collection: str, points: list[Any], condition: models.Filter | None
    ) -> None:
        from qdrant_client import grpc
        from qdrant_client.conversions.conversion import (
            RestToGrpc,
        )

        request = grpc.UpsertPoints(
            collection_name=collection,
            wait=True,
            points=points,
            update_filter=None
            if condition is None
            else RestToGrpc.convert_filter(model=condition),
        )
        await self._client.grpc_points.Upsert(request, timeout=time_left())

    async def put_meta(
        self, collection: str, number: int, payload: Json, *, replace: bool
    ) -> None:
        """Write one point of our own; keep an existing one unless *replace*."""
        point = models.PointStruct(id=number, vector=[1.0], payload=dict(payload))
        never = models.Filter(must=[models.HasIdCondition(has_id=[])])
        with translated("set_marker", collection):
            await self._client.upsert(
                collection,
                points=[point],
                update_filter=None if replace else never,
                wait=True,
            )

    async def _delete(self, collection: str, request: Delete) -> None:
        selectors = [_selector(request.ids, request.filter)]
        if request.up_to is not None:
            selectors = [_selector(None, chosen) for chosen in by_bound(request)]
        for selector in selectors:
            await self._client.delete(collection, points_selector=selector, wait=True)

    async def _set_payload(self, collection: str, request: SetPayload) -> None:
        key = request.key
        above = 0 if key is None else 3 + 3 * key.count(".") + 2 * key.count("[")
        fields = (
            _carried(request.payload, above=above)
            if self._remote
            else orjson.loads(request.payload)
        )
        points = _selector(None, by_filter(request.ids, request.filter))
        if request.overwrite:
            await self._client.overwrite_payload(
                collection, payload=fields, points=points, wait=True
            )
        else:
            await self._client.set_payload(
                collection, payload=fields, points=points, key=request.key, wait=True
            )

    async def _delete_payload(self, collection: str, request: DeletePayload) -> None:
        points = _selector(None, by_filter(request.ids, request.filter))
        await self._client.delete_payload(
            collection, keys=request.keys, points=points, wait=True
        )

    async def _query(self, collection: str, request: Query) -> list[ScoredPoint]:
        found = await self._client.query_points(
            collection,
            query=query_model(_plain(request.query)),
            using=request.using or None,
            prefetch=[_stage(stage) for stage in _plain(request.prefetch) or ()]
            or None,
            query_filter=filter_model(request.filter),
            # Local mode compares with every point, and warns of parameters.
            search_params=models.SearchParams(**request.params)
            if request.params and self._remote
            else None,
            limit=request.limit,
            offset=request.offset,
            with_payload=_payload(request.with_payload),
            with_vectors=request.with_vector,
            score_threshold=request.score_threshold,
        )
        return [
            point_from(hit.id, hit.score, hit.payload, hit.vector)
            for hit in found.points
        ]

    async def _retrieve(self, collection: str, request: Retrieve) -> list[ScoredPoint]:
        found = await self._client.retrieve(
            collection,
            ids=request.ids,
            with_payload=_payload(request.with_payload),
            with_vectors=request.with_vector,
        )
        place = {str(number): position for position, number in enumerate(request.ids)}
        found = sorted(found, key=lambda record: place[str(record.id)])
        return [point_from(r.id, 0.0, r.payload, r.vector) for r in found]

    async def _scroll(
        self, collection: str, request: Scroll
    ) -> tuple[list[ScoredPoint], int | str | None]:
        order = request.order_by
        found, following = await self._client.scroll(
            collection,
            scroll_filter=filter_model(request.filter),
            limit=request.limit,
            order_by=models.OrderBy(**order) if isinstance(order, Mapping) else order,
            offset=request.offset,
            with_payload=_payload(request.with_payload),
            with_vectors=request.with_vector,
        )
        points = [point_from(r.id, 0.0, r.payload, r.vector) for r in found]
        if following is None or isinstance(following, int):
            return points, following
        return points, str(following)

    async def _count(self, collection: str, request: Count) -> int:
        found = await self._client.count(
            collection, count_filter=filter_model(request.filter), exact=True
        )
        return found.count


def _payload(given: bool | Json) -> Any:
    if isinstance(given, bool):
        return given
    if "exclude" in given:
        return models.PayloadSelectorExclude(**given)
    return models.PayloadSelectorInclude(**given)


def _plain(value: Any) -> Any:
    return plain_request(value, dense=Floats.tolist)


def _structs(batch: Sequence[Encoded]) -> list[models.PointStruct]:
    return [_point(point) for point in batch]


def _stage(given: Json) -> models.Prefetch:
    return models.Prefetch(
        query=query_model(given.get("query")),
        using=given.get("using") or None,
        filter=filter_model(given.get("filter")),
        limit=given.get("limit"),
        params=models.SearchParams(**given["params"]) if given.get("params") else None,
        score_threshold=given.get("score_threshold"),
        prefetch=[_stage(stage) for stage in given.get("prefetch") or ()] or None,
    )
