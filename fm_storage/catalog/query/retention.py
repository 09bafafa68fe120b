"""Deletion of old errors in batches, with their vectors.

No lock is held for long. The name of a group stays when its last error goes: an
error that arrives at that moment needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fm_storage.catalog.query.grouping import group_ungrouped
from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Sql
from fm_storage.vector_state import delete_ctes

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.postgres import Pool

# Each batch goes on where the one before ended: the index's entries of what was
# deleted stay until vacuum, and would be passed again by every batch.
_BATCH = """WITH doomed AS (
  SELECT error_id, timestamp FROM fm_storage.error_fingerprints
  WHERE timestamp < $1 AND timestamp >= $3 ORDER BY timestamp LIMIT $2
), gone AS (
  DELETE FROM project_errors AS e USING doomed
  WHERE e.id = doomed.error_id RETURNING e.id
)"""
_ANSWER = """ SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS doomed,
  max(timestamp) AS reached FROM doomed"""
_PURGE = Sql(_BATCH + _ANSWER)
_PURGE_WITH_VECTORS = Sql(
    _BATCH
    + ", "
    + delete_ctes(collection="$4::text", point_id="gone.id::text", source="gone")
    + _ANSWER
)
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
_FORGET_COUNTS = Sql("DELETE FROM fm_storage.error_counts WHERE minute < $1")
_COUNT = Sql("SELECT count(*) FROM fm_storage.error_fingerprints WHERE timestamp < $1")


async def count_older(pool: Pool, older_than: datetime) -> int:
    """Return how many errors ``purge_older()`` would delete."""
    await group_ungrouped(pool)
    found: int = await pool.fetchval(_COUNT, older_than)
    return found


async def purge_older(
    pool: Pool,
    older_than: datetime | timedelta,
    *,
    collection: str | None,
    batch_size: int,
    progress: Progress | None,
    delivered: Callable[[], None],
) -> int:
    """Delete errors from before *older_than*; see ``ErrorManager.purge()``."""
    moment = _moment(older_than)
    await group_ungrouped(pool)
    await pool.execute(_FORGET_COUNTS, moment)
    deleted: int = 0
    reached = _BEGINNING
    while True:
        values = (moment, batch_size, reached)
        if collection is None:
            row = await pool.fetchrow(_PURGE, *values)
        else:
            row = await pool.fetchrow(_PURGE_WITH_VECTORS, *values, collection)
            delivered()
        assert row is not None
        deleted += row["gone"]
        if progress is not None:
            progress(deleted, None)
        if not row["gone"] or row["doomed"] < batch_size:
            return deleted
        reached = row["reached"]


def _moment(older_than: datetime | timedelta) -> datetime:
    if isinstance(older_than, timedelta):
        return datetime.now(UTC) - older_than
    if not isinstance(older_than, datetime) or older_than.tzinfo is None:
        raise InvalidRecord(
            f"older_than is {older_than!r}; give an age (timedelta) or a time with "
            "its zone (datetime.now(UTC) - timedelta(days=90))",
            field="older_than",
        )
    return older_than
