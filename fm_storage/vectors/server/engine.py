"""A Qdrant server (REST or gRPC), and the client's local mode, as an engine.

The client loads for more than a second, so only when a server is used, and has
traps that are closed here: keep-alive is off for localhost unless limits are
given, its compatibility check blocks in a thread, per-call timeouts do not reach
the gRPC deadline of writes. Points travel in ``rest.py`` and ``grpc.py``.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import re
import uuid
import warnings
from typing import TYPE_CHECKING, Any

from fm_storage.config import QdrantConfig
from fm_storage.errors import CollectionNotFound, VectorStoreUnavailable
from fm_storage.vectors.request.operations import (
    Create,
    Json,
    Marker,
    Request,
    Retrieve,
    UpdateVectors,
    Upsert,
)

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

    from fm_storage.vectors.server.collections import ServerCollections
    from fm_storage.vectors.server.protocol import PointsWire

_log = logging.getLogger(__name__)

_META = "fm_storage_meta"
_IDENTITY, _MARKER = 0, 1
_POINT_OPERATIONS = frozenset(
    {
        "count",
        "delete",
        "delete_payload",
        "delete_vectors",
        "facet",
        "query",
        "query_batch",
        "query_groups",
        "retrieve",
        "scroll",
        "set_payload",
        "update_vectors",
        "upsert",
    }
)
_OLDEST = (1, 16)
_VERSION = re.compile(r"(\d+)\.(\d+)")


class ServerEngine:
    """Calls to a server, or to the client's local mode (``:memory:``)."""

    restarts = 0
    pid: int | None = None

    def __init__(self, config: QdrantConfig) -> None:
        self._config = config
        self._memory = config.url == ":memory:"
        self.kind = "memory" if self._memory else "server"
        self.retries = not self._memory
        # The client makes objects of a message on the loop, a value at a time.
        self.page_bytes = 32 * 1024 if config.prefer_grpc else 512 * 1024
        self.number_bytes = 1 if config.prefer_grpc else 12  # arrays come whole
        self.native: AsyncQdrantClient
        # Loaded with the client, when the engine opens.
        self._points: PointsWire
        self._collections: ServerCollections
        self._identity: str | None = None
        self._new_enough = self._memory

    # Life

    async def open(self) -> None:
        """Load the client, off the loop; no connection is made yet."""
        await asyncio.to_thread(_load_client)
        from fm_storage.vectors.server.collections import (
            ServerCollections,
        )
        from fm_storage.vectors.server.grpc import GrpcPoints
        from fm_storage.vectors.server.rest import RestPoints

        self.native = self._client()
        if self._memory or self._config.prefer_grpc:
            self._points = GrpcPoints(self.native, remote=not self._memory)
        else:
            self._points = RestPoints(self.native)
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
            warnings.simplefilter("ignore")  # logged above
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

    async def _ready(self) -> str:
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
        self._new_enough = True
        return f"Qdrant {info.version}"

    async def call(
        self, operation: str, collection: str | None, request: Request | None
    ) -> Any:
        """Carry out one operation."""
        if operation in _POINT_OPERATIONS:
            assert request is not None
            if isinstance(request, Retrieve) and not request.ids:
                return []
            # An older server would not see a condition, and write.
            if not self._new_enough and (
                (isinstance(request, Upsert) and request.conditional)
                or (isinstance(request, UpdateVectors) and request.condition)
            ):
                await self._ready()
            return await self._points.call(operation, collection or "", request)
        if operation == "ready":
            return await self._ready()
        if operation == "identity":
            return await self._stable_identity()
        if operation == "marker":
            return await self._meta(_MARKER)
        if isinstance(request, Marker):
            return await self._set_meta(_MARKER, request.marker, replace=True)
        return await self._collections.call(operation, collection, request)

    # The store as a whole: two points of a tiny collection of our own

    async def _meta(self, number: int) -> dict[str, Any]:
        request = Retrieve([number], with_payload=True, with_vector=False)
        try:
            found = await self._points.call("retrieve", _META, request)
        except CollectionNotFound:
            return {}
        return dict(found[0].payload) if found else {}

    async def _set_meta(self, number: int, payload: Json, *, replace: bool) -> None:
        spec = {
            "vectors": {"": {"size": 1, "distance": "Dot"}},
            "sparse_vectors": {},
            "payload_indexes": {},
        }
        await self._collections.call("create", _META, Create(spec))
        await self._points.put_meta(_META, number, payload, replace=replace)

    async def _stable_identity(self) -> str:
        """Return the stable id of this store; the first caller's stays."""
        if self._identity is None:
            found = await self._meta(_IDENTITY)
            if "identity" not in found:
                fresh = {"identity": str(uuid.uuid4())}
                await self._set_meta(_IDENTITY, fresh, replace=False)
                found = await self._meta(_IDENTITY)
            self._identity = str(found["identity"])
        return self._identity


def _load_client() -> None:
    for name in ("qdrant_client", "fm_storage.vectors.server.collections"):
        importlib.import_module(name)
