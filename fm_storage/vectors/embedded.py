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

from fm_storage.errors import (
    CollectionNotFound,
    EmbeddedFailed,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    RecordNotFound,
    VectorStoreUnavailable,
)
from fm_storage.vectors.encoding import Encoded, Floats, Terms
from fm_storage.vectors.launch import connect, prepare_folder
from fm_storage.vectors.link import Gone, Link
from fm_storage.vectors.points import ScoredPoint, SparseVector, from_wire_id

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
        self._link: Link | None = None
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

    async def _connected(self) -> Link:
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

    async def _connect(self) -> Link | None:
        await asyncio.to_thread(prepare_folder, self.folder)
        sock: socket.socket = await connect(self.folder)
        try:
            loop = asyncio.get_running_loop()
            _, link = await loop.create_unix_connection(Link, sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            answer, _ = await link.call(
                {"op": "hello", "index_threshold": self._index_threshold}
            )
        except Gone:
            return None  # it was just leaving; the next one is started
        except BaseException:
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
        **more: Any,  # noqa: ANN401 - JSON
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
        raise _raised(answer, operation, collection)

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

    async def create_index(self, collection: str, field: str, schema: Any) -> None:  # noqa: ANN401 - text or object
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
        request, raw = await _off_loop(len(batch), _upsert_request, batch)
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
        made = _with_references(request, raw)
        answer, found = await self.call("query", collection, bytes(raw), q=made)
        return _points(answer, found)

    async def retrieve(
        self, collection: str, ids: Sequence[int | str], request: Mapping[str, Any]
    ) -> list[ScoredPoint]:
        """Return points by id."""
        answer, found = await self.call(
            "retrieve", collection, ids=list(ids), **request
        )
        return _points(answer, found)

    async def scroll(
        self, collection: str, request: Mapping[str, Any]
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page of points and the offset of the next."""
        answer, found = await self.call("scroll", collection, **request)
        return _points(answer["points"], found), answer["next"]

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


async def _off_loop(size: int, function: Any, *args: Any) -> Any:  # noqa: ANN401 - passes through
    """Run *function* here when it is short, in a thread when it is not."""
    if size <= 16:  # noqa: PLR2004 - about a millisecond's work
        return function(*args)
    return await asyncio.to_thread(function, *args)


def _upsert_request(batch: Sequence[Encoded]) -> tuple[dict[str, Any], bytes]:
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
            assert isinstance(vector, Terms)  # noqa: S101 - sorted so above
            lengths.append(len(vector))
            raw += (vector.indices.tobytes(), vector.values.tobytes())
        sparse_parts.append({"name": name, "rows": rows, "lengths": lengths})
    request = {
        "ids": [point.id for point in batch],
        "payloads": [orjson.Fragment(point.payload) for point in batch],
        "dense": dense_parts,
        "sparse": sparse_parts,
    }
    return request, b"".join(raw)


def _with_references(value: Any, raw: bytearray) -> Any:  # noqa: ANN401 - any part of a request
    """Move vectors out of a request into its raw part."""
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


def _vector(reference: Any, raw: memoryview) -> Any:  # noqa: ANN401 - any vector
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
    return {name: _vector(inner, raw) for name, inner in reference["@n"].items()}


def _points(answer: Sequence[Any], raw: memoryview) -> list[ScoredPoint]:
    made = []
    for number, score, payload, vector in answer:
        point = from_wire_id(number, payload)
        made.append(ScoredPoint(point, score, payload or {}, _vector(vector, raw)))
    return made


def _raised(
    answer: Mapping[str, Any], operation: str, collection: str | None
) -> Exception:
    kind, text = answer["err"], answer["text"]
    name = collection or ""
    if kind == "missing":
        return CollectionNotFound(text, operation=operation)
    if kind == "taken":
        return InvalidName(
            f"alias {text!r} is the name of a collection; choose another"
        )
    if kind == "no_point":
        return RecordNotFound(name, text)
    if kind == "vector":
        return InvalidVector(f"collection {name!r}: {text}", collection=name)
    if kind == "bad":
        return InvalidRecord(f"collection {name!r}: {operation} refused: {text}")
    return VectorStoreUnavailable(
        f"vector engine: {operation} failed ({text}); see its engine.log",
        operation=operation,
        collection=collection,
        retryable=False,
    )
