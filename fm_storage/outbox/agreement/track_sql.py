"""The SQL of a tracked table: its triggers, and comparing its rows with the points.

Made here from the definition and quoted names, so that triggers, backfill and
comparison say with the same expressions which point a row is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from fm_storage.outbox.delivery.texts import text_sql
from fm_storage.outbox.notify import CHANNEL
from fm_storage.postgres import Sql, quote_ident, quote_qualified
from fm_storage.postgres.sql import quote_literal as literal

_LONGEST_KEY = 1000
"""Bytes of a key; an index entry of the queue must hold it."""

_QUEUED = """
INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
SELECT collection, point_id, ver FROM {}
ON CONFLICT (collection, point_id) DO UPDATE SET
  ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
  replay = FALSE,
  due_at = CASE WHEN q.leased OR q.due_at < now() THEN q.due_at ELSE now() END,
  since = CASE WHEN q.replay THEN now() ELSE q.since END"""

_NEXT = "nextval('fm_storage.vector_version')"


def _bare(point_id: str) -> str:
    """Return the SQL of the key in an encoded point id."""
    return f"substr({point_id}, CASE WHEN {point_id} LIKE 's:%' THEN 3 ELSE 1 END)"


@dataclass(frozen=True)
class Tracked:
    """A table and the collection that its rows are points of.

    Attributes:
        collection: The collection.
        schema: Schema of the table.
        name: Its name.
        key: Its key column.
        kind: Type of the key: ``uuid``, ``integer`` or ``text``.
        texts: Columns that are the text, a line each.
        payload: Columns that are the payload.
        partitioned: Whether it is a partitioned table, or its rows may be written by
            naming another one: its triggers are for each row.
        virtual: Whether one of the columns is generated when it is read, which
            triggers do not see.
    """

    collection: str
    schema: str
    name: str
    key: str
    kind: str
    texts: tuple[str, ...]
    payload: tuple[str, ...]
    partitioned: bool = False
    virtual: bool = False

    @cached_property
    def table(self) -> str:
        """The table's name, quoted."""
        return quote_qualified(self.schema, self.name)

    @cached_property
    def function(self) -> str:
        """Name of the trigger function, quoted."""
        digest = blake2b(self.collection.encode(), digest_size=8).hexdigest()
        return f"fm_storage.track_{digest}"

    def _point(self, row: str) -> str:
        key = f"{row}.{quote_ident(self.key)}"
        if self.kind == "uuid":
            return f"{key}::text"
        if self.kind == "integer":
            return f"CASE WHEN {key} < 0 THEN 's:' ELSE '' END || {key}::text"
        pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
        return f"CASE WHEN {key} ~ '{pattern}' THEN lower({key}) ELSE 's:' || {key} END"

    def _usable(self, row: str) -> str:
        """Whether a point can have the row's key."""
        if self.kind != "text":
            return "TRUE"
        key = f"{row}.{quote_ident(self.key)}"
        return f"octet_length({key}) BETWEEN 1 AND {_LONGEST_KEY}"

    def _text(self, row: str) -> str:
        return text_sql(self.texts, f"{row}.")

    def _payload(self, row: str) -> str:
        pairs = [f"{literal(c)}, {row}.{quote_ident(c)}" for c in self.payload]
        parts = [  # a function takes 100 arguments
            f"jsonb_build_object({', '.join(pairs[start : start + 50])})"
            for start in range(0, max(1, len(pairs)), 50)
        ]
        return f"({' || '.join(parts)})"

    def _source(self, row: str) -> str:
        return f"hashtextextended({self._text(row)}, 0)"

    def _desired(self, rows: str, conflict: str) -> str:
        """Return the CTE that makes points desired of *rows*.

        These have ``point_id, payload, source``; *conflict* says which points that
        are known already are written again. Two text keys may be one point.
        """
        return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s
    (collection, point_id, ver, op, payload, source)
  SELECT {literal(self.collection)}, p.point_id, {_NEXT}, 'u', p.payload, p.source
  FROM (SELECT DISTINCT ON (point_id COLLATE "C") * FROM ({rows}) AS r
    ORDER BY point_id COLLATE "C") AS p
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = {_NEXT}, op = 'u', vectors = NULL, payload = EXCLUDED.payload,
    payload_hash = NULL, source = EXCLUDED.source
  WHERE (s.op, s.payload, s.source)
      IS DISTINCT FROM ('u', EXCLUDED.payload, EXCLUDED.source) {conflict}
  RETURNING s.collection, s.point_id, s.ver
)"""

    def _log(self, rows: str) -> str:
        """Return the statement of a trigger that notes that *rows* changed."""
        key = f"r.{quote_ident(self.key)}"
        other = "NULL"
        if self.kind == "text":
            other = f"CASE WHEN {self._point('r')} = lower({key}) THEN {key} END"
        return f"""INSERT INTO fm_storage.vector_changed (collection, point_id, key)
  SELECT {literal(self.collection)}, {self._point("r")}, {other}
  FROM {rows} AND {self._usable("r")}"""

    # Triggers

    @cached_property
    def up(self) -> list[str]:
        """The statements that begin to follow the table."""
        per_row = self.partitioned  # statement triggers miss a partition's own writes
        newer, older = (
            ("(SELECT (NEW).*)", "(SELECT (OLD).*)") if per_row else ("newer", "older")
        )
        key = quote_ident(self.key)
        # Not a point that the writer's own statement wrote, as a repository's does:
        # that one has the transaction and the command number of the rows.
        stamp = (
            f"(SELECT (SELECT t.%s FROM {self.table} AS t WHERE t.{key} = r.{key})"
            f" FROM {newer} AS r LIMIT 1)"
        )
        foreign = f"""coalesce((
    SELECT NOT (s.xmin = {stamp % "xmin"} AND s.cmin = {stamp % "cmin"})
    FROM fm_storage.vector_state AS s
    WHERE s.collection = {literal(self.collection)} AND s.point_id = {self._point("r")}
    OFFSET 0), TRUE)"""
        same = " IS NOT DISTINCT FROM ".join(
            f"({self._text(one)}, {self._payload(one)})" for one in "or"
        )
        if self.virtual:
            same = "FALSE"
        changed = f"""{newer} AS r WHERE NOT EXISTS (
    SELECT FROM {older} AS o WHERE o.{key} = r.{key} AND {same}) AND {foreign}"""
        moved = f"""{older} AS r WHERE NOT EXISTS (
    SELECT FROM {newer} AS n WHERE n.{key} = r.{key})"""
        body = f"""
DECLARE
  problem text;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO fm_storage.vector_cleared AS k (collection, ver)
    VALUES ({literal(self.collection)}, {_NEXT})
    ON CONFLICT (collection) DO UPDATE SET ver = {_NEXT};
    RETURN NULL;
  END IF;
  BEGIN
    IF TG_OP = 'INSERT' THEN
{self._log(f"{newer} AS r WHERE {foreign}")};
    ELSIF TG_OP = 'DELETE' THEN
{self._log(f"{older} AS r WHERE TRUE")};
    ELSE
{self._log(moved)};
{self._log(changed)};
    END IF;
    IF (SELECT last_value FROM fm_storage.vector_waiting) = 1 THEN
      PERFORM pg_notify({literal(CHANNEL)}, '');
    END IF;
  EXCEPTION
    WHEN transaction_rollback OR lock_not_available OR query_canceled THEN
      RAISE;
    WHEN OTHERS THEN
      -- The writer's statement must not fail because of a point.
      GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
      RAISE WARNING 'fm_storage: rows of % are not followed: %',
        TG_RELID::regclass, problem;
      UPDATE fm_storage.vector_track SET doubtful = TRUE
      WHERE collection = {literal(self.collection)};
  END;
  RETURN NULL;
END
"""
        # A session keeps the first plan, whatever the sizes were: one that loops over
        # rows times rows, or reads whole tables, must not be among them.
        options = (
            "LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog "
            "SET enable_nestloop = off SET enable_seqscan = off SET jit = off"
        )
        head = f"CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger"
        made = [f"{head} {options} AS {literal(body)}"]
        tables = {
            "insert": "NEW TABLE AS newer",
            "update": "OLD TABLE AS older NEW TABLE AS newer",
            "delete": "OLD TABLE AS older",
        }
        for event, named in tables.items():
            each = (
                "FOR EACH ROW" if per_row else f"REFERENCING {named} FOR EACH STATEMENT"
            )
            made.append(
                f"CREATE OR REPLACE TRIGGER fm_storage_{event} AFTER {event.upper()} "
                f"ON {self.table} {each} EXECUTE FUNCTION {self.function}()"
            )
        made.append(
            "CREATE OR REPLACE TRIGGER fm_storage_truncate AFTER TRUNCATE "
            f"ON {self.table} FOR EACH STATEMENT EXECUTE FUNCTION {self.function}()"
        )
        return made

    @cached_property
    def down(self) -> list[str]:
        """The statements that end it; the points stay as they are."""
        return [
            *(
                f"DROP TRIGGER IF EXISTS fm_storage_{event} ON {self.table}"
                for event in ("insert", "update", "delete", "truncate")
            ),
            f"DROP FUNCTION IF EXISTS {self.function}()",
            f"DO {literal(self._last)}",
            "DELETE FROM fm_storage.vector_track WHERE collection = "
            + literal(self.collection),
        ]

    @property
    def _last(self) -> str:
        """The block that follows what was written before, if that can be read."""
        return f"""BEGIN
  BEGIN
    EXECUTE {literal(self.lock)};
    EXECUTE {literal(self._follow())};
  EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
    RAISE WARNING 'fm_storage: the last changes are not followed: %', SQLERRM;
  END;
  DELETE FROM fm_storage.vector_changed WHERE collection = {literal(self.collection)};
END"""

    # Desired state of the rows that changed

    @property
    def lock(self) -> str:
        """The statement behind which a transaction makes desired state of rows.

        One at a time for each collection, so that what was read first is written
        first. The next statement sees what the one before has committed.
        """
        named = f"'fm_storage.track'), hashtext({literal(self.collection)})"
        return f"SELECT pg_advisory_xact_lock(hashtext({named})"

    @cached_property
    def follow(self) -> Sql:
        """The statement that makes desired state of at most *$1* changes.

        Gives how many it took, and how many points are due by them.
        """
        return Sql(self._follow(" LIMIT $1"))

    def _follow(self, limit: str = "") -> str:
        key = quote_ident(self.key)
        bare = _bare("c.point_id")
        named = literal(self.collection)
        key_of = f"t.{key} = coalesce(c.key, {bare})::{self._cast}"
        if self.kind == "text":  # another row's key may differ by its case only
            key_of = f"t.{key} IN (c.key, {bare})"
        # What was there before a TRUNCATE is about to be deleted.
        cleared = (
            "OR s.ver <= (SELECT k.ver FROM fm_storage.vector_cleared AS k "
            f"WHERE k.collection = {named})"
        )
        return f"""WITH taken AS MATERIALIZED (
  DELETE FROM fm_storage.vector_changed WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM fm_storage.vector_changed WHERE collection = {named}{limit}))
  RETURNING point_id, key
), found AS MATERIALIZED (
  SELECT c.point_id, r.* FROM (SELECT DISTINCT point_id, key FROM taken) AS c
  LEFT JOIN LATERAL (
    SELECT {self._payload("t")} AS payload, {self._source("t")} AS source
    FROM {self.table} AS t
    WHERE {key_of} AND {self._text("t")} IS NOT NULL OFFSET 0) AS r ON TRUE
), {self._desired("SELECT * FROM found WHERE source IS NOT NULL", cleared)},
fm_gone AS (
  UPDATE fm_storage.vector_state AS s SET ver = {_NEXT}, op = 'd', vectors = NULL,
    payload = NULL, payload_hash = NULL, source = NULL
  FROM (SELECT point_id FROM found GROUP BY 1 HAVING count(source) = 0) AS f
  WHERE s.collection = {named} AND s.point_id = f.point_id AND s.op <> 'd'
  RETURNING s.collection, s.point_id, s.ver
), queued AS ({_QUEUED.format("(TABLE fm_state UNION ALL TABLE fm_gone) AS b")}
)
SELECT (SELECT count(*) FROM taken) AS taken,
  (SELECT count(*) FROM fm_state) + (SELECT count(*) FROM fm_gone) AS due"""

    # Backfill and comparison, a page of keys at a time: ($1 page, $2 after this key)

    def _page(self, condition: str = "TRUE", lock: str = "") -> str:
        key = quote_ident(self.key)
        return f"""WITH page AS MATERIALIZED (
  SELECT * FROM {self.table} WHERE {condition} ORDER BY {key} LIMIT $1{lock}
), """

    def _after(self, first: bool) -> str:
        after = f"{quote_ident(self.key)} > $2::text::{self._cast}"
        return "$2::text IS NULL" if first else after

    @property
    def _cast(self) -> str:
        return {"integer": "bigint"}.get(self.kind, self.kind)

    def fill(self, *, first: bool) -> Sql:
        """Return the statement that makes points of a page of rows.

        What the triggers wrote since *$3* is newer than the page, and stays.
        """
        key = quote_ident(self.key)
        rows = f"{self._rows} WHERE {self._usable('r')}"
        desired = self._desired(rows, "AND s.ver <= $3")
        last = f"(array_agg({key}::text ORDER BY {key} DESC))[1]"
        return Sql(
            f"""{self._page(self._after(first))}{desired}, queued AS (
  {_QUEUED.format("fm_state")}
), seen AS (
  SELECT count(*) AS rows, {last} AS reached FROM page
), noted AS (
  UPDATE fm_storage.vector_track AS k
  SET filled = filled + seen.rows, reached = seen.reached, filled_at = NULL
  FROM seen WHERE k.collection = {literal(self.collection)} AND seen.rows > 0
)
SELECT rows, reached FROM seen"""
        )

    def differing(self, *, first: bool) -> Sql:
        """Return the query for rows of a page that are no points, or older ones.

        Gives ``(point_id, ver, kind)``, and the page's last key in each row.
        """
        key = quote_ident(self.key)
        return Sql(
            f"""{self._page(self._after(first))}last AS (
  SELECT (array_agg({key}::text ORDER BY {key} DESC))[1] AS reached FROM page
)
SELECT l.reached, d.point_id, d.ver, d.kind FROM last AS l LEFT JOIN LATERAL (
  SELECT p.point_id, s.ver,
    CASE WHEN s.op = 'u' THEN 'stale' ELSE 'missing' END AS kind
  FROM ({self._rows} WHERE {self._usable("r")}) AS p
  LEFT JOIN fm_storage.vector_state AS s
    ON s.collection = {literal(self.collection)} AND s.point_id = p.point_id
  WHERE (s.op IS DISTINCT FROM 'u' OR s.source IS NOT NULL
    AND (s.source, s.payload) IS DISTINCT FROM (p.source, p.payload))
    AND p.point_id NOT IN ({self._changed})) AS d ON TRUE
WHERE l.reached IS NOT NULL"""
        )

    @property
    def _rows(self) -> str:
        return f"""SELECT {self._point("r")} AS point_id,
    {self._payload("r")} AS payload, {self._source("r")} AS source FROM (
    SELECT * FROM page AS r WHERE {self._text("r")} IS NOT NULL) AS r"""

    @property
    def _changed(self) -> str:
        named = literal(self.collection)
        return (
            f"SELECT point_id FROM fm_storage.vector_changed WHERE collection = {named}"
        )

    @cached_property
    def rowless(self) -> Sql:
        """The query for points without a row: ``($1 page, $2 after this point)``."""
        key = f"t.{quote_ident(self.key)}"
        bare = _bare("s.point_id")
        matches = f"{key} = {bare}::{self._cast}"
        if self.kind == "text":
            matches = f"({key} = {bare} OR lower({key}) = s.point_id)"
        return Sql(
            f"""SELECT s.point_id, s.ver FROM fm_storage.vector_state AS s
WHERE s.collection = {literal(self.collection)} AND s.op = 'u' AND s.source IS NOT NULL
  AND NOT EXISTS (SELECT FROM {self.table} AS t
    WHERE {matches} AND {self._text("t")} IS NOT NULL)
  AND s.point_id NOT IN ({self._changed})
  AND s.point_id > $2 ORDER BY s.point_id LIMIT $1"""
        )

    @cached_property
    def recheck(self) -> Sql:
        """The statement that has points made anew from rows: ``($1 point ids)``."""
        named = literal(self.collection)
        key = "NULL"
        if self.kind == "text":
            name = quote_ident(self.key)
            key = f"(SELECT {name} FROM {self.table} WHERE lower({name}) = i LIMIT 1)"
        return Sql(
            "INSERT INTO fm_storage.vector_changed (collection, point_id, key) "
            f"SELECT {named}, i, {key} FROM unnest($1::text[]) AS i"
        )
