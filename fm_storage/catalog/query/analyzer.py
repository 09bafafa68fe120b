"""Counts, timelines and relations over the whole catalogue.

Every question is one pass over a narrow index, so that a million errors are
answered in about a second.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from fm_storage.catalog.query import analyzer_sql
from fm_storage.catalog.query.arguments import refuse_unclear, span_of
from fm_storage.catalog.query.findings import (
    Correlation,
    Growth,
    Pattern,
    TimelineBucket,
    Totals,
)
from fm_storage.catalog.query.grouping import group_ungrouped
from fm_storage.catalog.query.groups import (
    ErrorGroup,
    Order,
    fetch_groups,
    hex_of,
    number_of,
)
from fm_storage.catalog.query.states import fetch_states
from fm_storage.catalog.record.row import RANKS
from fm_storage.catalog.record.store import SEVERITY_OF_RANK
from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage.catalog.ports import Storage
    from fm_storage.postgres import Pool, Sql
    from fm_storage.postgres.executor import Record

By = Literal["module", "error_code", "severity", "hour", "weekday"]

_BUCKETS = 60
_NICE = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400)
_DAY = 86_400
_SCAN_TIMEOUT = 300.0


class Analyzer:
    """Counts, timelines and relations of errors; ``ErrorManager.analyzer``.

    Every method takes ``since`` (from then on) and ``until`` (before then), both
    aware, and ``severity`` (the minimum); a time without a zone, a limit below
    one or a span of nothing is ``InvalidRecord``. Spans may be given in seconds.

    Args:
        storage: A ``StorageManager``.
        reads: The pool to read from; ``storage.pool`` if None.
    """

    def __init__(
        self, storage: Storage, reads: Pool | None = None, *, grouped: bool = False
    ) -> None:
        self._storage = storage
        self._reads = reads
        self._grouped = grouped

    @property
    def pool(self) -> Pool:
        """The pool that is read from."""
        return self._storage.pool if self._reads is None else self._reads

    def grouped(self) -> Analyzer:
        """Return one for several questions at once, which groups nothing first."""
        return Analyzer(self._storage, self._reads, grouped=True)

    async def _pool(self, limit: int = 1, **times: datetime | None) -> Pool:
        """Return the pool, once everything in the catalogue has its group."""
        refuse_unclear(limit, **times)
        if not self._grouped:
            await group_ungrouped(self.pool)
        return self.pool

    async def _fetch(
        self,
        statement: Sql,
        since: datetime | None,
        until: datetime | None,
        severity: Severity | None,
        *more: object,
        limit: int | None = None,
    ) -> list[Record]:
        """Run one of the statements that take a span, a severity and what is more."""
        pool = await self._pool(1 if limit is None else limit, since=since, until=until)
        last = () if limit is None else (limit,)
        given = (since, until, _rank(severity), *more, *last)
        return await pool.fetch(statement, *given, timeout=_SCAN_TIMEOUT)

    async def totals(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> Totals:
        """Return how many errors and groups there are, and their period."""
        [row] = await self._fetch(analyzer_sql.TOTALS, since, until, severity)
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
        rows = await self._fetch(
            analyzer_sql.PATTERNS, since, until, severity, limit=limit
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
        statement = analyzer_sql.BY_NAME.get(by) or analyzer_sql.BY_PART.get(by)
        if statement is None:
            names = ", ".join([*analyzer_sql.BY_NAME, *analyzer_sql.BY_PART])
            raise InvalidRecord(f"by is {by!r}; give one of {names}", field="by")
        rows = await self._fetch(statement, since, until, severity, limit=limit)
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
            severity: Minimum severity.
        """
        width = bucket
        if width is None:
            totals = await self.totals(since=since, until=until, severity=severity)
            if totals.first is None or totals.last is None:
                return []
            width = bucket_of(totals.last - totals.first)
        rows = await self._fetch(analyzer_sql.TIMELINE, since, until, severity, width)
        found: dict[datetime, dict[Severity, int]] = {}
        for row in rows:
            counts = found.setdefault(row["start"], {})
            counts[SEVERITY_OF_RANK[row["severity"]]] = row["count"]
        if not found:
            return []  # purged meanwhile
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
        order: Order = "count",
    ) -> list[ErrorGroup]:
        """Return the commonest groups, each with its worst error.

        *order* may be ``severity`` instead (the worst first), ``last_seen`` or
        ``first_seen`` (the newest first).
        """
        return await fetch_groups(
            self.pool,
            limit=limit,
            since=since,
            until=until,
            severity=severity,
            order=order,
            grouped=self._grouped,
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
        rows = await self._fetch(analyzer_sql.HEAT, since, until, severity, limit=limit)
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
        """Return groups that had never occurred before *moment*, newest first.

        With *severity*, groups that had never had that severity before.
        """
        pool = await self._pool(limit, moment=moment, until=until)
        rows = await pool.fetch(
            analyzer_sql.NEW,
            moment,
            until,
            _rank(severity),
            limit,
            timeout=_SCAN_TIMEOUT,
        )
        return await fetch_groups(
            pool,
            limit=limit,
            severity=severity,
            until=until,
            only=[row[0] for row in rows],
            order="first_seen",
            grouped=True,
        )

    async def count_new(
        self,
        moment: datetime,
        *,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> int:
        """Return how many groups ``new_since()`` would have without a limit."""
        found: int = await (await self._pool(moment=moment, until=until)).fetchval(
            analyzer_sql.NEW_COUNT,
            moment,
            until,
            _rank(severity),
            timeout=_SCAN_TIMEOUT,
        )
        return found

    async def regressed(
        self,
        *,
        limit: int = 20,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[ErrorGroup]:
        """Return groups that were resolved and came back, the latest first."""
        pool = await self._pool(limit, since=since, until=until)
        states = await fetch_states(pool)
        return await fetch_groups(
            pool,
            limit=limit,
            since=since,
            until=until,
            severity=severity,
            only=[key for key, one in states.items() if one.state == "regressed"],
            order="last_seen",
            grouped=True,
        )

    async def named(
        self,
        fingerprints: Collection[str],
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: Severity | None = None,
    ) -> list[ErrorGroup]:
        """Return the groups that have these fingerprints."""
        return await fetch_groups(
            self.pool,
            limit=max(1, len(fingerprints)),
            since=since,
            until=until,
            severity=severity,
            only=[number_of(one) for one in fingerprints],
            grouped=self._grouped,
        )

    async def sparks(
        self,
        groups: Collection[str],
        begin: datetime,
        end: datetime,
        *,
        parts: int = 30,
        severity: Severity | None = None,
    ) -> dict[str, list[int]]:
        """Return how often each group happened in each of *parts* of a period."""
        width = max((end - begin) / parts, timedelta(microseconds=1))
        pool = await self._pool(parts, begin=begin, end=end)
        rows = await pool.fetch(
            analyzer_sql.SPARKS,
            begin,
            end,
            _rank(severity),
            [begin + width * part for part in range(parts)],
            [number_of(one) for one in groups],
            timeout=_SCAN_TIMEOUT,
        )
        found: dict[str, list[int]] = {}
        for fingerprint, slot, count in rows:
            found.setdefault(hex_of(fingerprint), [0] * parts)[slot - 1] = count
        return found

    async def releases(
        self, groups: Collection[str]
    ) -> dict[str, tuple[str | None, str | None]]:
        """Return the releases in which each group was first and last seen.

        None for an error whose release is not known; groups without any are left out.
        """
        pool = await self._pool()
        numbers = [number_of(one) for one in groups]
        rows = await pool.fetch(analyzer_sql.RELEASES, numbers, timeout=_SCAN_TIMEOUT)
        return {hex_of(row[0]): (row[1], row[2]) for row in rows}

    async def growing(
        self,
        window: timedelta | float,
        *,
        until: datetime | None = None,
        limit: int = 10,
        severity: Severity | None = None,
    ) -> list[Growth]:
        """Return groups more frequent in the last *window* than in the one before."""
        end, window = until or datetime.now(UTC), span_of(window, "window")
        rows = await (await self._pool(limit, until=until)).fetch(
            analyzer_sql.GROWTH,
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
        window: timedelta | float = timedelta(minutes=1),
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
        slot = span_of(window, "window")
        rows = await self._fetch(
            analyzer_sql.CORRELATIONS, since, until, severity, slot, limit=limit
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


def bucket_of(span: timedelta) -> timedelta:
    """Return a width that people think in, giving about sixty buckets."""
    wanted = span.total_seconds() / _BUCKETS
    for seconds in _NICE:
        if seconds >= wanted:
            return timedelta(seconds=seconds)
    return timedelta(seconds=_DAY * -(-wanted // _DAY))
