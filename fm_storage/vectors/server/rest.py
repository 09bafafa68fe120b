"""Points over REST: JSON made off the loop, sent through the client's own session.

The client would build a model for every point and every request, on the loop
(half a second for 1000 × 1536); the plain form of a request already is the JSON
of Qdrant's API, so it is sent as it is, with the client's address, headers,
authentication and middleware.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import orjson

from fm_storage.vectors.points import PointGroup, ScoredPoint
from fm_storage.vectors.request.operations import (
    Count,
    Delete,
    DeletePayload,
    DeleteVectors,
    Facet,
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
from fm_storage.vectors.server.errors import readable, translated
from fm_storage.vectors.server.models import plain_request, point_from
from fm_storage.vectors.server.protocol import by_bound, by_filter, by_version

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

Sent: TypeAlias = "tuple[str, str, bytes, bool]"
"""Method, path, body, and whether the answer waits for a write."""

_POINTS = "/collections/{collection_name}/points"
_BATCH = f"{_POINTS}/batch"
_HEADERS = {"Content-Type": "application/json"}
_SMALL = 640 * 1024  # bytes: about a millisecond
_LONG_ANSWER = 200


def _numbers(vector: Floats) -> Any:
    # orjson writes float32 arrays in their own, shorter, precision.
    return np.frombuffer(vector.data, dtype=np.float32)


def _body(request: Json) -> bytes:
    return orjson.dumps(
        plain_request(request, dense=_numbers), option=orjson.OPT_SERIALIZE_NUMPY
    )


def _point(point: Encoded) -> dict[str, Any]:
    vectors: dict[str, Any] = {}
    for name, vector in point.vectors.items():
        if isinstance(vector, Terms):
            vectors[name] = {
                "indices": np.frombuffer(vector.indices, dtype=np.uint32),
                "values": np.frombuffer(vector.values, dtype=np.float32),
            }
        else:
            vectors[name] = _numbers(vector)
    return {
        "id": point.id,
        "vector": vectors[""] if set(vectors) == {""} else vectors,
        "payload": orjson.Fragment(point.payload),
    }


def _list_of(batch: Sequence[Encoded]) -> bytes:
    # Point by point: one long dumps() would keep the interpreter from the loop.
    texts = [
        orjson.dumps(_point(point), option=orjson.OPT_SERIALIZE_NUMPY)
        for point in batch
    ]
    return b"[" + b",".join(texts) + b"]"


def _upsert_body(request: Upsert) -> bytes:
    if request.newer_by is None:
        body: dict[str, Any] = {"points": orjson.Fragment(_list_of(request.points))}
        if request.condition is not None:
            body["update_filter"] = request.condition
        return orjson.dumps(body)
    operations = [
        {
            "upsert": {
                "points": orjson.Fragment(_list_of(group)),
                "update_filter": condition,
            }
        }
        for group, condition in by_version(
            request.points, request.newer_by, request.condition
        )
    ]
    return orjson.dumps({"operations": operations})


def _set_payload(request: SetPayload) -> Sent:
    chosen = by_filter(request.ids, request.filter)
    body = {"payload": orjson.Fragment(request.payload), "filter": chosen}
    if request.key is not None:
        body["key"] = request.key
    method = "PUT" if request.overwrite else "POST"
    return method, f"{_POINTS}/payload", orjson.dumps(body), True


def _delete_payload(request: DeletePayload) -> Sent:
    chosen = by_filter(request.ids, request.filter)
    body = orjson.dumps({"keys": request.keys, "filter": chosen})
    return "POST", f"{_POINTS}/payload/delete", body, True


def _delete(request: Delete) -> Sent:
    if request.up_to is not None:
        operations = [{"delete": {"filter": chosen}} for chosen in by_bound(request)]
        return "POST", _BATCH, orjson.dumps({"operations": operations}), True
    chosen = (
        {"points": request.ids}
        if request.filter is None
        else {"filter": request.filter}
    )
    return "POST", f"{_POINTS}/delete", orjson.dumps(chosen), True


def _update_vectors(request: UpdateVectors) -> Sent:
    points = [
        {"id": point["id"], "vector": point["vector"]}
        for point in map(_point, request.points)
    ]
    body: dict[str, Any] = {"points": points}
    if request.condition is not None:
        body["update_filter"] = request.condition
    made = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return "PUT", f"{_POINTS}/vectors", made, True


def _delete_vectors(request: DeleteVectors) -> Sent:
    chosen = by_filter(request.ids, request.filter)
    body = orjson.dumps({"vector": request.names, "filter": chosen})
    return "POST", f"{_POINTS}/vectors/delete", body, True


def _facet(request: Facet) -> Sent:
    return "POST", "/collections/{collection_name}/facet", _body(_given(request)), False


def _groups(request: QueryGroups) -> Sent:
    body = _named(_given(request.query))
    body.pop("offset")
    body |= {"group_by": request.group_by, "group_size": request.group_size}
    return "POST", f"{_POINTS}/query/groups", _body(body), False


def _query_batch(request: QueryBatch) -> Sent:
    body = {"searches": [_named(_given(query)) for query in request.queries]}
    return "POST", f"{_POINTS}/query/batch", _body(body), False


def _retrieve(request: Retrieve) -> Sent:
    body = {
        "ids": request.ids,
        "with_payload": request.with_payload,
        "with_vector": request.with_vector,
    }
    return "POST", _POINTS, orjson.dumps(body), False


def _scroll(request: Scroll) -> Sent:
    return "POST", f"{_POINTS}/scroll", _body(_given(request)), False


def _query(request: Query) -> Sent:
    body = _named(_given(request))
    return "POST", f"{_POINTS}/query", _body(body), False


def _count(request: Count) -> Sent:
    body = {"exact": True, **_given(request)}
    return "POST", f"{_POINTS}/count", orjson.dumps(body), False


_REQUESTS: dict[str, Callable[[Any], Sent]] = {
    "count": _count,
    "delete": _delete,
    "delete_payload": _delete_payload,
    "delete_vectors": _delete_vectors,
    "facet": _facet,
    "query": _query,
    "query_batch": _query_batch,
    "query_groups": _groups,
    "retrieve": _retrieve,
    "scroll": _scroll,
    "set_payload": _set_payload,
    "update_vectors": _update_vectors,
}


def _given(request: Any) -> dict[str, Any]:
    """Return what a request gives: as Qdrant's API, None means nothing."""
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    return {name: value for name, value in values.items() if value is not None}


def _named(stage: Json) -> dict[str, Any]:
    """Leave the name of the unnamed vector out of a query and its stages."""
    made = {k: v for k, v in stage.items() if k != "using" or v}
    if "prefetch" in made:
        made["prefetch"] = [_named(inner) for inner in made["prefetch"]]
    return made


class RestPoints:
    """Points of a server, as JSON."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        # One batch is encoded at a time: threads that hold the interpreter in
        # turn would keep the loop waiting for all of them.
        self._encoding = asyncio.Lock()

    async def call(self, operation: str, collection: str, request: Request) -> Any:
        """Carry out one operation."""
        if isinstance(request, Upsert):
            sent = await self._upsert(request)
        else:
            sent = _REQUESTS[operation](request)
        answer = await self._send(operation, collection, sent)
        with readable(operation, collection):
            return await self._answer(request, answer)

    async def _answer(self, request: Request, answer: Any) -> Any:
        if isinstance(request, Retrieve):
            place = {number: position for position, number in enumerate(request.ids)}
            answer.sort(key=lambda point: place[point["id"]])
            return await _points(answer)
        if isinstance(request, Scroll):
            return await _points(answer["points"]), answer.get("next_page_offset")
        if isinstance(request, Query):
            return await _points(answer["points"])
        if isinstance(request, Count):
            return answer["count"]
        if isinstance(request, Facet):
            return {hit["value"]: hit["count"] for hit in answer["hits"]}
        if isinstance(request, QueryBatch):
            return [await _points(each["points"]) for each in answer]
        if isinstance(request, QueryGroups):
            return [
                PointGroup(group["id"], tuple(await _points(group["hits"])))
                for group in answer["groups"]
            ]
        return None

    async def _upsert(self, request: Upsert) -> Sent:
        if sum(point.size for point in request.points) <= _SMALL:
            body = _upsert_body(request)
        else:
            async with self._encoding:
                body = await asyncio.to_thread(_upsert_body, request)
        if request.newer_by is None:
            return "PUT", _POINTS, body, True
        return "POST", _BATCH, body, True

    async def _send(self, operation: str, collection: str, sent: Sent) -> Any:
        method, path, body, write = sent
        with translated(operation, collection):
            answer = await self._client.http.client.request(
                type_=dict,
                method=method,
                url=path,
                path_params={"collection_name": collection},
                headers=_HEADERS,
                params={"wait": "true"} if write else {},
                content=body,
            )
        with readable(operation, collection):
            return answer["result"]

    async def put_meta(
        self, collection: str, number: int, payload: Json, *, replace: bool
    ) -> None:
        """Write one point of our own; keep an existing one unless *replace*."""
        request: dict[str, Any] = {
            "points": [{"id": number, "vector": [1.0], "payload": dict(payload)}]
        }
        if not replace:
            request["update_filter"] = {"must": [{"has_id": []}]}
        body = orjson.dumps(request)
        await self._send("set_marker", collection, ("PUT", _POINTS, body, True))


async def _points(found: Sequence[dict[str, Any]]) -> list[ScoredPoint]:
    if len(found) > _LONG_ANSWER:
        return await asyncio.to_thread(_made, found)
    return _made(found)


def _made(found: Sequence[dict[str, Any]]) -> list[ScoredPoint]:
    return [
        point_from(
            point["id"],
            point.get("score") or 0.0,
            point.get("payload"),
            point.get("vector"),
        )
        for point in found
    ]
