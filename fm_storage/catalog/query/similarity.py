"""Errors and groups of errors that resemble a given one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fm_storage.catalog.query.groups import ErrorGroup, hex_of, number_of
from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.embedding import CatalogVectorizer, text_of_entry
from fm_storage.catalog.record.fingerprint import text_for_vector
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.row import RANKS
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Executor
    from fm_storage.vectors import Embedding, QdrantStore

_GROUPS = Sql(
    "SELECT fingerprint, module, template FROM fm_storage.fingerprints "
    "WHERE fingerprint = ANY($1::bigint[])"
)
_HITS_OF_A_GROUP = 10  # many hits may be of one and the same other group


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


def question_of(error: ErrorEntry | BaseException | str) -> tuple[str, UUID | None]:
    """Return the text to ask for, and the id that is not an answer to itself."""
    if isinstance(error, ErrorEntry):
        return text_of_entry(error), error.id
    if isinstance(error, BaseException):
        return text_of_entry(draft_of(error).prepared().entry), None
    return text_for_vector(mask_text(error)), None


def payload_filter(
    *,
    module: str | None = None,
    severity: Severity | None = None,
    since: datetime | None = None,
) -> dict[str, Any] | None:
    """Return the vector store's filter: module, minimum severity, earliest time."""
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
