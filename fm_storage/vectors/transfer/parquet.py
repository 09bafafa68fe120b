"""Collections as Parquet files, out and in again.

Needs the extra ``parquet``: columns for those who analyse vectors with other tools,
a tenth of the size, and the same definition in the file's metadata. One page of
points is in memory at a time.

Columns: ``id`` (text), ``number`` (the id where it is an integer), ``vector`` or
``vector.NAME`` (float32, fixed size), ``sparse.NAME`` (indices and values), and
``payload`` (JSON text).
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fm_storage._typing import Progress
from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.vectors.points import Point, ScoredPoint, SparseVector
from fm_storage.vectors.transfer.jsonl import FORMAT, definition_from, head_of

if TYPE_CHECKING:
    from fm_storage.vectors.store.store import QdrantStore

_PAGE = 1000
_KEY = b"fm_storage"


async def export_parquet(
    store: QdrantStore,
    collection: str,
    file: Path,
    *,
    filter: Any = None,
    progress: Progress | None = None,
) -> int:
    """Write a collection to *file*; return how many points were written.

    The file appears under its name once it is whole. Points written meanwhile may
    or may not be among them.

    Raises:
        CollectionNotFound: There is no such collection.
        ConfigurationInvalid: The extra ``parquet`` is not installed.
    """
    arrow, parquet = _arrow()
    info = await store.collection_info(collection)
    head = head_of(info, collection)
    total = info.points if filter is None else await store.count(collection, filter)
    schema = _schema(arrow, head)
    made = file.with_name(f".{file.name}.new")
    done = 0

    def write(points: Sequence[ScoredPoint]) -> None:
        writer.write_table(_table(arrow, schema, points))

    writer = await asyncio.to_thread(
        parquet.ParquetWriter, str(made), schema, compression="zstd"
    )
    try:
        page: list[ScoredPoint] = []
        points = store.iter_points(collection, filter=filter, with_vectors=True)
        async for point in points:
            page.append(point)
            if len(page) == _PAGE:
                await asyncio.to_thread(write, page)
                done += len(page)
                page = []
                if progress is not None:
                    progress(done, total)
        await asyncio.to_thread(write, page)
        done += len(page)
        await asyncio.to_thread(writer.close)
        made.replace(file)
    except BaseException:  # leave no half file, then pass it on
        writer.close()
        made.unlink(missing_ok=True)
        raise
    if progress is not None:
        progress(done, total)
    return done


async def import_parquet(
    store: QdrantStore,
    file: Path,
    *,
    collection: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Read what ``export_parquet()`` wrote; return how many points there were.

    The collection is made if need be. Points with the same id are replaced, so
    that an interrupted import can be repeated.

    Raises:
        InvalidRecord: The file is damaged, or no such export.
        CollectionMismatch: The collection exists and differs.
        ConfigurationInvalid: The extra ``parquet`` is not installed.
    """
    arrow, parquet = _arrow()
    try:
        source = await asyncio.to_thread(parquet.ParquetFile, str(file))
    except (arrow.ArrowException, OSError) as exc:
        message = f"import: {file.name} is no Parquet file ({exc}); export it again"
        raise InvalidRecord(message, field="file") from exc
    try:
        head = orjson.loads((source.schema_arrow.metadata or {}).get(_KEY, b"{}"))
        if head.get("fm_storage") != FORMAT:
            message = (
                f"import: {file.name} has no head of an export; give a file of 'export'"
            )
            raise InvalidRecord(message, field="fm_storage")
        name = collection or str(head["collection"])
        await store.ensure_collection_exists(name, definition_from(head))
        total = source.metadata.num_rows
        batches = source.iter_batches(batch_size=_PAGE)
        done = 0
        while True:
            try:
                points = await asyncio.to_thread(_next_points, batches, head)
            except (arrow.ArrowException, OSError) as exc:
                message = (
                    f"import: {file.name} is damaged after row {done} ({exc}); "
                    "export it again"
                )
                raise InvalidRecord(message, field="file", index=done) from exc
            if points is None:
                return done
            done += await store.upsert_points(name, points)
            if progress is not None:
                progress(done, total)
    finally:
        source.close()


def _arrow() -> tuple[Any, Any]:
    try:
        return (
            importlib.import_module("pyarrow"),
            importlib.import_module("pyarrow.parquet"),
        )
    except ImportError as exc:
        raise ConfigurationInvalid(
            "parquet", "needs pyarrow; install fm-storage[parquet]"
        ) from exc


def _schema(arrow: Any, head: Mapping[str, Any]) -> Any:
    sparse = arrow.struct(
        [
            ("indices", arrow.list_(arrow.uint32())),
            ("values", arrow.list_(arrow.float32())),
        ]
    )
    fields = [
        arrow.field("id", arrow.string(), nullable=False),
        arrow.field("number", arrow.uint64()),
        *(
            arrow.field(_column(name), arrow.list_(arrow.float32(), given["size"]))
            for name, given in head["vectors"].items()
        ),
        *(arrow.field(f"sparse.{name}", sparse) for name in head["sparse_vectors"]),
        arrow.field("payload", arrow.string(), nullable=False),
    ]
    return arrow.schema(fields, metadata={_KEY: orjson.dumps(head)})


def _column(name: str) -> str:
    return f"vector.{name}" if name else "vector"


def _table(arrow: Any, schema: Any, points: Sequence[ScoredPoint]) -> Any:
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for point in points:
        columns["id"].append(str(point.id))
        columns["number"].append(point.id if isinstance(point.id, int) else None)
        columns["payload"].append(orjson.dumps(point.payload).decode())
        vectors = _by_column(point.vector)
        for name in schema.names:
            if name.startswith(("vector", "sparse.")):
                columns[name].append(vectors.get(name))
    return arrow.table(columns, schema=schema)


def _by_column(vector: Any) -> dict[str, Any]:
    named = vector if isinstance(vector, Mapping) else {"": vector}
    made: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, SparseVector):
            made[f"sparse.{name}"] = {
                "indices": list(value.indices),
                "values": list(value.values),
            }
        elif value is not None:
            made[_column(name)] = value
    return made


def _next_points(batches: Any, head: Mapping[str, Any]) -> list[Point] | None:
    batch = next(batches, None)
    if batch is None:
        return None
    made = []
    for row in batch.to_pylist():
        number = row["number"]
        vectors: dict[str, Any] = {
            name: row[_column(name)]
            for name in head["vectors"]
            if row[_column(name)] is not None
        }
        for name in head["sparse_vectors"]:
            given = row[f"sparse.{name}"]
            if given is not None:
                vectors[name] = SparseVector(given["indices"], given["values"])
        made.append(
            Point(
                row["id"] if number is None else number,
                vectors[""] if set(vectors) == {""} else vectors,
                orjson.loads(row["payload"]),
            )
        )
    return made
