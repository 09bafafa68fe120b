"""Recreating a collection from PostgreSQL behind its name, while writes go on.

A fresh collection is filled from ``vector_state`` in the order of ids; drainers
go on writing to the old one. What became newer meanwhile is copied in passes
over the versions, until a pass finds next to nothing; only then is the name
exchanged, by the same call as in ``QdrantStore.reindex()``. The moment is
recorded: a delivery claimed before it does not count and is made again, so
nothing that was on its way into the old collection is lost. What slipped
through between the last pass and the exchange is found by comparing, and repaired.

Killed at any instant, the next call goes on: the row in ``vector_rebuild`` says
how far this one was, until everything is done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fm_storage.config import CollectionConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    LockTimeout,
)
from fm_storage.outbox.agreement.reconcile import Reconciler
from fm_storage.outbox.delivery.points import State, points_of, spec_of
from fm_storage.outbox.results import RebuildReport
from fm_storage.postgres import Pool, Sql
from fm_storage.vector_state import VERSION_KEY, decode_id, encode_id

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.vectors import CollectionInfo, Point, QdrantStore

_log = logging.getLogger("fm_storage.outbox")

_PAGE = 500
_PASSES = 8
_EXCHANGES = 20
_BETWEEN_EXCHANGES = 0.05

_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext('fm_storage.rebuild'), hashtext($1))"

_VERSION = "SELECT last_value FROM fm_storage.vector_version"

_BEGIN = Sql("""
WITH begun AS (
  INSERT INTO fm_storage.vector_rebuild AS r (collection, target) VALUES ($1, $2)
  ON CONFLICT (collection) DO UPDATE SET
    target = CASE WHEN r.filling THEN r.target ELSE EXCLUDED.target END,
    reached = CASE WHEN r.filling THEN r.reached ELSE '' END,
    copied = CASE WHEN r.filling THEN r.copied ELSE 0 END,
    started_at = CASE WHEN r.filling THEN r.started_at ELSE now() END,
    filling = TRUE
  RETURNING collection, target, reached, copied
), noted AS (
  INSERT INTO fm_storage.vector_exchange AS e (collection, target, since)
  SELECT b.collection, b.target, v.last_value
  FROM begun AS b, fm_storage.vector_version AS v
  ON CONFLICT (collection) DO UPDATE SET
    since = CASE WHEN e.target = EXCLUDED.target THEN e.since ELSE EXCLUDED.since END,
    target = EXCLUDED.target
  RETURNING since, previous
)
SELECT target, reached, copied, since, previous FROM begun, noted""")

_LIVE_PAGE = Sql("""
SELECT point_id, ver, vectors, payload FROM fm_storage.vector_state
WHERE collection = $1 AND point_id > $2 AND op = 'u' AND vectors IS NOT NULL
ORDER BY point_id LIMIT $3""")

_NEWER_PAGE = Sql("""
SELECT point_id, ver, op, vectors, payload FROM fm_storage.vector_state
WHERE collection = $1 AND point_id > $2 AND ver > $4
  AND (op = 'd' OR vectors IS NOT NULL)
ORDER BY point_id LIMIT $3""")

_COUNT = Sql("""
SELECT count(*) FROM fm_storage.vector_state
WHERE collection = $1 AND op = 'u' AND vectors IS NOT NULL""")

_REACHED = Sql("""
UPDATE fm_storage.vector_rebuild SET reached = $2, copied = copied + $3
WHERE collection = $1""")

_ANEW = Sql("""
WITH anew AS (
  UPDATE fm_storage.vector_rebuild SET reached = '', copied = 0 WHERE collection = $1
)
UPDATE fm_storage.vector_exchange
SET since = (SELECT last_value FROM fm_storage.vector_version)
WHERE collection = $1 RETURNING since""")

_LEAVING = Sql("""
UPDATE fm_storage.vector_exchange SET previous = $2 WHERE collection = $1""")

_FLIPPED = Sql("""
UPDATE fm_storage.vector_rebuild SET flipped_at = clock_timestamp()
WHERE collection = $1""")

_QUEUED = Sql("""
SELECT EXISTS (
  SELECT FROM fm_storage.vector_queue
  WHERE collection = $1 AND point_id = $2 AND NOT replay)""")

_ENDED = Sql("""
WITH ended AS (
  UPDATE fm_storage.vector_rebuild SET filling = FALSE WHERE collection = $1
)
UPDATE fm_storage.vector_exchange SET previous = NULL WHERE collection = $1""")


@dataclass(slots=True)
class _Run:
    """One rebuild under way, as its rows say."""

    collection: str
    target: str
    reached: str
    copied: int
    since: int
    previous: str | None


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
        """Fill a new collection, exchange the name, repair what changed meanwhile.

        If cancelled or killed, the next call goes on where this one was.

        Raises:
            CollectionNotFound: It does not exist and no definition is known.
            CollectionMismatch: The interrupted rebuild had another definition, or
                the configured one has not the present sizes; give *spec*.
            InvalidVector: A point that was delivered does not fit the definition;
                the name means what it meant, and the next call begins anew.
            LockTimeout: Another process is rebuilding it.
        """
        async with self._alone(collection):
            suffix = secrets.token_hex(4)
            record = await self._pool.fetchrow(
                _BEGIN, collection, f"{collection}__{suffix}"
            )
            assert record is not None
            run = _Run(collection, *record)
            resumed = not run.target.endswith(suffix)
            present = await self._present(collection)
            if present is None or present.name != run.target:
                await self._prepare(run, spec, present)
                try:
                    await self._fill(run, progress)
                    await self._catch_up(run)
                except (InvalidVector, InvalidRecord):
                    await self._give_up(run)
                    raise
                await self._exchange(run)
            await self._pool.execute(_FLIPPED, collection)
            if run.previous is not None:
                await self._store.delete_collection(run.previous)
            report = await self._reconciler.repair(collection)
            await self._pool.execute(_ENDED, collection)
            _log.info("%s means %s now, %d points", collection, run.target, run.copied)
            return RebuildReport(collection, run.target, run.copied, resumed, report)

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

    async def _prepare(
        self, run: _Run, spec: CollectionConfig | None, present: CollectionInfo | None
    ) -> None:
        """Make the target, unless an interrupted rebuild has made it."""
        if await self._present(run.target) is not None:
            if spec is not None:
                await self._store.ensure_collection_exists(run.target, spec)
            return
        definition = spec or self._store.config.collections.get(run.collection)
        now = None if present is None else spec_of(present)
        if definition is None:
            if now is None:
                raise CollectionNotFound(run.collection, operation="rebuild")
            definition = now
        if spec is None and now is not None and _sizes(now) != _sizes(definition):
            # Reindexed since it was configured; to undo that, *spec* must be given.
            await self._pool.execute(_ENDED, run.collection)
            raise CollectionMismatch(
                run.collection, {"size": (_sizes(definition), _sizes(now))}
            )
        await self._store.ensure_collection_exists(run.target, definition)
        if run.reached:
            # What had been copied has gone with the target: begin anew.
            run.reached, run.copied = "", 0
            run.since = await self._pool.fetchval(_ANEW, run.collection)

    async def _fill(self, run: _Run, progress: Progress | None) -> None:
        total: int = await self._pool.fetchval(_COUNT, run.collection)
        while True:
            rows = await self._pool.fetch(
                _LIVE_PAGE, run.collection, run.reached, _PAGE
            )
            if not rows:
                return
            written = await self._write(run, await points_of(_states(rows)))
            run.reached = rows[-1]["point_id"]
            run.copied += written
            await self._pool.execute(_REACHED, run.collection, run.reached, written)
            if progress is not None:
                progress(run.copied, total)

    async def _catch_up(self, run: _Run) -> None:
        """Copy what became newer, until a pass finds less than a page of it."""
        since = run.since
        for _ in range(_PASSES):
            begun: int = await self._pool.fetchval(_VERSION)
            changed, reached = 0, ""
            while rows := await self._pool.fetch(
                _NEWER_PAGE, run.collection, reached, _PAGE, since
            ):
                reached = rows[-1]["point_id"]
                changed += len(rows)
                await self._apply(run, rows)
            since = begun
            if changed < _PAGE:
                return

    async def _apply(self, run: _Run, rows: Sequence[Any]) -> None:
        """Bring one page of newer states into the target."""
        live = _states([row for row in rows if row["op"] == "u"])
        await self._write(run, await points_of(live))
        deleted: dict[int | str | UUID, int] = {
            decode_id(row["point_id"]): row["ver"] for row in rows if row["op"] == "d"
        }
        if deleted:
            await self._store.delete_points(
                run.target, list(deleted), newer_by=VERSION_KEY, up_to=deleted
            )

    async def _write(self, run: _Run, points: list[Point]) -> int:
        """Write what the target takes; return how many points that is.

        One that is refused is left out only if it waits in the queue, where the
        drainer has set it aside, or will. One that was delivered is in the present
        collection, and would be lost to searches: PostgreSQL has other vectors
        than the vector store, as after a ``reindex()``, or the definition is wrong.
        """
        while points:
            try:
                await self._store.upsert_points(
                    run.target, points, newer_by=VERSION_KEY
                )
            except (InvalidVector, InvalidRecord) as exc:
                if exc.index is None:
                    raise
                refused = points[exc.index]
                key = encode_id(refused.id)
                if not await self._pool.fetchval(_QUEUED, run.collection, key):
                    raise InvalidVector(
                        f"collection {run.collection!r}: point {refused.id!r} was "
                        f"delivered, but does not fit the new definition ({exc}); "
                        "nothing was exchanged; rebuild with a definition that fits "
                        "the vectors in PostgreSQL, or write the points again first",
                        collection=run.collection,
                    ) from exc
                points = points[: exc.index] + points[exc.index + 1 :]
            else:
                break
        return len(points)

    async def _give_up(self, run: _Run) -> None:
        """Forget a rebuild that cannot end: with another definition it begins anew."""
        await self._store.delete_collection(run.target)
        await self._pool.execute(_ENDED, run.collection)

    async def _exchange(self, run: _Run) -> None:
        """Make the name mean the target, and note what it meant before."""
        for _ in range(_EXCHANGES):
            aliases = await self._store.list_aliases()
            # A collection of this name is retired where it can be renamed, and
            # deleted by the exchange where it cannot.
            run.previous = aliases.get(run.collection, f"{run.target}_before")
            await self._pool.execute(_LEAVING, run.collection, run.previous)
            try:
                await self._store.exchange(
                    run.collection, run.target, retired=f"{run.target}_before"
                )
            except InvalidName:
                # A drainer made the collection again at this very moment.
                await asyncio.sleep(_BETWEEN_EXCHANGES)
                continue
            return
        raise LockTimeout(
            f"collection {run.collection!r}: it is made again as often as it is "
            "exchanged; stop the program that ensures it under this name"
        )


def _sizes(definition: CollectionConfig) -> dict[str, int]:
    sizes = {name: one.size for name, one in definition.vectors.items()}
    return sizes if definition.size is None else {**sizes, "": definition.size}


def _states(rows: Sequence[Any]) -> list[State]:
    return [
        (row["point_id"], row["ver"], row["vectors"], row["payload"]) for row in rows
    ]
