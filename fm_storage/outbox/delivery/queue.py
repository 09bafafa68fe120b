"""The queue in PostgreSQL: taking rows on lease, and giving them back.

Every rule that makes several drainers safe is a statement here:

- a row belongs to one drainer until ``due_at``, which is also the lease's token;
- it goes only if its version still is the one delivered, and the collection was
  not exchanged since it was taken;
- rows locked by a writer's open transaction are skipped, never waited for;
- a delivered deletion stays as a tombstone and is sent once more after every
  lease that was running, for an upsert of a drainer that lost its lease may have
  arrived after it.

Taking rows pins ``synchronous_commit = on``: its commit then also flushes the
writers' commits before it, and the vector store never holds a version that a
crash of PostgreSQL takes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fm_storage.postgres import Executor, Sql

TIMELINE = (
    "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
)
"""SQL for the timeline that the server writes; each promotion begins another."""

_COLLECTIONS = 8
"""Collections of which one claim takes rows, those first that wait longest."""


@dataclass(slots=True)
class Leased:
    """One queue row on lease, with the desired state that was read with it.

    ``ver``, ``op`` and the content come from one row of ``vector_state`` and so
    belong together; the queue may already hold a newer version. ``timeline`` is the
    server's when it gave the row.
    """

    collection: str
    point_id: str
    ver: int
    op: str
    vectors: bytes | None
    payload: dict[str, Any] | None
    payload_hash: bytes | None
    replay: bool
    attempts: int
    due_at: datetime
    claimed_at: datetime
    timeline: int


@dataclass(frozen=True, slots=True)
class Leases:
    """Rows on lease: how many, when the last lease ends, seconds to the first end."""

    count: int = 0
    until: datetime | None = None
    earliest: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of delivered rows: their lags in seconds, and those locked."""

    lags: list[float]
    locked: list[Leased]


# The queue is empty today and long tomorrow, so the planner's idea of its size is
# always wrong. LATERAL with OFFSET 0 keeps it to one index look-up for each row,
# and ctid to the row just locked; both were three scans of the queue otherwise.

# One step of the recursion finds the next collection and its first due row, so a
# long queue of one collection is not read to find the others.
_CLAIM = Sql(f"""
WITH RECURSIVE first AS (
  (SELECT q.collection, q.due_at FROM fm_storage.vector_queue AS q
   WHERE q.quarantined_at IS NULL ORDER BY q.collection, q.due_at LIMIT 1)
  UNION ALL
  SELECT n.collection, n.due_at FROM first AS f CROSS JOIN LATERAL (
    SELECT q.collection, q.due_at FROM fm_storage.vector_queue AS q
    WHERE q.quarantined_at IS NULL AND q.collection > f.collection
    ORDER BY q.collection, q.due_at LIMIT 1) AS n
), chosen AS MATERIALIZED (
  SELECT collection FROM first
  WHERE due_at <= now() AND collection <> ALL ($3::text[])
    AND (SELECT pg_catalog.set_config('synchronous_commit', 'on', TRUE)) IS NOT NULL
  ORDER BY due_at LIMIT $4
), due AS MATERIALIZED (
  SELECT d.place FROM chosen AS c CROSS JOIN LATERAL (
    SELECT q.ctid AS place FROM fm_storage.vector_queue AS q
    WHERE q.collection = c.collection AND q.due_at <= now()
      AND q.quarantined_at IS NULL
    ORDER BY q.due_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS d
), taken AS (
  UPDATE fm_storage.vector_queue AS q
  SET due_at = now() + make_interval(secs => $2), leased = TRUE, holder = $5
  FROM due WHERE q.ctid = due.place
  RETURNING q.collection, q.point_id, q.replay, q.attempts, q.due_at
)
SELECT t.collection, t.point_id, s.ver, s.op, s.vectors, s.payload, s.payload_hash,
  t.replay, t.attempts, t.due_at, now() AS claimed_at, (SELECT {TIMELINE}) AS timeline
FROM taken AS t CROSS JOIN LATERAL (
  SELECT * FROM fm_storage.vector_state AS s
  WHERE s.collection = t.collection AND s.point_id = t.point_id OFFSET 0) AS s""")

_GIVEN = """
WITH given AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[])
    WITH ORDINALITY AS g (collection, point_id, ver, due_at, nr)
)"""

_FINISH = Sql("""
WITH given AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[],
      $5::text[], $6::boolean[])
    WITH ORDINALITY AS g (collection, point_id, ver, due_at, op, replayed, nr)
), mine AS MATERIALIZED (
  SELECT q.place, g.nr, q.since, q.replay,
    q.ver <= g.ver AND NOT EXISTS (
      SELECT FROM fm_storage.vector_rebuild AS r
      WHERE r.collection = g.collection AND r.flipped_at >= $7) AS same,
    q.leased AND q.due_at = g.due_at AS held,
    g.op = 'u' OR g.replayed AND q.replay AS last
  FROM given AS g CROSS JOIN LATERAL (
    SELECT q.ctid AS place, q.* FROM fm_storage.vector_queue AS q
    WHERE q.collection = g.collection AND q.point_id = g.point_id
    OFFSET 0 FOR UPDATE SKIP LOCKED) AS q
), gone AS (
  DELETE FROM fm_storage.vector_queue
  WHERE ctid = ANY (ARRAY(SELECT place FROM mine WHERE same AND last))
), kept AS (
  UPDATE fm_storage.vector_queue AS q
  SET replay = m.same, leased = FALSE, attempts = 0, last_error = NULL,
    due_at = CASE WHEN m.same THEN now() + make_interval(secs => $8) ELSE now() END
  FROM mine AS m
  WHERE q.ctid = m.place AND (m.same AND NOT m.last OR NOT m.same AND m.held)
)
SELECT
  array_agg(extract(epoch FROM clock_timestamp() - m.since)::float8)
    FILTER (WHERE m.same AND NOT m.replay) AS lags,
  array_agg(g.nr) FILTER (WHERE m.nr IS NULL AND EXISTS (
    SELECT FROM fm_storage.vector_queue AS q
    WHERE q.collection = g.collection AND q.point_id = g.point_id)) AS locked
FROM given AS g LEFT JOIN mine AS m USING (nr)""")

_SKIPPING = """, mine AS MATERIALIZED (
  SELECT q.place, q.ver <= g.ver AS same
  FROM given AS g CROSS JOIN LATERAL (
    SELECT q.ctid AS place, q.ver FROM fm_storage.vector_queue AS q
    WHERE q.collection = g.collection AND q.point_id = g.point_id
      AND q.leased AND q.due_at = g.due_at
    OFFSET 0 FOR UPDATE SKIP LOCKED) AS q
)"""

_POSTPONE = Sql(
    _GIVEN
    + _SKIPPING
    + """
UPDATE fm_storage.vector_queue AS q
SET leased = FALSE,
  due_at = now() + make_interval(secs => CASE WHEN m.same THEN $5::float8 ELSE 0 END),
  attempts = CASE WHEN m.same THEN q.attempts + $6 ELSE 0 END,
  last_error = CASE WHEN m.same THEN coalesce($7, q.last_error) END
FROM mine AS m
WHERE q.ctid = m.place"""
)

_QUARANTINE = Sql(
    _GIVEN
    + _SKIPPING
    + """
UPDATE fm_storage.vector_queue AS q
SET leased = FALSE,
  due_at = now(),
  attempts = CASE WHEN m.same THEN q.attempts + 1 ELSE 0 END,
  last_error = CASE WHEN m.same THEN $5 END,
  quarantined_at = CASE WHEN m.same THEN now() END
FROM mine AS m
WHERE q.ctid = m.place"""
)

_DELETE_AGAIN = Sql("""
INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
SELECT s.collection, s.point_id, s.ver
FROM unnest($2::text[], $3::bigint[]) AS g (point_id, ver)
JOIN fm_storage.vector_state AS s
  ON s.collection = $1 AND s.point_id = g.point_id AND s.ver > g.ver AND s.op = 'd'
ORDER BY s.point_id
ON CONFLICT (collection, point_id) DO UPDATE
SET replay = FALSE,
  due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END
RETURNING 1""")

_KEEP_VECTORS = Sql("""
WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::text[], $3::bigint[], $4::bytea[])
    AS g (point_id, ver, vectors)
), mine AS MATERIALIZED (
  SELECT s.point_id, g.vectors
  FROM given AS g JOIN fm_storage.vector_state AS s
    ON s.collection = $1 AND s.point_id = g.point_id AND s.ver = g.ver
  FOR UPDATE OF s SKIP LOCKED
)
UPDATE fm_storage.vector_state AS s SET vectors = m.vectors
FROM mine AS m WHERE s.collection = $1 AND s.point_id = m.point_id
RETURNING s.point_id""")

_KEEP_HASHES = Sql("""
WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS g (point_id, ver, hash)
), mine AS MATERIALIZED (
  SELECT s.point_id, g.hash
  FROM given AS g JOIN fm_storage.vector_state AS s
    ON s.collection = $1 AND s.point_id = g.point_id AND s.ver = g.ver
  FOR UPDATE OF s SKIP LOCKED
)
UPDATE fm_storage.vector_state AS s SET payload_hash = m.hash
FROM mine AS m WHERE s.collection = $1 AND s.point_id = m.point_id""")

_RETRY_NOW = Sql("""
UPDATE fm_storage.vector_queue SET due_at = now()
WHERE attempts > 0 AND NOT leased AND NOT replay AND quarantined_at IS NULL
  AND due_at > now()""")

_PENDING = Sql("""
SELECT count(*) + (SELECT count(DISTINCT (c.collection, c.point_id))
  FROM fm_storage.vector_changed AS c
  WHERE ($1::text IS NULL OR c.collection = $1) AND c.collection <> ALL ($2::text[]))
FROM fm_storage.vector_queue
WHERE quarantined_at IS NULL AND NOT replay
  AND ($1::text IS NULL OR collection = $1) AND collection <> ALL ($2::text[])""")

_LEASES = Sql("""
SELECT count(*) AS count, max(due_at) AS until,
  extract(epoch FROM min(due_at) - now())::float8 AS earliest
FROM fm_storage.vector_queue
WHERE leased AND due_at > now() AND quarantined_at IS NULL AND NOT replay""")

_FLUSHABLE = Sql("""
SELECT EXISTS (
  SELECT FROM fm_storage.vector_queue
  WHERE quarantined_at IS NULL AND NOT replay AND attempts = 0
    AND (leased OR due_at <= now()))
  OR EXISTS (SELECT FROM fm_storage.vector_changed)""")

_SYNCED = Sql("""
SELECT quarantined_at IS NOT NULL AS quarantined, last_error
FROM fm_storage.vector_queue
WHERE point_id = $1 AND ($2::text IS NULL OR collection = $2) AND NOT replay
UNION ALL SELECT FALSE, NULL FROM fm_storage.vector_changed
WHERE point_id = $1 AND ($2::text IS NULL OR collection = $2)
ORDER BY 1 DESC LIMIT 1""")

_ANNOUNCE = Sql("""
SELECT set_config('synchronous_commit', 'off', TRUE),
  setval('fm_storage.vector_waiting', $1::bigint) FROM fm_storage.vector_waiting
WHERE last_value <> $1 AND current_setting('max_prepared_transactions') = '0'""")


class Queue:
    """The statements of this module on one executor.

    Every method is one statement; cancelled, it has happened or it has not, and
    rows left on lease come back when the lease ends.
    """

    def __init__(self, executor: Executor, *, lease: float, grace: float) -> None:
        self._executor = executor
        self._lease = lease
        self._grace = grace
        self.holder: int | None = None  # by Presence, while its lock is held

    async def claim(self, limit: int, *, without: Sequence[str] = ()) -> list[Leased]:
        """Take up to *limit* due rows of each of some collections, oldest first."""
        records = await self._executor.fetch(
            _CLAIM, limit, self._lease, list(without), _COLLECTIONS, self.holder
        )
        return [Leased(*record) for record in records]

    async def finish(self, rows: Sequence[Leased]) -> Finished:
        """Remove delivered rows whose version stands; let the others go on.

        Rows that a writer has locked are given back as ``locked``: ask again.
        """
        if not rows:
            return Finished([], [])
        record = await self._executor.fetchrow(
            _FINISH,
            *_columns(rows),
            [row.op for row in rows],
            [row.replay for row in rows],
            min(row.claimed_at for row in rows),
            self._lease + self._grace,
        )
        lags: list[float] = (record and record["lags"]) or []
        locked: list[int] = (record and record["locked"]) or []
        return Finished(lags, [rows[nr - 1] for nr in locked])

    async def postpone(
        self, rows: Sequence[Leased], *, delay: float, error: str | None
    ) -> None:
        """Give rows back, to be due after *delay*; with *error* it counts as failed."""
        if rows:
            await self._executor.execute(
                _POSTPONE, *_columns(rows), delay, 0 if error is None else 1, error
            )

    async def quarantine(self, row: Leased, *, error: str) -> None:
        """Set one row aside, unless a newer version has come."""
        await self._executor.execute(_QUARANTINE, *_columns([row]), error)

    async def delete_again(self, collection: str, written: Mapping[str, int]) -> int:
        """Repeat deletions that versions in *written* may have arrived after."""
        records = await self._executor.fetch(
            _DELETE_AGAIN, collection, list(written), list(written.values())
        )
        return len(records)

    async def keep_vectors(
        self, collection: str, vectors: Mapping[str, tuple[int, bytes]]
    ) -> set[str]:
        """Store embedded vectors, and return the ids whose version still stood."""
        records = await self._executor.fetch(
            _KEEP_VECTORS,
            collection,
            list(vectors),
            [ver for ver, _ in vectors.values()],
            [data for _, data in vectors.values()],
        )
        return {record["point_id"] for record in records}

    async def keep_hashes(
        self, collection: str, hashes: Mapping[str, tuple[int, bytes]]
    ) -> None:
        """Store digests of payloads that the writer had not computed."""
        await self._executor.execute(
            _KEEP_HASHES,
            collection,
            list(hashes),
            [ver for ver, _ in hashes.values()],
            [data for _, data in hashes.values()],
        )

    async def announce(self, *, waiting: bool) -> None:
        """Have writers of tracked tables notify, or not, when they write.

        Not at all where a writer may prepare its transaction: NOTIFY forbids that.
        """
        await self._executor.execute(_ANNOUNCE, int(waiting))

    async def retry_now(self) -> None:
        """Make rows due that wait after a failure."""
        await self._executor.execute(_RETRY_NOW)

    async def pending(
        self, collection: str | None = None, *, without: Sequence[str] = ()
    ) -> int:
        """Count the points that have not been delivered yet."""
        count: int = await self._executor.fetchval(_PENDING, collection, list(without))
        return count

    async def leases(self) -> Leases:
        """Return what drainers have taken and not yet given back."""
        record = await self._executor.fetchrow(_LEASES)
        return Leases() if record is None else Leases(*record)

    async def flushable(self) -> bool:
        """Whether rows are due or being delivered that have not failed before."""
        found: bool = await self._executor.fetchval(_FLUSHABLE)
        return found

    async def waiting(
        self, point_id: str, collection: str | None = None
    ) -> tuple[bool, str | None] | None:
        """Return (quarantined, last error) of an undelivered point, else None."""
        record = await self._executor.fetchrow(_SYNCED, point_id, collection)
        return None if record is None else (record["quarantined"], record["last_error"])


def _columns(rows: Sequence[Leased]) -> tuple[list[Any], ...]:
    return (
        [row.collection for row in rows],
        [row.point_id for row in rows],
        [row.ver for row in rows],
        [row.due_at for row in rows],
    )
