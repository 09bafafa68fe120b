"""Single errors: the latest, filtered, and those whose id begins with a prefix."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from fm_storage.catalog.query.groups import number_of
from fm_storage.catalog.query.states import MEMBERS
from fm_storage.catalog.record.row import RANKS
from fm_storage.catalog.record.store import ENTRY_COLUMNS, entry_of
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

_LATEST = Sql(
    f"""SELECT {ENTRY_COLUMNS} FROM project_errors AS e
WHERE ($1::text IS NULL OR e.module = $1)
  AND ($2::text[] IS NULL OR e.severity = ANY($2))
  AND ($3::timestamptz IS NULL OR e.timestamp >= $3)
ORDER BY e.timestamp DESC, e.id DESC
LIMIT $4"""
)
# A group's errors are found by the index of its fingerprints, however old they are.
_OF_GROUP = Sql(
    f"""SELECT {ENTRY_COLUMNS}
FROM fm_storage.error_fingerprints AS f JOIN project_errors AS e ON e.id = f.error_id
WHERE f.fingerprint IN ({MEMBERS.format("$5::bigint")})
  AND ($1::text IS NULL OR e.module = $1)
  AND ($2::text[] IS NULL OR e.severity = ANY($2))
  AND ($3::timestamptz IS NULL OR f.timestamp >= $3)
ORDER BY f.timestamp DESC, e.id DESC
LIMIT $4"""
)
_BETWEEN = Sql(
    f"SELECT {ENTRY_COLUMNS} FROM project_errors AS e "
    "WHERE e.id BETWEEN $1 AND $2 ORDER BY e.id LIMIT $3"
)
_PREFIX = re.compile(r"[0-9a-f]{4,32}")


async def fetch_latest(
    executor: Executor,
    *,
    limit: int = 20,
    module: str | None = None,
    severity: str | None = None,
    since: datetime | None = None,
    group: str | None = None,
) -> list[ErrorEntry]:
    """Return the newest errors that match, newest first.

    Args:
        executor: Where to ask.
        limit: Maximum number of errors.
        module: Only of this module.
        severity: Minimum severity.
        since: Only from then on.
        group: Only of the group with this fingerprint.

    Raises:
        ValueError: *group* is not sixteen hexadecimal digits.
    """
    wanted: list[str] | None = None
    if severity is not None:
        least = RANKS[Severity(severity.upper())]
        wanted = [level.value for level, rank in RANKS.items() if rank >= least]
    values = (module, wanted, since, limit)
    if group is None:
        rows = await executor.fetch(_LATEST, *values)
    else:
        rows = await executor.fetch(_OF_GROUP, *values, number_of(group))
    return [entry_of(row) for row in rows]


async def fetch_by_prefix(
    executor: Executor, prefix: str, *, limit: int = 5
) -> list[ErrorEntry]:
    """Return the errors whose ids begin so, in order of id.

    Raises:
        ValueError: *prefix* is not the beginning of an id, of four digits at least.
    """
    digits = prefix.strip().lower().replace("-", "")
    if _PREFIX.fullmatch(digits) is None:
        raise ValueError("not the beginning of an id")
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    rows = await executor.fetch(_BETWEEN, first, last, limit)
    return [entry_of(row) for row in rows]
