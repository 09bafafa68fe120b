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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fm_storage.config import QdrantConfig
from fm_storage.errors import CollectionNotFound, InvalidName, VectorStoreUnavailable
from fm_storage.vectors.encoding import Encoded
from fm_storage.vectors.points import ScoredPoint

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

    from fm_storage.vectors.wire import PointsWire

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
        self._points: PointsWire
        self._identity: str | None = None
        # Local mode forgets payload indexes at once; it is asked about them.
        self._indexes: dict[str, dict[str, Any]] = {}
        self._options: dict[str, dict[str, Any]] = {}

    # Life

    async def open(self) -> None:
        """Load the client, off the loop; no connection is made yet."""
        await asyncio.to_thread(_load_client)
        from fm_storage.vectors.rest import RestPoints  # noqa: PLC0415 - loads a client
        from fm_storage.vectors.typed import TypedPoints  # noqa: PLC0415 - the same

        self.native = self._client()
        by_models = self._memory or self._config.prefer_grpc
        self._points = (TypedPoints if by_models else RestPoints)(self.native)

    def _client(self) -> AsyncQdrantClient:
        from qdrant_client import AsyncQdrantClient  # noqa: PLC0415 - loaded above

        config = self._config
        if self._memory:
            return AsyncQdrantClient(":memory:")
        import httpx  # noqa: PLC0415 - comes with the client

        more: dict[str, Any] = {}
        if config.ca_file is not None:
            import ssl  # noqa: PLC0415 - rarely needed

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
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy

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

    # Collections

    async def collections(self) -> tuple[list[str], dict[str, str]]:
        """Return names, and aliases with their targets."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy

        with translated("list_collections", None):
            found = await self.native.get_collections()
            aliases = await self.native.get_aliases()
        return (
            [item.name for item in found.collections],
            {item.alias_name: item.collection_name for item in aliases.aliases},
        )

    async def spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy
        from fm_storage.vectors.models import spec_from  # noqa: PLC0415 - lazy

        with translated("collection_info", collection):
            found = await self.native.get_collection(collection)
        return self._remembered(spec_from(found), collection)

    async def info(self, collection: str) -> dict[str, Any]:
        """Return definition and sizes."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy
        from fm_storage.vectors.models import spec_from  # noqa: PLC0415 - lazy

        with translated("collection_info", collection):
            found = await self.native.get_collection(collection)
        spec = self._remembered(spec_from(found), collection)
        _, aliases = await self.collections()
        name = aliases.get(collection, collection)
        names = [*spec["vectors"], *spec["sparse_vectors"]]
        points = found.points_count or 0
        total = points
        if len(names) != 1:
            total = 0
            for vector in names:
                chosen = {"must": [{"has_vector": vector}]}
                total += await self.count(collection, chosen)
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

    async def create(self, collection: str, spec: Json) -> bool:
        """Create a collection; False when the name is taken."""
        from fm_storage.vectors.client_errors import (  # noqa: PLC0415 - lazy
            AlreadyExists,
            translated,
        )
        from fm_storage.vectors.models import creation  # noqa: PLC0415 - lazy

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
            await self.create_index(collection, field, schema)
        return True

    async def drop(self, collection: str) -> bool:
        """Delete a collection; False when there is none."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy

        self._indexes.pop(collection, None)
        names, _ = await self.collections()
        if collection not in names:
            return False
        try:
            with translated("delete_collection", collection):
                await self.native.delete_collection(collection)
        except CollectionNotFound:
            return False
        return True

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them, in one request."""
        from qdrant_client import models  # noqa: PLC0415 - lazy

        from fm_storage.vectors.client_errors import (  # noqa: PLC0415 - lazy
            AlreadyExists,
            translated,
        )

        names, aliases = await self.collections()
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

    async def exchange(self, name: str, target: str, retired: str) -> None:
        """Let a name mean *target*; a collection of that name goes.

        A server cannot rename a collection: between the two requests the name
        means nothing for a moment. With an alias there is no such moment.
        """
        del retired
        names, _ = await self.collections()
        if name in names:
            await self.drop(name)
        await self.set_aliases({name: target})

    async def create_index(self, collection: str, field: str, schema: Any) -> None:  # noqa: ANN401 - text or object
        """Index a payload field."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy
        from fm_storage.vectors.models import field_schema  # noqa: PLC0415 - lazy

        made = field_schema(schema)
        with translated("create_payload_index", collection), _quiet(self._memory):
            await self.native.create_payload_index(
                collection, field, field_schema=made, wait=True
            )
        if self._memory:
            self._indexes.setdefault(collection, {})[field] = schema

    async def delete_index(self, collection: str, field: str) -> None:
        """Drop a payload index."""
        from fm_storage.vectors.client_errors import translated  # noqa: PLC0415 - lazy

        with translated("delete_payload_index", collection), _quiet(self._memory):
            await self.native.delete_payload_index(collection, field, wait=True)
        self._indexes.get(collection, {}).pop(field, None)

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
    import qdrant_client  # noqa: PLC0415 - takes a second
    import qdrant_client.http.models  # noqa: F401, PLC0415 - the same

    import fm_storage.vectors.client_errors  # noqa: F401, PLC0415 - the same


@contextmanager
def _quiet(active: bool) -> Iterator[None]:  # noqa: FBT001 - one meaning only
    """Silence local mode, which warns that payload indexes do nothing there."""
    with warnings.catch_warnings():
        if active:
            warnings.simplefilter("ignore")
        yield
