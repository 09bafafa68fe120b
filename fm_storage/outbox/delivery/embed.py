"""Making vectors for points that were written without.

The one place where an embedder is called: recording never waits for it and never
fails with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fm_storage.concurrency.pacing import in_chunks
from fm_storage.errors import InvalidVector
from fm_storage.outbox.delivery.queue import Leased, Queue
from fm_storage.outbox.delivery.texts import Texts, TextsFailed, raise_if_cancelled
from fm_storage.postgres import Executor, Sql
from fm_storage.postgres.arguments import function
from fm_storage.vector_state import DELETE_MANY, decode_id, encode_vectors

if TYPE_CHECKING:
    from fm_storage.config import CollectionConfig
    from fm_storage.vectors import Vectorizer

# A tracked row may be back already: what it is now is decided where rows are followed.
_LOOK_AGAIN = Sql("""
INSERT INTO fm_storage.vector_changed (collection, point_id)
SELECT k.collection, i FROM fm_storage.vector_track AS k, unnest($2::text[]) AS i
WHERE k.collection = $1 RETURNING 1""")


@dataclass(frozen=True, slots=True)
class Registration:
    """Which vectorizer serves a collection, and where its texts come from."""

    vectorizer: Vectorizer
    texts: Texts


class Embedder:
    """Fills in the vectors of leased rows, in one batch per collection."""

    def __init__(self, executor: Executor, queue: Queue) -> None:
        self._executor = executor
        self._queue = queue
        self._registered: dict[str, Registration] = {}

    def register(self, collection: str, vectorizer: Vectorizer, texts: Texts) -> None:
        """Name the vectorizer of a collection, replacing an earlier one."""
        function(getattr(vectorizer, "embed", None), "vectorizer.embed")
        self._registered[collection] = Registration(vectorizer, texts)

    def spec(self, collection: str) -> CollectionConfig | None:
        """Return the definition that the collection's vectorizer needs, if any."""
        found = self._registered.get(collection)
        return None if found is None else found.vectorizer.spec

    def knows(self, collection: str) -> bool:
        """Whether a vectorizer is registered for the collection."""
        return collection in self._registered

    async def fill(
        self, collection: str, rows: Sequence[Leased]
    ) -> tuple[list[Leased], list[tuple[Leased, Exception]]]:
        """Embed rows, keep their vectors in PostgreSQL; return those still current.

        A row whose text is gone belongs to a deleted record: its point becomes
        undesired. Rows that changed meanwhile, or that a writer has locked, are
        left out. Rows that are at fault themselves are returned second.

        Raises:
            TextsFailed: The source of texts or the vectorizer failed; nothing was
                kept.
            StorageError: PostgreSQL could not keep the vectors.
        """
        registration = self._registered[collection]
        try:
            texts, refused = await registration.texts.read(self._executor, rows)
        except (Exception, asyncio.CancelledError) as exc:  # the application's
            raise_if_cancelled(exc)
            raise TextsFailed(f"text_of of {collection!r}", exc) from exc
        aside = {row.point_id for row, _ in refused}
        by_id = {
            str(decode_id(row.point_id)): row
            for row in rows
            if row.point_id not in aside
        }
        gone = [row.point_id for key, row in by_id.items() if key not in texts]
        if gone and not await self._executor.fetch(_LOOK_AGAIN, collection, gone):
            await self._executor.execute(DELETE_MANY, collection, sorted(gone))
        found = [(row, texts[key]) for key, row in by_id.items() if key in texts]
        if not found:
            return [], refused
        try:
            kept = await _vectors(collection, registration.vectorizer, found)
        except (Exception, asyncio.CancelledError) as exc:  # the application's
            raise_if_cancelled(exc)
            raise TextsFailed(f"the vectorizer of {collection!r}", exc) from exc
        standing = await self._queue.keep_vectors(collection, kept)
        return [row for row, _ in found if row.point_id in standing], refused


async def _vectors(
    collection: str, vectorizer: Vectorizer, found: Sequence[tuple[Leased, str]]
) -> dict[str, tuple[int, bytes]]:
    """Embed the texts of rows, note the vectors in the rows, and return them."""
    embeddings = await vectorizer.embed([text for _, text in found])
    kept: dict[str, tuple[int, bytes]] = {}
    encoded: dict[int, bytes] = {}  # by object: equal texts have one embedding
    async for some in in_chunks(list(zip(found, embeddings, strict=True))):
        for (row, _), embedding in some:
            data = encoded.get(id(embedding))
            if data is None:
                data = encoded[id(embedding)] = encode_vectors(
                    _named(collection, vectorizer.spec, embedding),
                    collection=collection,
                    index=len(kept),
                )
            row.vectors = data
            kept[row.point_id] = (row.ver, data)
    return kept


def _named(collection: str, spec: CollectionConfig, embedding: Any) -> dict[str, Any]:
    """Give the parts of an embedding the names its collection knows them by."""
    vectors: dict[str, Any] = {}
    if embedding.dense is not None:
        vectors[next(iter(spec.vectors), "")] = embedding.dense
    if embedding.sparse is not None and spec.sparse_vectors:
        vectors[next(iter(spec.sparse_vectors))] = embedding.sparse
    if not vectors:
        raise InvalidVector(
            f"collection {collection!r}: the vectorizer gave no vector that its "
            "own definition names; give a dense or a sparse one",
            collection=collection,
        )
    return vectors
