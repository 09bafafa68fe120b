"""Grouping of errors that were stored without a group: by a repository, by SQL.

Recording groups as it stores. A trigger would find other errors too, but every
insert would pay for it; so each question about groups looks first. Of an error
whose text was changed a trigger on updates takes the group away (migration 0009),
and it is found here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic, time
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakKeyDictionary

from fm_storage.catalog.query.merging import merge_groups
from fm_storage.catalog.record.fingerprint import fingerprints_of
from fm_storage.catalog.record.row import RANKS
from fm_storage.catalog.record.store import CLAMPED
from fm_storage.errors import ConnectionFailed, PermissionDenied, QueryFailed
from fm_storage.postgres import Sql
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Pool, Record

logger = logging.getLogger("fm_storage.catalog")

_BATCH = 500
WHOLE_EVERY = 60.0
_RECENT = 600.0
_SCAN_TIMEOUT = 300.0
_READ_ONLY = "25006"

# Two narrow indexes side by side; the wide rows are not touched.
_MISSING = Sql(
    """SELECT e.id FROM project_errors AS e
WHERE e.id > $1 AND e.id <= $2 AND NOT EXISTS (
  SELECT FROM fm_storage.error_fingerprints AS f WHERE f.error_id = e.id)
ORDER BY e.id LIMIT $3"""
)
# Locked against deletion, which takes the group's row with it; in order of id, so
# that two who do the same cannot deadlock.
_ERRORS = Sql(
    f"SELECT id, {CLAMPED.format('timestamp')} AS timestamp, severity, "
    "message, module, error_code, stack_trace "
    "FROM project_errors WHERE id = ANY($1::uuid[]) ORDER BY id FOR KEY SHARE"
)
_GROUP = Sql(
    """WITH src AS MATERIALIZED (
  SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::smallint[], $4::bigint[],
    $5::text[], $6::text[], $7::text[])
    AS src (id, at, rank, fingerprint, module, code, template)
), grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT DISTINCT ON (fingerprint) fingerprint, module, code, template FROM src
  ORDER BY fingerprint
  ON CONFLICT (fingerprint) DO NOTHING
), mark AS (
  INSERT INTO fm_storage.error_fingerprints
    (error_id, fingerprint, timestamp, severity)
  SELECT id, fingerprint, at, rank FROM src ORDER BY id
  ON CONFLICT (error_id) DO NOTHING RETURNING 1
) SELECT count(*) FROM mark"""
)
_WHOLE = (UUID(int=0), UUID(int=(1 << 128) - 1))

# When each pool's catalogue was last compared as a whole.
_compared: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()


async def group_ungrouped(pool: Pool) -> int:
    """Group the errors that have no group yet, and merge; return how many they were.

    The first call, and then one a minute, compares the whole catalogue (a third
    of a second for a million errors); those between look at the ids of these ten
    minutes, which is where ids that are made now fall (UUID version 7). In
    batches of short transactions; if cancelled, whole batches are done. Where
    nothing may be written, nothing is, and the rest goes on. A replica's errors are
    grouped by its primary, and left as they are while that is away.
    """
    if pool.primary is not pool:
        try:
            return await group_ungrouped(pool.primary)
        except ConnectionFailed as exc:
            logger.warning("errors without a group stay so: %s", exc)
            return 0
    try:
        done = await _group_all(pool)
        await merge_groups(pool)
    except QueryFailed as exc:
        if not isinstance(exc, PermissionDenied) and exc.sqlstate != _READ_ONLY:
            raise
        logger.warning("errors without a group stay so: %s", exc)
        return 0
    return done


async def _group_all(pool: Pool) -> int:
    now = monotonic()
    whole = now - _compared.get(pool, -WHOLE_EVERY) >= WHOLE_EVERY
    done = 0
    after, last = _WHOLE if whole else _recent()
    while rows := await pool.fetch(
        _MISSING, after, last, _BATCH, timeout=_SCAN_TIMEOUT
    ):
        missing = [row[0] for row in rows]
        after = missing[-1]
        done += await _group(missing, pool)
    if whole:
        _compared[pool] = now
    return done


def _recent() -> tuple[UUID, UUID]:
    """Return the least and the greatest id of version 7 of these minutes.

    Random ids (version 4) lie between as good as never: they wait for the whole
    comparison, and do not make this one long.
    """
    now = time()
    first, last = (int((now + span) * 1000) << 80 for span in (-_RECENT, _RECENT))
    return UUID(int=first), UUID(int=last)


async def _group(ids: list[UUID], pool: Pool) -> int:
    async with pool.transaction() as tx:
        rows = await tx.fetch(_ERRORS, ids)
        columns = await asyncio.to_thread(_columns, rows)
        return int(await tx.fetchval(_GROUP, *columns))


def _columns(rows: Sequence[Record]) -> list[list[object]]:
    found = fingerprints_of(rows)
    return [
        [row["id"] for row in rows],
        [row["timestamp"] for row in rows],
        [_rank(row["severity"]) for row in rows],
        [one.value for one in found],
        [row["module"] for row in rows],
        [row["error_code"] for row in rows],
        [one.template for one in found],
    ]


def _rank(severity: str) -> int:
    """Return the rank; a word that is none of ours counts as an error."""
    try:
        return RANKS[Severity(severity)]
    except ValueError:
        return RANKS[Severity.ERROR]
