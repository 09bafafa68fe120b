"""Collections as lines of JSON, out and in again.

The first line holds the definition, each further line one point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from fm_storage._typing import Progress
from fm_storage.config import CollectionConfig
from fm_storage.errors import InvalidRecord
from fm_storage.vectors.points import CollectionInfo, Point, SparseVector

if TYPE_CHECKING:
    from fm_storage.vectors.store.store import QdrantStore

FORMAT = 1
_BATCH = 1000


async def export_points(
    store: QdrantStore,
    collection: str,
    write: Callable[[bytes], object],
    *,
    filter: Any = None,
    progress: Progress | None = None,
) -> int:
    """Write a collection as lines; return how many points were written.

    One page of points is in memory at a time. Points written meanwhile may or
    may not be among them.

    Raises:
        CollectionNotFound: There is no such collection.
    """
    info = await store.collection_info(collection)
    write(orjson.dumps(head_of(info, collection)) + b"\n")
    total = info.points if filter is None else await store.count(collection, filter)
    done = 0
    points = store.iter_points(collection, filter=filter, with_vectors=True)
    async for point in points:
        line = {
            "id": point.id,
            "vector": _plain(point.vector),
            "payload": point.payload,
        }
        write(orjson.dumps(line) + b"\n")
        done += 1
        if progress is not None and (done % _BATCH == 0 or done == total):
            progress(done, total)
    return done


def head_of(info: CollectionInfo, collection: str) -> dict[str, Any]:
    """Return what a file says of its collection."""
    return {
        "fm_storage": FORMAT,
        "collection": collection,
        "vectors": info.vectors,
        "sparse_vectors": info.sparse_vectors,
        "payload_indexes": info.payload_indexes,
    }


def _plain(vector: Any) -> Any:
    if isinstance(vector, SparseVector):
        return {"indices": list(vector.indices), "values": list(vector.values)}
    if isinstance(vector, Mapping):
        return {name: _plain(value) for name, value in vector.items()}
    return vector


async def import_points(
    store: QdrantStore,
    lines: Iterable[bytes],
    *,
    collection: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Read lines that ``export_points()`` wrote; return how many points there were.

    The collection is made if need be. Points with the same id are replaced, so
    that an interrupted import can be repeated.

    Args:
        store: Where to.
        lines: The file.
        collection: Name to use instead of the file's.
        progress: Called as ``progress(done, None)``.

    Raises:
        InvalidRecord: A line is damaged; the error has its number. Points of whole
            batches before it are there.
        CollectionMismatch: The collection exists and differs.
    """
    source = enumerate(lines, 1)
    _, first = next(source, (0, b"{}"))
    head = _parsed(first, 1)
    if head.get("fm_storage") != FORMAT:
        message = "import: line 1 is no head of an export; give a file of 'export'"
        raise InvalidRecord(message, field="fm_storage", index=0)
    name = collection or str(head["collection"])
    await store.ensure_collection_exists(name, definition_from(head))
    done = 0
    batch: list[Point] = []
    for number, line in source:
        if not line.strip():
            continue
        batch.append(_point(_parsed(line, number), number))
        if len(batch) == _BATCH:
            done += await store.upsert_points(name, batch)
            batch = []
            if progress is not None:
                progress(done, None)
    done += await store.upsert_points(name, batch)
    if progress is not None:
        progress(done, None)
    return done


def definition_from(head: Mapping[str, Any]) -> CollectionConfig:
    """Return the definition in the head of a file."""
    vectors = dict(head["vectors"])
    sparse = {
        name: {k: v for k, v in given.items() if k in {"modifier", "on_disk"}}
        for name, given in head["sparse_vectors"].items()
    }
    indexes = dict(head["payload_indexes"])
    unnamed = vectors.pop("", None)
    if unnamed is None:
        return CollectionConfig(
            vectors=vectors, sparse_vectors=sparse, payload_indexes=indexes
        )
    return CollectionConfig(
        size=unnamed["size"],
        distance=unnamed["distance"],
        sparse_vectors=sparse,
        payload_indexes=indexes,
    )


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        message = f"import: line {number} is not JSON ({exc}); correct or remove it"
        raise InvalidRecord(message, index=number - 1) from None
    if not isinstance(found, dict):
        message = f"import: line {number} is no object; correct or remove it"
        raise InvalidRecord(message, index=number - 1)
    return found


def _point(given: Mapping[str, Any], number: int) -> Point:
    try:
        vector = given["vector"]
        if isinstance(vector, Mapping):
            vector = {name: _vector(value) for name, value in vector.items()}
        vector = {} if vector is None else vector  # a point may have none
        return Point(given["id"], vector, given.get("payload") or {})
    except KeyError as exc:
        message = f"import: line {number} has no {exc}; correct or remove it"
        raise InvalidRecord(message, index=number - 1) from None


def _vector(given: Any) -> Any:
    if isinstance(given, Mapping):
        return SparseVector(given["indices"], given["values"])
    return given
