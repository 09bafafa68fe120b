"""The SQL of the registry: owners, and the views that are theirs.

A view exists if and only
if its row does: both are made in one transaction. The row's foreign key locks
the owner's row (FOR KEY SHARE) until that transaction ends, which is what keeps
a reaper's FOR UPDATE SKIP LOCKED away from a CREATE that is still under way.
"""

from __future__ import annotations

import hashlib
import uuid

from fm_storage.errors import (
    CheckViolated,
    QueryFailed,
    SchemaOutOfDate,
    StorageError,
)
from fm_storage.postgres import Sql

GROUP = "fm_storage_app"
"""Role whose members are applications; it reads the views of sessions."""

_MIGRATION = "0002_create_session_registry"
_UNDEFINED_TABLE = "42P01"
_KIND_CHECK = "session_objects_kind_check"
_TABLES_MIGRATION = "0008_allow_session_tables"

# Which server this is, and since when: advisory locks end with either.
INCARNATION = (
    "(SELECT c.system_identifier::text || '/' || p.timeline_id::text || '/' ||"
    " extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text"
    " FROM pg_catalog.pg_control_system() c, pg_catalog.pg_control_checkpoint() p)"
)

# Whether somebody holds the lock of owner o. Read from pg_locks, not tried: a
# reaper that takes the lock for a moment could make its owner's re-lock fail.
LOCK_IS_HELD = (
    "EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory'"
    " AND l.granted AND l.objsubid = 1"
    " AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d"
    " WHERE d.datname = pg_catalog.current_database())"
    " AND l.classid::bigint = (o.lock_key >> 32) & 4294967295"
    " AND l.objid::bigint = o.lock_key & 4294967295)"
)

ADD_OWNER = (
    "INSERT INTO fm_storage.session_owners"
    " (id, lock_key, incarnation, application_name, host, pid)"
    f" SELECT $1::uuid, $2::bigint, {INCARNATION}, $3::text, $4::text, $5::integer"
)

# The lock first, the row second: no reaper ever sees the row without the lock.
# The settings keep the lease alive and let the server notice a dead client.
TAKE_LEASE = Sql(
    "WITH lease AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_lock($2) AS held,"
    " pg_catalog.set_config('idle_session_timeout', '0', false),"
    " pg_catalog.set_config('client_connection_check_interval', '200', false),"
    " pg_catalog.set_config('tcp_keepalives_idle', '5', false),"
    " pg_catalog.set_config('tcp_keepalives_interval', '2', false),"
    " pg_catalog.set_config('tcp_keepalives_count', '3', false),"
    " pg_catalog.set_config('tcp_user_timeout', '11000', false))"
    f" {ADD_OWNER} FROM lease WHERE held"
    " RETURNING pg_catalog.pg_backend_pid() AS pid"
)

# The form behind a transaction pooler: an open transaction pins the server
# connection. It holds no snapshot, so it does not hold back vacuum.
HOLD_LEASE = Sql(
    "SELECT pg_catalog.pg_try_advisory_xact_lock($1) AS held,"
    " pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true),"
    " pg_catalog.set_config('client_connection_check_interval', '200', true)"
)
# transaction_timeout exists since PostgreSQL 17.
NO_TRANSACTION_TIMEOUT = Sql(
    "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings"
    " WHERE name = 'transaction_timeout'"
)

RELOCK = Sql(
    "SELECT pg_catalog.pg_try_advisory_lock($1) AS held,"
    " pg_catalog.set_config('idle_session_timeout', '0', false),"
    " pg_catalog.set_config('client_connection_check_interval', '200', false),"
    " pg_catalog.set_config('tcp_keepalives_idle', '5', false),"
    " pg_catalog.set_config('tcp_keepalives_interval', '2', false),"
    " pg_catalog.set_config('tcp_keepalives_count', '3', false),"
    " pg_catalog.set_config('tcp_user_timeout', '11000', false)"
)
# A predecessor's backend that has not noticed its end still holds the lock.
END_PREDECESSOR = Sql(
    "SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l"
    " WHERE l.pid = $1 AND l.locktype = 'advisory' AND l.objsubid = 1"
    " AND l.classid::bigint = ($2::bigint >> 32) & 4294967295"
    " AND l.objid::bigint = $2::bigint & 4294967295"
)
RETURN_TO_OWNER = Sql(
    "UPDATE fm_storage.session_owners"
    f" SET leases = leases + 1, incarnation = {INCARNATION}"
    " WHERE id = $1 AND condemned_at IS NULL RETURNING leases"
)
OWNER_LIVES = Sql(
    "SELECT FROM fm_storage.session_owners WHERE id = $1 AND condemned_at IS NULL"
)
REMOVE_OWNER = Sql(
    "DELETE FROM fm_storage.session_owners o WHERE o.id = $1 AND NOT EXISTS"
    " (SELECT FROM fm_storage.session_objects b WHERE b.owner_id = o.id)"
)

# $6: whether reapers shall leave it alone. FOR KEY SHARE waits for a reaper that
# is condemning the owner, and then finds it condemned. The check interval ends a
# long CREATE soon after its client's death.
ADD_OBJECT = Sql(
    "WITH checked AS MATERIALIZED (SELECT pg_catalog.set_config("
    "'client_connection_check_interval', '200', true))"
    " INSERT INTO fm_storage.session_objects"
    " (owner_id, session_id, schema_name, name, kind, keep)"
    " SELECT o.id, $2::uuid, $3::name, $4::name, $5::text, $6::boolean"
    " FROM fm_storage.session_owners o, checked"
    " WHERE o.id = $1 AND o.condemned_at IS NULL FOR KEY SHARE OF o"
    " RETURNING id, session_user::text = current_user::text AS same_role,"
    f" EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{GROUP}') AS grouped"
)
SET_OID = Sql(
    "UPDATE fm_storage.session_objects SET rows_made = $2, oid ="
    " (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
    " ON n.oid = c.relnamespace WHERE n.nspname = schema_name AND c.relname = name)"
    " WHERE id = $1 RETURNING oid"
)
ADOPT = Sql(
    "INSERT INTO fm_storage.session_objects"
    " (owner_id, session_id, schema_name, name, kind, keep, oid, adopted)"
    " SELECT o.id, $2::uuid, $3::name, $4::name, $5::text, $6::boolean, $7::oid, true"
    " FROM fm_storage.session_owners o"
    " WHERE o.id = $1 AND o.condemned_at IS NULL FOR KEY SHARE OF o"
    " RETURNING id"
)
FIND_RELATION = Sql(
    "SELECT c.oid, c.relkind::text AS relkind,"
    " c.relowner = (SELECT r.oid FROM pg_catalog.pg_roles r"
    " WHERE r.rolname = session_user) AS mine"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
    " ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
)
FORGET_OBJECT = Sql(
    "DELETE FROM fm_storage.session_objects"
    " WHERE session_id = $1 AND schema_name = $2 AND name = $3 RETURNING kind, adopted"
)
SET_KEEP = Sql(
    "UPDATE fm_storage.session_objects SET keep = $2"
    " WHERE session_id = $1 AND keep <> $2"
)
RELEASE = Sql(
    "UPDATE fm_storage.session_objects SET released = true"
    " WHERE session_id = $1 AND keep AND NOT released"
)
# Who stands in the way of a name: the row's owner alive?
HOLDER = Sql(
    f"SELECT b.owner_id, {LOCK_IS_HELD} AS alive, b.keep"
    " FROM fm_storage.session_objects b"
    " JOIN fm_storage.session_owners o ON o.id = b.owner_id"
    " WHERE b.schema_name = $1 AND b.name = $2"
)

# A CREATE whose outcome nobody saw may still be committing. An INSERT of the same
# name waits for it; afterwards either its row is there, or the name is free.
PROBE = Sql(
    "INSERT INTO fm_storage.session_objects"
    " (owner_id, session_id, schema_name, name, kind)"
    " SELECT o.id, $2::uuid, $3::name, $4::name, 'view'"
    " FROM fm_storage.session_owners o WHERE o.id = $1"
    " ON CONFLICT ON CONSTRAINT session_objects_name_key DO NOTHING"
)
FIND_OBJECT = Sql(
    "SELECT id, oid, kind FROM fm_storage.session_objects"
    " WHERE session_id = $1 AND schema_name = $2 AND name = $3"
)
REMOVE_PROBE = Sql(
    "DELETE FROM fm_storage.session_objects"
    " WHERE session_id = $1 AND schema_name = $2 AND name = $3 AND oid IS NULL"
)


def lock_key(owner: uuid.UUID) -> int:
    """Return the advisory lock's key: 64 bits, signed.

    A collision of two owners can delay a reaper, never mislead it.
    """
    digest = hashlib.blake2b(b"fm_storage.session_owner:" + owner.bytes, digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def tag(owner: uuid.UUID, session: uuid.UUID) -> str:
    """Return the COMMENT that marks a view as made by *session*."""
    return f"fm_storage:{owner}/{session}"


def is_missing(exc: StorageError) -> bool:
    """Whether *exc* means that the registry's tables are not there."""
    return isinstance(exc, QueryFailed) and exc.sqlstate == _UNDEFINED_TABLE


def explained(exc: StorageError) -> StorageError:
    """Return the error for a missing registry, or *exc* itself."""
    if is_missing(exc):
        return SchemaOutOfDate([_MIGRATION])
    if isinstance(exc, CheckViolated) and exc.constraint == _KIND_CHECK:
        return SchemaOutOfDate([_TABLES_MIGRATION])
    return exc
