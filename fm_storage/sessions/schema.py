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
from fm_storage.sessions.source import Source

__all__ = ["drop_schema_if_empty", "ensure_schema"]

logger = logging.getLogger("fm_storage.sessions")

_GROUP = "fm_storage_app"
_NOT_EMPTY, _NO_SCHEMA = "2BP01", "3F000"

_LOOK = Sql(
    "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL AS there,"
    f" EXISTS (SELECT FROM pg_catalog.pg_roles "
    f"WHERE rolname = '{_GROUP}') AS grouped"
)
# Two processes that make the schema at one moment otherwise meet in a unique
# violation of pg_namespace, IF NOT EXISTS or not.
_LOCK = Sql("SELECT pg_catalog.pg_advisory_xact_lock($1)")
_IS_EMPTY = Sql(
    "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid)"
    " FROM pg_catalog.pg_namespace n WHERE n.nspname = $1"
)


async def ensure_schema(connection: Connection, schema: str) -> bool:
    """Make *schema* if it is missing; return whether it was made.

    The schema belongs to the role that made it; the group role of applications,
    where there is one, may create views in it as well.

    Raises:
        PermissionDenied: It is missing and this role may not make it.
    """
    quoted = quote_ident(schema)
    row = await connection.fetchrow(_LOOK, quoted)
    if row is None or row["there"]:
        return False
    async with connection.transaction() as transaction:
        await transaction.execute(_LOCK, _key(schema))
        again = await transaction.fetchrow(_LOOK, quoted)
        if again is None or again["there"]:
            return False
        await transaction.execute(Sql(f"CREATE SCHEMA {quoted}"))
        if row["grouped"]:
            await transaction.execute(
                Sql(f"GRANT USAGE, CREATE ON SCHEMA {quoted} TO {_GROUP}")
            )
    logger.debug("session: schema %s made", quoted)
    return True


async def drop_schema_if_empty(source: Source, schema: str) -> bool:
    """Drop *schema* if nothing at all is in it; return whether it was dropped.

    False if it is not empty, does not exist, is in use at this moment, or belongs
    to another role.
    """
    quoted = quote_ident(schema)
    async with source.acquire() as connection:
        if not await connection.fetchval(_IS_EMPTY, schema):
            # Views at least: spare the server's log the refusal.
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
