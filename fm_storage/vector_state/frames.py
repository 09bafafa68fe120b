"""Vectors as bytes: float32 frames, checked as they are made.

``vector_state.vectors`` holds this layout for ever, so it never changes.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from fm_storage.errors import InvalidVector
from fm_storage.vector_state.shapes import Shape

_FRAME = struct.Struct("<BBI")  # kind, length of the name in bytes, components
_DENSE, _SPARSE = 0, 1
_MAX_NAME = 255


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


def encode_vectors(
    vector: VectorLike,
    *,
    collection: str = "?",
    index: int | None = None,
    shape: Shape | None = None,
) -> bytes:
    """Return vectors as frames: kind, name, count, then float32 numbers.

    Args:
        vector: One unnamed vector, or named ones.
        collection: For the message.
        index: Position in a batch, for the message.
        shape: What the collection takes, where that is known.

    Raises:
        DimensionMismatch: A vector's length is not the one *shape* says.
        InvalidVector: Not a vector, not finite, or not one that *shape* knows;
            names *collection* and *index*.
    """
    named: Mapping[str, Any] = vector if isinstance(vector, Mapping) else {"": vector}
    parts: list[bytes] = []
    for key, one in named.items():
        name = str(key)
        sparse = hasattr(one, "indices")
        try:
            frame, count = _sparse(name, one) if sparse else _dense(name, one)
        except (TypeError, ValueError, OverflowError) as exc:
            at = "" if index is None else f" of point {index}"
            raise InvalidVector(
                f"collection {collection!r}: {name or 'vector'}{at} cannot be "
                f"stored ({exc}); give finite numbers",
                collection=collection,
                index=index,
                field=name or "vector",
            ) from exc
        if shape is not None:
            shape.check(name, count, collection, index, sparse=sparse)
        parts += frame
    if shape is not None and "" in shape.dense and "" not in named:
        at = "" if index is None else f" {index}"
        raise InvalidVector(
            f"collection {collection!r}: point{at} has no unnamed vector; give one",
            collection=collection,
            index=index,
        )
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


def _dense(name: str, vector: Any) -> tuple[tuple[bytes, ...], int]:
    numbers = _floats(vector)
    _refuse_infinite(numbers)
    label, count = _label(name), len(numbers) // 4
    return (_FRAME.pack(_DENSE, len(label), count), label, numbers), count


def _sparse(name: str, vector: Any) -> tuple[tuple[bytes, ...], int]:
    terms, weights = array("I", vector.indices), _floats(vector.values)
    if 4 * len(terms) != len(weights):
        raise ValueError("it has not as many values as indices")
    if len(set(terms)) != len(terms):
        raise ValueError("it has an index twice")
    _refuse_infinite(weights)
    label, count = _label(name), len(terms)
    head = _FRAME.pack(_SPARSE, len(label), count)
    return (head, label, _little(terms), weights), count


def _label(name: str) -> bytes:
    label = name.encode()
    if len(label) > _MAX_NAME:
        raise ValueError("its name is longer than 255 bytes")
    return label


def _refuse_infinite(data: bytes) -> None:
    numbers = _native(data)
    # One infinity or NaN makes the sum one; an overflowing sum is looked into.
    if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
        raise ValueError("it holds NaN or infinity")


def _floats(values: Any) -> bytes:
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
