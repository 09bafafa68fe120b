"""The report as data: what is new, what grows, when, with what, and examples."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from fm_storage.catalog.query.analyzer import Analyzer, bucket_of
from fm_storage.catalog.query.findings import (
    Correlation,
    Growth,
    TimelineBucket,
    Totals,
)
from fm_storage.catalog.query.groups import ErrorGroup
from fm_storage.catalog.record.row import RANKS
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage.catalog.query.likeness import SimilarGroup

_LISTED = 1000
_AT_ONCE = 3
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
        similar: Groups that resemble one of *every*, by its fingerprint.
        window: What counts as lately.
        new_groups: How many groups are new, also those that *new* has no room for.
        worst: The groups that are errors or worse, the worst first.
        regressed: Groups that were resolved and came back, the latest first.
        every: All groups, the commonest first (at most a thousand), and those of
            the other parts.
        sparks: How often each of *every* happened in equal parts of the period.
        releases: In which release each of *every* was first and last seen, where
            that is known.
        severity: Minimum severity.
        left_out: Errors of the period below that.
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
    regressed: list[ErrorGroup] = field(default_factory=list)
    every: list[ErrorGroup] = field(default_factory=list)
    sparks: dict[str, list[int]] = field(default_factory=dict)
    releases: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    severity: Severity = Severity.DEBUG
    left_out: int = 0

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
    severity: Severity


def _json_of(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


async def make_report(
    analyzer: Analyzer,
    similar: Similar,
    draw: Callable[[Report], str],
    *,
    title: str = "Errors",
    since: datetime | None = None,
    until: datetime | None = None,
    window: timedelta | None = None,
    severity: Severity = Severity.WARNING,
    limit: int = 12,
) -> Report:
    """Ask all questions of the report, a few at a time."""
    now = datetime.now(UTC)
    period: Period = {"since": since, "until": until, "severity": severity}
    totals = await analyzer.totals(**period)
    analyzer = analyzer.grouped()
    end = until or (totals.last + timedelta(microseconds=1) if totals.last else now)
    begin = since or totals.first or end
    lately = window or _lately(end - begin)
    width = bucket_of(end - begin)
    recent, least = end - lately, RANKS[severity]
    worse: Period = {**period, "severity": _at_least_error(severity)}
    (
        together, every, growing, worst, new, regressed,
        timeline, severities, new_groups, modules, heat,
    ) = await _answers(
        analyzer.correlations(limit=limit * 2, **period),
        analyzer.groups(limit=_LISTED, **period),
        analyzer.growing(lately, until=end, limit=limit, severity=severity),
        analyzer.groups(limit=limit, order="severity", **worse),
        analyzer.new_since(recent, until=end, limit=limit, severity=severity),
        analyzer.regressed(limit=limit, **period),
        analyzer.timeline(bucket=width, **period),
        analyzer.frequencies("severity", since=since, until=until),
        analyzer.count_new(recent, until=end, severity=severity),
        analyzer.frequencies("module", limit=limit, **period),
        analyzer.heat(limit=limit, **period),
    )  # fmt: skip
    known = {one.fingerprint: one for one in (*every, *worst, *new, *regressed)}
    named = {one.fingerprint for one in growing} | {
        name for pair in together for name in (pair.first, pair.second)
    }
    for one in await analyzer.named(named - known.keys(), **period):
        known[one.fingerprint] = one
    listed = list(known.values())
    likeness, releases, sparks = await _answers(
        similar(listed),
        analyzer.releases(list(known)),
        analyzer.sparks(list(known), begin, end, severity=severity),
    )
    return Report(
        title=title,
        made=now,
        since=since,
        until=end,
        window=lately,
        totals=totals,
        severities={k: n for k, n in severities.items() if RANKS[Severity(k)] >= least},
        modules=modules,
        timeline=timeline if totals.errors else [],
        heat=heat,
        groups=every[:limit],
        new=new,
        growing=growing,
        correlations=together,
        draw=draw,
        similar=likeness,
        new_groups=new_groups,
        worst=worst,
        regressed=regressed,
        every=listed,
        sparks=sparks,
        releases=releases,
        severity=severity,
        left_out=sum(n for k, n in severities.items() if RANKS[Severity(k)] < least),
    )


async def _answers(*questions: Awaitable[Any]) -> list[Any]:
    """Return the answers in order; a few questions are asked at a time.

    All of them end here, whatever becomes of one.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(question: Awaitable[Any]) -> Any:
        async with turns:
            return await question

    answers = await asyncio.gather(*map(ask, questions), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def _at_least_error(severity: Severity) -> Severity:
    return max(severity, Severity.ERROR, key=RANKS.__getitem__)


def _lately(span: timedelta) -> timedelta:
    """Return a tenth of the period, between a minute and a week."""
    return min(max(span / 10, timedelta(minutes=1)), timedelta(days=7))
