"""Comparing both stores exactly, and repairing only what differs.

Two passes, each a page at a time: every point of the vector store is looked up
in PostgreSQL, then every desired point in the vector store (only if the first
pass leaves room for a missing one). Writers and drainers go on meanwhile, so a
difference counts only if it is still there when both sides are read again and
nothing for that point is on its way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fm_storage.errors import CollectionDamaged, CollectionNotFound, QueryFailed
from fm_storage.outbox.agreement.compare import Pair, look_up
from fm_storage.outbox.agreement.marker import marked_version
from fm_storage.outbox.agreement.sequence import LAST, raise_sequence
from fm_storage.outbox.agreement.tracking import Tracker
from fm_storage.outbox.results import Difference, RepairReport, Verification
from fm_storage.postgres import Executor, Pool, Sql
from fm_storage.vector_state import (
    VERSION_KEY,
    decode_id,
    delete_ctes,
    encode_id,
)

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.vectors import QdrantStore, ScoredPoint

_log = logging.getLogger("fm_storage.outbox")

_PAGE = 500
_SAMPLES = 100
_LOOKS = 3
_BETWEEN_LOOKS = 0.05
_COLLECTIONS = Sql("SELECT DISTINCT collection FROM fm_storage.vector_state ORDER BY 1")

_LIVE = Sql("""
SELECT count(*) AS live, (SELECT last_value FROM fm_storage.vector_version) AS version,
  count(*) FILTER (WHERE EXISTS (
    SELECT FROM fm_storage.vector_queue AS q
    WHERE q.collection = s.collection AND q.point_id = s.point_id)) AS queued
FROM fm_storage.vector_state AS s WHERE collection = $1 AND op = 'u'""")

_TROUBLED = Sql("""
SELECT count(*) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined,
  count(*) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS failing,
  (SELECT count(DISTINCT point_id) FROM fm_storage.vector_changed
    WHERE collection = $1) AS changed
FROM fm_storage.vector_queue
WHERE collection = $1 AND (attempts > 0 OR quarantined_at IS NOT NULL)""")

_REBUILT = Sql("""
SELECT target FROM fm_storage.vector_exchange
UNION ALL SELECT previous FROM fm_storage.vector_exchange WHERE previous IS NOT NULL""")

_DESIRED = Sql("""
SELECT s.point_id FROM fm_storage.vector_state AS s
WHERE s.collection = $1 AND s.point_id > $2 AND s.op = 'u'
ORDER BY s.point_id LIMIT $3""")

_RENEW = Sql("""
WITH fm_state AS (
  UPDATE fm_storage.vector_state AS s SET ver = nextval('fm_storage.vector_version')
  FROM unnest($2::text[], $3::bigint[]) AS g (point_id, ver)
  WHERE s.collection = $1 AND s.point_id = g.point_id AND s.ver = g.ver
  RETURNING s.collection, s.point_id, s.ver
)
INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
SELECT collection, point_id, ver FROM fm_state ORDER BY point_id
ON CONFLICT (collection, point_id) DO UPDATE
SET ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
  replay = FALSE, due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END""")

_FORGET_UNKNOWN = Sql(
    "WITH "
    + delete_ctes(
        collection="$1",
        point_id="rec.id",
        source="(SELECT g.id FROM unnest($2::text[]) AS g (id) WHERE NOT EXISTS ("
        "SELECT FROM fm_storage.vector_state AS o WHERE o.collection = $1 "
        "AND o.point_id = g.id) ORDER BY 1) AS rec (id)",
    )
    + " SELECT count(*) FROM fm_state"
)

_ENQUEUE_ALL = Sql("""
WITH page AS (
  SELECT s.collection, s.point_id, s.ver FROM fm_storage.vector_state AS s
  WHERE s.collection = $1 AND s.point_id > $2 AND s.op = 'u'
  ORDER BY s.point_id LIMIT $3
), queued AS (
  INSERT INTO fm_storage.vector_queue (collection, point_id, ver)
  SELECT collection, point_id, ver FROM page
  ON CONFLICT (collection, point_id) DO NOTHING
)
SELECT max(point_id) AS reached, count(*) AS count FROM page""")


async def collections_of(executor: Executor) -> list[str]:
    """Return the collections that the outbox ever wrote to."""
    return [record[0] for record in await executor.fetch(_COLLECTIONS)]


@dataclass(slots=True)
class _Tally:
    checked: int = 0
    agreeing: int = 0
    pending: int = 0
    quarantined: int = 0
    failing: int = 0
    foreign: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    greatest: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[Difference] = field(default_factory=list)

    def note(self, difference: Difference) -> None:
        self.counts[difference.kind] += 1
        if len(self.samples) < _SAMPLES:
            self.samples.append(difference)

    def verification(self) -> Verification:
        return Verification(
            checked=self.checked,
            pending=self.pending,
            quarantined=self.quarantined,
            failing=self.failing,
            foreign=self.foreign,
            unknown=self.unknown,
            counts=dict(self.counts),
            samples=tuple(self.samples),
            greatest=self.greatest,
        )


class Reconciler:
    """Verifies and repairs; holds one page of each store at a time."""

    def __init__(self, pool: Pool, store: QdrantStore, tracker: Tracker) -> None:
        self._pool = pool
        self._store = store
        self._tracker = tracker

    async def verify(
        self, collection: str | None = None, *, progress: Progress | None = None
    ) -> Verification:
        """Compare ids, versions and payload digests; change nothing."""
        tally = _Tally()
        for name in await self._named(collection):
            await self._tracked(name, tally, repair=False)
            async for page in self._differences(name, tally, progress):
                for pair in page:
                    tally.note(pair.difference(name))
            await self._count_troubled(name, tally)
        if collection is None:
            tally.unknown = await self._unknown()
        return tally.verification()

    async def repair(
        self, collection: str | None = None, *, progress: Progress | None = None
    ) -> RepairReport:
        """Put what differs into the queue under new versions.

        If cancelled, what was queued so far stays queued.
        """
        tally = _Tally()
        enqueued = 0
        for name in await self._named(collection):
            enqueued += await self._tracked(name, tally, repair=True)
            async for page in self._differences(name, tally, progress):
                await raise_sequence(self._pool, tally.greatest)
                for pair in page:
                    tally.note(pair.difference(name))
                enqueued += await self._repair(name, page)
            await self._count_troubled(name, tally)
        if collection is None:
            tally.unknown = await self._unknown()
        return RepairReport(tally.verification(), enqueued)

    async def enqueue_all(self) -> int:
        """Put every desired point into the queue; for an emptied vector store."""
        total = 0
        for name in await self._named(None):
            reached = ""
            while True:
                record = await self._pool.fetchrow(_ENQUEUE_ALL, name, reached, _PAGE)
                if record is None or not record["count"]:
                    break
                total += record["count"]
                reached = record["reached"]
        return total

    async def short(self, collection: str) -> bool:
        """Whether the vector store holds visibly fewer points than it should."""
        record = await self._pool.fetchrow(_LIVE, collection)
        expected = 0 if record is None else record["live"] - record["queued"]
        if not expected:
            return False
        try:
            return await self._store.count(collection) < expected
        except (CollectionNotFound, CollectionDamaged):
            return True

    async def _tracked(self, collection: str, tally: _Tally, *, repair: bool) -> int:
        """Compare rows and points; a table that cannot be read stops no other one."""
        count = 0
        try:
            async for rows in self._tracker.differences(collection, repair=repair):
                for row in rows:
                    tally.note(row)
                count += len(rows)
        except QueryFailed as exc:
            if exc.retryable:
                raise
            tally.failing += 1
            _log.warning("the tracked rows of %s are not compared: %s", collection, exc)
        return count

    async def _named(self, collection: str | None) -> list[str]:
        if collection is not None:
            return [collection]
        tracked = [one.collection for one in await self._tracker.known()]
        return sorted({*await collections_of(self._pool), *tracked})

    async def _count_troubled(self, collection: str, tally: _Tally) -> None:
        record = await self._pool.fetchrow(_TROUBLED, collection)
        if record is not None:
            tally.quarantined += record["quarantined"]
            tally.failing += record["failing"]
            tally.pending += record["changed"]

    async def _unknown(self) -> dict[str, int]:
        """Count points with our version key in collections that are not ours."""
        ours = await collections_of(self._pool)
        aliases = await self._store.list_aliases()
        known = {*ours, *(aliases[one] for one in ours if one in aliases)}
        known |= {record[0] for record in await self._pool.fetch(_REBUILT)}
        found: dict[str, int] = {}
        for name in await self._store.list_collections():
            # What reindex() and rebuild() make is named for the collection.
            if name in known or name.rpartition("__")[0] in ours:
                continue
            try:
                count = await self._store.count(
                    name, filter={VERSION_KEY: {"exists": True}}
                )
            except (CollectionNotFound, CollectionDamaged):
                continue
            if count:
                found[name] = count
        return found

    async def _differences(
        self, collection: str, tally: _Tally, progress: Progress | None
    ) -> AsyncIterator[list[Pair]]:
        """Yield confirmed differences, one page at a time."""
        before = await self._pool.fetchrow(_LIVE, collection)
        live, version = (before["live"], before["version"]) if before else (0, 0)
        start, agreed = tally.checked, tally.agreeing
        marked = await marked_version(self._store)
        async for points in self._pages(collection):
            there = {encode_id(point.id): point for point in points}
            if found := await self._compare(
                collection, list(there), there, tally, marked
            ):
                yield found
            if progress is not None:
                progress(tally.checked - start, live)
        after: int = await self._pool.fetchval(LAST)
        if after == version and tally.agreeing - agreed == live:
            return  # nothing was written, and every desired point was seen
        reached = ""
        while True:
            records = await self._pool.fetch(_DESIRED, collection, reached, _PAGE)
            if not records:
                return
            ids = [record["point_id"] for record in records]
            reached = ids[-1]
            there = await self._retrieve(collection, ids)
            absent = [key for key in ids if key not in there]
            if absent and (
                found := await self._compare(collection, absent, {}, tally, marked)
            ):
                yield found

    async def _pages(self, collection: str) -> AsyncIterator[list[ScoredPoint]]:
        offset: int | str | None = None
        while True:
            try:
                points, offset = await self._store.scroll(
                    collection, limit=_PAGE, offset=offset
                )
            except (CollectionNotFound, CollectionDamaged):
                return
            yield points
            if offset is None:
                return

    async def _retrieve(
        self, collection: str, ids: Sequence[str]
    ) -> dict[str, ScoredPoint]:
        try:
            points = await self._store.retrieve(collection, map(decode_id, ids))
        except (CollectionNotFound, CollectionDamaged):
            return {}
        return {encode_id(point.id): point for point in points}

    async def _compare(
        self,
        collection: str,
        ids: Sequence[str],
        points: dict[str, ScoredPoint],
        tally: _Tally,
        marked: int,
    ) -> list[Pair]:
        """Return the differences among *ids* that stay when looked at again."""
        checked = {key for key in ids if key in points}
        found: list[Pair] = []
        for look in range(_LOOKS):
            known = await look_up(self._pool, collection, ids)
            pairs = [
                Pair(key, known[key], points.get(key), marked=marked) for key in ids
            ]
            found = []
            for pair in pairs:
                tally.greatest = max(tally.greatest, pair.version or 0)
                if pair.foreign:
                    tally.foreign += 1
                    checked.discard(pair.key)
                elif pair.kind is None:
                    tally.agreeing += 1 if pair.key in points else 0
                elif pair.on_its_way:
                    tally.pending += not pair.known.set_aside
                else:
                    found.append(pair)
            if not found or look == _LOOKS - 1:
                break
            # Read both sides again: the point may have moved between the looks.
            await asyncio.sleep(_BETWEEN_LOOKS)
            ids = [pair.key for pair in found]
            points = await self._retrieve(collection, ids)
        # A missing point was compared too, if it is missing indeed.
        tally.checked += len(checked.union(pair.key for pair in found))
        return found

    async def _repair(self, collection: str, page: Sequence[Pair]) -> int:
        stuck = [decode_id(pair.key) for pair in page if pair.kind == "impossible"]
        if stuck:
            # No version is greater: without this the store would refuse them all.
            # Killed right after it, the next comparison finds these points stale.
            await self._store.set_payload(collection, {VERSION_KEY: 0}, stuck)
        renewed = {pair.key: pair.known.ver for pair in page if pair.known.op}
        unknown = [pair.key for pair in page if not pair.known.op]
        if renewed:
            await self._pool.execute(
                _RENEW, collection, list(renewed), list(renewed.values())
            )
        if unknown:
            await self._pool.execute(_FORGET_UNKNOWN, collection, unknown)
        return len(page)
