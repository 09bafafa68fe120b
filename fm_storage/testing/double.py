"""What the test double knows: an engine for points, and what a server adds to it.

Its two faces, REST and gRPC, refuse and answer the same. Requests and answers are
objects of ``qdrant_client.models``.

The engine is the embedded one where that is installed, else the client's local mode,
which takes no texts in order and no formulas. It is a test double for the *interface*:
it knows no shards, consistency or strict mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm_storage.errors import (
    CollectionNotFound,
    DimensionMismatch,
    InvalidVector,
    RecordNotFound,
    StorageError,
    VectorStoreUnavailable,
)

if TYPE_CHECKING:
    from qdrant_client import models

_ECHOED = (
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
    "sharding_method",
)


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal_for(exc: Exception) -> Refused:
    """Return what a server would answer where local mode raises *exc*."""
    if isinstance(exc, Refused):
        return exc
    if isinstance(exc, CollectionNotFound):
        return Refused(404, f"Not found: Collection doesn't exist! {exc}")
    if isinstance(exc, RecordNotFound):
        return Refused(404, f"Not found: No point with id {exc.key} found")
    if isinstance(exc, DimensionMismatch):
        sizes = f"expected dim: {exc.expected}, got {exc.got}"
        return Refused(400, f"Wrong input: Vector dimension error: {sizes}")
    if isinstance(exc, InvalidVector):
        return Refused(400, f"Wrong input: Not existing vector name error: {exc}")
    if isinstance(exc, VectorStoreUnavailable):
        return Refused(500, f"Service internal error: {exc}")
    if isinstance(exc, StorageError):
        return Refused(400, f"Wrong input: {exc}")
    if isinstance(exc, ValueError):
        return Refused(_status_of(str(exc)), f"Wrong input: {exc}")
    if isinstance(exc, KeyError):  # local mode's word for a point that is not there
        return Refused(404, f"Not found: No point with id {exc.args[0]} found")
    # A server never dies of a request.
    return Refused(500, f"Service internal error: {exc!r}")


def _status_of(text: str) -> int:
    lower = text.lower()
    if "already exists" in lower:
        return 409
    if "not found" in lower and ("collection" in lower or "point" in lower):
        return 400 if "vector" in lower else 404
    return 400


class Double:
    """An empty Qdrant server's collections, whatever face they are seen through."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._client: Any = None
        self._kept = False
        # What local mode forgets and a server echoes.
        self._indexes: dict[str, dict[str, Any]] = {}
        self._options: dict[str, Any] = {}

    @property
    def client(self) -> Any:
        """The engine below, with the calls of ``AsyncQdrantClient``."""
        if self._client is None:
            if find_spec("qdrant_edge") is None:
                from qdrant_client import AsyncQdrantClient

                self._client = AsyncQdrantClient(":memory:")
            else:
                from fm_storage.testing.engine import EngineClient

                self._client = EngineClient(self._folder)
        if self._kept:
            self._kept = False
            self._client.keep()
        return self._client

    def keep(self) -> None:
        """Stay connected to the engine until ``aclose()``."""
        self._kept = find_spec("qdrant_edge") is not None

    async def aclose(self) -> None:
        """Leave the engine; the collections stay."""
        self._kept = False
        if self._client is not None and find_spec("qdrant_edge") is not None:
            await self._client.aclose()

    # Collections

    async def info(self, name: str) -> dict[str, Any]:
        """Describe a collection, in the form of JSON."""
        made: dict[str, Any] = jsonable(await self.client.get_collection(name))
        real = await self.resolve(name)
        _echo(made["config"], self._options.get(real))
        made["payload_schema"] = {
            field: {"data_type": _type_of(schema), "points": 0}
            for field, schema in self._indexes.get(real, {}).items()
        }
        return made

    async def resolve(self, name: str) -> str:
        """Return the collection that a name or an alias stands for."""
        aliases = await self.client.get_aliases()
        targets = {a.alias_name: a.collection_name for a in aliases.aliases}
        return str(targets.get(name, name))

    async def create(self, name: str, given: models.CreateCollection) -> bool:
        """Create a collection."""
        taken = {c.name for c in (await self.client.get_collections()).collections}
        if name in taken or await self.resolve(name) != name:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self._options[name] = given
        return bool(
            await self.client.create_collection(
                name,
                vectors_config=given.vectors or {},
                sparse_vectors_config=given.sparse_vectors,
            )
        )

    async def drop(self, name: str) -> bool:
        """Delete a collection; False when there is none."""
        self._indexes.pop(name, None)
        return bool(await self.client.delete_collection(name))

    async def create_index(self, name: str, field: str, schema: Any) -> None:
        """Remember a payload index."""
        await self.client.get_collection(name)
        await self.client.create_payload_index(name, field, field_schema=schema)
        indexes = self._indexes.setdefault(await self.resolve(name), {})
        indexes[field] = jsonable(schema)

    async def delete_index(self, name: str, field: str) -> None:
        """Forget a payload index."""
        await self.client.delete_payload_index(name, field)
        self._indexes.get(await self.resolve(name), {}).pop(field, None)

    # Points

    async def _sizes(self, name: str) -> dict[str, int]:
        params = (await self.client.get_collection(name)).config.params.vectors
        if params is None:
            return {}
        if isinstance(params, dict):
            return {vector: given.size for vector, given in params.items()}
        return {"": params.size}

    async def check_points(self, name: str, given: Any) -> None:
        """Refuse what local mode would answer with the text of numpy."""
        sizes = await self._sizes(name)
        for point in getattr(given, "points", None) or ():
            vectors = point.vector
            if not isinstance(vectors, dict):
                vectors = {"": vectors}
            for vector, value in vectors.items():
                if not isinstance(value, list):
                    continue
                if vector not in sizes:
                    raise Refused(
                        400, f"Wrong input: Not existing vector name error: {vector}"
                    )
                _check_size(sizes[vector], value)

    async def upsert(self, name: str, given: Any) -> None:
        """Write points, conditionally where a filter is given."""
        await self.check_points(name, given)
        batch = getattr(given, "batch", None)
        await self.client.upsert(
            name,
            points=given.points if batch is None else batch,
            update_filter=given.update_filter,
            update_mode=given.update_mode,
        )

    async def update_vectors(self, name: str, given: models.UpdateVectors) -> None:
        """Replace vectors of points that are there."""
        await self.check_points(name, given)
        await self.client.update_vectors(
            name, points=given.points, update_filter=given.update_filter
        )

    async def facet(self, name: str, given: models.FacetRequest) -> Any:
        """Count points by the values of an indexed field."""
        if given.key not in self._indexes.get(await self.resolve(name), {}):
            raise Refused(
                400, f"Bad request: No appropriate index for faceting: `{given.key}`."
            )
        return await self.client.facet(
            name, key=given.key, facet_filter=given.filter, limit=given.limit or 10
        )

    async def groups(self, name: str, given: models.QueryGroupsRequest) -> Any:
        """Answer a query by groups."""
        await self._check_query(name, given.query, given.using)
        return await self.client.query_points_groups(
            name,
            group_by=given.group_by,
            group_size=given.group_size or 3,
            query=given.query,
            using=given.using,
            prefetch=given.prefetch,
            query_filter=given.filter,
            limit=given.limit or 10,
            with_payload=given.with_payload or False,
            with_vectors=given.with_vector or False,
            score_threshold=given.score_threshold,
        )

    async def retrieve(self, name: str, given: models.PointRequest) -> Any:
        """Return points by id."""
        return await self.client.retrieve(
            name,
            ids=given.ids,
            with_payload=True if given.with_payload is None else given.with_payload,
            with_vectors=given.with_vector or False,
        )

    async def scroll(self, name: str, given: models.ScrollRequest) -> tuple[Any, Any]:
        """Return a page of points, and the offset of the next."""
        order = given.order_by
        key = order if isinstance(order, str) or order is None else order.key
        indexes = self._indexes.get(await self.resolve(name), {})
        if key is not None and key not in indexes:
            raise Refused(
                400, f"Bad request: No range index for `order_by` key: `{key}`."
            )
        page: tuple[Any, Any] = await self.client.scroll(
            name,
            scroll_filter=given.filter,
            limit=10 if given.limit is None else given.limit,
            order_by=order,
            offset=given.offset,
            with_payload=True if given.with_payload is None else given.with_payload,
            with_vectors=given.with_vector or False,
        )
        return page

    async def _check_query(self, name: str, query: Any, using: str | None) -> None:
        from qdrant_client import models

        vector = query.nearest if isinstance(query, models.NearestQuery) else query
        expected = (await self._sizes(name)).get(using or "")
        if isinstance(vector, list) and expected is not None:
            _check_size(expected, vector)

    async def query(self, name: str, given: models.QueryRequest) -> Any:
        """Answer a query."""
        await self._check_query(name, given.query, given.using)
        return await self.client.query_points(
            name,
            query=given.query,
            using=given.using,
            prefetch=given.prefetch,
            query_filter=given.filter,
            limit=given.limit or 10,
            offset=given.offset,
            with_payload=given.with_payload or False,
            with_vectors=given.with_vector or False,
            score_threshold=given.score_threshold,
        )


def _check_size(expected: int, vector: list[Any]) -> None:
    if len(vector) != expected:
        raise Refused(
            400,
            "Wrong input: Vector dimension error: "
            f"expected dim: {expected}, got {len(vector)}",
        )


def _echo(config: dict[str, Any], given: Any) -> None:
    """Echo the options of a collection as a server would."""
    if given is None:
        return
    asked = given.model_dump(mode="json", exclude_none=True)
    config["params"].update({key: asked[key] for key in _ECHOED if key in asked})
    config["hnsw_config"] = {**config["hnsw_config"], **asked.get("hnsw_config", {})}
    if "quantization_config" in asked:
        config["quantization_config"] = asked["quantization_config"]


def _type_of(schema: Any) -> str:
    return schema["type"] if isinstance(schema, Mapping) else str(schema or "keyword")


def jsonable(value: Any) -> Any:
    """Return a result in the form of JSON."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return getattr(value, "value", value)
