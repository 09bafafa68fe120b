"""Vectors: one store over Qdrant's embedded engine and over a Qdrant server."""

from __future__ import annotations

from fm_storage.vectors.points import (
    CollectionInfo,
    Point,
    PointGroup,
    PointId,
    ScoredPoint,
    SparseVector,
    VectorStatistics,
)
from fm_storage.vectors.store.reindex import ReindexReport
from fm_storage.vectors.store.store import QdrantStore
from fm_storage.vectors.vectorizers.lexical import (
    Embedding,
    LexicalVectorizer,
    Vectorizer,
)
from fm_storage.vectors.vectorizers.pretrained import MiniLmVectorizer, StaticVectorizer

__all__ = [
    "CollectionInfo",
    "Embedding",
    "LexicalVectorizer",
    "MiniLmVectorizer",
    "Point",
    "PointGroup",
    "PointId",
    "QdrantStore",
    "ReindexReport",
    "ScoredPoint",
    "SparseVector",
    "StaticVectorizer",
    "VectorStatistics",
    "Vectorizer",
]
