"""Groups of equal errors: how often, since when, with an example.

Counted on the narrow tables; the wide rows are fetched for the examples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from fm_storage.catalog.query.grouping import group_ungrouped
from fm_storage.catalog.query.siblings import common
from fm_storage.catalog.query.states import (
    MEMBERS,
    OPEN,
    GroupState,
    State,
    fetch_states,
)
from fm_storage.catalog.record.row import RANKS
from fm_storage.catalog.record.store import (
    CLAMPED,
    ENTRY_COLUMNS,
    SEVERITY_OF_RANK,
    entry_of,
)
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Pool, Record

Order = Literal["count", "last_seen", "first_seen", "severity"]

_SHOWN = 20  # members whose templates are looked at for the group's
_ORDERS: dict[Order, str] = {
    "count": "count DESC, last_seen DESC",
    "last_seen": "last_seen DESC",
    "first_seen": "first_seen DESC",
    "severity": "severity DESC, count DESC, last_seen DESC",
}

# Counted on an index alone; only the groups that are shown meet another table.
# The module filter is answered by the list of fingerprints, which is short.
COUNTED = """SELECT COALESCE(m.group_id, c.fingerprint) AS fingerprint,
  sum(c.count)::bigint AS count, min(c.first_seen) AS first_seen,
  max(c.last_seen) AS last_seen, max(c.severity) AS severity
FROM (
  SELECT fingerprint, count(*) AS count, min(timestamp) AS first_seen,
    max(timestamp) AS last_seen, max(severity) AS severity
  FROM fm_storage.error_fingerprints WHERE {}
  GROUP BY fingerprint
) AS c LEFT JOIN fm_storage.group_members AS m USING (fingerprint)
GROUP BY 1"""
"""Groups with their counts, of the errors for which a condition holds."""

_MEMBERS_OF = """SELECT one FROM unnest({}::bigint[]) AS one UNION ALL
  SELECT fingerprint FROM fm_storage.group_members WHERE group_id = ANY({}::bigint[])"""
# What was beyond the limit of a group has no severity of its own.
_GROUPS = f"""WITH over AS (
  SELECT COALESCE(m.group_id, c.fingerprint) AS fingerprint,
    sum(c.counted)::bigint AS counted
  FROM fm_storage.error_counts AS c LEFT JOIN fm_storage.group_members AS m
    USING (fingerprint) WHERE {{over}} GROUP BY 1
), counted AS (
  SELECT s.fingerprint, s.count + COALESCE(o.counted, 0) AS count,
    COALESCE(o.counted, 0) AS counted, s.first_seen, s.last_seen, s.severity
  FROM ({{counted}}) AS s LEFT JOIN over AS o USING (fingerprint)
  ORDER BY {{order}}, fingerprint
  LIMIT ${{limit}}
)
SELECT {{columns}}, c.fingerprint, c.count, c.counted, {{first}} AS first_seen,
  {{last}} AS last_seen, c.severity AS rank,
  ARRAY(SELECT g.template FROM fm_storage.fingerprints AS g
    LEFT JOIN fm_storage.group_members AS m USING (fingerprint)
    WHERE g.fingerprint IN ({MEMBERS.format("c.fingerprint")})
    ORDER BY m.shape IS NULL, m.place LIMIT {_SHOWN}) AS templates,
  ARRAY(SELECT DISTINCT g.module FROM fm_storage.fingerprints AS g
    WHERE g.fingerprint IN ({MEMBERS.format("c.fingerprint")})) AS modules
FROM counted AS c
JOIN LATERAL (
  SELECT f.error_id FROM ({MEMBERS.format("c.fingerprint")}) AS own (fingerprint)
  CROSS JOIN LATERAL (
    SELECT error_id, timestamp FROM fm_storage.error_fingerprints AS f
    WHERE f.fingerprint = own.fingerprint AND f.severity = c.severity
      AND f.timestamp BETWEEN c.first_seen AND c.last_seen
    ORDER BY f.timestamp DESC LIMIT 1
  ) AS f ORDER BY f.timestamp DESC LIMIT 1
) AS worst ON TRUE
JOIN project_errors AS e ON e.id = worst.error_id
ORDER BY {{outer}}, c.fingerprint"""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors with one fingerprint, or with several that were merged.

    Attributes:
        fingerprint: Sixteen hexadecimal digits that name the group: the fingerprint
            of its oldest member.
        count: How many errors there are, within the filters.
        counted: How many of them are not stored, since they were beyond
            ``catalog.group_limit``.
        first_seen: When the first of them happened.
        last_seen: When the last of them happened.
        module: Module of the example; *modules* has those of all.
        error_code: Code of the example.
        severity: The worst among them.
        template: The message without its variable parts; ``<*>`` is a word in
            which its members differ.
        example: The worst of them, and of those the latest.
        state: ``open``, ``resolved``, ``muted``, or ``regressed``: resolved, and
            an error has happened since.
        state_since: When it was resolved or muted; None if it is open.
        muted_until: End of the muting; None for no end.
    """

    fingerprint: str
    count: int
    first_seen: datetime
    last_seen: datetime
    module: str
    error_code: str
    severity: Severity
    template: str
    example: ErrorEntry
    state: State = "open"
    state_since: datetime | None = None
    muted_until: datetime | None = None
    modules: tuple[str, ...] = ()
    counted: int = 0

    @property
    def group_id(self) -> int:
        """The name as a number, as in ``fm_storage.error_groups``."""
        return number_of(self.fingerprint)


async def fetch_groups(
    pool: Pool,
    *,
    limit: int = 20,
    module: str | None = None,
    severity: Severity | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    order: Order = "count",
    only: Sequence[int] | None = None,
    state: State | None = None,
    grouped: bool = False,
) -> list[ErrorGroup]:
    """Return the groups of the errors that match, the foremost first.

    *only* names the groups that may be returned; *grouped*: everything has its group
    already. The rest is as in ``ErrorManager.groups()``.
    """
    if not grouped:
        await group_ungrouped(pool)
    conditions: list[str] = []
    over: list[str] = []
    values: list[object] = []

    def condition(text: str, value: object) -> None:
        values.append(value)
        text = text.replace("{}", f"${len(values)}")
        conditions.append(text)
        if not text.startswith("severity"):
            text = text.replace("timestamp >=", "minute + interval '1 minute' >")
            over.append(text.replace("timestamp", "minute"))

    if module is not None:
        condition(
            "fingerprint IN (SELECT fingerprint FROM fm_storage.fingerprints "
            "WHERE module = {})",
            module,
        )
    if only is not None:
        condition(f"fingerprint IN ({_MEMBERS_OF})", list(only))
    if state is not None:
        known = await fetch_states(pool)
        wanted = [key for key, one in known.items() if state in {"open", one.state}]
        without = "NOT " if state == "open" else ""
        condition(f"fingerprint {without}IN ({_MEMBERS_OF})", wanted)
    if severity is not None:
        condition("severity >= {}", RANKS[severity])
    if since is not None:
        condition("timestamp >= {}", since)
    if until is not None:
        condition("timestamp < {}", until)
    statement = _GROUPS.format(
        counted=COUNTED.format(" AND ".join(conditions) or "TRUE"),
        over=" AND ".join(over) or "TRUE",
        order=_ORDERS[order],
        outer=", ".join(f"c.{part}" for part in _ORDERS[order].split(", ")),
        columns=ENTRY_COLUMNS,
        first=CLAMPED.format("c.first_seen"),
        last=CLAMPED.format("c.last_seen"),
        limit=len(values) + 1,
    )
    rows = await pool.fetch(Sql(statement), *values, limit)
    states = await fetch_states(pool, [row["fingerprint"] for row in rows])
    return [_group_of(row, states.get(row["fingerprint"], OPEN)) for row in rows]


def hex_of(fingerprint: int) -> str:
    """Return a fingerprint as people see it."""
    return f"{fingerprint & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def number_of(fingerprint: str) -> int:
    """Return the number behind sixteen hexadecimal digits.

    Raises:
        ValueError: It is something else.
    """
    number = int(fingerprint, 16)
    if len(fingerprint) != 16:
        raise ValueError("not sixteen hexadecimal digits")
    return number - (1 << 64) if number >> 63 else number


def _group_of(row: Record, state: GroupState) -> ErrorGroup:
    entry = entry_of(row)
    return ErrorGroup(
        fingerprint=hex_of(row["fingerprint"]),
        count=row["count"],
        counted=row["counted"],
        first_seen=row["first_seen"],
        last_seen=row["last_seen"],
        module=entry.module,
        error_code=entry.error_code,
        severity=SEVERITY_OF_RANK[row["rank"]],
        template=common(row["templates"]),
        example=entry,
        state=state.state,
        state_since=state.since,
        muted_until=state.until,
        modules=tuple(row["modules"]),
    )
