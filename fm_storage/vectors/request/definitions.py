"""Definitions of collections in one plain form, and how two of them differ.

Configuration, the embedded engine's manifest and a server's answer are compared
field by field in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fm_storage.config import CollectionConfig
from fm_storage.vectors.request.filters import as_json

_SCALE_OUT = (
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "sharding_method",
    "on_disk_payload",
)
_TUNING = ("hnsw", "quantization", *_SCALE_OUT)


def spec_of(config: CollectionConfig) -> dict[str, Any]:
    """Return a configured collection in plain form; ``""`` is the unnamed vector."""
    vectors: dict[str, dict[str, Any]] = {
        name: present(vector.model_dump()) for name, vector in config.vectors.items()
    }
    if config.size is not None:
        vectors[""] = present(
            {
                "size": config.size,
                "distance": config.distance,
                "on_disk": config.on_disk,
            }
        )
    elif config.on_disk is not None:
        for vector in vectors.values():
            vector.setdefault("on_disk", config.on_disk)
    spec: dict[str, Any] = {
        "vectors": vectors,
        "sparse_vectors": {
            name: present(sparse.model_dump())
            for name, sparse in config.sparse_vectors.items()
        },
        "payload_indexes": {
            field: as_json(schema) for field, schema in config.payload_indexes.items()
        },
    }
    for key in _TUNING:
        value = getattr(config, key)
        if value is not None:
            spec[key] = as_json(value)
    return spec


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return *values* without what is None."""
    return {key: value for key, value in values.items() if value is not None}


def schema_type(schema: str | Mapping[str, Any]) -> str:
    """Return the type of a payload index, given alone or with options."""
    return schema if isinstance(schema, str) else str(schema["type"])


def missing_indexes(
    asked: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the payload indexes that were asked for and are not there."""
    return {
        field: schema
        for field, schema in asked["payload_indexes"].items()
        if field not in found["payload_indexes"]
    }


def differences(
    asked: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Return ``{field: (asked for, found)}`` for everything that cannot be both.

    Options that were not asked for are not compared, and neither are payload
    indexes that are merely missing.
    """
    wrong: dict[str, tuple[object, object]] = {}
    for kind, label in (("vectors", "vectors"), ("sparse_vectors", "sparse_vectors")):
        if set(asked[kind]) != set(found[kind]):
            wrong[label] = (sorted(asked[kind]), sorted(found[kind]))
            continue
        for name, wanted in asked[kind].items():
            there = found[kind][name]
            prefix = f"{label}.{name}." if name else ""
            for option, value in wanted.items():
                default = "none" if option == "modifier" else None
                existing = there.get(option, default)
                if not _same(value, existing):
                    wrong[prefix + option] = (value, existing)
    for field, schema in asked["payload_indexes"].items():
        there = found["payload_indexes"].get(field)
        if there is not None and schema_type(schema) != schema_type(there):
            wrong[f"payload_indexes.{field}"] = (
                schema_type(schema),
                schema_type(there),
            )
    for key in _TUNING:
        if key in asked and not _same(asked[key], found.get(key)):
            wrong[key] = (asked[key], found.get(key))
    return wrong


def _same(asked: object, found: object) -> bool:
    """Whether what was asked for is what is there; unasked options do not count."""
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        return all(_same(value, found.get(key)) for key, value in asked.items())
    return asked == found
