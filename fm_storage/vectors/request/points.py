"""Points as the application gives them: ids, vectors and payloads, checked.

A whole batch is checked before its first byte leaves, because no engine applies
a bad batch whole or not at all; each of them refuses the same things with the same
words. What JSON has no word for is refused before orjson would quietly change it.
Works without numpy, whose import costs more than starting the engine; arrays of
numpy are read as buffers.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import orjson

from fm_storage._typing import JSON_DEPTH, JsonObject
from fm_storage.errors import DimensionMismatch, InvalidRecord, InvalidVector
from fm_storage.vectors.points import ScoredPoint

RESERVED_ID = "_fm_id"
"""Payload key that keeps a string id as the application wrote it."""
MARK = "_fm_src"
MARKS = ("_ver", MARK)
"""Payload keys of the outbox and of a reindex: marks of a point, not in its payload."""

_OURS = frozenset({RESERVED_ID, *MARKS})
_PLAIN = frozenset({str, int, bool, type(None)})
_MAX_TERM = 2**32
_MAX_FLOAT32 = 3.4028234e38
_BELOW_2_TO_53 = bytes(byte for byte in range(256) if byte & 0x7F < 0x5A)
_NAMESPACE = UUID("7e9d2a52-6c1b-5f0e-9a43-0f2d4c6b8e11")
_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
# Qdrant takes these for UUIDs as well: 32 digits, and the form of RFC 4122.
_OTHER_UUID = re.compile(rf"[0-9a-f]{{32}}|urn:uuid:{_UUID.pattern}", re.IGNORECASE)
_MAX_INTEGER = 2**64


def to_wire_id(value: object, *, index: int | None = None) -> tuple[int | str, bool]:
    """Return the id that an engine understands, and whether it was written otherwise.

    Args:
        value: Integer, UUID, or text.
        index: Position in the batch, for the message.

    Raises:
        InvalidRecord: It is none of these, negative, or above 64 bits.
    """
    if isinstance(value, UUID):
        return str(value), False
    if isinstance(value, str):
        if _UUID.fullmatch(value):
            return value.lower(), False
        if _OTHER_UUID.fullmatch(value):
            return str(UUID(value)), True
        if not value:
            raise InvalidRecord(
                f"point id{_at(index)}: it is empty; give every point an id",
                field="id",
                index=index,
            )
        try:
            return str(uuid5(_NAMESPACE, value)), True
        except UnicodeEncodeError:
            raise InvalidRecord(
                f"point id{_at(index)}: {value!r} holds a lone surrogate; "
                "give valid text",
                field="id",
                index=index,
            ) from None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidRecord(
            f"point id{_at(index)}: {type(value).__name__} is no id; "
            "give an int, a UUID or text",
            field="id",
            index=index,
        )
    number = value.__index__()
    if not 0 <= number < _MAX_INTEGER:
        raise InvalidRecord(
            f"point id{_at(index)}: {number} is outside 0 … 2**64-1; "
            "give a non-negative 64-bit integer, a UUID or text",
            field="id",
            index=index,
        )
    return int(number), False


def point_from(
    value: object, score: float, payload: JsonObject | None, vector: Any
) -> ScoredPoint:
    """Return a hit as the application knows it; what we keep leaves *payload*."""
    number = value if isinstance(value, int) else str(value)
    if not payload or payload.keys().isdisjoint(_OURS):
        return ScoredPoint(number, score, payload or {}, vector)
    if RESERVED_ID in payload:
        kept = payload.pop(RESERVED_ID)
        if isinstance(kept, str):
            number = kept
    marks = None
    for key in MARKS:
        if key in payload:
            marks = {**(marks or {}), key: payload.pop(key)}
    return ScoredPoint(number, score, payload, vector, marks)


class Floats:
    """A dense vector as float32."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // 4

    def tolist(self) -> list[float]:
        """Return the numbers."""
        return array("f", self.data).tolist()


class Terms:
    """A sparse vector: sorted term numbers as uint32 and weights as float32."""

    __slots__ = ("indices", "values")

    def __init__(self, indices: array[int], values: array[float]) -> None:
        self.indices, self.values = indices, values

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(slots=True)
class Encoded:
    """One point, ready to send: the payload is JSON text already."""

    id: int | str
    vectors: dict[str, Floats | Terms]
    payload: bytes
    index: int
    version: Any = None

    @property
    def size(self) -> int:
        """Bytes it takes at most as JSON, which is the larger form."""
        size = len(self.payload) + 64
        for vector in self.vectors.values():
            size += (15 if isinstance(vector, Floats) else 26) * len(vector)
        return size


def listed(given: Any, field: str) -> list[Any]:
    """Return what the application gives several of as a list.

    Raises:
        InvalidRecord: It cannot be iterated over.
    """
    try:
        return list(given)
    except TypeError:
        raise _misfit(given, field, "give a list") from None


def of_kind(given: Any, kind: type[Any], field: str, remedy: str) -> None:
    """Refuse what is no *kind*.

    Raises:
        InvalidRecord: See above; the message ends in *remedy*.
    """
    if not isinstance(given, kind):
        raise _misfit(given, field, remedy)


def function(given: Any, field: str) -> None:
    """Refuse what cannot be called; None was left out.

    Raises:
        InvalidRecord: See above.
    """
    if given is not None and not callable(given):
        raise _misfit(given, field, "give a function")


def _misfit(given: Any, field: str, remedy: str) -> InvalidRecord:
    problem = f"{field}: it is a {type(given).__name__}; {remedy}"
    return InvalidRecord(problem, field=field)


def encode_points(
    points: Iterable[Any],
    spec: Mapping[str, Any],
    collection: str,
    *,
    start: int = 0,
    limit: int,
    newer_by: str | None = None,
) -> list[Encoded]:
    """Check and encode points; vectors that several share are encoded once.

    Raises:
        DimensionMismatch: A vector's length is not the collection's.
        InvalidVector: A vector is unknown, missing, or not finite.
        InvalidRecord: An id or payload cannot be stored, or a point is larger
            than *limit* bytes.
    """
    # By identity: equal errors have one embedding, and to compare vectors would
    # take as long as to encode them. An object that is kept cannot be another's.
    shared: dict[int, tuple[object, dict[str, Floats | Terms]]] = {}

    def vectors_of(given: object, index: int) -> dict[str, Floats | Terms]:
        known = shared.get(id(given))
        if known is None:
            known = given, _vectors(given, spec, collection, index)
            shared[id(given)] = known
        return known[1]

    return [
        encode_point(
            point,
            vectors_of,
            collection,
            index=index,
            limit=limit,
            newer_by=newer_by,
        )
        for index, point in enumerate(points, start)
    ]


def encode_updates(
    points: Iterable[Any], spec: Mapping[str, Any], collection: str, *, start: int = 0
) -> list[Encoded]:
    """Check and encode ids and vectors; payloads are left alone.

    Raises:
        DimensionMismatch: A vector's length is not the collection's.
        InvalidVector: A vector is unknown, or not finite.
        InvalidRecord: An id is wrong, or a point has no vector.
    """
    made = []
    for index, point in enumerate(points, start):
        try:
            number, vector = to_wire_id(point.id, index=index)[0], point.vector
        except AttributeError:
            raise InvalidRecord(
                f"collection {collection!r}: point {index} is a "
                f"{type(point).__name__}; give Point objects",
                field="point",
                index=index,
            ) from None
        vectors = _vectors(vector, spec, collection, index)
        if not vectors:
            raise InvalidRecord(
                f"collection {collection!r}: point {index} has no vector; give one",
                field="vector",
                index=index,
            )
        made.append(Encoded(number, vectors, b"{}", index))
    return made


def encode_point(
    point: Any,
    vectors_of: Callable[[object, int], dict[str, Floats | Terms]],
    collection: str,
    *,
    index: int,
    limit: int,
    newer_by: str | None,
) -> Encoded:
    """Check and encode one point; raises as ``encode_points()``.

    Args:
        point: Anything with an id, a vector and a payload.
        vectors_of: Encodes its vectors, given them and the point's index.
        collection: For the message.
        index: Position in a batch, for the message.
        limit: Bytes that it may take.
        newer_by: Payload field that must hold a number.
    """
    try:
        given_id, vector, payload = point.id, point.vector, point.payload
    except AttributeError:
        raise InvalidRecord(
            f"collection {collection!r}: point {index} is a "
            f"{type(point).__name__}; give Point objects",
            field="point",
            index=index,
        ) from None
    number, mapped = to_wire_id(given_id, index=index)
    text = encode_payload(
        payload, collection, index=index, kept_id=given_id if mapped else None
    )
    made = Encoded(number, vectors_of(vector, index), text, index)
    if newer_by is not None:
        version = (payload or {}).get(newer_by)
        if isinstance(version, bool) or not isinstance(version, int | float):
            raise InvalidRecord(
                f"collection {collection!r}: payload of point {index} has no number "
                f"under {newer_by!r}; it is needed to tell newer from older",
                field=f"payload.{newer_by}",
                index=index,
            )
        made.version = version
    if made.size > limit:
        raise InvalidRecord(
            f"collection {collection!r}: point {index} takes about {made.size} bytes, "
            f"{limit} are allowed; shorten its payload, or raise "
            "qdrant.max_batch_bytes",
            field="payload",
            index=index,
        )
    return made


def _vectors(
    given: Any,
    spec: Mapping[str, Any],
    collection: str,
    index: int,
) -> dict[str, Floats | Terms]:
    if not isinstance(given, Mapping):
        return {"": encode_vector(given, spec, collection, name="", index=index)}
    return {
        name: encode_vector(value, spec, collection, name=name, index=index)
        for name, value in given.items()
    }


def encode_vector(
    given: Any,
    spec: Mapping[str, Any],
    collection: str,
    *,
    name: str,
    index: int | None = None,
) -> Floats | Terms:
    """Check and encode one vector against the collection's definition.

    Raises:
        DimensionMismatch: Its length is not the collection's.
        InvalidVector: It is unknown, no vector, or not finite.
    """
    sparse = hasattr(given, "indices") and hasattr(given, "values")
    known = spec["sparse_vectors"] if sparse else spec["vectors"]
    where = name or "vector"
    if name not in known:
        other = spec["vectors"] if sparse else spec["sparse_vectors"]
        names = sorted([*spec["vectors"], *spec["sparse_vectors"]])
        if name in other:
            problem = f"is {'dense' if sparse else 'sparse'}; give such a vector"
        elif name:
            problem = f"is not defined; defined: {', '.join(names) or 'none'}"
        else:
            problem = f"has no name; name one of {', '.join(names)}"
        raise InvalidVector(
            f"collection {collection!r}: {where}{_at(index)} {problem}",
            collection=collection,
            index=index,
            field=where,
        )
    if sparse:
        return _terms(given, collection, where, index)
    data = _float32(given, collection, where, index)
    expected = known[name]["size"]
    if len(data) != 4 * expected:
        raise DimensionMismatch(
            collection,
            expected=expected,
            got=len(data) // 4,
            index=index,
            field=where,
        )
    # The byte with the sign and most of the exponent: below 2**53 in nearly all.
    if not data[3::4].translate(None, _BELOW_2_TO_53):
        return Floats(data)
    _refuse_infinite(data, collection, where, index)
    if known[name].get("distance") == "Cosine" and _too_long(data):
        raise InvalidVector(
            f"collection {collection!r}: {where}{_at(index)} is too long to be "
            "normalised in float32; divide it by its length",
            collection=collection,
            index=index,
            field=where,
        )
    return Floats(data)


def _float32(given: Any, collection: str, where: str, index: int | None) -> bytes:
    problem = f"is a {type(given).__name__}; give a sequence of numbers"
    if not isinstance(given, str | bytes | bytearray | Mapping):
        try:
            return _packed(given)
        except (TypeError, ValueError, OverflowError, NotImplementedError) as exc:
            problem = f"cannot be read as one row of numbers ({exc})"
    raise InvalidVector(
        f"collection {collection!r}: {where}{_at(index)} {problem}",
        collection=collection,
        index=index,
        field=where,
    )


def _packed(given: Any) -> bytes:
    if isinstance(given, list | tuple):
        return array("f", given).tobytes()
    try:
        view = memoryview(given)
    except TypeError:
        # No buffer: a tensor of some library, or any other iterable.
        given = given.tolist() if hasattr(given, "tolist") else list(given)
        return array("f", given).tobytes()
    if view.format == "f" and view.ndim == 1:
        return view.tobytes()
    # numpy knows more kinds of numbers (float16) than a view can read.
    given = given.tolist() if hasattr(given, "tolist") else view.tolist()
    return array("f", given).tobytes()


def _refuse_infinite(
    data: bytes, collection: str, where: str, index: int | None
) -> None:
    # The sum of finite float32 numbers cannot overflow a double.
    if not math.isfinite(sum(memoryview(data).cast("f"))):
        raise InvalidVector(
            f"collection {collection!r}: {where}{_at(index)} holds NaN or infinity; "
            "give finite numbers of float32's range",
            collection=collection,
            index=index,
            field=where,
        )


def _too_long(data: bytes) -> bool:
    """Whether the sum of the squares is beyond float32, where Qdrant sums up."""
    return sum(n * n for n in memoryview(data).cast("f")) > _MAX_FLOAT32


def _terms(given: Any, collection: str, where: str, index: int | None) -> Terms:
    indices, values = list(given.indices), list(given.values)
    problem = ""
    if len(indices) != len(values):
        problem = f"has {len(indices)} indices but {len(values)} values"
    elif len(set(indices)) != len(indices):
        problem = "has an index twice; add up the values of equal terms"
    else:
        order = sorted(range(len(indices)), key=indices.__getitem__)
        try:
            made = Terms(
                array("I", [int(indices[i]) for i in order]),
                array("f", [values[i] for i in order]),
            )
        except (TypeError, ValueError, OverflowError) as exc:
            problem = f"cannot be read ({exc}); indices are 0 … 2**32-1"
        else:
            if made.indices and made.indices[-1] >= _MAX_TERM:
                problem = "has an index above 2**32-1"
            else:
                _refuse_infinite(made.values.tobytes(), collection, where, index)
                return made
    raise InvalidVector(
        f"collection {collection!r}: sparse vector {where}{_at(index)} {problem}",
        collection=collection,
        index=index,
        field=where,
    )


def in_batches(
    points: Sequence[Encoded], *, max_points: int, max_bytes: int
) -> Iterator[list[Encoded]]:
    """Split by count and by bytes; no batch is empty."""
    batch: list[Encoded] = []
    size = 0
    for point in points:
        own = point.size
        if batch and (len(batch) == max_points or size + own > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += own
    if batch:
        yield batch


def _at(index: int | None) -> str:
    return "" if index is None else f" of point {index}"


def encode_payload(
    payload: Any,
    collection: str,
    *,
    index: int | None = None,
    kept_id: object = None,
    level: int = 1,
) -> bytes:
    """Return a payload as JSON text.

    Args:
        payload: A mapping.
        collection: For the message.
        index: Position in a batch, for the message.
        kept_id: The id as the application wrote it, where it was mapped.
        level: At which level of the stored payload it will stand.

    Raises:
        InvalidRecord: It is no mapping of text to JSON values, or nested too deep.
    """
    whole = payload
    if type(payload) is not dict or not _is_plain(payload):
        whole = _checked_payload(payload, collection, index, level)
    if RESERVED_ID in whole:
        problem = f"uses the reserved key {RESERVED_ID!r}; rename it"
        path = f"payload.{RESERVED_ID}"
        raise _bad_payload(collection, index, path, problem)
    if kept_id is not None:
        whole = {**whole, RESERVED_ID: kept_id}
    try:
        return orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as exc:
        problem = f"cannot be stored ({exc}); give JSON values"
        raise _bad_payload(collection, index, "payload", problem) from None


def _bad_payload(
    collection: str, index: int | None, path: str, problem: str
) -> InvalidRecord:
    return InvalidRecord(
        f"collection {collection!r}: {path}{_at(index)} {problem}",
        field=path,
        index=index,
    )


def _is_plain(payload: dict[Any, Any]) -> bool:
    """Whether a payload has plain values only, as nearly all have."""
    for key, value in payload.items():
        kind = type(value)
        if type(key) is not str or not (
            kind in _PLAIN or (kind is float and math.isfinite(value))
        ):
            return False
    return True


def _checked_payload(
    payload: Any, collection: str, index: int | None, level: int
) -> dict[str, Any]:
    if payload is None:
        return {}
    if not isinstance(payload, Mapping):
        problem = f"is a {type(payload).__name__}; give a mapping"
        raise _bad_payload(collection, index, "payload", problem)
    try:
        found = _not_json(payload, "payload", level)
    except TypeError as exc:
        found = "payload", f"cannot be stored ({exc}); give JSON values"
    if found is not None:
        raise _bad_payload(collection, index, *found)
    return dict(payload)


def _not_json(value: Any, path: str, level: int) -> tuple[str, str] | None:
    """Find what JSON has no word for, or nests too deep: its path, what is wrong."""
    if isinstance(value, str | int) or value is None:
        return None
    if isinstance(value, float):
        problem = f"is {value!r}; JSON has no such number"
        return None if math.isfinite(value) else (path, problem)
    if not isinstance(value, Mapping | list | tuple):
        # A dataclass, an array, …: looked at as the JSON that it becomes.
        plain = orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
        return _not_json(plain, path, level)
    if level > JSON_DEPTH:
        return path[:80], f"is nested deeper than {JSON_DEPTH} levels; flatten it"
    inside: Iterable[tuple[str, Any]] = ((path, inner) for inner in value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return path, f"has a key of type {type(key).__name__}; give text"
        inside = ((f"{path}.{key}", inner) for key, inner in value.items())
    faults = (_not_json(inner, at, level + 1) for at, inner in inside)
    return next((fault for fault in faults if fault is not None), None)
