"""Turning text into vectors: the protocol, and a default that needs no model.

``LexicalVectorizer`` is our own, not qdrant-edge's BM25, so that an application
with a server needs no embedded engine, and so that a text gives the same vector
on every installation and with every version of an engine: numbers are stored in
PostgreSQL and must stay comparable for years. It is built for stack traces:
identifiers count whole and by their parts.
"""

from __future__ import annotations

import asyncio
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, TypeAlias, runtime_checkable

from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.vectors.points import SparseVector


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vectors of one text; a vectorizer may leave either part out."""

    dense: Sequence[float] | None = None
    sparse: SparseVector | None = None


def hybrid(size: int) -> CollectionConfig:
    """Return the definition for a dense vector of *size*, and words."""
    return CollectionConfig(
        vectors={"dense": VectorConfig(size=size, distance="Cosine")},
        sparse_vectors={"sparse": SparseVectorConfig(modifier="idf")},
    )


@runtime_checkable
class Vectorizer(Protocol):
    """Whatever turns texts into vectors.

    Attributes:
        name: Changes whenever the vectors would; part of the collection's name.
        spec: The collection that holds them: vectors ``dense`` and ``sparse``.
    """

    @property
    def name(self) -> str:
        """Name and version, of letters, digits, ``-`` and ``_``."""
        ...

    @property
    def spec(self) -> CollectionConfig:
        """Definition of a collection for these vectors."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, without blocking the event loop."""
        ...


_K = 1.2
_B = 0.75
_AVERAGE_LENGTH = 128.0
_CACHE_LIMIT = 50_000
_CHUNK = 16
_LONGEST = 64 * 1024
_STEMS = (4, 6)

_WORD = re.compile(r"[^\W_]+(?:[_.\-$]+[^\W_]+)*")
_ASCII_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PART = re.compile(r"[^\W\d_]+|\d+")
# Addresses, UUIDs and hashes differ every time and mean nothing.
_NOISE = re.compile(
    r"0x[0-9a-fA-F]+"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{16,}\b"
)
_LONG_NUMBER = 7

Features: TypeAlias = "tuple[tuple[int, float], ...]"
"""Buckets of the dense vector, and what a term adds to each."""


def terms_of(text: str) -> list[str]:
    """Return the terms of a text: identifiers whole, and their parts.

    ``fm_storage.ConnectionPool`` gives ``fm_storage.connectionpool``, ``fm``,
    ``storage``, ``connection`` and ``pool``.
    """
    found: list[str] = []
    for word in _WORD.findall(_NOISE.sub(" ", text[:_LONGEST])):
        # Only ASCII has the habit of camelCase.
        parts = (_ASCII_PART if word.isascii() else _PART).findall(word)
        whole = word.casefold()
        if len(parts) > 1 and not whole.isdigit():
            found.append(whole)
        for part in parts:
            if part.isdigit() and len(part) >= _LONG_NUMBER:
                continue
            found.append(part.casefold())
    return found


class LexicalVectorizer:
    """BM25 over identifiers and words, and a small dense vector of hashed features.

    Args:
        size: Length of the dense vector.
    """

    def __init__(self, *, size: int = 256) -> None:
        self._size = size
        # Filled by the threads that embed; a lost entry is only made again.
        self._features: dict[str, tuple[int, Features]] = {}

    @property
    def name(self) -> str:
        """Name and version; the size is part of it unless it is the default."""
        return "lexical-v1" if self._size == 256 else f"lexical-v1-{self._size}"

    @property
    def spec(self) -> CollectionConfig:
        """Vectors ``dense`` (cosine) and ``sparse`` (with the engine's IDF)."""
        return hybrid(self._size)

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text; works in a thread, in short pieces."""
        made: list[Embedding] = []
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            made += await asyncio.to_thread(self._embed_all, part)
        return made

    def _embed_all(self, texts: Sequence[str]) -> list[Embedding]:
        return [self.embed_one(text) for text in yielding_gil(texts, 2)]

    def embed_one(self, text: str) -> Embedding:
        """Return the embedding of one text, here and now."""
        numbers: dict[int, float] = {}
        dense = [0.0] * self._size
        for weight, number, features in self._weighed(text):
            numbers[number] = numbers.get(number, 0.0) + weight
            for bucket, share in features:
                dense[bucket] += weight * share
        size = math.sqrt(sum(value * value for value in dense))
        if size == 0.0:
            # Text without a word: a fixed direction, as zero has no cosine.
            dense[0] = size = 1.0
        return Embedding(
            dense=array("f", [value / size for value in dense]),
            sparse=_sparse(numbers),
        )

    def sparse_of(self, text: str) -> SparseVector | None:
        """Return the sparse part alone; None for a text without a word."""
        numbers: dict[int, float] = {}
        for weight, number, _ in self._weighed(text):
            numbers[number] = numbers.get(number, 0.0) + weight
        return _sparse(numbers)

    def _weighed(self, text: str) -> Iterator[tuple[float, int, Features]]:
        counts = Counter(terms_of(text))
        length = counts.total()
        norm = _K * (1 - _B + _B * length / _AVERAGE_LENGTH)
        for term, count in counts.items():
            yield count * (_K + 1) / (count + norm), *self._of(term)

    def _of(self, term: str) -> tuple[int, Features]:
        known = self._features.get(term)
        if known is not None:
            return known
        digest = blake2b(term.encode(errors="replace"), digest_size=8).digest()
        number = int.from_bytes(digest[:4], "little")
        features = [self._bucket(digest[4:], 1.0)]
        for length in _STEMS:
            if len(term) > length and not term.isdigit():
                # Words of one stem (refuse, refused, refusal) share a feature.
                stem = f"{term[:length]}~".encode(errors="replace")
                raw = blake2b(stem, digest_size=4).digest()
                features.append(self._bucket(raw, 0.5))
        if len(self._features) >= _CACHE_LIMIT:
            self._features.clear()
        made = number, tuple(features)
        self._features[term] = made
        return made

    def _bucket(self, raw: bytes, share: float) -> tuple[int, float]:
        number = int.from_bytes(raw, "little")
        return (number >> 1) % self._size, share if number & 1 else -share


def _sparse(numbers: Mapping[int, float]) -> SparseVector | None:
    if not numbers:
        return None
    order = sorted(numbers)
    return SparseVector(order, array("f", [numbers[n] for n in order]).tolist())
