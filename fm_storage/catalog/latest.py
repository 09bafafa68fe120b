"""The latest errors, filtered: what ``errors list`` and ``errors tail`` show.

Apart from the groups, because here whole rows are read, in order of time.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from fm_storage.catalog.prepared import RANKS
from fm_storage.catalog.store import ENTRY_COLUMNS, entry_of
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

__all__ = ["fetch_latest"]

_LATEST = Sql(
    f"""SELECT {ENTRY_COLUMNS} FROM project_errors AS e
WHERE ($1::text IS NULL OR e.module = $1)
  AND ($2::text[] IS NULL OR e.severity = ANY($2))
  AND ($3::timestamptz IS NULL OR e.timestamp >= $3)
ORDER BY e.timestamp DESC, e.id DESC
LIMIT $4"""  # noqa: S608 - constant text
)


async def fetch_latest(
    executor: Executor,
    *,
    limit: int = 20,
    module: str | None = None,
    severity: str | None = None,
    since: datetime | None = None,
) -> list[ErrorEntry]:
    """Return the newest errors that match, newest first.

    Args:
        executor: Where to ask.
        limit: Errors at most.
        module: Only of this module.
        severity: Only those at least so bad.
        since: Only from then on.
    """
    wanted: list[str] | None = None
    if severity is not None:
        least = RANKS[Severity(severity.upper())]
        wanted = [level.value for level, rank in RANKS.items() if rank >= least]
    rows = await executor.fetch(_LATEST, module, wanted, since, limit)
    return [entry_of(row) for row in rows]
