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
from fm_storage.vectors.points import PointGroup, ScoredPoint, no_point
from fm_storage.vectors.request.operations import (
    Count,
    Delete,
    DeletePayload,
    DeleteVectors,
    Facet,
    Ids,
    Json,
    Query,
    QueryBatch,
    QueryGroups,
    Request,
    Retrieve,
    Scroll,
    SetPayload,
    UpdateVectors,
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
            "delete_vectors": self._delete_vectors,
            "facet": self._facet,
            "query": self._query,
            "query_batch": self._query_batch,
            "query_groups": self._groups,
            "retrieve": self._retrieve,
            "scroll": self._scroll,
            "set_payload": self._set_payload,
            "update_vectors": self._update_vectors,
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
            if isinstance(request, UpdateVectors) and isinstance(exc, KeyError):
                raise no_point(collection, exc.args[0]) from exc  # local mode
            raise InvalidRecord(
                f"collection {collection!r}: {operation} refused: "
                f"{type(exc).__name__}: {exc}"
            ) from exc

    async def _upsert(self, collection: str, request: Upsert) -> None:
        condition = request.condition
        groups: list[tuple[Sequence[Encoded], Json | None]]
        groups = [(request.points, condition)]
        if request.newer_by is not None:
            groups = [*by_version(request.points, request.newer_by, condition)]
        for group, chosen in groups:
            only = filter_model(chosen)
            points = await self._built(group)
            if self._remote:
                await self._upsert_messages(collection, points, only)
            else:
                await self._client.upsert(
                    collection, points=points, update_filter=only, wait=True
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

    async def _update_vectors(self, collection: str, request: UpdateVectors) -> None:
        points = await asyncio.to_thread(_vectors, request.points)
        await self._client.update_vectors(
            collection,
            points=points,
            update_filter=filter_model(request.condition),
            wait=True,
        )

    async def _delete_vectors(self, collection: str, request: DeleteVectors) -> None:
        await self._client.delete_vectors(
            collection,
            vectors=request.names,
            points=_selector(None, by_filter(request.ids, request.filter)),
            wait=True,
        )

    async def _facet(self, collection: str, request: Facet) -> dict[Any, int]:
        found = await self._client.facet(
            collection,
            key=request.key,
            facet_filter=filter_model(request.filter),
            limit=request.limit,
            exact=request.exact,
        )
        return {hit.value: hit.count for hit in found.hits}

    def _asked(self, request: Query) -> dict[str, Any]:
        stages = [_stage(stage) for stage in _plain(request.prefetch) or ()]
        return {
            "query": query_model(_plain(request.query)),
            "using": request.using or None,
            "prefetch": stages or None,
            "limit": request.limit,
            "with_payload": _payload(request.with_payload),
            "score_threshold": request.score_threshold,
        }

    def _params(self, request: Query) -> Any:
        # Local mode compares with every point, and warns of parameters.
        wanted = request.params and self._remote
        return models.SearchParams(**request.params or {}) if wanted else None

    async def _query(self, collection: str, request: Query) -> list[ScoredPoint]:
        found = await self._client.query_points(
            collection,
            **self._asked(request),
            query_filter=filter_model(request.filter),
            search_params=self._params(request),
            offset=request.offset,
            with_vectors=request.with_vector,
        )
        return _hits(found.points)

    async def _query_batch(
        self, collection: str, request: QueryBatch
    ) -> list[list[ScoredPoint]]:
        queries = [
            models.QueryRequest(
                **self._asked(query),
                filter=filter_model(query.filter),
                params=self._params(query),
                offset=query.offset,
                with_vector=query.with_vector,
            )
            for query in request.queries
        ]
        found = await self._client.query_batch_points(collection, requests=queries)
        return [_hits(answer.points) for answer in found]

    async def _groups(self, collection: str, request: QueryGroups) -> list[PointGroup]:
        query = request.query
        found = await self._client.query_points_groups(
            collection,
            group_by=request.group_by,
            group_size=request.group_size,
            **self._asked(query),
            query_filter=filter_model(query.filter),
            search_params=self._params(query),
            with_vectors=query.with_vector,
        )
        return [
            PointGroup(group.id, tuple(_hits(group.hits))) for group in found.groups
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


def _hits(found: Sequence[Any]) -> list[ScoredPoint]:
    return [point_from(hit.id, hit.score, hit.payload, hit.vector) for hit in found]


def _vectors(batch: Sequence[Encoded]) -> list[models.PointVectors]:
    return [models.PointVectors(id=p.id, vector=_point(p).vector) for p in batch]


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
