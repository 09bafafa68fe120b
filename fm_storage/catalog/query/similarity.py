"""Errors as vectors: which text is embedded, and how the nearest are found.

Apart from the manager, because the drainer embeds by the same rules when an
entry is delivered as a question is embedded when it is asked.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fm_storage.catalog.query.groups import ErrorGroup, hex_of, number_of
from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.fingerprint import text_for_vector
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.row import RANKS
from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.config import CollectionConfig
    from fm_storage.postgres import Executor
    from fm_storage.vectors import Embedding, QdrantStore, Vectorizer

__all__ = [
    "CatalogVectorizer",
    "SimilarEntry",
    "SimilarGroup",
    "collection_name",
    "payload_filter",
    "question_of",
    "similar_groups",
    "text_of_entries",
    "text_of_entry",
]

_TEXTS = Sql(
    "SELECT id, message, module, error_code, stack_trace FROM project_errors "
    "WHERE id = ANY($1::uuid[])"
)
_GROUPS = Sql(
    "SELECT fingerprint, module, template FROM fm_storage.fingerprints "
    "WHERE fingerprint = ANY($1::bigint[])"
)
_CACHE = 4096
_HITS_OF_A_GROUP = 10  # many hits may be of one and the same other group
_INDEXES = {"module": "keyword", "severity": "integer", "at": "float"}


@dataclass(frozen=True, slots=True)
class SimilarEntry:
    """A stored error and how similar it is; greater is more similar.

    Scores order the hits of one question; they are not comparable between
    questions, nor between vectorizers.
    """

    entry: ErrorEntry
    score: float


@dataclass(frozen=True, slots=True)
class SimilarGroup:
    """A group that resembles another one."""

    fingerprint: str
    module: str
    template: str
    score: float


def collection_name(vectorizer: Vectorizer) -> str:
    """Return the collection of the catalogue; another vectorizer has another one."""
    return f"project_errors_{vectorizer.name}"


def text_of_entry(entry: ErrorEntry) -> str:
    """Return the text by which an entry is compared."""
    return text_for_vector(
        entry.message,
        module=entry.module,
        error_code=entry.error_code,
        stack_trace=entry.stack_trace,
    )


def question_of(error: ErrorEntry | BaseException | str) -> tuple[str, UUID | None]:
    """Return the text to ask for, and the id that is not an answer to itself."""
    if isinstance(error, ErrorEntry):
        return text_of_entry(error), error.id
    if isinstance(error, BaseException):
        return text_of_entry(draft_of(error).prepared().entry), None
    return text_for_vector(mask_text(error)), None


async def text_of_entries(executor: Executor, ids: Sequence[str]) -> Mapping[str, str]:
    """Return the texts of stored entries, for the drainer; others are left out."""
    rows = await executor.fetch(_TEXTS, ids)

    def build() -> dict[str, str]:
        return {
            str(row[0]): text_for_vector(
                row[1], module=row[2], error_code=row[3], stack_trace=row[4]
            )
            for row in yielding_gil(rows)
        }

    return await asyncio.to_thread(build)


def payload_filter(
    *,
    module: str | None = None,
    severity: Severity | None = None,
    since: datetime | None = None,
) -> dict[str, Any] | None:
    """Return the vector store's filter: of a module, at least so bad, not before."""
    made: dict[str, Any] = {}
    if module is not None:
        made["module"] = module
    if severity is not None:
        made["severity"] = {"gte": RANKS[severity]}
    if since is not None:
        made["at"] = {"gte": since.timestamp()}
    return made or None


async def similar_groups(
    executor: Executor,
    store: QdrantStore,
    vectorizer: CatalogVectorizer,
    collection: str,
    groups: Sequence[ErrorGroup],
    *,
    limit: int = 3,
) -> dict[str, list[SimilarGroup]]:
    """Return, by fingerprint, the groups whose errors are most like each group's."""
    embeddings = await vectorizer.embed([text_of_entry(one.example) for one in groups])
    hits: dict[str, dict[int, float]] = {}

    async def ask(group: ErrorGroup, embedding: Embedding) -> None:
        own = str(number_of(group.fingerprint))
        found = await store.search_hybrid(
            collection,
            embedding,
            limit * _HITS_OF_A_GROUP,
            filter={"fingerprint": {"not": own}},
            with_payload=["fingerprint"],
            candidates=limit * _HITS_OF_A_GROUP,
        )
        best = hits[group.fingerprint]
        for hit in found:
            best.setdefault(int(str(hit.payload["fingerprint"])), hit.score)

    hits.update((group.fingerprint, {}) for group in groups)
    asked = await asyncio.gather(
        *map(ask, groups, embeddings), return_exceptions=True
    )  # all of them end here, whatever becomes of one
    for failure in filter(None, asked):
        raise failure
    wanted = {number for best in hits.values() for number in best}
    rows = await executor.fetch(_GROUPS, list(wanted))
    names = {row[0]: row for row in rows}
    return {
        fingerprint: [
            SimilarGroup(hex_of(number), names[number][1], names[number][2], score)
            for number, score in best.items()
            if number in names
        ][:limit]
        for fingerprint, best in hits.items()
    }


class CatalogVectorizer:
    """The vectorizer of the catalogue: embeds equal texts once, indexes the payload.

    The texts of one group are equal by construction, and a log holds far fewer
    groups than lines.
    """

    def __init__(self, vectorizer: Vectorizer, *, size: int = _CACHE) -> None:
        self._inner = vectorizer
        self._size = size
        self._cache: OrderedDict[str, Embedding] = OrderedDict()

    @property
    def name(self) -> str:
        """Name of the vectorizer behind."""
        return self._inner.name

    @property
    def spec(self) -> CollectionConfig:
        """Vectors of its collection, and indexes for the catalogue's filters."""
        spec = self._inner.spec
        indexes = {**_INDEXES, **spec.payload_indexes}
        return spec.model_copy(update={"payload_indexes": indexes})

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Embed *texts*; only those not seen lately reach the vectorizer."""
        cache = self._cache
        new = [text for text in dict.fromkeys(texts) if text not in cache]
        found = dict(zip(new, await self._inner.embed(new), strict=True)) if new else {}
        result: list[Embedding] = []
        for text in texts:
            one = found.get(text) or cache[text]
            cache[text] = one
            cache.move_to_end(text)
            result.append(one)
        while len(cache) > self._size:
            cache.popitem(last=False)
        return result
