"""The SQL and the encodings of desired state, and nothing else.

Desired state is what the vector store should hold: one row per point in
``fm_storage.vector_state``, and one in ``fm_storage.vector_queue`` until it has
been delivered. Apart from the outbox because every room that writes records
appends these fragments to its own statement, so that record, state and queue
are one statement and one round trip: two statements in a transaction cost
1.9 times as much.

The version is ``nextval()`` written again in ``DO UPDATE``: evaluated there it
is taken under the row's lock, so versions follow the order of commits. With
``EXCLUDED.ver`` two writers of one point can store the smaller number last, and
the vector store would then refuse the newer state for ever.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import orjson

from fm_storage.errors import InvalidRecord, InvalidVector
from fm_storage.postgres import Sql

__all__ = [
    "DELETE_MANY",
    "UPSERT_MANY",
    "VERSION_KEY",
    "DecodedVectors",
    "SparseLike",
    "StateRow",
    "Unembedded",
    "decode_id",
    "decode_vectors",
    "delete_ctes",
    "encode_id",
    "encode_vectors",
    "payload_digest",
    "point_id_sql",
    "state_row",
    "upsert_ctes",
]

VERSION_KEY = "_ver"
"""Payload key under which a point carries its version."""

_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
_FRAME = struct.Struct("<BBI")  # kind, length of the name in bytes, components
_DENSE, _SPARSE = 0, 1
_MAX_NAME = 255
_MAX_ID = 2**64


class SparseLike(Protocol):
    """Anything with term numbers and weights, such as ``SparseVector``."""

    @property
    def indices(self) -> Sequence[int]:
        """Term numbers."""
        ...

    @property
    def values(self) -> Sequence[float]:
        """Weights, in the order of the term numbers."""
        ...


VectorLike: TypeAlias = (
    "Sequence[float] | SparseLike | Mapping[str, Sequence[float] | SparseLike]"
)
DecodedVectors: TypeAlias = "dict[str, array[float] | tuple[array[int], array[float]]]"
"""Vectors by name, ``""`` for the unnamed one; a sparse one is a pair."""


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A point whose vectors the drainer makes, in batches and off the caller's path."""

    id: int | str | UUID
    payload: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateRow:
    """Parameters of one point, ready for the statements of this module."""

    point_id: str
    vectors: bytes | None
    payload: dict[str, Any]
    payload_hash: bytes


# --- SQL ---------------------------------------------------------------------

_QUEUE = """
  INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
  SELECT collection, point_id, ver FROM fm_state
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
    replay = FALSE,
    -- A row that is being delivered stays with its drainer, which finds the
    -- newer version when it finishes.
    due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END,
    since = CASE WHEN q.replay THEN now() ELSE q.since END"""

# A scalar subquery is evaluated once, however many rows there are.
_PINNED = (
    " WHERE (SELECT pg_catalog.set_config('synchronous_commit', 'on', TRUE))"
    " IS NOT NULL"
)


def upsert_ctes(
    *,
    collection: str,
    point_id: str,
    vectors: str = "NULL",
    payload: str = "NULL",
    payload_hash: str = "NULL",
    source: str | None = None,
    durable: bool = False,
) -> str:
    """Return the CTEs ``fm_state`` and ``fm_queue`` that make points desired.

    Every argument is an SQL expression (``"$7"``, ``"rec.id::text"``), never a
    value. Put the text behind ``WITH rec AS (INSERT … RETURNING id),``; the main
    statement may read ``fm_state (collection, point_id, ver)``. *source* must
    not name one point twice, or the server answers 21000.

    Args:
        collection: Name of the collection (text).
        point_id: Encoded id (text), see ``encode_id()`` and ``point_id_sql()``.
        vectors: ``encode_vectors()`` (bytea); NULL means *to be embedded*.
        payload: JSON object (jsonb).
        payload_hash: ``payload_digest()`` (bytea); NULL lets the drainer fill it.
        source: FROM item that *point_id* and the others refer to, such as
            ``"rec"``; without one, exactly one point is written.
        durable: Pin ``synchronous_commit = on`` for this transaction, inside the
            statement, so that it also holds behind a transaction pooler.
    """
    return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s
    (collection, point_id, ver, op, vectors, payload, payload_hash)
  SELECT {collection}::text, {point_id}, nextval('fm_storage.vector_version'), 'u',
    {vectors}::bytea, {payload}::jsonb, {payload_hash}::bytea
  {f"FROM {source}" if source else ""}{_PINNED if durable else ""}
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = nextval('fm_storage.vector_version'), op = 'u',
    vectors = EXCLUDED.vectors, payload = EXCLUDED.payload,
    payload_hash = EXCLUDED.payload_hash
  RETURNING s.collection, s.point_id, s.ver
), fm_queue AS ({_QUEUE}
)"""


def delete_ctes(
    *,
    collection: str,
    point_id: str,
    source: str | None = None,
    durable: bool = False,
) -> str:
    """Return the CTEs ``fm_state`` and ``fm_queue`` that make points undesired.

    As ``upsert_ctes()``; a point that was never written is deleted all the same.
    """
    return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s (collection, point_id, ver, op)
  SELECT {collection}::text, {point_id}, nextval('fm_storage.vector_version'), 'd'
  {f"FROM {source}" if source else ""}{_PINNED if durable else ""}
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = nextval('fm_storage.vector_version'), op = 'd',
    vectors = NULL, payload = NULL, payload_hash = NULL
  RETURNING s.collection, s.point_id, s.ver
), fm_queue AS ({_QUEUE}
)"""


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


UPSERT_MANY = Sql(
    "WITH "  # noqa: S608 - constant text
    + upsert_ctes(
        collection="$1",
        point_id="rec.id",
        vectors="rec.vectors",
        payload="rec.payload",
        payload_hash="rec.hash",
        source="unnest($2::text[], $3::bytea[], $4::jsonb[], $5::bytea[])"
        " AS rec (id, vectors, payload, hash)",
    )
    + " SELECT point_id, ver FROM fm_state"
)
"""Make points desired: ``(collection, ids, vectors, payloads, hashes)``."""

DELETE_MANY = Sql(
    "WITH "  # noqa: S608 - constant text
    + delete_ctes(
        collection="$1", point_id="rec.id", source="unnest($2::text[]) AS rec (id)"
    )
    + " SELECT point_id, ver FROM fm_state"
)
"""Make points undesired: ``(collection, ids)``."""


# --- encodings ---------------------------------------------------------------


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


def decode_id(text: str) -> int | str:
    """Return the id as the vector store takes and gives it."""
    if text.startswith("s:"):
        return text[2:]
    return int(text) if text.isdecimal() else text


def state_row(
    point_id: object,
    vector: VectorLike | None,
    payload: Mapping[str, object] | None = None,
    *,
    collection: str = "?",
    index: int | None = None,
) -> StateRow:
    """Validate one point and return its parameters; nothing is sent.

    Raises:
        InvalidRecord: The id or the payload cannot be stored.
        InvalidVector: A vector holds something that is no finite number.
    """
    kept = dict(payload or {})
    return StateRow(
        encode_id(point_id, index=index),
        None
        if vector is None
        else encode_vectors(vector, collection=collection, index=index),
        kept,
        payload_digest(kept, index=index),
    )


def encode_vectors(
    vector: VectorLike, *, collection: str = "?", index: int | None = None
) -> bytes:
    """Return vectors as frames: kind, name, count, then float32 numbers.

    Raises:
        InvalidVector: Not a vector, or not finite; names *collection* and *index*.
    """
    named: Mapping[str, Any] = vector if isinstance(vector, Mapping) else {"": vector}
    parts: list[bytes] = []
    for name, one in named.items():
        try:
            parts += _frame(str(name).encode(), one)
        except (TypeError, ValueError, OverflowError) as exc:
            at = "" if index is None else f" of point {index}"
            raise InvalidVector(
                f"collection {collection!r}: {name or 'vector'}{at} cannot be "
                f"stored ({exc}); give finite numbers",
                collection=collection,
                index=index,
                field=name or "vector",
            ) from exc
    return b"".join(parts)


def decode_vectors(data: bytes) -> DecodedVectors:
    """Return what ``encode_vectors()`` was given, as arrays by name."""
    found: DecodedVectors = {}
    at = 0
    while at < len(data):
        kind, length, count = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        name = data[at : at + length].decode()
        at += length
        if kind == _SPARSE:
            terms = _native_terms(data[at : at + 4 * count])
            at += 4 * count
            found[name] = (terms, _native(data[at : at + 4 * count]))
        else:
            found[name] = _native(data[at : at + 4 * count])
        at += 4 * count
    return found


def payload_digest(
    payload: Mapping[str, object] | None, *, index: int | None = None
) -> bytes:
    """Return a digest that is equal for payloads that JSON cannot tell apart.

    Numbers are normalised, because PostgreSQL, Qdrant and Python write one
    number in different ways (``1e16``, ``10000000000000000``) and differ in the
    last digit; keys that begin with ``_ver`` or ``_fm_`` do not count.

    Raises:
        InvalidRecord: The payload is no JSON object.
    """
    try:
        plain = {
            key: _canonical(value)
            for key, value in (payload or {}).items()
            if key != VERSION_KEY and not key.startswith("_fm_")
        }
        data = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except (TypeError, AttributeError) as exc:  # orjson's errors are TypeErrors
        at = "" if index is None else f" of point {index}"
        raise InvalidRecord(
            f"payload{at}: it is not JSON ({exc}); give a mapping of plain values",
            field="payload",
            index=index,
        ) from exc
    return blake2b(data, digest_size=16).digest()


def _frame(name: bytes, vector: Any) -> tuple[bytes, ...]:  # noqa: ANN401 - checked here
    if len(name) > _MAX_NAME:
        raise ValueError("its name is longer than 255 bytes")
    parts: tuple[bytes, ...]
    if hasattr(vector, "indices"):
        terms, last = array("I", vector.indices), _floats(vector.values)
        if 4 * len(terms) != len(last):
            raise ValueError("it has not as many values as indices")
        head = _FRAME.pack(_SPARSE, len(name), len(terms))
        parts = (head, name, _little(terms), last)
    else:
        last = _floats(vector)
        parts = (_FRAME.pack(_DENSE, len(name), len(last) // 4), name, last)
    numbers = _native(last)
    # One infinity or NaN makes the sum one; an overflowing sum is looked into.
    if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
        raise ValueError("it holds NaN or infinity")
    return parts


def _canonical(value: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError("NaN and infinity have no JSON form")
        if value.is_integer() and abs(value) < 2.0**63:
            return int(value)
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return value


def _floats(values: Any) -> bytes:  # noqa: ANN401 - any sequence of numbers
    """Return numbers as little-endian float32; numpy arrays without a copy by item."""
    if hasattr(values, "astype"):
        if values.ndim != 1:
            raise ValueError(f"it has {values.ndim} axes")
        data: bytes = values.astype("<f4", copy=False).tobytes()
        return data
    return _little(array("f", values))


def _little(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _native(data: bytes) -> array[float]:
    numbers = array("f")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _native_terms(data: bytes) -> array[int]:
    terms = array("I")
    terms.frombytes(data)
    if sys.byteorder == "big":
        terms.byteswap()
    return terms
