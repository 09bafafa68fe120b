"""Errors as vectors: which text is embedded, and in which collection.

A question is embedded by the same rules as the drainer embeds a stored entry.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fm_storage.catalog.record.fingerprint import text_for_vector
from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.postgres import Sql

if TYPE_CHECKING:
    from fm_storage.config import CollectionConfig
    from fm_storage.postgres import Executor
    from fm_storage.repositories import ErrorEntry
    from fm_storage.vectors import Embedding, Vectorizer

_TEXTS = Sql(
    "SELECT id, message, module, error_code, stack_trace FROM project_errors "
    "WHERE id = ANY($1::uuid[])"
)
_CACHE = 4096
_INDEXES = {"module": "keyword", "severity": "integer", "at": "float"}


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
        # Taken before the wait: another call may push them out of the cache.
        found = {text: cache[text] for text in texts if text in cache}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found.update(zip(new, await self._inner.embed(new), strict=True))
        for text, one in found.items():
            cache[text] = one
            cache.move_to_end(text)
        while len(cache) > self._size:
            cache.popitem(last=False)
        return [found[text] for text in texts]
