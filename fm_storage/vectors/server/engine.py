"""A Qdrant server (REST or gRPC), and the client's local mode, as an engine.

Apart from the store, because the client loads for more than a second and has
traps that are closed here: keep-alive is off for localhost unless limits are
given, its compatibility check blocks in a thread, per-call timeouts do not reach
the gRPC deadline of writes. Points travel in ``rest.py`` and ``typed.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fm_storage.config import QdrantConfig
from fm_storage.errors import CollectionNotFound, VectorStoreUnavailable
from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

    from fm_storage.vectors.server.collections import ServerCollections
    from fm_storage.vectors.server.protocol import PointsWire

__all__ = ["ServerEngine"]

_log = logging.getLogger(__name__)

_META = "fm_storage_meta"
_IDENTITY, _MARKER = 0, 1
_OLDEST = (1, 16)
_VERSION = re.compile(r"(\d+)\.(\d+)")

Json = Mapping[str, Any]


class ServerEngine:
    """Calls to a server, or to the client's local mode (``:memory:``)."""

    restarts = 0
    pid: int | None = None

    def __init__(self, config: QdrantConfig) -> None:
        self._config = config
        self._memory = config.url == ":memory:"
        self.kind = "memory" if self._memory else "server"
        self.retries = not self._memory
        self.native: AsyncQdrantClient
        # Loaded with the client, when the engine opens.
        self._points: PointsWire
        self._collections: ServerCollections
        self._identity: str | None = None

    # Life

    async def open(self) -> None:
        """Load the client, off the loop; no connection is made yet."""
        await asyncio.to_thread(_load_client)
        from fm_storage.vectors.server.collections import (
            ServerCollections,
        )
        from fm_storage.vectors.server.grpc import TypedPoints
        from fm_storage.vectors.server.rest import RestPoints

        self.native = self._client()
        by_models = self._memory or self._config.prefer_grpc
        self._points = (TypedPoints if by_models else RestPoints)(self.native)
        self._collections = ServerCollections(
            self.native, self._points, memory=self._memory
        )

    def _client(self) -> AsyncQdrantClient:
        from qdrant_client import AsyncQdrantClient

        config = self._config
        if self._memory:
            return AsyncQdrantClient(":memory:")
        import httpx

        more: dict[str, Any] = {}
        if config.ca_file is not None:
            import ssl

            more["verify"] = ssl.create_default_context(cafile=str(config.ca_file))
            if config.prefer_grpc:
                more["grpc_options"] = {
                    "root_certificates": config.ca_file.read_bytes()
                }
        api_key = config.api_key.get_secret_value() if config.api_key else None
        if api_key is not None and config.url.startswith("http://"):
            _log.warning("vector store: the API key travels in clear; use https://")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said above, in the log
            return AsyncQdrantClient(
                url=config.url,
                prefer_grpc=config.prefer_grpc,
                grpc_port=config.grpc_port,
                api_key=api_key,
                headers=dict(config.headers) or None,
                # The longest call: gRPC writes take their deadline from here.
                timeout=math.ceil(config.timeout),
                check_compatibility=False,
                limits=httpx.Limits(
                    max_connections=max(16, 4 * config.max_concurrency),
                    max_keepalive_connections=max(16, 4 * config.max_concurrency),
                    keepalive_expiry=30.0,
                ),
                **more,
            )

    async def aclose(self) -> None:
        """Close every connection."""
        await self.native.close()

    async def ready(self) -> str:
        """Ask for the version; refuse a server too old for conditional updates."""
        from fm_storage.vectors.server.errors import translated

        if self._memory:
            return "local mode, in this process"
        with translated("ready", None):
            info = await self.native.info()
        found = _VERSION.match(info.version)
        if found and (int(found[1]), int(found[2])) < _OLDEST:
            raise VectorStoreUnavailable(
                f"vector store: Qdrant {info.version} is older than "
                f"{_OLDEST[0]}.{_OLDEST[1]} (conditional updates); upgrade it",
                operation="ready",
                retryable=False,
            )
        return f"Qdrant {info.version}"

    # Collections: see ServerCollections

    async def collections(self) -> tuple[list[str], dict[str, str]]:
        """Return names, and aliases with their targets."""
        return await self._collections.collections()

    async def spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition."""
        return await self._collections.spec(collection)

    async def info(self, collection: str) -> dict[str, Any]:
        """Return definition and sizes."""
        return await self._collections.info(collection)

    async def create(self, collection: str, spec: Json) -> bool:
        """Create a collection; False when the name is taken."""
        return await self._collections.create(collection, spec)

    async def drop(self, collection: str) -> bool:
        """Delete a collection; False when there is none."""
        return await self._collections.drop(collection)

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them, in one request."""
        await self._collections.set_aliases(targets)

    async def exchange(self, name: str, target: str, retired: str) -> None:
        """Let a name mean *target*; a collection of that name goes."""
        del retired
        await self._collections.exchange(name, target)

    async def create_index(self, collection: str, field: str, schema: Any) -> None:
        """Index a payload field."""
        await self._collections.create_index(collection, field, schema)

    async def delete_index(self, collection: str, field: str) -> None:
        """Drop a payload index."""
        await self._collections.delete_index(collection, field)

    # Points: see PointsWire

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch."""
        await self._points.upsert(collection, batch, newer_by=newer_by)

    async def delete(
        self,
        collection: str,
        *,
        ids: Sequence[int | str] | None,
        chosen: Json | None,
        newer_by: str | None,
        up_to: Sequence[int] | None,
    ) -> None:
        """Delete points by id or filter."""
        if newer_by is None or up_to is None:
            await self._points.delete(collection, ids=ids, chosen=chosen)
            return
        await self._points.delete_up_to(
            collection, list(ids or ()), newer_by, list(up_to)
        )

    async def set_payload(
        self,
        collection: str,
        payload: bytes,
        *,
        ids: Sequence[int | str] | None,
        chosen: Json | None,
        key: str | None,
        overwrite: bool,
    ) -> None:
        """Merge into, or replace, payloads."""
        await self._points.set_payload(
            collection,
            payload,
            chosen=_by_filter(ids, chosen),
            key=key,
            overwrite=overwrite,
        )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        ids: Sequence[int | str] | None,
        chosen: Json | None,
    ) -> None:
        """Remove fields from payloads."""
        await self._points.delete_payload(
            collection, keys, chosen=_by_filter(ids, chosen)
        )

    async def query(self, collection: str, request: Json) -> list[ScoredPoint]:
        """Answer one query."""
        return await self._points.query(collection, request)

    async def retrieve(
        self, collection: str, ids: Sequence[int | str], request: Json
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for."""
        return await self._points.retrieve(collection, ids, request)

    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page of points and the offset of the next."""
        return await self._points.scroll(collection, request)

    async def count(self, collection: str, chosen: Json | None) -> int:
        """Count matching points."""
        return await self._points.count(collection, chosen)

    # The store as a whole: two points of a tiny collection of our own

    async def _meta(self, number: int) -> dict[str, Any]:
        request = {"with_payload": True, "with_vector": False}
        try:
            found = await self._points.retrieve(_META, [number], request)
        except CollectionNotFound:
            return {}
        return dict(found[0].payload) if found else {}

    async def _set_meta(self, number: int, payload: Json, *, replace: bool) -> None:
        spec = {
            "vectors": {"": {"size": 1, "distance": "Dot"}},
            "sparse_vectors": {},
            "payload_indexes": {},
        }
        await self.create(_META, spec)
        await self._points.put_meta(_META, number, payload, replace=replace)

    async def identity(self) -> str:
        """Return the stable id of this store; the first caller's stays."""
        if self._identity is None:
            found = await self._meta(_IDENTITY)
            if "identity" not in found:
                fresh = {"identity": str(uuid.uuid4())}
                await self._set_meta(_IDENTITY, fresh, replace=False)
                found = await self._meta(_IDENTITY)
            self._identity = str(found["identity"])
        return self._identity

    async def get_marker(self) -> dict[str, Any]:
        """Return what was last noted."""
        return await self._meta(_MARKER)

    async def set_marker(self, marker: Json) -> None:
        """Note something."""
        await self._set_meta(_MARKER, marker, replace=True)


def _by_filter(ids: Sequence[int | str] | None, chosen: Json | None) -> Json:
    """Choose by filter alone: a server refuses a list that names an absent id."""
    return chosen if chosen is not None else {"must": [{"has_id": list(ids or ())}]}


def _load_client() -> None:
    import qdrant_client
    import qdrant_client.http.models  # noqa: F401 - the same

    import fm_storage.vectors.server.errors  # noqa: F401 - the same
