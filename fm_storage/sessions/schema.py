"""The schema that temporary views live in: made when needed, removed when empty.

Both are races with other processes: making it runs under a lock,
and removing it is left to ``DROP SCHEMA … RESTRICT``, never to a look beforehand
and CASCADE, which would destroy what came in between.
"""

from __future__ import annotations

import hashlib
import logging

from fm_storage.errors import LockTimeout, PermissionDenied, QueryFailed
from fm_storage.postgres import Connection, Sql, quote_ident
from fm_storage.sessions.registry import GROUP
from fm_storage.sessions.source import Source

logger = logging.getLogger("fm_storage.sessions")

_MARK = "fm_storage: temporary views"
"""COMMENT of a schema that was made here; any other is somebody else's."""
_NOT_EMPTY, _NO_SCHEMA = "2BP01", "3F000"

_LOOK = Sql(
    "SELECT n.oid IS NOT NULL AS there,"
    " pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
    " AND pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS usable,"
    " pg_catalog.current_database() AS database, current_user::text AS role,"
    f" EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{GROUP}') AS grouped"
    " FROM (SELECT pg_catalog.to_regnamespace($1)::oid AS oid) n"
)
# Two processes that make the schema at one moment otherwise meet in a unique
# violation of pg_namespace, IF NOT EXISTS or not.
_LOCK = Sql("SELECT pg_catalog.pg_advisory_xact_lock($1)")
_IS_OURS_AND_EMPTY = Sql(
    "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid)"
    f" AND pg_catalog.obj_description(n.oid, 'pg_namespace') = '{_MARK}'"
    " FROM pg_catalog.pg_namespace n WHERE n.nspname = $1"
)


async def ensure_schema(connection: Connection, schema: str) -> bool:
    """Make *schema* if it is missing; return whether it was made.

    The schema belongs to the role that made it; the group role of applications,
    where there is one, may create views in it as well.

    Raises:
        PermissionDenied: This role may not make it, or may not create views in it.
    """
    quoted = quote_ident(schema)
    row = await connection.fetchrow(_LOOK, quoted)
    if row is None:
        raise AssertionError(schema)
    role, database = quote_ident(row["role"]), quote_ident(row["database"])
    if row["there"]:
        if not row["usable"]:
            raise PermissionDenied(
                f"session: role {role} may not create views in schema {quoted}; GRANT "
                f"USAGE, CREATE ON SCHEMA {quoted} TO {role}, or give another schema",
                sqlstate="42501",
            )
        return False
    try:
        async with connection.transaction() as transaction:
            await transaction.execute(_LOCK, _key(schema))
            again = await transaction.fetchrow(_LOOK, quoted)
            if again is None or again["there"]:
                return False
            made = f"CREATE SCHEMA {quoted}; COMMENT ON SCHEMA {quoted} IS '{_MARK}'"
            if row["grouped"]:
                made += f"; GRANT USAGE, CREATE ON SCHEMA {quoted} TO {GROUP}"
            await transaction.execute(Sql(made))
    except PermissionDenied as exc:
        raise PermissionDenied(
            f"session: role {role} may not make schema {quoted} for its views; GRANT "
            f"CREATE ON DATABASE {database} TO {role}, or make the schema and GRANT "
            f"USAGE, CREATE ON SCHEMA {quoted} TO {role}",
            sqlstate="42501",
        ) from exc
    logger.debug("session: schema %s made", quoted)
    return True


async def drop_schema_if_empty(source: Source, schema: str) -> bool:
    """Drop *schema* if it was made here and nothing is in it; return whether it was.

    False if it is not empty, does not exist, is in use at this moment, belongs to
    another role, or does not carry our mark.
    """
    quoted = quote_ident(schema)
    async with source.acquire() as connection:
        if not await connection.fetchval(_IS_OURS_AND_EMPTY, schema):
            # Not ours, or with views at least: spare the server's log the refusal.
            return False
        try:
            # RESTRICT also sees functions and types, and waits for a CREATE that
            # is not committed: hence the lock_timeout.
            await connection.execute(
                Sql(
                    "BEGIN; SET LOCAL lock_timeout = 200; "
                    f"DROP SCHEMA {quoted} RESTRICT; COMMIT"
                )
            )
        except (LockTimeout, PermissionDenied) as exc:
            await connection.execute(Sql("ROLLBACK"))
            logger.debug("session: schema %s stays (%s)", quoted, exc)
            return False
        except QueryFailed as exc:
            await connection.execute(Sql("ROLLBACK"))
            if exc.sqlstate in {_NOT_EMPTY, _NO_SCHEMA}:
                return False
            raise
    return True


def _key(schema: str) -> int:
    digest = hashlib.blake2b(
        b"fm_storage.session_schema:" + schema.encode(), digest_size=8
    )
    return int.from_bytes(digest.digest(), "big", signed=True)
