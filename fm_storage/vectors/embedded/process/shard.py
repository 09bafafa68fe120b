"""One collection of the embedded engine: a shard of qdrant-edge and its rules.

Runs in the engine's process only. Everything that the shard itself does not do
(conditional batches, ids inside queries, vectors as raw bytes) happens here;
``engine.py`` keeps the manifest, ``main.py`` the sockets.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.process.diversity import diverse
from fm_storage.vectors.embedded.process.edge_filters import filter_from
from fm_storage.vectors.embedded.process.edge_queries import (
    candidates,
    order_by_from,
    prefetch_from,
    query_from,
    without_examples,
)
from fm_storage.vectors.embedded.process.edge_types import (
    edge_config,
    index_params,
    search_params,
)
from fm_storage.vectors.embedded.process.vector_bytes import Raw, wire_id

Json = Mapping[str, Any]


class PointNotFound(Exception):
    """A query refers to a point that is not there."""


class WrongVector(Exception):
    """A batch has a vector that the collection, as it is now, does not have."""


class Shard:
    """An open shard, with what its collection promises.

    Attributes:
        name: Name of the collection.
        spec: Its definition.
        dirty: Whether something was written since the last flush.
    """

    def __init__(self, name: str, folder: Path, spec: dict[str, Any]) -> None:
        self.name, self.folder, self.spec = name, folder, spec
        self.dirty = False
        self.last_write = 0.0
        self.last_use = time.monotonic()
        self.due_since: float | None = None
        # While an index is built: what must be done to the copy as well.
        self.journal: list[edge.UpdateOperation] | None = None
        self.journal_bytes = 0
        self._written = 0
        self.edge_shard: edge.EdgeShard

    @classmethod
    def create(cls, name: str, folder: Path, spec: dict[str, Any]) -> Shard:
        """Make the shard's folder and the indexes its definition names."""
        shard = cls(name, folder, spec)
        folder.mkdir(mode=0o700)
        shard.edge_shard = edge.EdgeShard.create(str(folder), edge_config(spec))
        for field, schema in spec["payload_indexes"].items():
            shard._index(field, schema)
        shard.flush()
        return shard

    @classmethod
    def load(cls, name: str, folder: Path, spec: dict[str, Any]) -> Shard:
        """Open an existing shard; its log is replayed by the engine itself."""
        shard = cls(name, folder, spec)
        shard.edge_shard = edge.EdgeShard.load(str(folder))
        _release_pages(folder)
        return shard

    def flush(self) -> None:
        """Sync everything written so far to the disk."""
        self.edge_shard.flush()
        self.dirty = False

    def close(self) -> None:
        """Sync and close."""
        self.flush()
        self.edge_shard.close()

    def outside_index(self) -> int:
        """Return how many vectors are compared one by one."""
        info = self.edge_shard.info()
        names = len(self.spec["vectors"]) + len(self.spec["sparse_vectors"])
        if info.points_count * names - info.indexed_vectors_count <= 0:
            return 0
        return self._total(info.points_count) - info.indexed_vectors_count

    def _total(self, points: int) -> int:
        names = [*self.spec["vectors"], *self.spec["sparse_vectors"]]
        if len(names) == 1:
            return points
        return sum(self.count({"must": [{"has_vector": name}]}) for name in names)

    # Writing

    def update(self, operation: edge.UpdateOperation) -> None:
        """Apply one operation; it is in the log when this returns."""
        self.edge_shard.update(operation)
        self.dirty = True
        self.last_write = time.monotonic()
        if self.journal is not None:
            self.journal.append(operation)
            self.journal_bytes += self._written

    def upsert(self, request: Json, raw: memoryview) -> int:
        """Write a batch, whole or not at all; return how many points were written.

        With ``newer_by`` a point is left out when the stored one's value of that
        payload field is not smaller.
        """
        ids: list[Any] = request["ids"]
        payloads: list[dict[str, Any]] = request["payloads"]
        vectors = self._vectors(request, raw, len(ids))
        self._written = len(raw) + 200 * len(ids)
        wanted: Iterable[int] = range(len(ids))
        field = request.get("newer_by")
        if field is not None:
            wanted = self._newer(ids, payloads, field)
        points = [edge.Point(ids[i], vectors[i], payloads[i]) for i in wanted]
        if points:
            condition = filter_from(request.get("condition"))
            self.update(edge.UpdateOperation.upsert_points(points, condition))
        return len(points)

    def update_vectors(self, request: Json, raw: memoryview) -> None:
        """Replace vectors of points; the first that is not there is named."""
        ids: list[Any] = request["ids"]
        vectors = self._vectors(request, raw, len(ids))
        self._written = len(raw) + 200 * len(ids)
        there = {wire_id(record.id) for record in self._existing(ids)}
        points = [
            edge.PointVectors(number, vector)
            for number, vector in zip(ids, vectors, strict=True)
            if number in there
        ]
        if points:
            condition = filter_from(request.get("condition"))
            self.update(edge.UpdateOperation.update_vectors(points, condition))
        for number in ids:
            if number not in there:
                raise PointNotFound(number)

    def delete_vectors(self, request: Json) -> None:
        """Remove vectors from points chosen by id or filter."""
        names = list(request["names"])
        for name in names:
            if name not in self.spec["vectors"] | self.spec["sparse_vectors"]:
                raise WrongVector(name, "unknown")
        operation = edge.UpdateOperation
        if request.get("filter") is not None:
            chosen = filter_from(request["filter"]) or edge.Filter()
            self.update(operation.delete_vectors_by_filter(chosen, names))
        elif ids := [record.id for record in self._existing(request["ids"])]:
            self.update(operation.delete_vectors(ids, names))

    def facet(self, request: Json) -> list[Any]:
        """Count points by the values of a payload field."""
        found = self.edge_shard.facet(
            edge.FacetRequest(
                key=request["key"],
                limit=request["limit"],
                exact=bool(request.get("exact")),
                filter=filter_from(request.get("filter")),
            )
        )
        return [[_plain_value(hit.value), hit.count] for hit in found.hits]

    def _vectors(self, request: Json, raw: memoryview, count: int) -> list[Any]:
        named: list[dict[str, Any]] = [{} for _ in range(count)]
        at = 0
        for part in request["dense"]:
            name, size = part["name"], part["size"]
            expected = self.spec["vectors"].get(name)
            if expected is None or expected["size"] != size:
                raise WrongVector(name, size)
            rows = part["rows"]
            rows = range(count) if rows is None else rows
            values = raw[at : at + 4 * size * len(rows)].cast("f")
            at += 4 * size * len(rows)
            for position, row in enumerate(rows):
                named[row][name] = values[position * size : (position + 1) * size]
        for part in request["sparse"]:
            name = part["name"]
            if name not in self.spec["sparse_vectors"]:
                raise WrongVector(name, "sparse")
            for row, length in zip(part["rows"], part["lengths"], strict=True):
                indices = raw[at : at + 4 * length].cast("I").tolist()
                at += 4 * length
                weights = array("f", raw[at : at + 4 * length].tobytes()).tolist()
                at += 4 * length
                named[row][name] = edge.SparseVector(indices, weights)
        if list(self.spec["vectors"]) == [""] and not self.spec["sparse_vectors"]:
            return [vectors.get("", {}) for vectors in named]
        return named

    def _newer(
        self, ids: list[Any], payloads: list[dict[str, Any]], field: str
    ) -> list[int]:
        stored = {
            wire_id(record.id): (record.payload or {}).get(field)
            for record in self.edge_shard.retrieve(ids, [field], None)
        }
        chosen: dict[Any, int] = {}
        for position, point in enumerate(ids):
            found = stored.get(point)
            new = payloads[position].get(field)
            if found is None or (new is not None and new > found):
                chosen[point] = position
                stored[point] = new
        return sorted(chosen.values())

    def delete(self, request: Json) -> int | None:
        """Delete by ids or by filter; ``up_to`` spares points that are newer."""
        if request.get("filter") is not None:
            chosen = filter_from(request["filter"]) or edge.Filter()
            self.update(edge.UpdateOperation.delete_points_by_filter(chosen))
            return None
        ids: list[Any] = request["ids"]
        field, bounds = request.get("newer_by"), request.get("up_to")
        if field is not None and bounds is not None:
            limit = dict(zip(ids, bounds, strict=True))
            ids = [
                wire_id(record.id)
                for record in self.edge_shard.retrieve(ids, [field], None)
                if ((record.payload or {}).get(field) or 0) <= limit[wire_id(record.id)]
            ]
        if ids:
            self.update(edge.UpdateOperation.delete_points(ids))
        return len(ids)

    def set_payload(self, request: Json) -> None:
        """Merge into, or replace, the payload of points chosen by id or filter."""
        payload, key = request["payload"], request.get("key")
        operation = edge.UpdateOperation
        if request.get("filter") is not None:
            chosen = filter_from(request["filter"]) or edge.Filter()
            make = (
                operation.overwrite_payload_by_filter
                if request.get("overwrite")
                else operation.set_payload_by_filter
            )
            self.update(make(chosen, payload, key))
            return
        ids = [record.id for record in self._existing(request["ids"])]
        if not ids:
            return
        write = (
            operation.overwrite_payload
            if request.get("overwrite")
            else operation.set_payload
        )
        self.update(write(ids, payload, key))

    def delete_payload(self, request: Json) -> None:
        """Remove fields from the payload of points chosen by id or filter."""
        keys = list(request["keys"])
        if request.get("filter") is not None:
            chosen = filter_from(request["filter"]) or edge.Filter()
            self.update(edge.UpdateOperation.delete_payload_by_filter(chosen, keys))
        elif ids := [record.id for record in self._existing(request["ids"])]:
            self.update(edge.UpdateOperation.delete_payload(ids, keys))

    def _existing(self, ids: list[Any]) -> list[edge.Record]:
        # A batch with one unknown id would be applied in part and then refused.
        return self.edge_shard.retrieve(ids, None, None)

    def _index(self, field: str, schema: Any) -> None:
        self.update(
            edge.UpdateOperation.create_field_index(field, index_params(schema))
        )

    def create_index(self, field: str, schema: Any) -> None:
        """Index a payload field."""
        self._index(field, schema)

    def delete_index(self, field: str) -> None:
        """Drop the index of a payload field."""
        self.update(edge.UpdateOperation.delete_field_index(field))

    # Reading

    def query_request(self, request: Json, raw: memoryview) -> edge.QueryRequest:
        """Return the engine's request for one in REST form."""

        def resolve(reference: Any, using: str) -> Any:
            return self._resolve(reference, using, raw)

        request = without_examples(request)
        return edge.QueryRequest(
            limit=request.get("limit") or 10,
            offset=request.get("offset") or 0,
            query=query_from(request, resolve),
            prefetches=prefetch_from(request.get("prefetch"), resolve),
            with_vector=request.get("with_vector") or False,
            with_payload=_selector(request.get("with_payload")),
            filter=filter_from(request.get("filter")),
            score_threshold=request.get("score_threshold"),
            params=search_params(request.get("params")),
        )

    def _resolve(self, reference: Json, using: str, raw: memoryview) -> Any:
        if "@d" in reference:
            start, count = reference["@d"]
            return raw[start : start + 4 * count].cast("f")
        if "@s" in reference:
            start, count = reference["@s"]
            middle = start + 4 * count
            return edge.SparseVector(
                raw[start:middle].cast("I").tolist(),
                array("f", raw[middle : middle + 4 * count].tobytes()).tolist(),
            )
        point = reference["@id"]
        for record in self.edge_shard.retrieve(
            [point], None, [using] if using else True
        ):
            found: Any = record.vector
            if isinstance(found, dict):
                found = found.get(using)
            if found is not None:
                return found
        raise PointNotFound(point)

    def diversifies(self, request: Json) -> bool:
        """Whether a query asks for different hits by a sparse vector."""
        query = request.get("query")
        return (
            isinstance(query, Mapping)
            and query.get("mmr") is not None
            and request.get("using") in self.spec["sparse_vectors"]
        )

    def diverse(self, request: Json, raw: memoryview, out: Raw) -> list[list[Any]]:
        """Answer a query by sparse vectors whose hits are to differ."""
        query, using = request["query"], request["using"]
        limit, offset = request["limit"], request.get("offset") or 0
        plain = {
            **request,
            "query": {"nearest": query["nearest"]},
            "limit": max(candidates(request), limit + offset),
            "offset": 0,
            "with_vector": True,
        }
        found = self.edge_shard.query(self.query_request(plain, raw))
        diversity = query["mmr"].get("diversity")
        chosen = diverse(
            found, using, 0.5 if diversity is None else diversity, limit + offset
        )
        return self.hits(chosen[offset:], out, request.get("with_vector"))

    def hits(
        self, found: Iterable[edge.ScoredPoint], out: Raw, wanted: Any
    ) -> list[list[Any]]:
        """Return hits as ``[id, score, payload, vector]``.

        Args:
            found: What the engine has found.
            out: Where vectors go.
            wanted: The vectors asked for: a bool, or names.
        """
        return [
            [
                wire_id(hit.id),
                hit.score,
                hit.payload,
                # Some queries bring vectors that nobody asked for.
                None
                if hit.vector is None or not wanted
                else out.any(_named(hit.vector, wanted)),
            ]
            for hit in found
        ]

    def _records(self, found: Iterable[edge.Record], out: Raw) -> list[list[Any]]:
        return [
            [
                wire_id(record.id),
                0.0,
                record.payload,
                None if record.vector is None else out.any(record.vector),
            ]
            for record in found
        ]

    def retrieve(self, request: Json, out: Raw) -> list[list[Any]]:
        """Return points by id, in the order asked for, without the missing ones."""
        ids: list[Any] = request["ids"]
        found = self._records(
            self.edge_shard.retrieve(
                ids,
                _selector(request.get("with_payload")),
                request.get("with_vector") or False,
            ),
            out,
        )
        place = {point: position for position, point in enumerate(ids)}
        return sorted(found, key=lambda record: place[record[0]])

    def scroll(self, request: Json, out: Raw) -> dict[str, Any]:
        """Return one page and the offset of the next."""
        found, following = self.edge_shard.scroll(
            edge.ScrollRequest(
                offset=request.get("offset"),
                limit=request["limit"],
                filter=filter_from(request.get("filter")),
                with_payload=_selector(request.get("with_payload")),
                with_vector=request.get("with_vector") or False,
                order_by=order_by_from(request.get("order_by")),
            )
        )
        return {
            "points": self._records(found, out),
            "next": None if following is None else wire_id(following),
        }

    def count(self, chosen: Json | None) -> int:
        """Count the points that match, exactly."""
        return self.edge_shard.count(
            edge.CountRequest(filter=filter_from(chosen), exact=True)
        )

    def info(self) -> dict[str, Any]:
        """Return sizes and definition."""
        info = self.edge_shard.info()
        return {
            "spec": self.spec,
            "points": info.points_count,
            "indexed": info.indexed_vectors_count,
            "total": self._total(info.points_count),
        }


def _release_pages(folder: Path) -> None:
    """Give back the memory of files that were mapped; it returns as they are read.

    The engine reads its preallocated files whole when it opens them: 32 MB for a
    collection of one point. The mappings are shared, so nothing written is lost.
    """
    with suppress(OSError):  # there is no /proc
        folder, libc = folder.resolve(), ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, *_, path = line.split(maxsplit=5)
            if rights.endswith("s") and path.startswith(f"{folder}/"):
                begin, end = (int(part, 16) for part in place.split("-"))
                size = ctypes.c_size_t(end - begin)
                libc.madvise(ctypes.c_void_p(begin), size, mmap.MADV_DONTNEED)


def _named(vector: Any, wanted: Any) -> Any:
    if wanted is True or not isinstance(vector, dict):
        return vector
    return {name: value for name, value in vector.items() if name in wanted}


def _plain_value(value: Any) -> Any:
    return value if isinstance(value, str | int) else str(value)


def _selector(given: Any) -> Any:
    if isinstance(given, Mapping):
        if given.get("exclude") is not None:
            return edge.PayloadSelector.Exclude(list(given["exclude"]))
        return edge.PayloadSelector.Include(list(given["include"]))
    if isinstance(given, list):
        return edge.PayloadSelector.Include(given)
    return bool(given)
