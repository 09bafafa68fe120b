"""The report as data: what is new, what grows, when, with what, and examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from fm_storage.catalog.query.analyzer import Analyzer
from fm_storage.catalog.query.findings import (
    Correlation,
    Growth,
    TimelineBucket,
    Totals,
)
from fm_storage.catalog.query.groups import ErrorGroup
from fm_storage.catalog.record.row import RANKS
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.catalog.query.similarity import SimilarGroup

_HEAT_HOURS = 24
Similar = Callable[[list[ErrorGroup]], Awaitable[dict[str, list["SimilarGroup"]]]]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on the page, as data.

    Attributes:
        title: What the reader sees first.
        made: When the report was made.
        since: Beginning of the period, None if it has none.
        until: End of the period.
        totals: Errors and groups within the period.
        severities: Errors by severity.
        modules: Errors by module, commonest first.
        timeline: Errors by time and severity.
        heat: Errors by module and hour of the day (UTC).
        groups: The commonest groups, each with its worst error.
        new: Groups that first occurred in the last *window*.
        growing: Groups more frequent in the last *window* than before it.
        correlations: Groups that occur together.
        draw: Draws the page for ``to_html()``.
        similar: Groups that resemble one of *groups*, by its fingerprint.
        window: What counts as lately.
        new_groups: How many groups are new, also those that *new* has no room for.
        worst: The groups that are errors or worse, the worst first.
        examples: The worst error of each growing or correlated group, by its
            fingerprint.
    """

    title: str
    made: datetime
    since: datetime | None
    until: datetime
    window: timedelta
    totals: Totals
    severities: dict[str, int]
    modules: dict[str, int]
    timeline: list[TimelineBucket]
    heat: dict[str, list[int]]
    groups: list[ErrorGroup]
    new: list[ErrorGroup]
    growing: list[Growth]
    correlations: list[Correlation]
    draw: Callable[[Report], str] = field(repr=False, compare=False)
    similar: dict[str, list[SimilarGroup]] = field(default_factory=dict)
    new_groups: int = 0
    worst: list[ErrorGroup] = field(default_factory=list)
    examples: dict[str, ErrorEntry] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = dataclasses.asdict(self)
        del values["draw"]
        return values

    def to_json(self) -> str:
        """Return the report as JSON; times in ISO 8601, durations in seconds."""
        data = orjson.dumps(
            self.to_dict(),
            default=_json_of,
            option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS,
        )
        return data.decode()

    def to_html(self) -> str:
        """Return the report as one page that loads nothing and runs nothing."""
        return self.draw(self)


class Period(TypedDict):
    """What every question of the report is restricted to."""

    since: datetime | None
    until: datetime | None
    severity: Severity | None


def _json_of(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


async def make_report(
    analyzer: Analyzer,
    similar: Similar | None,
    draw: Callable[[Report], str],
    *,
    title: str = "Errors",
    since: datetime | None = None,
    until: datetime | None = None,
    window: timedelta | None = None,
    severity: Severity | None = None,
    limit: int = 12,
) -> Report:
    """Ask all questions of the report, one after the other."""
    now = datetime.now(UTC)
    period: Period = {"since": since, "until": until, "severity": severity}
    totals = await analyzer.totals(**period)
    end = until or (totals.last + timedelta(microseconds=1) if totals.last else now)
    begin = since or totals.first or end
    lately = window or _lately(end - begin)
    groups = await analyzer.groups(limit=limit, **period)
    growing = await analyzer.growing(lately, until=end, limit=limit, severity=severity)
    together = await analyzer.correlations(limit=limit, **period)
    shown = {one.fingerprint for one in growing}
    shown |= {name for pair in together for name in (pair.first, pair.second)}
    return Report(
        title=title,
        made=now,
        since=since,
        until=end,
        window=lately,
        totals=totals,
        severities=await analyzer.frequencies("severity", **period),
        modules=await analyzer.frequencies("module", limit=limit, **period),
        timeline=await analyzer.timeline(**period),
        heat=await analyzer.heat(limit=limit, **period),
        groups=groups,
        new=await analyzer.new_since(
            end - lately, until=end, limit=limit, severity=severity
        ),
        growing=growing,
        correlations=together,
        draw=draw,
        similar=await similar(groups) if similar is not None else {},
        new_groups=await analyzer.count_new(end - lately, until=end, severity=severity),
        worst=await analyzer.groups(
            limit=limit,
            since=since,
            until=until,
            severity=_at_least_error(severity),
            order="severity",
        ),
        examples=await analyzer.examples(shown, **period),
    )


def _at_least_error(severity: Severity | None) -> Severity:
    if severity is None or RANKS[severity] < RANKS[Severity.ERROR]:
        return Severity.ERROR
    return severity


def _lately(span: timedelta) -> timedelta:
    """Return a tenth of the period, between a minute and a week."""
    return min(max(span / 10, timedelta(minutes=1)), timedelta(days=7))
