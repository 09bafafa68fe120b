"""Collections of a server, or of the client's local mode: made, described, named.

Points travel in ``rest.py`` and ``grpc.py``. Loaded together with the client.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from fm_storage.errors import CollectionNotFound, InvalidName
from fm_storage.vectors.request.operations import (
    Count,
    Create,
    Exchange,
    Index,
    Request,
)
from fm_storage.vectors.server.errors import AlreadyExists, translated
from fm_storage.vectors.server.models import creation, field_schema, spec_from

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

    from fm_storage.vectors.server.protocol import PointsWire


class ServerCollections:
    """Calls on whole collections; errors are ours."""

    def __init__(
        self, client: AsyncQdrantClient, points: PointsWire, *, memory: bool
    ) -> None:
        self.native, self._points, self._memory = client, points, memory
        self._calls: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
            "collections": lambda _name, _request: self._collections(),
            "create": self._create,
            "create_index": self._create_index,
            "delete_index": self._delete_index,
            "drop": lambda name, _request: self._drop(name),
            "exchange": self._exchange,
            "info": lambda name, _request: self._info(name),
            "set_aliases": lambda _name, request: self._set_aliases(request.targets),
            "spec": lambda name, _request: self._spec(name),
        }
        # Local mode forgets payload indexes at once; it is asked about them.
        self._indexes: dict[str, dict[str, Any]] = {}
        self._options: dict[str, dict[str, Any]] = {}

    async def call(
        self, operation: str, collection: str | None, request: Request | None
    ) -> Any:
        """Carry out one operation."""
        return await self._calls[operation](collection or "", request)

    async def _collections(self) -> tuple[list[str], dict[str, str]]:
        """Return names, and aliases with their targets."""
        with translated("list_collections", None):
            found = await self.native.get_collections()
            aliases = await self.native.get_aliases()
        return (
            [item.name for item in found.collections],
            {item.alias_name: item.collection_name for item in aliases.aliases},
        )

    async def _spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition."""
        with translated("collection_info", collection):
            found = await self.native.get_collection(collection)
        return self._remembered(spec_from(found), collection)

    async def _info(self, collection: str) -> dict[str, Any]:
        """Return definition and sizes."""
        with translated("collection_info", collection):
            found = await self.native.get_collection(collection)
        spec = self._remembered(spec_from(found), collection)
        _, aliases = await self._collections()
        name = aliases.get(collection, collection)
        names = [*spec["vectors"], *spec["sparse_vectors"]]
        points = found.points_count or 0
        total = points
        if len(names) != 1:
            total = 0
            for vector in names:
                request = Count({"must": [{"has_vector": vector}]})
                total += await self._points.call("count", collection, request)
        return {
            "name": name,
            "spec": spec,
            "points": points,
            "indexed": found.indexed_vectors_count or 0,
            "total": total,
            "status": str(found.status.value),
            "aliases": sorted(a for a, target in aliases.items() if target == name),
        }

    def _remembered(self, spec: dict[str, Any], collection: str) -> dict[str, Any]:
        if not self._memory:
            return spec
        indexes = self._indexes.get(collection, {})
        return {
            **spec,
            **self._options.get(collection, {}),
            "payload_indexes": dict(indexes),
        }

    async def _create(self, collection: str, request: Create) -> bool:
        """Create a collection; False when the name is taken."""
        spec = request.spec
        try:
            with translated("create_collection", collection):
                await self.native.create_collection(collection, **creation(spec))
        except AlreadyExists:
            return False
        if self._memory:
            self._options[collection] = {
                key: value
                for key, value in spec.items()
                if key not in {"vectors", "sparse_vectors", "payload_indexes"}
            }
        for field, schema in spec["payload_indexes"].items():
            await self._create_index(collection, Index(field, schema))
        return True

    async def _drop(self, collection: str) -> bool:
        """Delete a collection; False when there is none."""
        self._indexes.pop(collection, None)
        names, _ = await self._collections()
        if collection not in names:
            return False
        try:
            with translated("delete_collection", collection):
                await self.native.delete_collection(collection)
        except CollectionNotFound:
            return False
        return True

    async def _set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them, in one request."""
        names, aliases = await self._collections()
        actions: list[Any] = []
        for alias, target in targets.items():
            if alias in names:
                raise InvalidName(
                    f"alias {alias!r} is the name of a collection; choose another"
                )
            if target is not None and aliases.get(target, target) not in names:
                raise CollectionNotFound(target, operation="set_aliases")
            if alias in aliases:
                actions.append(
                    models.DeleteAliasOperation(
                        delete_alias=models.DeleteAlias(alias_name=alias)
                    )
                )
            if target is not None:
                actions.append(
                    models.CreateAliasOperation(
                        create_alias=models.CreateAlias(
                            collection_name=aliases.get(target, target),
                            alias_name=alias,
                        )
                    )
                )
        if not actions:
            return
        try:
            with translated("set_aliases", None):
                await self.native.update_collection_aliases(actions)
        except AlreadyExists as exc:
            message = f"alias: {exc}"
            raise InvalidName(message) from exc

    async def _exchange(self, name: str, request: Exchange) -> None:
        """Let a name mean *target*; a collection of that name goes.

        A server cannot rename a collection: between the two requests the name
        means nothing for a moment. With an alias there is no such moment.
        """
        names, _ = await self._collections()
        if name in names:
            await self._drop(name)
        await self._set_aliases({name: request.target})

    async def _create_index(self, collection: str, request: Index) -> None:
        """Index a payload field."""
        field, made = request.field, field_schema(request.schema)
        with translated("create_payload_index", collection), _quiet(self._memory):
            await self.native.create_payload_index(
                collection, field, field_schema=made, wait=True
            )
        if self._memory:
            self._indexes.setdefault(collection, {})[field] = request.schema

    async def _delete_index(self, collection: str, request: Index) -> None:
        """Drop a payload index."""
        field = request.field
        with translated("delete_payload_index", collection), _quiet(self._memory):
            await self.native.delete_payload_index(collection, field, wait=True)
        self._indexes.get(collection, {}).pop(field, None)


@contextmanager
def _quiet(active: bool) -> Iterator[None]:
    """Silence local mode, which warns that payload indexes do nothing there."""
    with warnings.catch_warnings():
        if active:
            warnings.simplefilter("ignore")
        yield
