"""Points through the client's own methods: gRPC, and its local mode.

Messages are built off the loop, and gRPC writes are sent through the client's
stubs, because its methods would build them on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from qdrant_client import models

from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded, Floats, Terms
from fm_storage.vectors.retry import time_left
from fm_storage.vectors.server.errors import translated
from fm_storage.vectors.server.models import (
    filter_model,
    plain_request,
    point_from,
    query_model,
)
from fm_storage.vectors.server.protocol import by_version, not_newer, older_than

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

__all__ = ["TypedPoints"]

Json = Mapping[str, Any]
Ids = Sequence[int | str]

_CHUNK = 64


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


def _messages(batch: Sequence[Encoded]) -> list[Any]:
    from qdrant_client.conversions.conversion import RestToGrpc

    return [RestToGrpc.convert_point_struct(_point(point)) for point in batch]


class TypedPoints:
    """Points of a server over gRPC, or of local mode."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        self._remote = hasattr(client._client, "_prefer_grpc")  # noqa: SLF001 - local or remote

    async def _built(self, batch: Sequence[Encoded]) -> list[Any]:
        make = _messages if self._remote else _structs
        made: list[Any] = []
        for start in range(0, len(batch), _CHUNK):
            made += await asyncio.to_thread(make, batch[start : start + _CHUNK])
        return made

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch, conditionally with *newer_by*."""
        groups: list[tuple[Sequence[Encoded], Any]] = [(batch, None)]
        if newer_by is not None:
            groups = [
                (group, filter_model(older_than(newer_by, version)))
                for version, group in by_version(batch).items()
            ]
        for group, condition in groups:
            points = await self._built(group)
            with translated("upsert_points", collection):
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

    async def delete(
        self, collection: str, *, ids: Ids | None, chosen: Json | None
    ) -> None:
        """Delete by ids or by filter."""
        with translated("delete_points", collection):
            await self._client.delete(
                collection, points_selector=_selector(ids, chosen), wait=True
            )

    async def delete_up_to(
        self, collection: str, ids: Ids, field: str, bounds: Sequence[int]
    ) -> None:
        """Delete points whose number is not greater than the bound."""
        groups: dict[int, list[int | str]] = {}
        for number, bound in zip(ids, bounds, strict=True):
            groups.setdefault(bound, []).append(number)
        for bound, group in groups.items():
            await self.delete(
                collection, ids=None, chosen=not_newer(field, bound, group)
            )

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
        fields = orjson.loads(payload)
        points = _selector(None, chosen)
        with translated("set_payload", collection):
            if overwrite:
                await self._client.overwrite_payload(
                    collection, payload=fields, points=points, wait=True
                )
            else:
                await self._client.set_payload(
                    collection, payload=fields, points=points, key=key, wait=True
                )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        chosen: Json,
    ) -> None:
        """Remove fields from payloads."""
        with translated("delete_payload", collection):
            await self._client.delete_payload(
                collection, keys=list(keys), points=_selector(None, chosen), wait=True
            )

    async def query(self, collection: str, request: Json) -> list[ScoredPoint]:
        """Answer one query."""
        plain = plain_request(request, dense=Floats.tolist)
        with translated("query", collection):
            found = await self._client.query_points(
                collection,
                query=query_model(plain.get("query")),
                using=plain.get("using") or None,
                prefetch=[_stage(stage) for stage in plain.get("prefetch") or ()]
                or None,
                query_filter=filter_model(plain.get("filter")),
                # Local mode compares with every point, and warns of parameters.
                search_params=models.SearchParams(**plain["params"])
                if plain.get("params") and self._remote
                else None,
                limit=plain["limit"],
                offset=plain.get("offset"),
                with_payload=plain.get("with_payload", False),
                with_vectors=plain.get("with_vector", False),
                score_threshold=plain.get("score_threshold"),
            )
        return [
            point_from(hit.id, hit.score, hit.payload, hit.vector)
            for hit in found.points
        ]

    async def retrieve(
        self, collection: str, ids: Ids, request: Json
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for."""
        if not ids:
            return []
        with translated("retrieve", collection):
            found = await self._client.retrieve(
                collection,
                ids=list(ids),
                with_payload=request["with_payload"],
                with_vectors=request["with_vector"],
            )
        place = {str(number): position for position, number in enumerate(ids)}
        found = sorted(found, key=lambda record: place[str(record.id)])
        return [point_from(r.id, 0.0, r.payload, r.vector) for r in found]

    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page and the offset of the next."""
        order = request.get("order_by")
        with translated("scroll", collection):
            found, following = await self._client.scroll(
                collection,
                scroll_filter=filter_model(request.get("filter")),
                limit=request["limit"],
                order_by=models.OrderBy(**order)
                if isinstance(order, Mapping)
                else order,
                offset=request.get("offset"),
                with_payload=request["with_payload"],
                with_vectors=request["with_vector"],
            )
        points = [point_from(r.id, 0.0, r.payload, r.vector) for r in found]
        if following is None or isinstance(following, int):
            return points, following
        return points, str(following)

    async def count(self, collection: str, chosen: Json | None) -> int:
        """Count matching points."""
        with translated("count", collection):
            found = await self._client.count(
                collection, count_filter=filter_model(chosen), exact=True
            )
        return found.count


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
