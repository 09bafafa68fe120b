"""Which groups resemble each other, by the words and identifiers of their examples.

Compared here, one example a group, and not in the vector store: a group's errors
are alike, and a few hundred vectors are compared in milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fm_storage.catalog.query.groups import ErrorGroup
from fm_storage.catalog.record.embedding import text_of_entry
from fm_storage.vectors import Embedding, LexicalVectorizer

_LEAST = 0.4


@dataclass(frozen=True, slots=True)
class SimilarGroup:
    """A group that resembles another one.

    Attributes:
        score: Cosine of the two texts, rare words weighing most: 1 for equal ones.
    """

    fingerprint: str
    module: str
    template: str
    score: float


async def similar_groups(
    groups: Sequence[ErrorGroup], *, limit: int = 3
) -> dict[str, list[SimilarGroup]]:
    """Return, by fingerprint, the others that are most like each group."""
    if len(groups) < 2:
        return {}
    texts = [text_of_entry(one.example) for one in groups]
    made = await LexicalVectorizer().embed(texts)
    scores = await asyncio.to_thread(_scores, made)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :limit]
    return {
        group.fingerprint: [
            SimilarGroup(other.fingerprint, other.module, other.template, score)
            for other, score in (
                (groups[to], float(scores[at, to])) for to in best[at].tolist()
            )
            if score >= _LEAST
        ]
        for at, group in enumerate(groups)
    }


def _scores(embeddings: Sequence[Embedding]) -> np.ndarray:
    """Return how alike each two are, 0 on the diagonal."""
    parts = [one.sparse for one in embeddings]
    words = np.concatenate([np.asarray(one.indices if one else ()) for one in parts])
    _, columns = np.unique(words, return_inverse=True)
    sizes = [len(one.indices) if one else 0 for one in parts]
    rows = np.repeat(np.arange(len(parts)), sizes)
    table = np.zeros((len(parts), int(columns.max(initial=-1)) + 1), np.float32)
    table[rows, columns] = np.concatenate(
        [np.asarray(one.values if one else (), np.float32) for one in parts]
    )
    table *= np.log((len(parts) + 1.0) / np.count_nonzero(table, axis=0))
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    scores: np.ndarray = table @ table.T
    np.fill_diagonal(scores, 0.0)
    return scores
