"""The embedded engine behind the interface of Qdrant's client, for the test double.

Points are in the engine, so that texts, phrases, formulas and scores are those of a
server; definitions and aliases are in the client's local mode.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.models import QueryResponse

from fm_storage._typing import JSON_DEPTH
from fm_storage.errors import InvalidRecord
from fm_storage.vectors.embedded import launch
from fm_storage.vectors.embedded.client import EmbeddedEngine
from fm_storage.vectors.points import ScoredPoint, SparseVector
from fm_storage.vectors.request.filters import as_json, normal_filter
from fm_storage.vectors.request.operations import (
    Count,
    Create,
    Delete,
    DeletePayload,
    DeleteVectors,
    Facet,
    Index,
    Query,
    QueryGroups,
    Request,
    Retrieve,
    Scroll,
    SetPayload,
    UpdateVectors,
    Upsert,
)
from fm_storage.vectors.request.points import Encoded, encode_vector, to_wire_id
from fm_storage.vectors.request.queries import Asked
from fm_storage.vectors.request.queries import order_by as normal_order

_LEAVING = 5.0


class EngineClient:
    """What the double asks of ``AsyncQdrantClient``, answered by the embedded engine.

    Args:
        folder: Folder of an engine that others may use, too; by default one of its
            own, which goes with this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._local = local = AsyncQdrantClient(":memory:")
        self.get_collections = local.get_collections
        self.collection_exists = local.collection_exists
        self.get_aliases = local.get_aliases
        self.get_collection_aliases = local.get_collection_aliases
        self.update_collection_aliases = local.update_collection_aliases
        self._own = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="fm_storage-double-"))
        self._prefix = f"{uuid4().hex[:8]}_"  # of names, in a folder that is shared
        self._engine = EmbeddedEngine(
            self._folder, durability="process", point=ScoredPoint
        )
        self._kept: socket.socket | None = None
        # Changed by keep(), aclose() and _call().
        self._keeping, self._running = False, 0
        self._defining = asyncio.Lock()

    def keep(self) -> None:
        """Stay connected between calls until ``aclose()``, which must be called."""
        self._keeping = True

    async def aclose(self) -> None:
        """Leave the engine; the points stay, and another call connects again."""
        self._keeping = False
        await self._engine.aclose()

    async def _call(
        self, operation: str, name: str, request: Request | None = None
    ) -> Any:
        await self._local.get_collection(name)  # refuses what is not there
        return await self._asked(operation, await self._place(name), request)

    async def _asked(self, operation: str, name: str, request: Request | None) -> Any:
        self._running += 1
        try:
            answer = await self._engine.call(operation, name, request)
            if self._kept is None:
                # The engine ends with its last client: this socket is one.
                self._kept = launch.try_connect(self._folder)
                weakref.finalize(self, _leave, self._kept, self._folder, self._own)
            return answer
        finally:
            self._running -= 1
            if not self._keeping and not self._running:
                await self._engine.aclose()

    async def _place(self, name: str) -> str:
        aliases = (await self._local.get_aliases()).aliases
        targets = {one.alias_name: one.collection_name for one in aliases}
        return self._prefix + targets.get(name, name)

    # Collections

    async def get_collection(self, name: str) -> models.CollectionInfo:
        """See the client."""
        info = await self._local.get_collection(name)
        count = await self._call("count", name, Count(None))
        return info.model_copy(update={"points_count": count})

    async def create_collection(
        self, name: str, *, vectors_config: Any, sparse_vectors_config: Any
    ) -> bool:
        """See the client."""
        spec = _spec_of(vectors_config, sparse_vectors_config) | {"payload_indexes": {}}
        async with self._defining:  # of two callers one creates, and both find it whole
            if not await self._local.collection_exists(name):
                await self._asked("create", self._prefix + name, Create(spec))
            return bool(
                await self._local.create_collection(
                    name,
                    vectors_config=vectors_config,
                    sparse_vectors_config=sparse_vectors_config,
                )
            )

    async def delete_collection(self, name: str) -> bool:
        """See the client."""
        if await self._local.collection_exists(name):
            await self._asked("drop", self._prefix + name, None)
        return bool(await self._local.delete_collection(name))

    async def create_payload_index(
        self, name: str, field_name: str, field_schema: Any
    ) -> None:
        """See the client."""
        schema = as_json(field_schema) or "keyword"
        await self._call("create_index", name, Index(field_name, schema))

    async def delete_payload_index(self, name: str, field_name: str) -> None:
        """See the client."""
        await self._call("delete_index", name, Index(field_name))

    async def _spec(self, name: str) -> dict[str, Any]:
        params = (await self._local.get_collection(name)).config.params
        return _spec_of(params.vectors, params.sparse_vectors)

    # Writing

    async def upsert(
        self,
        name: str,
        points: Any,
        *,
        update_filter: Any = None,
        update_mode: models.UpdateMode | None = None,
    ) -> None:
        """See the client."""
        given = await self._encoded(name, _structs(points))
        condition = normal_filter(update_filter)
        if update_mode == models.UpdateMode.INSERT_ONLY:
            condition = {"must": [{"has_id": []}]}
        elif update_mode == models.UpdateMode.UPDATE_ONLY:
            found = await self.retrieve(name, [one.id for one in given])
            there = {record.id for record in found}
            given = [one for one in given if one.id in there]
        if given:
            await self._call("upsert", name, Upsert(given, None, condition))

    async def _encoded(self, name: str, points: Sequence[Any]) -> list[Encoded]:
        spec = await self._spec(name)
        made = []
        for index, point in enumerate(points):
            vectors = point.vector
            if not isinstance(vectors, Mapping):
                vectors = {"": vectors}
            payload = _payload(getattr(point, "payload", None) or {})
            encoded = {
                key: encode_vector(vector, spec, name, name=key, index=index)
                for key, vector in vectors.items()
            }
            number = to_wire_id(point.id)[0]
            made.append(Encoded(number, encoded, payload, index))
        return made

    async def update_vectors(
        self, name: str, points: Any, *, update_filter: Any = None
    ) -> None:
        """See the client."""
        given = await self._encoded(name, points)
        request = UpdateVectors(given, normal_filter(update_filter))
        await self._call("update_vectors", name, request)

    async def delete_vectors(self, name: str, vectors: Any, points: Any) -> None:
        """See the client."""
        request = DeleteVectors(list(vectors), *_chosen(points))
        await self._call("delete_vectors", name, request)

    async def delete(self, name: str, points_selector: Any) -> None:
        """See the client."""
        await self._call("delete", name, Delete(*_chosen(points_selector)))

    async def set_payload(
        self, name: str, payload: Any, points: Any, *, key: str | None = None
    ) -> None:
        """See the client."""
        text = _payload(payload, 0 if key is None else key.count(".") + 1)
        request = SetPayload(text, *_chosen(points), key)
        await self._call("set_payload", name, request)

    async def overwrite_payload(self, name: str, payload: Any, points: Any) -> None:
        """See the client."""
        chosen = _chosen(points)
        request = SetPayload(_payload(payload), *chosen, overwrite=True)
        await self._call("set_payload", name, request)

    async def clear_payload(self, name: str, points_selector: Any) -> None:
        """See the client."""
        await self.overwrite_payload(name, {}, points_selector)

    async def delete_payload(self, name: str, keys: Any, points: Any) -> None:
        """See the client."""
        request = DeletePayload(list(keys), *_chosen(points))
        await self._call("delete_payload", name, request)

    async def batch_update_points(self, name: str, update_operations: Any) -> None:
        """See the client."""
        for operation in update_operations:
            [(kind, _)] = operation.model_dump(exclude_none=True).items()
            given = getattr(operation, kind)
            if kind == "upsert":
                batch = getattr(given, "batch", None)
                await self.upsert(
                    name,
                    given.points if batch is None else batch,
                    update_filter=given.update_filter,
                    update_mode=given.update_mode,
                )
            elif kind == "update_vectors":
                await self.update_vectors(
                    name, given.points, update_filter=given.update_filter
                )
            elif kind in {"delete", "clear_payload"}:
                await getattr(self, kind)(name, given)
            else:
                points = given.points if given.filter is None else given.filter
                if kind == "delete_vectors":
                    await self.delete_vectors(name, given.vector, points)
                elif kind == "delete_payload":
                    await self.delete_payload(name, given.keys, points)
                elif kind == "overwrite_payload":
                    await self.overwrite_payload(name, given.payload, points)
                else:
                    await self.set_payload(name, given.payload, points, key=given.key)

    # Reading

    async def count(self, name: str, count_filter: Any = None) -> models.CountResult:
        """See the client."""
        request = Count(normal_filter(count_filter))
        return models.CountResult(count=await self._call("count", name, request))

    async def facet(
        self, name: str, key: str, *, facet_filter: Any = None, limit: int = 10
    ) -> models.FacetResponse:
        """See the client."""
        request = Facet(key, limit, exact=True, filter=normal_filter(facet_filter))
        found = await self._call("facet", name, request)
        hits = [models.FacetValueHit(value=value, count=n) for value, n in found]
        return models.FacetResponse(hits=hits)

    async def retrieve(
        self,
        name: str,
        ids: Sequence[Any],
        *,
        with_payload: Any = True,
        with_vectors: Any = False,
    ) -> list[models.Record]:
        """See the client."""
        numbers = [to_wire_id(one)[0] for one in ids]
        request = Retrieve(
            list(dict.fromkeys(numbers)), as_json(with_payload), with_vectors
        )
        return [_record(one) for one in await self._call("retrieve", name, request)]

    async def scroll(
        self,
        name: str,
        *,
        scroll_filter: Any = None,
        limit: int = 10,
        order_by: Any = None,
        offset: Any = None,
        with_payload: Any = True,
        with_vectors: Any = False,
    ) -> tuple[list[models.Record], Any]:
        """See the client."""
        request = Scroll(
            limit,
            None if offset is None else to_wire_id(offset)[0],
            normal_filter(scroll_filter),
            as_json(with_payload),
            with_vectors,
            normal_order(order_by),
        )
        found, following = await self._call("scroll", name, request)
        return [_record(one) for one in found], following

    async def query_points(self, name: str, **given: Any) -> QueryResponse:
        """See the client."""
        request = await self._query(name, **given)
        found = await self._call("query", name, request)
        return QueryResponse(points=[_hit(one) for one in found])

    async def query_points_groups(
        self, name: str, *, group_by: str, group_size: int, **given: Any
    ) -> models.GroupsResult:
        """See the client."""
        query = await self._query(name, **given)
        request = QueryGroups(query, group_by, group_size)
        groups = await self._call("query_groups", name, request)
        return models.GroupsResult(
            groups=[
                models.PointGroup(id=one.value, hits=[_hit(hit) for hit in one.hits])
                for one in groups
            ]
        )

    async def _query(
        self,
        name: str,
        *,
        with_payload: Any = True,
        using: str | None = None,
        offset: int | None = None,
        query_filter: Any = None,
        **given: Any,
    ) -> Query:
        asked = Asked(
            **given, using=using or "", offset=offset or 0, filter=query_filter
        )
        request = asked.encoded(await self._spec(name), name)
        return replace(request, with_payload=as_json(with_payload))


def _leave(kept: socket.socket | None, folder: Path, own: bool) -> None:
    """Let go of the engine, and of its folder."""
    if kept is not None:
        with kept, suppress(OSError):
            kept.shutdown(socket.SHUT_WR)
            kept.settimeout(_LEAVING)
            kept.recv(1)  # the engine closes its side when all is on the disk
    if own:
        shutil.rmtree(folder, ignore_errors=True)


def _payload(given: Any, above: int = 0) -> bytes:
    """Return a payload as JSON, of which the engine could not read each depth again."""
    if above + _levels(given) > JSON_DEPTH:
        raise InvalidRecord("Format error in JSON body: recursion limit exceeded")
    return orjson.dumps(given)


def _levels(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_levels, inside), default=0)


def _structs(points: Any) -> Sequence[Any]:
    """Return the points of a list, or of a batch by columns."""
    if not isinstance(points, models.Batch):
        return list(points)
    vectors = points.vectors
    payloads: Sequence[Any] = points.payloads or [None] * len(points.ids)
    return [
        models.PointStruct(
            id=number,
            vector={key: many[row] for key, many in vectors.items()}
            if isinstance(vectors, dict)
            else vectors[row],
            payload=payloads[row],
        )
        for row, number in enumerate(points.ids)
    ]


def _chosen(given: Any) -> tuple[list[int | str] | None, dict[str, Any] | None]:
    """Return the ids or the filter of a selector."""
    given = getattr(given, "points", given)
    given = getattr(given, "filter", given)
    if isinstance(given, list):
        return [to_wire_id(one)[0] for one in given], None
    return None, normal_filter(given) or {}


def _vector(given: Any) -> Any:
    if isinstance(given, SparseVector):
        return models.SparseVector(indices=given.indices, values=given.values)
    if isinstance(given, dict):
        return {name: _vector(one) for name, one in given.items()}
    return given


def _record(point: ScoredPoint) -> models.Record:
    return models.Record(
        id=point.id, payload=point.payload, vector=_vector(point.vector)
    )


def _hit(point: ScoredPoint) -> models.ScoredPoint:
    return models.ScoredPoint(
        id=point.id,
        version=0,
        score=point.score,
        payload=point.payload,
        vector=_vector(point.vector),
    )


def _spec_of(dense: Any, sparse: Any) -> dict[str, Any]:
    """Return what the engine keeps of a collection's vectors."""
    named = dense if isinstance(dense, Mapping) else {"": dense} if dense else {}
    return {
        "vectors": {
            key: {"size": one.size, "distance": one.distance.value}
            for key, one in named.items()
        },
        "sparse_vectors": {
            key: {"modifier": one.modifier.value if one.modifier else "none"}
            for key, one in (sparse or {}).items()
        },
    }
