"""Recreating a collection from PostgreSQL behind its name, while writes go on.

A fresh collection is filled from ``vector_state`` in the order of ids; drainers
go on writing to the old one. Then the name is exchanged and the moment recorded:
a delivery claimed before that moment does not count and is made again, so
nothing that was on its way into the old collection is lost. Whatever else
changed while the new one was filled is found by comparing, and mended.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fm_storage.config import CollectionConfig
from fm_storage.errors import (
    CollectionNotFound,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    LockTimeout,
)
from fm_storage.outbox.points import point_of
from fm_storage.outbox.reconcile import Reconciler
from fm_storage.outbox.results import RebuildReport
from fm_storage.postgres import Pool, Sql
from fm_storage.vector_state import VERSION_KEY

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.vectors import CollectionInfo, Point, QdrantStore

__all__ = ["Rebuilder"]

_log = logging.getLogger("fm_storage.outbox")

_PAGE = 500
_EXCHANGES = 20
_BETWEEN_EXCHANGES = 0.05

_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext('fm_storage.rebuild'), hashtext($1))"

_BEGIN = Sql("""
INSERT INTO fm_storage.vector_rebuild AS r (collection, target) VALUES ($1, $2)
ON CONFLICT (collection) DO UPDATE SET
  target = CASE WHEN r.filling THEN r.target ELSE EXCLUDED.target END,
  reached = CASE WHEN r.filling THEN r.reached ELSE '' END,
  copied = CASE WHEN r.filling THEN r.copied ELSE 0 END,
  started_at = CASE WHEN r.filling THEN r.started_at ELSE now() END,
  filling = TRUE
RETURNING target, reached, copied""")

_LIVE_PAGE = Sql("""
SELECT point_id, ver, vectors, payload FROM fm_storage.vector_state
WHERE collection = $1 AND point_id > $2 AND op = 'u' AND vectors IS NOT NULL
ORDER BY point_id LIMIT $3""")

_COUNT = Sql("""
SELECT count(*) FROM fm_storage.vector_state
WHERE collection = $1 AND op = 'u' AND vectors IS NOT NULL""")

_REACHED = Sql("""
UPDATE fm_storage.vector_rebuild SET reached = $2, copied = copied + $3
WHERE collection = $1""")

_FLIPPED = Sql("""
UPDATE fm_storage.vector_rebuild SET filling = FALSE, flipped_at = clock_timestamp()
WHERE collection = $1""")


class Rebuilder:
    """Rebuilds one collection at a time; any number of drainers may run."""

    def __init__(self, pool: Pool, store: QdrantStore, reconciler: Reconciler) -> None:
        self._pool = pool
        self._store = store
        self._reconciler = reconciler

    async def rebuild(
        self,
        collection: str,
        spec: CollectionConfig | None,
        *,
        progress: Progress | None = None,
    ) -> RebuildReport:
        """Fill a new collection, exchange the name, mend what changed meanwhile.

        If cancelled or killed, the next call goes on where this one was.

        Raises:
            CollectionNotFound: It does not exist and no definition is known.
            LockTimeout: Another process is rebuilding it.
        """
        async with self._alone(collection):
            suffix = secrets.token_hex(4)
            record = await self._pool.fetchrow(
                _BEGIN, collection, f"{collection}__{suffix}"
            )
            assert record is not None  # noqa: S101 - RETURNING after an upsert
            target, reached, copied = record
            resumed = not target.endswith(suffix)
            present = await self._present(collection)
            if present is None or present.name != target:
                definition = (
                    spec
                    or self._configured(collection)
                    or _spec_of(collection, present)
                )
                await self._store.ensure_collection_exists(target, definition)
                copied = await self._fill(collection, target, reached, copied, progress)
                await self._exchange(collection, target)
            await self._pool.execute(_FLIPPED, collection)
            report = await self._reconciler.repair(collection)
            _log.info("%s means %s now, %d points", collection, target, copied)
            return RebuildReport(collection, target, copied, resumed, report)

    @asynccontextmanager
    async def _alone(self, collection: str) -> AsyncIterator[None]:
        """Hold the right to rebuild; it ends with the connection, kill included."""
        connection = await self._pool.connect("rebuild")
        try:
            if not await connection.fetchval(_TRY_LOCK, collection):
                raise LockTimeout(
                    f"collection {collection!r}: another process is rebuilding it; "
                    "wait for it to end"
                )
            yield
        finally:
            await connection.aclose()

    async def _present(self, collection: str) -> CollectionInfo | None:
        try:
            return await self._store.collection_info(collection)
        except CollectionNotFound:
            return None

    def _configured(self, collection: str) -> CollectionConfig | None:
        return self._store.config.collections.get(collection)

    async def _fill(
        self,
        collection: str,
        target: str,
        reached: str,
        copied: int,
        progress: Progress | None,
    ) -> int:
        total: int = await self._pool.fetchval(_COUNT, collection)
        while True:
            rows = await self._pool.fetch(_LIVE_PAGE, collection, reached, _PAGE)
            if not rows:
                return copied
            written = await self._write(target, [point_of(*row) for row in rows])
            reached = rows[-1]["point_id"]
            await self._pool.execute(_REACHED, collection, reached, written)
            copied += written
            if progress is not None:
                progress(copied, total)

    async def _write(self, target: str, points: list[Point]) -> int:
        """Write what the target takes; the drainer sets the others aside later."""
        while points:
            try:
                await self._store.upsert_points(target, points, newer_by=VERSION_KEY)
            except (InvalidVector, InvalidRecord) as exc:
                if exc.index is None:
                    raise
                points = points[: exc.index] + points[exc.index + 1 :]
            else:
                break
        return len(points)

    async def _exchange(self, collection: str, target: str) -> None:
        """Make the name mean the target, and drop what it meant before."""
        for _ in range(_EXCHANGES):
            aliases = await self._store.list_aliases()
            old = aliases.get(collection)
            if old is None:
                # An alias cannot have the name of a collection.
                await self._store.delete_collection(collection)
            try:
                await self._store.set_aliases({collection: target})
            except InvalidName:
                # A drainer made the collection again at this very moment.
                await asyncio.sleep(_BETWEEN_EXCHANGES)
                continue
            if old is not None and old != target:
                await self._store.delete_collection(old)
            return
        raise LockTimeout(
            f"collection {collection!r}: it is made again as often as it is "
            "exchanged; stop whoever ensures it under this name"
        )


def _spec_of(collection: str, present: CollectionInfo | None) -> CollectionConfig:
    """Return the definition of a collection as it is."""
    if present is None:
        raise CollectionNotFound(collection, operation="rebuild")
    sparse: dict[str, Any] = {
        name: _known(one, {"modifier"}) for name, one in present.sparse_vectors.items()
    }
    dense = {
        name: _known(one, {"size", "distance"}) for name, one in present.vectors.items()
    }
    settings: dict[str, Any] = {
        "sparse_vectors": sparse,
        "payload_indexes": dict(present.payload_indexes),
    }
    if set(dense) == {""}:
        settings |= dense[""]
    else:
        settings["vectors"] = dense
    return CollectionConfig(**settings)


def _known(settings: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in keys and value}
