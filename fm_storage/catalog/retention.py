"""Deleting old errors in batches, with their groups and vectors.

Apart because deleting is the one thing that takes from the catalogue, and the
one that could hold locks for long if it were done at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from fm_storage.postgres import Sql
from fm_storage.vector_state import delete_ctes

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.postgres import Executor

__all__ = ["purge_older"]

_BATCH = """WITH doomed AS (
  SELECT error_id FROM fm_storage.error_fingerprints
  WHERE timestamp < $1 ORDER BY timestamp LIMIT $2
), gone AS (
  DELETE FROM project_errors AS e USING doomed
  WHERE e.id = doomed.error_id RETURNING e.id
)"""
_PURGE = Sql(_BATCH + " SELECT count(*) FROM gone")  # noqa: S608 - constant text
_PURGE_WITH_VECTORS = Sql(
    _BATCH  # noqa: S608 - constant text
    + ", "
    + delete_ctes(collection="$3::text", point_id="gone.id::text", source="gone")
    + " SELECT count(*) FROM gone"
)
_EMPTY_GROUPS = Sql(
    "DELETE FROM fm_storage.fingerprints AS g WHERE NOT EXISTS (SELECT FROM "
    "fm_storage.error_fingerprints AS f WHERE f.fingerprint = g.fingerprint)"
)


async def purge_older(
    executor: Executor,
    older_than: datetime,
    *,
    collection: str | None,
    batch_size: int,
    progress: Progress | None,
    delivered: Callable[[], None],
) -> int:
    """Delete errors from before *older_than*; see ``ErrorManager.purge()``."""
    deleted = 0
    count: int
    while True:
        if collection is None:
            count = await executor.fetchval(_PURGE, older_than, batch_size)
        else:
            count = await executor.fetchval(
                _PURGE_WITH_VECTORS, older_than, batch_size, collection
            )
            delivered()
        deleted += count
        if progress is not None:
            progress(deleted, None)
        if count < batch_size:
            break
    return deleted
