"""Tracked tables: rows that anyone writes become desired state.

Triggers note which rows are written from the moment they are made, and ``follow()``
makes desired state of them; ``backfill()`` brings the rows that were there before,
and leaves alone what is newer. What fires no
trigger (a partition that comes or goes, ``session_replication_role = replica``, a
logical subscription) is found by comparing rows and points.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import ConfigurationInvalid, LockTimeout, QueryFailed
from fm_storage.outbox.agreement.track_sql import Tracked
from fm_storage.outbox.delivery.delivery import describe
from fm_storage.outbox.results import Difference
from fm_storage.postgres import Pool, Record, Sql, quote_qualified
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.sql import quote_literal as literal
from fm_storage.vector_state import DELETE_MANY, decode_id

if TYPE_CHECKING:
    from fm_storage._typing import Progress

_log = logging.getLogger("fm_storage.outbox")

_PAGE = 1000
_TRIES = 30

_DESCRIBE = Sql("""
SELECT n.nspname::text AS schema, c.relname::text AS name,
  c.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
    AS partitioned,
  c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid)
    AS inherited,
  EXISTS (SELECT FROM pg_attribute AS o WHERE o.attrelid = c.oid
    AND o.attgenerated = 'v' AND o.attname = ANY ($3::text[])) AS virtual,
  CASE WHEN t.typname = 'uuid' THEN 'uuid' WHEN t.typname IN ('int2', 'int4', 'int8')
    THEN 'integer' WHEN t.typname IN ('text', 'varchar') THEN 'text' END AS kind,
  format_type(a.atttypid, NULL) AS type, a.attnotnull AND EXISTS (
    SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique
      AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum
  ) AS unique,
  ARRAY(SELECT o.attname::text FROM pg_attribute AS o
    WHERE o.attrelid = c.oid AND o.attnum > 0 AND NOT o.attisdropped) AS columns
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = $2 AND a.attnum > 0
LEFT JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p')""")

_PARTITIONS = (
    "ARRAY(SELECT p.relid::oid FROM pg_partition_tree({table}) AS p ORDER BY 1)"
)

_REMEMBER = """
INSERT INTO fm_storage.vector_track AS k
  (collection, relation, definition, since, partitions, doubtful)
SELECT {collection}, {table}::regclass, {definition}::jsonb, v.last_value, {partitions},
  EXISTS (SELECT FROM fm_storage.vector_state
    WHERE collection = {collection} AND op = 'u' AND source IS NOT NULL)
FROM fm_storage.vector_version AS v
ON CONFLICT (collection) DO UPDATE SET relation = EXCLUDED.relation,
  definition = EXCLUDED.definition, since = EXCLUDED.since, reached = NULL,
  filled = 0, filled_at = NULL, partitions = EXCLUDED.partitions,
  doubtful = EXCLUDED.doubtful"""

# By its present name: a table may be renamed, and moved to another schema.
_NAMED = """
SELECT k.collection, k.definition AS stored, k.since, k.reached, k.filled_at,
  k.definition || jsonb_build_object('schema', n.nspname, 'name', c.relname)
    AS definition
FROM fm_storage.vector_track AS k JOIN pg_class AS c ON c.oid = k.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace"""
_KNOWN = Sql(
    f"{_NAMED} WHERE $1::text IS NULL OR k.collection = $1 ORDER BY k.collection"
)
_CHANGED = Sql(f"""{_NAMED} WHERE EXISTS (
  SELECT FROM fm_storage.vector_changed AS c WHERE c.collection = k.collection)""")
_OTHER = Sql("""
SELECT collection FROM fm_storage.vector_track
WHERE relation = to_regclass($1) AND collection <> $2""")

_LOOK = Sql(f"""
WITH moved AS (
  UPDATE fm_storage.vector_track AS k SET doubtful = TRUE, partitions = p.now
  FROM (SELECT o.collection,
      {_PARTITIONS.format(table="o.relation::regclass")} AS now
    FROM fm_storage.vector_track AS o
    WHERE EXISTS (SELECT FROM pg_class AS c WHERE c.oid = o.relation)) AS p
  WHERE p.collection = k.collection AND k.partitions IS DISTINCT FROM p.now
  RETURNING k.collection
), dropped AS (
  DELETE FROM fm_storage.vector_track AS k
  WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = k.relation)
  RETURNING k.collection
), unlogged AS (
  DELETE FROM fm_storage.vector_changed WHERE collection IN (TABLE dropped)
), cleared AS (
  INSERT INTO fm_storage.vector_cleared AS x (collection, ver)
  SELECT collection, nextval('fm_storage.vector_version') FROM dropped
  ON CONFLICT (collection) DO UPDATE SET ver = EXCLUDED.ver
  RETURNING x.collection
)
SELECT collection, TRUE AS doubtful FROM moved
UNION ALL SELECT collection, TRUE FROM fm_storage.vector_track WHERE doubtful
UNION ALL SELECT collection, FALSE FROM cleared
UNION ALL SELECT collection, FALSE FROM fm_storage.vector_cleared""")

_CLEAR_PAGE = Sql("""
WITH page AS MATERIALIZED (
  SELECT s.point_id, s.op = 'u' AND s.ver <= c.ver AS doomed
  FROM fm_storage.vector_cleared AS c JOIN fm_storage.vector_state AS s
    ON s.collection = c.collection
  WHERE c.collection = $1 AND s.point_id > $2 ORDER BY s.point_id LIMIT $3
), fm_state AS (
  UPDATE fm_storage.vector_state AS s SET ver = nextval('fm_storage.vector_version'),
    op = 'd', vectors = NULL, payload = NULL, payload_hash = NULL, source = NULL
  FROM page AS p, fm_storage.vector_cleared AS c
  WHERE c.collection = $1 AND s.collection = $1 AND s.point_id = p.point_id
    AND p.doomed AND s.op = 'u' AND s.ver <= c.ver
  RETURNING s.collection, s.point_id, s.ver
), queued AS (
  INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
  SELECT collection, point_id, ver FROM fm_state ORDER BY point_id
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
    replay = FALSE, due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END,
    since = CASE WHEN q.replay THEN now() ELSE q.since END
)
SELECT max(point_id) FROM page""")

_CLEARED = Sql(
    "DELETE FROM fm_storage.vector_cleared WHERE collection = $1 AND ver = $2"
)
_CLEARING = Sql("SELECT ver FROM fm_storage.vector_cleared WHERE collection = $1")
_FILLED = Sql("""
UPDATE fm_storage.vector_track SET filled_at = now()
WHERE collection = $1 AND filled_at IS NULL""")
# A doubt that arises during the comparison makes a new version of its row, and stays.
_DOUBT = Sql("SELECT xmin::text FROM fm_storage.vector_track WHERE collection = $1")
_TRUSTED = Sql(
    "UPDATE fm_storage.vector_track SET doubtful = FALSE "
    "WHERE collection = $1 AND xmin::text = $2"
)
# Dates and numbers as texts must not depend on who reads them.
_FORMATS = ", ".join(
    f"set_config('{name}', '{value}', TRUE)"
    for name, value in {
        "TimeZone": "UTC",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "extra_float_digits": "1",
        "bytea_output": "hex",
    }.items()
)
_FORMAT = Sql(f"SELECT {_FORMATS}")
_READING = Sql(f"SELECT {_FORMATS}, set_config('lock_timeout', '1s', TRUE)")
# What is delivered is flushed when it is claimed. No wait for a table that is locked.
_ALONE = Sql(f"""
SELECT {_FORMATS}, set_config('synchronous_commit', 'off', TRUE),
  set_config('lock_timeout', '20ms', TRUE),
  pg_try_advisory_xact_lock(hashtext('fm_storage.track'), hashtext($1)) AS had""")
_ROWS = Sql(
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = $1::regclass"
)

_ERRORLESS = Sql("""
SELECT s.point_id, s.ver FROM fm_storage.vector_state AS s
WHERE s.collection = $3 AND s.op = 'u' AND s.point_id > $2
  AND NOT EXISTS (SELECT FROM project_errors AS e WHERE e.id =
    CASE WHEN s.point_id ~ '^[0-9a-f-]{36}$' THEN s.point_id::uuid END)
ORDER BY s.point_id LIMIT $1""")
_CATALOGUE = "project_errors_"


class Tracker:
    """The tracked tables of one database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def define(
        self,
        table: str,
        collection: str,
        *,
        key: str,
        texts: Sequence[str],
        payload: Sequence[str],
    ) -> Tracked:
        """Return the definition of a table that can be tracked.

        Raises:
            ConfigurationInvalid: There is no such table or column, or the key is
                not one column that is unique, NOT NULL, and a UUID, integer or text.
        """
        for value, name in ((table, "table"), (collection, "collection"), (key, "key")):
            of_kind(value, str, name, "give a name")
        if not collection or collection.startswith(_CATALOGUE):
            raise ConfigurationInvalid(
                "collection",
                f"{collection!r} cannot be that of a tracked table: it is empty, or "
                "named as those of the error catalogue; give another name",
            )
        schema, _, name = table.rpartition(".")
        quoted = quote_qualified(schema or None, name)
        found = await self._pool.fetchrow(_DESCRIBE, quoted, key, [*texts, *payload])
        if found is None:
            raise ConfigurationInvalid("table", f"{table!r} is no table; name one")
        if found["inherited"]:
            raise ConfigurationInvalid(
                "table",
                f"{table!r} has tables that inherit from it, whose rows fire none of "
                "its triggers; track each of these, or make it partitioned",
            )
        absent = [one for one in (key, *texts, *payload) if one not in found["columns"]]
        if absent or not texts:
            raise ConfigurationInvalid(
                "text" if not texts else "table",
                f"{table!r} has no column {', '.join(map(repr, absent)) or 'as text'}; "
                f"it has {', '.join(found['columns'])}",
            )
        if not found["unique"] or found["kind"] is None:
            raise ConfigurationInvalid(
                "key",
                f"{key!r} of {table!r} ({found['type']}) cannot name points; it takes "
                "a primary key or unique NOT NULL column of type uuid, integer or text",
            )
        if other := await self._pool.fetchval(_OTHER, quoted, collection):
            raise ConfigurationInvalid(
                "table",
                f"{table!r} is tracked for collection {other!r}; untrack() that first",
            )
        return Tracked(
            collection,
            found["schema"],
            found["name"],
            key,
            found["kind"],
            tuple(texts),
            tuple(payload),
            found["partitioned"],
            found["virtual"],
        )

    async def track(self, tracked: Tracked) -> bool:
        """Make the triggers of a table; return False if they were made before.

        Raises:
            LockTimeout: The table was in use for too long; nothing was changed.
            PermissionDenied: The role may not make triggers on it.
        """
        for record in await self._pool.fetch(_KNOWN, tracked.collection):
            if record["stored"] == record["definition"] == _stored(tracked):
                return False
        pauses = Backoff(0.05, 2.0)
        while True:
            try:
                async with self._pool.transaction() as tx:
                    # Waiting for the lock makes everybody else wait behind it.
                    await tx.execute("SET LOCAL lock_timeout = '500ms'")
                    for statement in _statements(tracked):
                        await tx.execute(statement)
            except LockTimeout:
                if pauses.failures >= _TRIES:
                    raise
                await pauses.sleep()
            else:
                return True

    def script(self, tracked: Tracked) -> tuple[str, str]:
        """Return the SQL of ``track()``, and that which undoes it."""
        up, down = _statements(tracked), tracked.down
        return ";\n\n".join([*up, ""]), ";\n\n".join([*down, ""])

    async def untrack(self, collection: str) -> bool:
        """Drop the triggers of a collection's table; return whether there were any."""
        for tracked in await self.known(collection):
            async with self._pool.transaction() as tx:
                for statement in tracked.down:
                    await tx.execute(statement)
            return True
        return False

    async def known(self, collection: str | None = None) -> list[Tracked]:
        """Return the tables that are tracked, or a collection's."""
        records = await self._pool.fetch(_KNOWN, collection)
        return [_read(r["collection"], r["definition"]) for r in records]

    async def backfill(
        self, collection: str, *, batch: int, progress: Progress | None
    ) -> int:
        """Make points of the rows from before the triggers; return how many were read.

        Each batch is a transaction. Killed or cancelled, the next call goes on where
        this one was; one that had ended begins anew and finds nothing to change.

        Raises:
            ConfigurationInvalid: The collection has no tracked table.
        """
        of_kind(batch, int, "batch_size", "give a whole number")
        if batch < 1:
            raise ConfigurationInvalid(
                "batch_size", f"is {batch}; give the rows of one transaction, 1 or more"
            )
        tracked = await self._one(collection)
        record = await self._pool.fetchrow(_KNOWN, collection)
        assert record is not None
        reached = None if record["filled_at"] is not None else record["reached"]
        total = await self._pool.fetchval(_ROWS, tracked.table) if progress else 0
        read = 0
        while True:
            statement = tracked.fill(first=reached is None)
            async with self._pool.transaction() as tx:
                await tx.execute(tracked.lock)
                await tx.execute(_FORMAT)
                page = await tx.fetchrow(statement, batch, reached, record["since"])
            if page is None or not page["rows"]:
                await self._pool.execute(_FILLED, collection)
                return read
            read += page["rows"]
            reached = page["reached"]
            if progress is not None:
                progress(read, max(total, read))

    async def follow(self) -> dict[str, str]:
        """Make desired state of rows that changed; return by collection why not.

        One collection that fails, or whose table is locked, holds up no other. Many
        changes are taken a page at a time, until some point is due by them.

        Raises:
            StorageError: PostgreSQL did not answer.
        """
        waiting: dict[str, str] = {}
        for record in await self._pool.fetch(_CHANGED):
            tracked = _read(record["collection"], record["definition"])
            try:
                while not await self._follow(tracked):
                    pass
            except QueryFailed as exc:
                if not exc.retryable:
                    waiting[tracked.collection] = describe(exc)
        return waiting

    async def _follow(self, tracked: Tracked) -> bool:
        """Take a page of changes; return whether to deliver before the next one."""
        async with self._pool.transaction() as tx:
            alone = await tx.fetchrow(_ALONE, tracked.collection)
            if not (alone and alone["had"]):
                return True  # another process is at it
            taken, due = await tx.fetchrow(tracked.follow, _PAGE) or (0, 0)
        return due > 0 or taken < _PAGE

    async def tick(self) -> dict[str, str]:
        """Do what triggers left to do: tables that were emptied, rows in doubt.

        Returns, by collection, why a table cannot be compared.

        Raises:
            StorageError: PostgreSQL did not answer.
        """
        refused: dict[str, str] = {}
        met = await self._pool.fetch(_LOOK)
        for collection, doubtful in {(r["collection"], r["doubtful"]) for r in met}:
            if not doubtful:
                await self._clear(collection)
                continue
            doubt = await self._pool.fetchval(_DOUBT, collection)
            try:
                async for _ in self.differences(collection, repair=True):
                    pass
            except QueryFailed as exc:
                if not exc.retryable:
                    refused[collection] = describe(exc)
            else:
                await self._pool.execute(_TRUSTED, collection, doubt)
        return refused

    async def differences(
        self, collection: str, *, repair: bool = False
    ) -> AsyncIterator[list[Difference]]:
        """Yield differences between rows and points, a page at a time.

        With *repair*, the rows are noted as changed, so that they are followed anew.
        """
        tracked = await self.known(collection)
        if collection.startswith(_CATALOGUE):
            rowless = _ERRORLESS
        elif tracked:
            rowless = tracked[0].rowless
            async for page in self._unlike(tracked[0], repair=repair):
                yield page
        else:
            return
        reached = ""
        extra = (collection,) if rowless is _ERRORLESS else ()
        while rows := await self._page(rowless, _PAGE, reached, *extra):
            reached = rows[-1]["point_id"]
            yield [
                Difference(collection, decode_id(key), "orphan", None, ver)
                for key, ver in rows
            ]
            if repair:
                ids = [row["point_id"] for row in rows]
                if tracked:
                    await self._again(tracked[0], ids)
                else:
                    await self._pool.execute(DELETE_MANY, collection, ids)

    async def _unlike(
        self, tracked: Tracked, *, repair: bool
    ) -> AsyncIterator[list[Difference]]:
        reached: str | None = None
        while True:
            statement = tracked.differing(first=reached is None)
            rows = await self._page(statement, _PAGE, reached)
            if not rows:
                return
            reached = rows[0]["reached"]
            found = [row for row in rows if row["point_id"] is not None]
            if not found:
                continue
            yield [
                Difference(
                    tracked.collection,
                    decode_id(row["point_id"]),
                    row["kind"],
                    row["ver"],
                    None,
                )
                for row in found
            ]
            if repair:
                await self._again(tracked, [row["point_id"] for row in found])

    async def _page(self, statement: Sql, *args: object) -> list[Record]:
        """Read a page of rows as every reader sees them; a lock is not waited for."""
        async with self._pool.transaction() as tx:
            await tx.execute(_READING)
            return await tx.fetch(statement, *args)

    async def _again(self, tracked: Tracked, ids: list[str]) -> None:
        await self._pool.execute(tracked.recheck, ids)
        while not await self._follow(tracked):
            pass

    async def _clear(self, collection: str) -> None:
        mark = await self._pool.fetchval(_CLEARING, collection)
        if mark is None:
            return  # another drainer has done it
        reached: str | None = ""
        while reached is not None:
            reached = await self._pool.fetchval(_CLEAR_PAGE, collection, reached, _PAGE)
        await self._pool.execute(_CLEARED, collection, mark)

    async def _one(self, collection: str) -> Tracked:
        for tracked in await self.known(collection):
            return tracked
        raise ConfigurationInvalid(
            "collection", f"{collection!r} has no tracked table; track() one first"
        )


def _statements(tracked: Tracked) -> list[str]:
    table = literal(tracked.table)
    remember = _REMEMBER.format(
        collection=literal(tracked.collection),
        table=table,
        definition=literal(orjson.dumps(_stored(tracked)).decode()),
        partitions=_PARTITIONS.format(table=f"{table}::regclass"),
    )
    return [*tracked.up, remember]


def _stored(tracked: Tracked) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(tracked).items()
        if key != "collection"
    }


def _read(collection: str, definition: dict[str, Any]) -> Tracked:
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in definition.items()
    }
    return _same(Tracked(collection, **given))


@lru_cache(maxsize=100)
def _same(tracked: Tracked) -> Tracked:
    """Return one object for equal ones, which has its statements made already."""
    return tracked
