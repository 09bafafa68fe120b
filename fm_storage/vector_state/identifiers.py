"""Point ids as text, in Python and in SQL, both the same.

A key is encoded where it is known: in Python if the caller gives it, in SQL if the
server makes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from uuid import UUID

from fm_storage.errors import InvalidRecord

_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
_MAX_ID = 2**64


def encode_id(value: object, *, index: int | None = None) -> str:
    """Return the text that stands for a point id in both tables.

    Raises:
        InvalidRecord: It is no UUID, text, or integer of 64 bits from 0.
    """
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and value and "\0" not in value:
        return value.lower() if _UUID.fullmatch(value) else f"s:{value}"
    if (
        not isinstance(value, bool)
        and hasattr(value, "__index__")
        and 0 <= (number := value.__index__()) < _MAX_ID
    ):
        return str(number)
    at = "" if index is None else f" of point {index}"
    raise InvalidRecord(
        f"point id{at}: {value!r} is no id; "
        "give a UUID, text, or a non-negative 64-bit integer",
        field="id",
        index=index,
    )


def encode_ids(ids: object) -> list[str]:
    """Return the texts of several ids, or of a lone one.

    Raises:
        InvalidRecord: One of them is no id, or they are no list.
    """
    if isinstance(ids, str | int | UUID):
        ids = (ids,)
    if not isinstance(ids, Iterable):
        problem = f"ids: it is a {type(ids).__name__}; give a list"
        raise InvalidRecord(problem, field="ids")
    return [encode_id(one, index=index) for index, one in enumerate(ids)]


def decode_id(text: str) -> int | str:
    """Return the id as the vector store takes and gives it."""
    if text.startswith("s:"):
        return text[2:]
    return int(text) if text.isdecimal() else text


def point_id_sql(expression: str, kind: str) -> str:
    """Return SQL that encodes a key as ``encode_id()`` does.

    Args:
        expression: SQL expression of the key.
        kind: ``"uuid"``, ``"integer"`` or ``"text"``: the key's type.
    """
    if kind in {"uuid", "integer"}:
        return f"({expression})::text"
    pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
    return (
        f"CASE WHEN ({expression}) ~ '{pattern}' THEN lower({expression}) "
        f"ELSE 's:' || ({expression}) END"
    )
