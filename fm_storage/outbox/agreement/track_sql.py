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

_LONGEST_KEY = 1000
"""Bytes of a key; an index entry of the queue must hold it."""

_QUEUED = """
INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
SELECT collection, point_id, ver FROM fm_state
ON CONFLICT (collection, point_id) DO UPDATE SET
  ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
  replay = FALSE,
  due_at = CASE WHEN q.leased OR q.due_at < now() THEN q.due_at ELSE now() END,
  since = CASE WHEN q.replay THEN now() ELSE q.since END"""

_NEXT = "nextval('fm_storage.vector_version')"

_GONE = f"""UPDATE fm_storage.vector_state AS s
  SET ver = {_NEXT}, op = 'd', vectors = NULL, payload = NULL, payload_hash = NULL,
    source = NULL"""


def literal(text: str) -> str:
    """Quote *text* as a string constant, whatever ``standard_conforming_strings``."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


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
        partitioned: Whether it is a partitioned table.
    """

    collection: str
    schema: str
    name: str
    key: str
    kind: str
    texts: tuple[str, ...]
    payload: tuple[str, ...]
    partitioned: bool = False

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
        return f"jsonb_build_object({', '.join(pairs)})"

    def _source(self, row: str) -> str:
        return f"hashtextextended({self._text(row)}, 0)"

    def _desired(self, rows: str, *, conflict: str = "") -> str:
        """Return the CTE that makes points of *rows*, named ``r``."""
        return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s
    (collection, point_id, ver, op, payload, source)
  SELECT {literal(self.collection)}, {self._point("r")}, {_NEXT}, 'u',
    {self._payload("r")}, {self._source("r")}
  FROM {rows} AND {self._usable("r")} AND {self._text("r")} IS NOT NULL
  ORDER BY ({self._point("r")}) COLLATE "C"
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = {_NEXT}, op = 'u', vectors = NULL, payload = EXCLUDED.payload,
    payload_hash = NULL, source = EXCLUDED.source{conflict}
  RETURNING s.collection, s.point_id, s.ver
)"""

    def _undesired(self, rows: str) -> str:
        """Return the CTE that makes the points of *rows*, named ``r``, undesired."""
        return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s (collection, point_id, ver, op)
  SELECT {literal(self.collection)}, {self._point("r")}, {_NEXT}, 'd'
  FROM {rows} AND {self._usable("r")}
  ORDER BY ({self._point("r")}) COLLATE "C"
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = {_NEXT}, op = 'd', vectors = NULL, payload = NULL, payload_hash = NULL,
    source = NULL
  WHERE s.op <> 'd'
  RETURNING s.collection, s.point_id, s.ver
)"""

    def _notifying(self, state: str) -> str:
        """Return the statement of a trigger that queues what the CTE *state* wrote.

        It notifies only if nothing is due: what waits has announced itself, and the
        cluster's lock of NOTIFY is taken by one in many. A prepared transaction must
        not notify at all.
        """
        return f"""WITH {state}, queued AS ({_QUEUED}
  RETURNING 1
)
SELECT count(pg_notify({literal(CHANNEL)}, '')) INTO notified
FROM (SELECT FROM queued LIMIT 1) AS q
WHERE current_setting('max_prepared_transactions') = '0' AND NOT EXISTS (
    SELECT FROM fm_storage.vector_queue AS q
    WHERE q.collection = {literal(self.collection)} AND q.due_at <= now()
      AND q.quarantined_at IS NULL)"""

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
        foreign = f"""
  WHERE s.xmin IS DISTINCT FROM {stamp % "xmin"}
    OR s.cmin IS DISTINCT FROM {stamp % "cmin"}"""
        same = " IS NOT DISTINCT FROM ".join(
            f"({self._text(one)}, {self._payload(one)})" for one in "or"
        )
        changed = f"""{newer} AS r WHERE NOT EXISTS (
    SELECT FROM {older} AS o WHERE o.{key} = r.{key} AND {same})"""
        lost = f"""{older} AS r WHERE NOT EXISTS (
    SELECT FROM {newer} AS n WHERE n.{key} = r.{key}
      AND {self._text("n")} IS NOT NULL)"""
        body = f"""
DECLARE
  problem text;
  notified integer;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO fm_storage.vector_cleared AS k (collection, ver)
    VALUES ({literal(self.collection)}, {_NEXT})
    ON CONFLICT (collection) DO UPDATE SET ver = {_NEXT};
    RETURN NULL;
  END IF;
  BEGIN
    IF TG_OP = 'INSERT' THEN
{self._notifying(self._desired(f"{newer} AS r WHERE TRUE", conflict=foreign))};
    ELSIF TG_OP = 'DELETE' THEN
{self._notifying(self._undesired(f"{older} AS r WHERE TRUE"))};
    ELSE
{self._notifying(self._undesired(lost))};
{self._notifying(self._desired(changed, conflict=foreign))};
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
            "DELETE FROM fm_storage.vector_track WHERE collection = "
            + literal(self.collection),
        ]

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
        conflict = (
            "\n  WHERE s.ver <= $3 AND (s.op, s.payload, s.source) IS DISTINCT FROM "
            "('u', EXCLUDED.payload, EXCLUDED.source)"
        )
        desired = self._desired("page AS r WHERE TRUE", conflict=conflict)
        last = f"(array_agg({key}::text ORDER BY {key} DESC))[1]"
        return Sql(
            f"""{self._page(self._after(first))}{desired}, queued AS ({_QUEUED}
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
  FROM (SELECT {self._point("r")} AS point_id, {self._payload("r")} AS payload,
      {self._source("r")} AS source
    FROM page AS r WHERE {self._usable("r")} AND {self._text("r")} IS NOT NULL) AS p
  LEFT JOIN fm_storage.vector_state AS s
    ON s.collection = {literal(self.collection)} AND s.point_id = p.point_id
  WHERE s.op IS DISTINCT FROM 'u' OR s.source IS NOT NULL
    AND (s.source, s.payload) IS DISTINCT FROM (p.source, p.payload)) AS d ON TRUE
WHERE l.reached IS NOT NULL"""
        )

    @cached_property
    def renew(self) -> Sql:
        """The statement that makes points of rows anew: ``($1 point ids)``.

        The rows are locked for that moment: a writer of one of them comes before,
        and is seen, or after, and wins.
        """
        key = quote_ident(self.key)
        bare = "substr(i, CASE WHEN i LIKE 's:%' THEN 3 ELSE 1 END)"
        keys = f"SELECT {bare}::{self._cast} FROM unnest($1::text[]) AS i"
        where = f"t.{key} IN ({keys})"
        if self.kind == "text":
            where += f" OR lower(t.{key}) = ANY ($1)"
        rows = (
            f"(SELECT * FROM {self.table} AS t WHERE {where} FOR SHARE) AS r WHERE TRUE"
        )
        return Sql(f"WITH {self._desired(rows)}{_QUEUED}")

    @property
    def _rowless(self) -> str:
        return f"""s.collection = {literal(self.collection)} AND s.op = 'u'
  AND s.source IS NOT NULL AND NOT EXISTS (
    SELECT FROM {self.table} AS t WHERE {self._matches("t")})"""

    def _matches(self, row: str) -> str:
        key = f"{row}.{quote_ident(self.key)}"
        bare = "substr(s.point_id, CASE WHEN s.point_id LIKE 's:%' THEN 3 ELSE 1 END)"
        if self.kind == "text":
            return f"{key} = {bare} OR lower({key}) = s.point_id"
        return f"{key} = {bare}::{self._cast}"

    @cached_property
    def rowless(self) -> Sql:
        """The query for points without a row: ``($1 page, $2 after this point)``."""
        return Sql(
            "SELECT s.point_id, s.ver FROM fm_storage.vector_state AS s "
            f"WHERE {self._rowless} AND s.point_id > $2 ORDER BY s.point_id LIMIT $1"
        )

    @cached_property
    def forget(self) -> Sql:
        """The statement that makes points without a row undesired: ``($1 ids)``."""
        return Sql(
            f"WITH fm_state AS ({_GONE} WHERE {self._rowless} "
            f"AND s.point_id = ANY ($1) RETURNING s.collection, s.point_id, s.ver)"
            f"{_QUEUED}"
        )
