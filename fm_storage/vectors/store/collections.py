"""Collections: made unless they are there, compared, described."""

from __future__ import annotations

from typing import Any

from fm_storage.errors import CollectionMismatch, CollectionNotFound
from fm_storage.vectors.points import CollectionInfo
from fm_storage.vectors.request.definitions import (
    differences,
    missing_indexes,
    schema_type,
)
from fm_storage.vectors.request.operations import Create, Index
from fm_storage.vectors.store.call import Calls

META_COLLECTION = "fm_storage_meta"


async def ensure(
    calls: Calls, name: str, asked: dict[str, Any], *, add_indexes: bool
) -> bool:
    """See ``QdrantStore.ensure_collection_exists()``; *asked* in plain form."""
    try:
        found = await calls.ask("spec", name)
    except CollectionNotFound:
        if await calls.ask("create", name, Create(asked)):
            calls.specs[name] = asked
            return True
        found = await calls.ask("spec", name)
    wrong = differences(asked, found)
    missing = missing_indexes(asked, found)
    if not add_indexes:
        wrong |= {
            f"payload_indexes.{field}": (schema_type(schema), None)
            for field, schema in missing.items()
        }
    if wrong:
        raise CollectionMismatch(name, wrong)
    for field, schema in missing.items():
        await calls.ask("create_index", name, Index(field, schema))
    calls.specs[name] = found
    return False


def info_from(found: dict[str, Any]) -> CollectionInfo:
    """Return what an engine says of a collection as the application sees it."""
    spec = found["spec"]
    return CollectionInfo(
        name=found["name"],
        points=found["points"],
        indexed=found["indexed"],
        total=found["total"],
        vectors=spec["vectors"],
        sparse_vectors=spec["sparse_vectors"],
        payload_indexes={
            field: schema_type(schema)
            for field, schema in spec["payload_indexes"].items()
        },
        status=found["status"],
        aliases=tuple(found["aliases"]),
    )
