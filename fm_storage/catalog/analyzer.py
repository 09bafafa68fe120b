"""What the catalogue says as a whole.

Apart from the groups, because here everything is counted: every question is one
pass over a narrow index, so that a million errors are answered in about a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from fm_storage.catalog.groups import ErrorGroup, fetch_groups, hex_of
from fm_storage.catalog.prepared import RANKS
from fm_storage.catalog.store import SEVERITY_OF_RANK
from fm_storage.postgres import Sql
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage.catalog.needs import Storage

__all__ = [
    "Analyzer",
    "Correlation",
    "Growth",
    "Pattern",
    "TimelineBucket",
    "Totals",
]

By = Literal["module", "error_code", "severity", "hour", "weekday"]

_RANGE = """($1::timestamptz IS NULL OR timestamp >= $1)
  AND ($2::timestamptz IS NULL OR timestamp < $2) AND severity >= $3"""

_TOTALS = Sql(
    f"""SELECT count(*) AS errors, count(DISTINCT fingerprint) AS groups,
  min(timestamp) AS first, max(timestamp) AS last
FROM fm_storage.error_fingerprints WHERE {_RANGE}"""  # noqa: S608 - constant text
)
_COUNTED = f"""WITH counted AS (
  SELECT fingerprint, count(*) AS count, max(severity) AS severity,
    min(timestamp) AS first_seen, max(timestamp) AS last_seen
  FROM fm_storage.error_fingerprints WHERE {_RANGE} GROUP BY fingerprint
)"""  # noqa: S608 - constant text
_PATTERNS = Sql(
    _COUNTED
    + """ SELECT c.*, g.module, g.error_code, g.template,
  c.count / sum(c.count) OVER () AS share
FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
ORDER BY c.count DESC, c.fingerprint LIMIT $4"""
)
# Grouped by fingerprint first: the name of a module is then looked up once a
# group, not once an error.
_BY_NAME = {
    name: Sql(
        _COUNTED
        + f""" SELECT g.{name} AS key, sum(c.count)::bigint AS count
FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $4"""  # noqa: S608 - constant text
    )
    for name in ("module", "error_code")
}
_PARTS = {
    "severity": "severity::int",
    "hour": "extract(hour FROM timestamp AT TIME ZONE 'UTC')::int",
    "weekday": "extract(isodow FROM timestamp AT TIME ZONE 'UTC')::int",
}
_BY_PART = {
    name: Sql(
        f"""SELECT {part} AS key, count(*) AS count
FROM fm_storage.error_fingerprints WHERE {_RANGE}
GROUP BY 1 ORDER BY 1 LIMIT $4"""  # noqa: S608 - constant text
    )
    for name, part in _PARTS.items()
}
_TIMELINE = Sql(
    f"""SELECT date_bin($4::interval, timestamp, '2000-01-01T00:00Z') AS start,
  severity, count(*) AS count
FROM fm_storage.error_fingerprints WHERE {_RANGE}
GROUP BY 1, 2 ORDER BY 1"""  # noqa: S608 - constant text
)
_HEAT = Sql(
    f"""WITH counted AS (
  SELECT fingerprint, {_PARTS["hour"]} AS hour, count(*) AS count
  FROM fm_storage.error_fingerprints WHERE {_RANGE} GROUP BY 1, 2
), named AS (
  SELECT g.module, c.hour, sum(c.count)::bigint AS count,
    sum(sum(c.count)) OVER (PARTITION BY g.module) AS total
  FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
  GROUP BY 1, 2
), ranked AS (
  SELECT *, dense_rank() OVER (ORDER BY total DESC, module) AS place FROM named
)
SELECT module, hour, count FROM ranked WHERE place <= $4 ORDER BY place, hour"""  # noqa: S608 - constant text
)
# One probe of an index per group finds its first error; errors are not counted.
_NEW = Sql(
    """SELECT g.fingerprint
FROM fm_storage.fingerprints AS g
JOIN LATERAL (
  SELECT timestamp FROM fm_storage.error_fingerprints AS f
  WHERE f.fingerprint = g.fingerprint ORDER BY timestamp LIMIT 1
) AS first ON first.timestamp >= $1
  AND ($2::timestamptz IS NULL OR first.timestamp < $2)
ORDER BY first.timestamp DESC LIMIT $3"""
)
_GROWTH = Sql(
    """WITH counted AS (
  SELECT fingerprint, max(severity) AS severity,
    count(*) FILTER (WHERE timestamp >= $2) AS now,
    count(*) FILTER (WHERE timestamp < $2) AS before
  FROM fm_storage.error_fingerprints
  WHERE timestamp >= $1 AND timestamp < $3 AND severity >= $4
  GROUP BY fingerprint
)
SELECT c.*, g.module, g.error_code, g.template
FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
WHERE c.now >= 3 AND c.now > c.before
ORDER BY (c.now + 1.0) / (c.before + 1.0) * ln(c.now + 1) DESC, c.now DESC
LIMIT $5"""
)
# Never every error with every other: time is cut into slots, a group counts once
# in a slot, and only the groups that fill most slots are paired, so that a slot
# gives at most a few hundred pairs whatever its number of errors.
_CORRELATIONS = Sql(
    f"""WITH seen AS (
  SELECT DISTINCT fingerprint,
    floor(extract(epoch FROM timestamp) / $4::float8)::bigint AS slot
  FROM fm_storage.error_fingerprints WHERE {_RANGE}
), slots AS (
  SELECT count(DISTINCT slot)::float8 AS total FROM seen
), busiest AS (
  SELECT fingerprint, count(*)::float8 AS slots FROM seen
  GROUP BY fingerprint HAVING count(*) >= 3
  ORDER BY count(*) DESC, fingerprint LIMIT 40
), kept AS (
  SELECT fingerprint, slot FROM seen JOIN busiest USING (fingerprint)
), pairs AS (
  SELECT a.fingerprint AS first, b.fingerprint AS second, count(*)::float8 AS together
  FROM kept AS a JOIN kept AS b ON a.slot = b.slot AND a.fingerprint < b.fingerprint
  GROUP BY 1, 2 HAVING count(*) >= 3
)
SELECT p.first, p.second, p.together::bigint,
  p.together / (a.slots + b.slots - p.together) AS overlap,
  p.together * s.total / (a.slots * b.slots) AS lift,
  ga.module AS first_module, ga.template AS first_template,
  gb.module AS second_module, gb.template AS second_template
FROM pairs AS p CROSS JOIN slots AS s
JOIN busiest AS a ON a.fingerprint = p.first
JOIN busiest AS b ON b.fingerprint = p.second
JOIN fm_storage.fingerprints AS ga ON ga.fingerprint = p.first
JOIN fm_storage.fingerprints AS gb ON gb.fingerprint = p.second
WHERE p.together * s.total > a.slots * b.slots
ORDER BY p.together / (a.slots + b.slots - p.together) * ln(p.together + 1) DESC,
  p.first, p.second
LIMIT $5"""  # noqa: S608 - constant text
)

_BUCKETS = 60
_NICE = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400)
_DAY = 86_400
_SCAN_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Totals:
    """How much there is within a period; *first* and *last* are None if nothing."""

    errors: int
    groups: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A message without its variable parts, and how much of everything it is."""

    fingerprint: str
    template: str
    module: str
    error_code: str
    severity: Severity
    count: int
    share: float
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class TimelineBucket:
    """Errors by severity from *start* until the next bucket."""

    start: datetime
    counts: Mapping[Severity, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Errors of all severities."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Growth:
    """A group that occurs more often now than in the period before."""

    fingerprint: str
    template: str
    module: str
    error_code: str
    severity: Severity
    now: int
    before: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """Two groups that occur in the same slots of time.

    Attributes:
        first: Fingerprint of one group; *second* of the other.
        together: Slots in which both occur.
        overlap: Of the slots in which either occurs, the part with both (0…1).
        lift: How many times more often than chance would have it.
    """

    first: str
    first_module: str
    first_template: str
    second: str
    second_module: str
    second_template: str
    together: int
    overlap: float
    lift: float


class Analyzer:
    """Counts, timelines and relations of errors; ``ErrorManager.analyzer``.

    Every method takes ``since`` (from then on) and ``until`` (before then), both
    aware, and ``severity`` (at least so bad).
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def totals(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> Totals:
        """Return how many errors and groups there are, and their period."""
        row = await self._storage.pool.fetchrow(
            _TOTALS, since, until, _rank(severity), timeout=_SCAN_TIMEOUT
        )
        assert row is not None  # noqa: S101 - an aggregate has one row
        return Totals(*row)

    async def patterns(
        self,
        *,
        limit: int = 20,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[Pattern]:
        """Return the commonest messages, without their variable parts."""
        rows = await self._storage.pool.fetch(
            _PATTERNS, since, until, _rank(severity), limit, timeout=_SCAN_TIMEOUT
        )
        return [
            Pattern(
                hex_of(row["fingerprint"]),
                row["template"],
                row["module"],
                row["error_code"],
                SEVERITY_OF_RANK[row["severity"]],
                row["count"],
                float(row["share"]),
                row["first_seen"],
                row["last_seen"],
            )
            for row in rows
        ]

    async def frequencies(
        self,
        by: By = "module",
        *,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> dict[str, int]:
        """Return how many errors there are of each module, code, severity or time.

        *by* is ``module``, ``error_code``, ``severity``, ``hour`` or ``weekday``.
        Names come commonest first; severities, hours (00 to 23, UTC) and weekdays
        (1 is Monday) in their order.
        """
        statement = _BY_NAME.get(by) or _BY_PART[by]
        rows = await self._storage.pool.fetch(
            statement, since, until, _rank(severity), limit, timeout=_SCAN_TIMEOUT
        )
        name = {"severity": _name_of_rank, "hour": "{:02}".format}.get(by, str)
        return {name(row["key"]): row["count"] for row in rows}

    async def timeline(
        self,
        *,
        bucket: timedelta | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[TimelineBucket]:
        """Return counts by time, empty buckets included.

        Args:
            bucket: Width of a bucket; by default one that gives about sixty.
            since: Beginning; the first error's time by default.
            until: End; the last error's time by default.
            severity: At least so bad.
        """
        totals = await self.totals(since=since, until=until, severity=severity)
        if totals.first is None or totals.last is None:
            return []
        width = bucket or _width(totals.last - totals.first)
        rows = await self._storage.pool.fetch(
            _TIMELINE, since, until, _rank(severity), width, timeout=_SCAN_TIMEOUT
        )
        found: dict[datetime, dict[Severity, int]] = {}
        for row in rows:
            counts = found.setdefault(row["start"], {})
            counts[SEVERITY_OF_RANK[row["severity"]]] = row["count"]
        start, end = min(found), max(found)
        steps = int((end - start) / width)
        if steps > _BUCKETS * 100:
            return [TimelineBucket(at, found[at]) for at in sorted(found)]
        moments = (start + width * step for step in range(steps + 1))
        return [TimelineBucket(at, found.get(at, {})) for at in moments]

    async def groups(
        self,
        *,
        limit: int = 20,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[ErrorGroup]:
        """Return the commonest groups, each with its worst error."""
        return await fetch_groups(
            self._storage.pool,
            limit=limit,
            since=since,
            until=until,
            severity=severity,
        )

    async def heat(
        self,
        *,
        limit: int = 10,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> dict[str, list[int]]:
        """Return the errors of each hour of the day (UTC), of the commonest modules."""
        rows = await self._storage.pool.fetch(
            _HEAT, since, until, _rank(severity), limit, timeout=_SCAN_TIMEOUT
        )
        found: dict[str, list[int]] = {}
        for module, hour, count in rows:
            found.setdefault(module, [0] * 24)[hour] = count
        return found

    async def new_since(
        self,
        moment: datetime,
        *,
        until: datetime | None = None,
        limit: int = 20,
        severity: Severity | None = None,
    ) -> list[ErrorGroup]:
        """Return groups that had never occurred before *moment*, newest first."""
        pool = self._storage.pool
        rows = await pool.fetch(_NEW, moment, until, limit, timeout=_SCAN_TIMEOUT)
        return await fetch_groups(
            pool,
            limit=limit,
            severity=severity,
            until=until,
            only=[row[0] for row in rows],
            order="first_seen",
        )

    async def growing(
        self,
        window: timedelta,
        *,
        until: datetime | None = None,
        limit: int = 10,
        severity: Severity | None = None,
    ) -> list[Growth]:
        """Return groups more frequent in the last *window* than in the one before."""
        end = until or datetime.now(UTC)
        rows = await self._storage.pool.fetch(
            _GROWTH,
            end - 2 * window,
            end - window,
            end,
            _rank(severity),
            limit,
            timeout=_SCAN_TIMEOUT,
        )
        return [
            Growth(
                hex_of(row["fingerprint"]),
                row["template"],
                row["module"],
                row["error_code"],
                SEVERITY_OF_RANK[row["severity"]],
                row["now"],
                row["before"],
            )
            for row in rows
        ]

    async def correlations(
        self,
        window: timedelta = timedelta(minutes=1),
        *,
        limit: int = 20,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[Correlation]:
        """Return pairs of groups that occur together more often than by chance.

        Time is cut into slots of *window*; the forty groups that occur in most
        slots are compared, however many errors they have.
        """
        rows = await self._storage.pool.fetch(
            _CORRELATIONS,
            since,
            until,
            _rank(severity),
            window.total_seconds(),
            limit,
            timeout=_SCAN_TIMEOUT,
        )
        return [
            Correlation(
                hex_of(row["first"]),
                row["first_module"],
                row["first_template"],
                hex_of(row["second"]),
                row["second_module"],
                row["second_template"],
                row["together"],
                row["overlap"],
                row["lift"],
            )
            for row in rows
        ]


def _rank(severity: Severity | None) -> int:
    return RANKS[severity] if severity is not None else 0


def _name_of_rank(rank: int) -> str:
    return SEVERITY_OF_RANK[rank].value


def _width(span: timedelta) -> timedelta:
    """Return a width that people think in, giving about sixty buckets."""
    wanted = span.total_seconds() / _BUCKETS
    for seconds in _NICE:
        if seconds >= wanted:
            return timedelta(seconds=seconds)
    return timedelta(seconds=_DAY * -(-wanted // _DAY))
