"""The embedded engine as the store sees it: calls over a Unix socket.

Apart from the store, which knows nothing of frames, and from the engine, whose
process this one must never block or share memory with.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from fm_storage.errors import EmbeddedFailed, VectorStoreUnavailable
from fm_storage.vectors.embedded.connection import EngineConnection, Gone
from fm_storage.vectors.embedded.launch import connect, prepare_folder
from fm_storage.vectors.embedded.wire import (
    points_from,
    raised,
    upsert_request,
    with_references,
)
from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded

__all__ = ["EmbeddedEngine"]


_QUESTIONS = frozenset(
    {"collections", "count", "info", "marker", "query", "retrieve", "scroll", "spec"}
)


class EmbeddedEngine:
    """Calls to the engine of one data folder; connects at the first one.

    A crashed engine is started anew by the next call. A read that was under way
    is asked again; a write raises ``VectorStoreUnavailable`` with ``retryable``
    set, because it may or may not have been carried out.
    """

    kind = "embedded"
    retries = False

    def __init__(
        self, folder: Path, *, durability: str, index_threshold: int = 20_000
    ) -> None:
        self.folder = folder
        self._sync = durability == "fsync"
        self._index_threshold = index_threshold
        self._link: EngineConnection | None = None
        self._connecting = asyncio.Lock()
        self.restarts = 0
        self.native: object = None

    @property
    def pid(self) -> int | None:
        """The engine's process, while one is connected."""
        return self._link.pid if self._link is not None and self._link.open else None

    async def open(self) -> None:
        """Nothing is done before the first call."""

    async def aclose(self) -> None:
        """Leave the engine; it ends when nobody else uses it."""
        link, self._link = self._link, None
        if link is not None:
            with suppress(OSError, RuntimeError):
                link.transport.write_eof()
            try:
                async with asyncio.timeout(5.0):
                    # The engine closes its side after the last client's bytes.
                    await asyncio.shield(link.closed)
            except TimeoutError:
                link.transport.abort()
            finally:
                link.transport.close()

    async def _connected(self) -> EngineConnection:
        if self._link is not None and self._link.open:
            return self._link
        async with self._connecting:
            if self._link is not None:
                if self._link.open:
                    return self._link
                self._link = None
                self.restarts += 1
            for _ in range(100):
                link = await self._connect()
                if link is not None:
                    self._link = link
                    return link
            raise EmbeddedFailed(
                f"vector engine: every engine in {str(self.folder)!r} left before "
                f"it answered; see {self.folder / 'engine.log'}"
            )

    async def _connect(self) -> EngineConnection | None:
        await asyncio.to_thread(prepare_folder, self.folder)
        sock: socket.socket = await connect(self.folder)
        try:
            loop = asyncio.get_running_loop()
            _, link = await loop.create_unix_connection(EngineConnection, sock=sock)
        except BaseException:  # let go of the socket, then pass it on
            sock.close()
            raise
        try:
            answer, _ = await link.call(
                {"op": "hello", "index_threshold": self._index_threshold}
            )
        except Gone:
            return None  # it was just leaving; the next one is started
        except BaseException:  # let go of the line, then pass it on
            link.transport.abort()
            raise
        link.pid = answer["ok"]["pid"]
        link.identity = answer["ok"]["identity"]
        return link

    async def call(
        self,
        operation: str,
        collection: str | None = None,
        raw: bytes = b"",
        **more: Any,
    ) -> tuple[Any, memoryview]:
        """Make one call.

        Raises:
            CollectionNotFound: There is no such collection or alias.
            RecordNotFound: A query names a point that is not there.
            InvalidVector: A vector does not fit; nothing was written.
            InvalidRecord: The request is wrong; nothing was written.
            VectorStoreUnavailable: The engine failed or went away.
            EmbeddedFailed: The engine cannot be started.
        """
        request = {"op": operation, **more}
        if collection is not None:
            request["c"] = collection
        try:
            answer, found = await self._asked(request, raw)
        except Gone:
            raise VectorStoreUnavailable(
                f"vector engine: its process ended during {operation}; it is "
                "started anew by the next call, and whether this one was carried "
                "out is not known",
                operation=operation,
                collection=collection,
            ) from None
        if "ok" in answer:
            return answer["ok"], found
        raise raised(answer, operation, collection)

    async def _asked(
        self, request: Mapping[str, Any], raw: bytes
    ) -> tuple[Any, memoryview]:
        """Send a request; a question is asked once more of a new engine."""
        try:
            return await (await self._connected()).call(request, raw)
        except Gone:
            if request["op"] not in _QUESTIONS:
                raise
        return await (await self._connected()).call(request, raw)

    # Collections

    async def collections(self) -> tuple[list[str], dict[str, str]]:
        """Return names, and aliases with their targets."""
        answer, _ = await self.call("collections")
        return answer["names"], answer["aliases"]

    async def info(self, collection: str) -> dict[str, Any]:
        """Return definition and sizes."""
        answer, _ = await self.call("info", collection)
        return dict(answer)

    async def spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition."""
        answer, _ = await self.call("spec", collection)
        return dict(answer)

    async def create(self, collection: str, spec: Mapping[str, Any]) -> bool:
        """Create a collection; False when the name is taken."""
        answer, _ = await self.call("create", collection, spec=spec)
        return bool(answer)

    async def drop(self, collection: str) -> bool:
        """Delete a collection; False when there is none."""
        answer, _ = await self.call("drop", collection)
        return bool(answer)

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them, all at once."""
        await self.call("aliases", None, set=dict(targets))

    async def exchange(self, name: str, target: str, retired: str) -> None:
        """Let a name mean *target*; a collection of that name becomes *retired*."""
        await self.call("exchange", name, target=target, retired=retired)

    async def create_index(self, collection: str, field: str, schema: Any) -> None:
        """Index a payload field."""
        await self.call("create_index", collection, field=field, schema=schema)

    async def delete_index(self, collection: str, field: str) -> None:
        """Drop a payload index."""
        await self.call("delete_index", collection, field=field)

    # Points

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch."""
        request, raw = await _off_loop(len(batch), upsert_request, batch)
        if newer_by is not None:
            request["newer_by"] = newer_by
        await self.call("upsert", collection, raw, sync=self._sync, **request)

    async def delete(
        self,
        collection: str,
        *,
        ids: Sequence[int | str] | None,
        chosen: Mapping[str, Any] | None,
        newer_by: str | None,
        up_to: Sequence[int] | None,
    ) -> None:
        """Delete points by id or filter."""
        await self.call(
            "delete",
            collection,
            ids=ids,
            filter=chosen,
            newer_by=newer_by,
            up_to=up_to,
            sync=self._sync,
        )

    async def set_payload(
        self,
        collection: str,
        payload: bytes,
        *,
        ids: Sequence[int | str] | None,
        chosen: Mapping[str, Any] | None,
        key: str | None,
        overwrite: bool,
    ) -> None:
        """Merge into, or replace, payloads."""
        await self.call(
            "set_payload",
            collection,
            payload=orjson.Fragment(payload),
            ids=ids,
            filter=chosen,
            key=key,
            overwrite=overwrite,
            sync=self._sync,
        )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        ids: Sequence[int | str] | None,
        chosen: Mapping[str, Any] | None,
    ) -> None:
        """Remove fields from payloads."""
        await self.call(
            "delete_payload",
            collection,
            keys=list(keys),
            ids=ids,
            filter=chosen,
            sync=self._sync,
        )

    async def query(
        self, collection: str, request: Mapping[str, Any]
    ) -> list[ScoredPoint]:
        """Answer one query."""
        raw = bytearray()
        made = with_references(request, raw)
        answer, found = await self.call("query", collection, bytes(raw), q=made)
        return points_from(answer, found)

    async def retrieve(
        self, collection: str, ids: Sequence[int | str], request: Mapping[str, Any]
    ) -> list[ScoredPoint]:
        """Return points by id."""
        answer, found = await self.call(
            "retrieve", collection, ids=list(ids), **request
        )
        return points_from(answer, found)

    async def scroll(
        self, collection: str, request: Mapping[str, Any]
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page of points and the offset of the next."""
        answer, found = await self.call("scroll", collection, **request)
        return points_from(answer["points"], found), answer["next"]

    async def count(self, collection: str, chosen: Mapping[str, Any] | None) -> int:
        """Count matching points."""
        answer, _ = await self.call("count", collection, filter=chosen)
        return int(answer)

    # The store as a whole

    async def identity(self) -> str:
        """Return the stable id of this store."""
        return (await self._connected()).identity

    async def get_marker(self) -> dict[str, Any]:
        """Return what was last noted."""
        answer, _ = await self.call("marker")
        return dict(answer)

    async def set_marker(self, marker: Mapping[str, Any]) -> None:
        """Note something, durably."""
        await self.call("set_marker", marker=dict(marker))

    async def ready(self) -> str:
        """Start the engine if need be; return what answers."""
        link = await self._connected()
        return f"embedded engine, process {link.pid}"


async def _off_loop(size: int, function: Any, *args: Any) -> Any:
    """Run *function* here when it is short, in a thread when it is not."""
    if size <= 16:
        return function(*args)
    return await asyncio.to_thread(function, *args)
