"""Points over REST: JSON made off the loop, sent through the client's own session.

The client would build a model for every point and every request, on the loop
(half a second for 1000 × 1536); the plain form of a request already is the JSON
of Qdrant's API, so it is sent as it is, with the client's address, headers,
authentication and middleware.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded, Floats, Terms
from fm_storage.vectors.server.errors import translated
from fm_storage.vectors.server.models import plain_request, point_from
from fm_storage.vectors.server.protocol import by_version, not_newer, older_than

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

__all__ = ["RestPoints"]

Json = Mapping[str, Any]
Ids = Sequence[int | str]

_POINTS = "/collections/{collection_name}/points"
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


def _upsert_body(batch: Sequence[Encoded], newer_by: str | None) -> bytes:
    if newer_by is None:
        return b'{"points":' + _list_of(batch) + b"}"
    operations = [
        {
            "upsert": {
                "points": orjson.Fragment(_list_of(group)),
                "update_filter": older_than(newer_by, version),
            }
        }
        for version, group in by_version(batch).items()
    ]
    return orjson.dumps({"operations": operations})


def _chosen(ids: Ids | None, chosen: Json | None) -> dict[str, Any]:
    return {"filter": chosen} if chosen is not None else {"points": list(ids or ())}


class RestPoints:
    """Points of a server, as JSON."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        # One batch is encoded at a time: threads that hold the interpreter in
        # turn would keep the loop waiting for all of them.
        self._encoding = asyncio.Lock()

    async def _send(
        self,
        operation: str,
        method: str,
        path: str,
        collection: str,
        body: bytes,
        *,
        write: bool = False,
    ) -> Any:
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
        return answer["result"]

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch, conditionally with *newer_by*."""
        if sum(point.size for point in batch) <= _SMALL:
            body = _upsert_body(batch, newer_by)
        else:
            async with self._encoding:
                body = await asyncio.to_thread(_upsert_body, batch, newer_by)
        method, path = ("PUT", _POINTS) if newer_by is None else ("POST", _BATCH)
        await self._send("upsert_points", method, path, collection, body, write=True)

    async def put_meta(
        self, collection: str, number: int, payload: Json, *, replace: bool
    ) -> None:
        """Write one point of our own; keep an existing one unless *replace*."""
        request: dict[str, Any] = {
            "points": [{"id": number, "vector": [1.0], "payload": dict(payload)}]
        }
        if not replace:
            request["update_filter"] = {"must": [{"has_id": []}]}
        await self._send(
            "set_marker", "PUT", _POINTS, collection, orjson.dumps(request), write=True
        )

    async def delete(
        self, collection: str, *, ids: Ids | None, chosen: Json | None
    ) -> None:
        """Delete by ids or by filter."""
        body = orjson.dumps(_chosen(ids, chosen))
        await self._send(
            "delete_points", "POST", f"{_POINTS}/delete", collection, body, write=True
        )

    async def delete_up_to(
        self, collection: str, ids: Ids, field: str, bounds: Sequence[int]
    ) -> None:
        """Delete points whose number is not greater than the bound."""
        groups: dict[int, list[int | str]] = {}
        for number, bound in zip(ids, bounds, strict=True):
            groups.setdefault(bound, []).append(number)
        operations = [
            {"delete": {"filter": not_newer(field, bound, group)}}
            for bound, group in groups.items()
        ]
        if operations:
            body = orjson.dumps({"operations": operations})
            await self._send(
                "delete_points", "POST", _BATCH, collection, body, write=True
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
        request = {"payload": orjson.Fragment(payload), "filter": chosen}
        if key is not None:
            request["key"] = key
        await self._send(
            "set_payload",
            "PUT" if overwrite else "POST",
            f"{_POINTS}/payload",
            collection,
            orjson.dumps(request),
            write=True,
        )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        chosen: Json,
    ) -> None:
        """Remove fields from payloads."""
        request = {"keys": list(keys), "filter": chosen}
        await self._send(
            "delete_payload",
            "POST",
            f"{_POINTS}/payload/delete",
            collection,
            orjson.dumps(request),
            write=True,
        )

    async def query(self, collection: str, request: Json) -> list[ScoredPoint]:
        """Answer one query."""
        made = {k: v for k, v in request.items() if k != "using" or v}
        for stage in made.get("prefetch") or ():
            if not stage.get("using"):
                stage.pop("using", None)
        answer = await self._send(
            "query", "POST", f"{_POINTS}/query", collection, _body(made)
        )
        return await _points(answer["points"])

    async def retrieve(
        self, collection: str, ids: Ids, request: Json
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for."""
        if not ids:
            return []
        body = orjson.dumps({"ids": list(ids), **request})
        answer = await self._send("retrieve", "POST", _POINTS, collection, body)
        place = {number: position for position, number in enumerate(ids)}
        answer.sort(key=lambda point: place[point["id"]])
        return await _points(answer)

    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page and the offset of the next."""
        body = orjson.dumps({k: v for k, v in request.items() if v is not None})
        answer = await self._send(
            "scroll", "POST", f"{_POINTS}/scroll", collection, body
        )
        return await _points(answer["points"]), answer.get("next_page_offset")

    async def count(self, collection: str, chosen: Json | None) -> int:
        """Count matching points."""
        request: dict[str, Any] = {"exact": True}
        if chosen:
            request["filter"] = chosen
        answer = await self._send(
            "count", "POST", f"{_POINTS}/count", collection, orjson.dumps(request)
        )
        return int(answer["count"])


_BATCH = f"{_POINTS}/batch"


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
