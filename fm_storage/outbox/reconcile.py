"""Comparing both stores exactly, and mending only what differs.

Two passes, each a page at a time: every point of the vector store is looked up
in PostgreSQL, then every desired point in the vector store (only if the first
pass leaves room for a missing one). Writers and drainers go on meanwhile, so a
difference counts only if it is still there when both sides are read again and
nothing for that point is on its way.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fm_storage.errors import CollectionNotFound
from fm_storage.outbox.results import Difference, RepairReport, Verification
from fm_storage.outbox.sequence import LAST, raise_sequence
from fm_storage.postgres import Executor, Pool, Sql
from fm_storage.vector_state import (
    VERSION_KEY,
    decode_id,
    delete_ctes,
    encode_id,
    payload_digest,
)

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.vectors import QdrantStore, ScoredPoint

__all__ = ["Reconciler", "collections_of"]

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

_LOOK_UP = Sql("""
SELECT g.point_id, s.ver, s.op, s.payload_hash,
  q.point_id IS NOT NULL AND NOT q.replay AS queued,
  q.quarantined_at IS NOT NULL AS set_aside
FROM unnest($2::text[]) AS g (point_id)
LEFT JOIN fm_storage.vector_state AS s
  ON s.collection = $1 AND s.point_id = g.point_id
LEFT JOIN fm_storage.vector_queue AS q
  ON q.collection = $1 AND q.point_id = g.point_id""")

_SET_ASIDE = Sql("""
SELECT count(*) FROM fm_storage.vector_queue
WHERE collection = $1 AND quarantined_at IS NOT NULL""")

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
    "WITH "  # noqa: S608 - constant text
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
class _Found:
    """One confirmed difference, with what is needed to mend it."""

    difference: Difference
    point_id: str


@dataclass(slots=True)
class _Tally:
    checked: int = 0
    agreeing: int = 0
    pending: int = 0
    quarantined: int = 0
    foreign: int = 0
    greatest: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[Difference] = field(default_factory=list)

    def note(self, found: _Found) -> None:
        self.counts[found.difference.kind] += 1
        if len(self.samples) < _SAMPLES:
            self.samples.append(found.difference)

    def verification(self) -> Verification:
        return Verification(
            checked=self.checked,
            pending=self.pending,
            quarantined=self.quarantined,
            foreign=self.foreign,
            counts=dict(self.counts),
            samples=tuple(self.samples),
            greatest=self.greatest,
        )


class Reconciler:
    """Verifies and repairs; holds one page of each store at a time."""

    def __init__(self, pool: Pool, store: QdrantStore) -> None:
        self._pool = pool
        self._store = store

    async def verify(
        self, collection: str | None = None, *, progress: Progress | None = None
    ) -> Verification:
        """Compare ids, versions and payload digests; change nothing."""
        tally = _Tally()
        for name in await self._named(collection):
            async for page in self._differences(name, tally, progress):
                for found in page:
                    tally.note(found)
            tally.quarantined += await self._pool.fetchval(_SET_ASIDE, name)
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
            async for page in self._differences(name, tally, progress):
                await raise_sequence(self._pool, tally.greatest)
                for found in page:
                    tally.note(found)
                enqueued += await self._mend(name, page)
            tally.quarantined += await self._pool.fetchval(_SET_ASIDE, name)
        return RepairReport(tally.verification(), enqueued)

    async def enqueue_all(self, collection: str | None = None) -> int:
        """Put every desired point into the queue; for an emptied vector store."""
        total = 0
        for name in await self._named(collection):
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
        except CollectionNotFound:
            return True

    async def _named(self, collection: str | None) -> list[str]:
        if collection is not None:
            return [collection]
        return await collections_of(self._pool)

    async def _differences(
        self, collection: str, tally: _Tally, progress: Progress | None
    ) -> AsyncIterator[list[_Found]]:
        """Yield confirmed differences, one page at a time."""
        before = await self._pool.fetchrow(_LIVE, collection)
        live, version = (before["live"], before["version"]) if before else (0, 0)
        start, agreed = tally.checked, tally.agreeing
        async for points in self._pages(collection):
            ours = {encode_id(p.id): p for p in points if VERSION_KEY in p.payload}
            tally.foreign += len(points) - len(ours)
            tally.checked += len(ours)
            if found := await self._compare(collection, list(ours), ours, tally):
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
            if absent and (found := await self._compare(collection, absent, {}, tally)):
                tally.checked += len(found)
                yield found

    async def _pages(self, collection: str) -> AsyncIterator[list[ScoredPoint]]:
        offset: int | str | None = None
        while True:
            try:
                points, offset = await self._store.scroll(
                    collection, limit=_PAGE, offset=offset
                )
            except CollectionNotFound:
                return
            yield points
            if offset is None:
                return

    async def _retrieve(
        self, collection: str, ids: Sequence[str]
    ) -> dict[str, ScoredPoint]:
        try:
            points = await self._store.retrieve(collection, map(decode_id, ids))
        except CollectionNotFound:
            return {}
        return {encode_id(point.id): point for point in points}

    async def _compare(
        self,
        collection: str,
        ids: Sequence[str],
        points: dict[str, ScoredPoint],
        tally: _Tally,
    ) -> list[_Found]:
        """Return the differences among *ids* that stay when looked at again.

        A point that is ahead counts although it is queued: what is on its way has
        an older version, and the store would refuse it.
        A tombstone is not on its way: the deletion was delivered, to a collection
        that the name no longer means, or before a late write.
        """
        found: list[_Found] = []
        for look in range(_LOOKS):
            rows = await _rows(self._pool, collection, ids)
            found, pending = [], 0
            for key in ids:
                row, point = rows[key], points.get(key)
                if point is not None:
                    version = _version(point)
                    tally.greatest = max(tally.greatest, version or 0)
                kind = _kind(row, point)
                if kind is None:
                    tally.agreeing += 1 if point is not None else 0
                elif row["queued"] and kind != "ahead":
                    pending += not row["set_aside"]
                else:
                    found.append(_difference(collection, key, kind, row, point))
            tally.pending += pending
            if not found or look == _LOOKS - 1:
                break
            # Read both sides again: the point may have moved between the looks.
            await asyncio.sleep(_BETWEEN_LOOKS)
            ids = [one.point_id for one in found]
            points = await self._retrieve(collection, ids)
        return found

    async def _mend(self, collection: str, page: Sequence[_Found]) -> int:
        renewed = [one for one in page if one.difference.desired is not None]
        unknown = [one for one in page if one.difference.desired is None]
        if renewed:
            await self._pool.execute(
                _RENEW,
                collection,
                [one.point_id for one in renewed],
                [one.difference.desired for one in renewed],
            )
        if unknown:
            await self._pool.execute(
                _FORGET_UNKNOWN, collection, [one.point_id for one in unknown]
            )
        return len(page)


async def _rows(
    executor: Executor, collection: str, ids: Sequence[str]
) -> dict[str, Any]:
    records = await executor.fetch(_LOOK_UP, collection, list(ids))
    return {record["point_id"]: record for record in records}


def _version(point: ScoredPoint) -> int | None:
    version = point.payload.get(VERSION_KEY)
    return version if isinstance(version, int) else None


def _kind(row: Any, point: ScoredPoint | None) -> str | None:  # noqa: ANN401 - Record
    """Say how one point differs, or None."""
    desired = row["op"] == "u"
    if point is None:
        return "missing" if desired else None
    if not desired:
        return "orphan"
    version = _version(point) or 0
    if version != row["ver"]:
        return "stale" if version < row["ver"] else "ahead"
    known = row["payload_hash"]
    if known is not None and payload_digest(point.payload) != known:
        return "changed"
    return None


def _difference(
    collection: str,
    key: str,
    kind: str,
    row: Any,  # noqa: ANN401 - Record
    point: ScoredPoint | None,
) -> _Found:
    found = None if point is None else _version(point)
    return _Found(Difference(collection, decode_id(key), kind, row["ver"], found), key)
