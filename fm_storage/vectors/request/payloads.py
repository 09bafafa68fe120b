"""Payloads checked, and made the JSON text that both engines are sent.

What JSON has no word for is refused here, before orjson would quietly change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from fm_storage.errors import InvalidRecord

__all__ = ["RESERVED_ID", "encode_payload"]

RESERVED_ID = "_fm_id"
"""Payload key that keeps a string id as the application wrote it."""

_PLAIN = frozenset({str, int, bool, type(None)})


def encode_payload(
    payload: Any,
    collection: str,
    *,
    index: int | None = None,
    kept_id: object = None,
) -> bytes:
    """Return a payload as JSON text.

    Raises:
        InvalidRecord: It is no mapping of text to JSON values.
    """
    at = "payload" if index is None else f"payload of point {index}"
    if payload is None:
        payload = {}
    if not isinstance(payload, Mapping):
        raise InvalidRecord(
            f"collection {collection!r}: {at} is a {type(payload).__name__}; "
            "give a mapping",
            field="payload",
            index=index,
        )
    if RESERVED_ID in payload:
        raise InvalidRecord(
            f"collection {collection!r}: {at} uses the reserved key {RESERVED_ID!r}; "
            "rename it",
            field=f"payload.{RESERVED_ID}",
            index=index,
        )
    bad = None if _is_plain(payload) else _not_json(payload, "payload")
    if bad is not None:
        raise InvalidRecord(
            f"collection {collection!r}: {bad[0]}"
            f"{'' if index is None else f' of point {index}'} {bad[1]}",
            field=bad[0],
            index=index,
        )
    whole = dict(payload)
    if kept_id is not None:
        whole[RESERVED_ID] = kept_id
    try:
        return orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as exc:
        raise InvalidRecord(
            f"collection {collection!r}: {at} cannot be stored ({exc}); "
            "give JSON values",
            field="payload",
            index=index,
        ) from None


def _is_plain(payload: Mapping[Any, Any]) -> bool:
    """Whether a payload is a plain dict of plain values, as nearly all are."""
    if type(payload) is not dict:
        return False
    for key, value in payload.items():
        kind = type(value)
        if type(key) is not str or not (
            kind in _PLAIN or (kind is float and math.isfinite(value))
        ):
            return False
    return True


def _not_json(  # noqa: C901 - one branch per kind of value
    value: Any,
    path: str,
) -> tuple[str, str] | None:
    """Find what JSON has no word for and orjson would quietly change."""
    if isinstance(value, str | int) or value is None:
        return None
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return path, f"is {value!r}; JSON has no such number"
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                return path, f"has a key of type {type(key).__name__}; give text"
            found = _not_json(inner, f"{path}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(value, list | tuple):
        for inner in value:
            found = _not_json(inner, path)
            if found is not None:
                return found
    return None
