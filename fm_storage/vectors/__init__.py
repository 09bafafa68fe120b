"""Vectors: one store over Qdrant's embedded engine and over a Qdrant server."""

from __future__ import annotations

from fm_storage.vectors.models_of_text import MiniLmVectorizer, StaticVectorizer
from fm_storage.vectors.points import (
    CollectionInfo,
    Point,
    PointId,
    ScoredPoint,
    SparseVector,
    VectorStatistics,
)
from fm_storage.vectors.reindex import ReindexReport
from fm_storage.vectors.store import QdrantStore
from fm_storage.vectors.vectorizer import Embedding, LexicalVectorizer, Vectorizer

__all__ = [
    "CollectionInfo",
    "Embedding",
    "LexicalVectorizer",
    "MiniLmVectorizer",
    "Point",
    "PointId",
    "QdrantStore",
    "ReindexReport",
    "ScoredPoint",
    "SparseVector",
    "StaticVectorizer",
    "VectorStatistics",
    "Vectorizer",
]
