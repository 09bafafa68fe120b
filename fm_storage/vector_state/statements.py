"""The SQL of desired state: fragments that other rooms append to their own.

Record, state and queue are one statement and one round trip: two statements in
a transaction cost 1.9 times as much.

The version is ``nextval()`` written again in ``DO UPDATE``: evaluated there it
is taken under the row's lock, so versions follow the order of commits. With
``EXCLUDED.ver`` two writers of one point can store the smaller number last, and
the vector store would then refuse the newer state for ever.
"""

from __future__ import annotations

from fm_storage.postgres import Sql

_QUEUE_FRESH = """
  INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
  SELECT collection, point_id, ver FROM fm_state"""

_QUEUE = f"""{_QUEUE_FRESH}
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL,
    replay = FALSE,
    -- A row that is being delivered stays with its drainer, which finds the
    -- newer version when it finishes.
    due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END,
    since = CASE WHEN q.replay THEN now() ELSE q.since END"""

_FM_QUEUE = f", fm_queue AS ({_QUEUE}\n)"

# The setting travels inside the statement (a pooler would lose a SET), and is
# referenced, or the server would never evaluate it; a scalar subquery once, however
# many rows there are.
PIN = "(SELECT pg_catalog.set_config('synchronous_commit', 'on', TRUE)) IS NOT NULL"


def upsert_ctes(
    *,
    collection: str,
    point_id: str,
    vectors: str = "NULL",
    payload: str = "NULL",
    payload_hash: str = "NULL",
    source: str | None = None,
    durable: bool = True,
    fresh: bool = False,
    last: bool = False,
) -> str:
    """Return the CTEs ``fm_state`` and ``fm_queue`` that make points desired.

    Every argument is an SQL expression (``"$7"``, ``"rec.id::text"``), never a
    value. Put the text behind ``WITH rec AS (INSERT … RETURNING id),``; the main
    statement may read ``fm_state (collection, point_id, ver)``. *source* must
    not name one point twice, or the server answers 21000.

    Args:
        collection: Name of the collection (text).
        point_id: Encoded id (text), see ``encode_id()`` and ``point_id_sql()``.
        vectors: ``encode_vectors()`` (bytea); NULL means *to be embedded*.
        payload: JSON object (jsonb).
        payload_hash: ``payload_digest()`` (bytea); NULL lets the drainer fill it.
        source: FROM item that *point_id* and the others refer to, such as
            ``"rec"``; without one, exactly one point is written.
        durable: Pin ``synchronous_commit = on`` for this transaction, inside the
            statement, so that it also holds behind a transaction pooler. False for
            a statement that pins it elsewhere, or need not survive a crash.
        fresh: The points were never written before: less work, but the server
            answers 23505, and nothing is written, if one was.
        last: End with the main statement instead of ``fm_queue``, where nothing is
            to be read: an unread CTE costs a twentieth of an insert. The
            statement's tag counts the points.
    """
    queue = _QUEUE_FRESH if fresh else _QUEUE
    conflict = """
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = nextval('fm_storage.vector_version'), op = 'u',
    vectors = EXCLUDED.vectors, payload = EXCLUDED.payload,
    payload_hash = EXCLUDED.payload_hash, source = NULL"""
    return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s
    (collection, point_id, ver, op, vectors, payload, payload_hash)
  SELECT {collection}::text, {point_id}, nextval('fm_storage.vector_version'), 'u',
    {vectors}::bytea, {payload}::jsonb, {payload_hash}::bytea
  {f"FROM {source}" if source else ""}{f" WHERE {PIN}" if durable else ""}{
        "" if fresh else conflict
    }
  RETURNING s.collection, s.point_id, s.ver
){queue if last else f", fm_queue AS ({queue})"}"""


def delete_ctes(
    *,
    collection: str,
    point_id: str,
    source: str | None = None,
    durable: bool = True,
    last: bool = False,
) -> str:
    """Return the CTEs ``fm_state`` and ``fm_queue`` that make points undesired.

    As ``upsert_ctes()``; a point that was never written is deleted all the same.
    """
    return f"""fm_state AS (
  INSERT INTO fm_storage.vector_state AS s (collection, point_id, ver, op)
  SELECT {collection}::text, {point_id}, nextval('fm_storage.vector_version'), 'd'
  {f"FROM {source}" if source else ""}{f" WHERE {PIN}" if durable else ""}
  ON CONFLICT (collection, point_id) DO UPDATE SET
    ver = nextval('fm_storage.vector_version'), op = 'd',
    vectors = NULL, payload = NULL, payload_hash = NULL
  RETURNING s.collection, s.point_id, s.ver
){_QUEUE if last else _FM_QUEUE}"""


def retire_ctes(
    *, collection: str, point_id: str, source: str, durable: bool = True
) -> str:
    """Return the CTEs that make points undesired and keep what they were.

    As ``delete_ctes()``, for a record that may come back. A point that was never
    written, or is deleted already, stays as it is.
    """
    pin = PIN if durable else "TRUE"
    return _turned(collection, point_id, source, to="d", when=f"s.op = 'u' AND {pin}")


def restore_ctes(
    *, collection: str, point_id: str, source: str, durable: bool = True
) -> str:
    """Return the CTEs that make points desired again which ``retire_ctes()`` kept."""
    when = f"s.op = 'd' AND s.payload IS NOT NULL AND {PIN if durable else 'TRUE'}"
    return _turned(collection, point_id, source, to="u", when=when)


def _turned(collection: str, point_id: str, source: str, *, to: str, when: str) -> str:
    # A writer that waited for the row's lock evaluates nextval() again.
    return f"""fm_state AS (
  UPDATE fm_storage.vector_state AS s
  SET ver = nextval('fm_storage.vector_version'), op = '{to}'
  FROM {source}
  WHERE s.collection = {collection}::text AND s.point_id = {point_id} AND {when}
  RETURNING s.collection, s.point_id, s.ver
){_FM_QUEUE}"""


def _upsert_many(*, durable: bool) -> Sql:
    return Sql(
        "WITH "
        + upsert_ctes(
            collection="$1",
            point_id="rec.id",
            vectors="rec.vectors",
            payload="rec.payload",
            payload_hash="rec.hash",
            source="unnest($2::text[], $3::bytea[], $4::jsonb[], $5::bytea[])"
            " AS rec (id, vectors, payload, hash)",
            durable=durable,
            last=True,
        )
    )


def _delete_many(*, durable: bool) -> Sql:
    return Sql(
        "WITH "
        + delete_ctes(
            collection="$1",
            point_id="rec.id",
            source="unnest($2::text[]) AS rec (id)",
            durable=durable,
            last=True,
        )
    )


UPSERT_MANY = _upsert_many(durable=True)
"""Make points desired: ``(collection, ids, vectors, payloads, hashes)``."""

UPSERT_MANY_FAST = _upsert_many(durable=False)
"""The same under the server's own ``synchronous_commit``."""

DELETE_MANY = _delete_many(durable=True)
"""Make points undesired: ``(collection, ids)``."""

DELETE_MANY_FAST = _delete_many(durable=False)
"""The same under the server's own ``synchronous_commit``."""
