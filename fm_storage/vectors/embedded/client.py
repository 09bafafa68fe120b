"""The embedded engine as the store sees it: requests out as frames, answers in.

Vectors travel as float32 bytes beside the JSON, both ways; the engine's words for
what went wrong become our errors here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from fm_storage.errors import (
    CollectionDamaged,
    CollectionNotFound,
    EmbeddedFailed,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    VectorStoreUnavailable,
)
from fm_storage.vectors.embedded.connection import EngineConnection, Gone
from fm_storage.vectors.embedded.frames import PROTOCOL
from fm_storage.vectors.embedded.groups import grouped
from fm_storage.vectors.embedded.launch import connect, prepare_folder
from fm_storage.vectors.points import ScoredPoint, SparseVector, no_point
from fm_storage.vectors.request.operations import (
    Query,
    QueryBatch,
    QueryGroups,
    Request,
    SetPayload,
    UpdateVectors,
    Upsert,
)
from fm_storage.vectors.request.points import Floats, Terms, point_from

_READS = frozenset(
    {
        "collections",
        "count",
        "facet",
        "info",
        "marker",
        "query",
        "retrieve",
        "scroll",
        "spec",
    }
)
_SYNCED = frozenset(
    {
        "upsert",
        "update_vectors",
        "delete",
        "delete_vectors",
        "set_payload",
        "delete_payload",
    }
)
_SMALL = 16  # points: less than a millisecond


class EmbeddedEngine:
    """Calls to the engine of one data folder; connects at the first one.

    A crashed engine is started anew by the next call. A read that was under way
    is asked again; a write raises ``VectorStoreUnavailable`` with ``retryable``
    set, because it may or may not have been carried out.
    """

    kind = "embedded"
    retries = False
    page_bytes = 512 * 1024
    number_bytes = 4

    def __init__(
        self,
        folder: Path,
        *,
        durability: str,
        index_threshold: int = 20_000,
        point: Callable[..., ScoredPoint] = point_from,
    ) -> None:
        self.folder = folder
        self._point = point
        self._sync = durability == "fsync"
        self._index_threshold = index_threshold
        # Changed by _connected() and aclose() only.
        self._connection: EngineConnection | None = None
        self._connecting = asyncio.Lock()
        self.restarts = 0
        self.native: object = None

    @property
    def pid(self) -> int | None:
        """The engine's process, while one is connected."""
        connection = self._connection
        return connection.pid if connection is not None and connection.open else None

    async def open(self) -> None:
        """Nothing is done before the first call."""

    async def aclose(self) -> None:
        """Leave the engine; it ends when nobody else uses it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, RuntimeError):
                connection.transport.write_eof()
            try:
                async with asyncio.timeout(5.0):
                    # The engine closes its side after the last client's bytes.
                    await asyncio.shield(connection.closed)
            except TimeoutError:
                connection.transport.abort()
            finally:
                connection.transport.close()

    async def _connected(self) -> EngineConnection:
        if self._connection is not None and self._connection.open:
            return self._connection
        async with self._connecting:
            # Another call may have connected while this one waited.
            if self._connection is not None:
                if self._connection.open:
                    return self._connection
                self._connection = None
                self.restarts += 1
            for _ in range(100):
                connection = await self._connect()
                if connection is not None:
                    self._connection = connection
                    return connection
            raise EmbeddedFailed(
                f"vector engine: every engine in {str(self.folder)!r} left before "
                f"it answered; see {self.folder / 'engine.log'}"
            )

    async def _connect(self) -> EngineConnection | None:
        await asyncio.to_thread(prepare_folder, self.folder)
        sock: socket.socket = await connect(self.folder)
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(
                EngineConnection, sock=sock
            )
        except BaseException:  # close the socket, then pass it on
            sock.close()
            raise
        try:
            answer, _ = await connection.call(
                {"op": "hello", "index_threshold": self._index_threshold}
            )
        except Gone:
            return None  # it was just leaving; the next one is started
        except BaseException:  # close the connection, then pass it on
            connection.transport.abort()
            raise
        if answer["ok"]["protocol"] != PROTOCOL:
            connection.transport.abort()
            raise EmbeddedFailed(
                f"vector engine: process {answer['ok']['pid']} serves "
                f"{str(self.folder)!r} for another version of fm_storage; "
                "end the processes that use it"
            )
        connection.pid = answer["ok"]["pid"]
        connection.identity = answer["ok"]["identity"]
        return connection

    async def call(
        self, operation: str, collection: str | None, request: Request | None
    ) -> Any:
        """Carry out one operation.

        Raises:
            CollectionNotFound: There is no such collection or alias.
            RecordNotFound: A query names a point that is not there.
            InvalidVector: A vector does not fit; nothing was written.
            InvalidRecord: The request is wrong; nothing was written.
            VectorStoreUnavailable: The engine failed or went away.
            EmbeddedFailed: The engine cannot be started.
        """
        if operation == "ready":
            return f"embedded engine, process {(await self._connected()).pid}"
        if operation == "identity":
            return (await self._connected()).identity
        if isinstance(request, QueryBatch):
            # The engine answers together what has arrived together.
            return await asyncio.gather(
                *(self.call("query", collection, each) for each in request.queries)
            )
        if isinstance(request, QueryGroups):

            def ask(query: Query) -> Awaitable[list[ScoredPoint]]:
                return self.call("query", collection, query)

            return await grouped(ask, request)
        return await self._call(operation, collection, request)

    async def _call(
        self, operation: str, collection: str | None, request: Request | None
    ) -> Any:
        if (
            isinstance(request, (Upsert, UpdateVectors))
            and len(request.points) > _SMALL
        ):
            meta, raw = await asyncio.to_thread(_frame, request)
        else:
            meta, raw = _frame(request)
        meta["op"], meta["c"] = operation, collection
        if operation in _SYNCED:
            meta["sync"] = self._sync
        try:
            answer, vectors = await self._answered(meta, raw)
        except Gone:
            raise VectorStoreUnavailable(
                f"vector engine: its process ended during {operation}; it is "
                "started anew by the next call, and whether this one was carried "
                "out is not known",
                operation=operation,
                collection=collection,
            ) from None
        if "ok" not in answer:
            raise _refused(answer, operation, collection)
        return self._made(operation, answer["ok"], vectors)

    def _made(self, operation: str, found: Any, vectors: memoryview) -> Any:
        """Return an answer as the store expects it."""
        if operation in {"query", "retrieve"}:
            return self._points(found, vectors)
        if operation == "scroll":
            return self._points(found["points"], vectors), found["next"]
        if operation == "facet":
            return [tuple(pair) for pair in found]
        if operation == "collections":
            return found["names"], found["aliases"]
        return found

    def _points(self, answer: Sequence[Any], raw: memoryview) -> list[ScoredPoint]:
        make = self._point
        return [
            make(number, score, payload, vector and _vector(vector, raw))
            for number, score, payload, vector in answer
        ]

    async def _answered(
        self, meta: Mapping[str, Any], raw: bytes
    ) -> tuple[Any, memoryview]:
        """Send a request; a read is sent once more, to a new engine."""
        try:
            return await (await self._connected()).call(meta, raw)
        except Gone:
            if meta["op"] not in _READS:
                raise
        return await (await self._connected()).call(meta, raw)


def _frame(request: Request | None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON part and the raw part of a frame."""
    if isinstance(request, (Upsert, UpdateVectors)):
        return _upsert_frame(request)
    if request is None:
        return {}, b""
    meta = {name: getattr(request, name) for name in request.__slots__}
    if isinstance(request, SetPayload):
        meta["payload"] = orjson.Fragment(request.payload)
    raw = bytearray()
    if isinstance(request, Query):
        for part in ("query", "prefetch"):
            meta[part] = _with_references(meta[part], raw)
    return meta, bytes(raw)


def _upsert_frame(request: Upsert | UpdateVectors) -> tuple[dict[str, Any], bytes]:
    """Return the JSON part and the raw part of a frame that writes a batch."""
    batch = request.points
    raw: list[bytes] = []
    dense: dict[str, list[int]] = {}
    sparse: dict[str, list[int]] = {}
    for row, point in enumerate(batch):
        for name, given in point.vectors.items():
            kind = dense if isinstance(given, Floats) else sparse
            kind.setdefault(name, []).append(row)
    dense_parts = []
    for name, rows in dense.items():
        vectors = [batch[row].vectors[name] for row in rows]
        dense_parts.append(
            {
                "name": name,
                "size": len(vectors[0]),
                "rows": None if len(rows) == len(batch) else rows,
            }
        )
        raw.extend(v.data for v in vectors if isinstance(v, Floats))
    sparse_parts = []
    for name, rows in sparse.items():
        lengths = []
        for row in rows:
            vector = batch[row].vectors[name]
            assert isinstance(vector, Terms)
            lengths.append(len(vector))
            raw += (vector.indices.tobytes(), vector.values.tobytes())
        sparse_parts.append({"name": name, "rows": rows, "lengths": lengths})
    meta = {
        "ids": [point.id for point in batch],
        "payloads": [orjson.Fragment(point.payload) for point in batch],
        "dense": dense_parts,
        "sparse": sparse_parts,
        "newer_by": request.newer_by if isinstance(request, Upsert) else None,
        "condition": request.condition,
    }
    return meta, b"".join(raw)


def _with_references(value: Any, raw: bytearray) -> Any:
    """Move vectors out of a request into its raw part."""
    if value is None or isinstance(value, (str, int, float)):
        return value  # most are; a check for Mapping costs ten times as much
    if isinstance(value, Floats):
        start = len(raw)
        raw += value.data
        return {"@d": [start, len(value)]}
    if isinstance(value, Terms):
        start = len(raw)
        raw += value.indices.tobytes()
        raw += value.values.tobytes()
        return {"@s": [start, len(value)]}
    if isinstance(value, Mapping):
        return {key: _with_references(inner, raw) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_references(inner, raw) for inner in value]
    return value


def _vector(reference: Any, raw: memoryview) -> Any:
    if reference is None:
        return None
    if "@d" in reference:
        start, count = reference["@d"]
        return raw[start : start + 4 * count].cast("f").tolist()
    if "@s" in reference:
        start, count = reference["@s"]
        middle = start + 4 * count
        return SparseVector(
            raw[start:middle].cast("I").tolist(),
            raw[middle : middle + 4 * count].cast("f").tolist(),
        )
    named = {name: _vector(inner, raw) for name, inner in reference["@n"].items()}
    return named or None


def _refused(
    answer: Mapping[str, Any], operation: str, collection: str | None
) -> Exception:
    """Return our error for an answer that refuses."""
    kind, text = answer["err"], answer["text"]
    name = collection or ""
    if kind == "missing":
        return CollectionNotFound(text, operation=operation)
    if kind == "taken":
        return InvalidName(
            f"alias {text!r} is the name of a collection; choose another"
        )
    if kind == "no_point":
        return no_point(name, text)
    if kind == "vector":
        return InvalidVector(f"collection {name!r}: {text}", collection=name)
    if kind == "damaged":
        return CollectionDamaged(
            answer["c"], file=answer["file"], reason=text, operation=operation
        )
    if kind == "full":
        return VectorStoreUnavailable(
            f"vector engine: {operation}: the disk is full ({text}); free some space",
            operation=operation,
            collection=collection,
        )
    if kind == "bad":
        return InvalidRecord(f"collection {name!r}: {operation} refused: {text}")
    return VectorStoreUnavailable(
        f"vector engine: {operation} failed ({text}); see its engine.log",
        operation=operation,
        collection=collection,
        retryable=False,
    )
