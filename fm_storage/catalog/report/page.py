"""The pages that people look at: what their templates are given."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from fm_storage.catalog.report.charts import (
    WORST_FIRST,
    format_span,
    hours_chart,
    timeline_chart,
)
from fm_storage.catalog.report.html import environment
from fm_storage.catalog.report.style import STYLE
from fm_storage.catalog.report.trace import Trace, read_trace

if TYPE_CHECKING:
    from fm_storage.catalog.query.findings import Correlation
    from fm_storage.catalog.query.groups import ErrorGroup
    from fm_storage.catalog.report.report import Report
    from fm_storage.repositories import ErrorEntry

_QUIET = {"resolved", "muted"}
_CLOSE = 0.5
"""Of the minutes of either, the part in which two groups of one burst both happen."""
_MADE_UP = "M-"

DIGEST = b64encode(sha256(STYLE.encode()).digest()).decode()


class Live(NamedTuple):
    """What a page that is served knows, and one in a file does not.

    Attributes:
        base: Where the application is mounted, without a slash at the end.
        search: Whether there are vectors to search by.
        query: What was searched for.
        since: Beginning of the period, as it was given.
        severity: Minimum severity that was asked for.
    """

    base: str
    search: bool = True
    query: str = ""
    since: str = ""
    severity: str = ""


class Row(NamedTuple):
    """A group as a line that opens.

    Attributes:
        kind: Type of the exception, or the code that the application gave; or "".
        text: The message without its variable parts, and without the type.
        spark: The bars of its small chart, as an SVG path; or "".
        most: Errors of the highest of them.
        times: How often, or from how often to how often.
        release: The release, or from which to which; "" if unknown.
    """

    group: ErrorGroup
    kind: str
    text: str
    trace: Trace | None
    spark: str
    most: int
    times: str
    release: str = ""


class Section(NamedTuple):
    """Groups that matter for one reason."""

    key: str
    title: str
    note: str
    rows: list[Row]
    nothing: str = ""


class Burst(NamedTuple):
    """Groups that happen in the same minutes."""

    rows: list[Row]
    together: int
    lift: float


def draw(report: Report, live: Live | None = None) -> str:
    """Return the whole page."""
    rows = {one.fingerprint: _row(report, one) for one in report.every}
    sections = list(_sections(report, rows))
    parts = {
        "timeline": "Timeline",
        **{one.key: one.title.partition(" in ")[0] for one in sections},
        "together": "Together",
        "all": "All groups",
        "modules": "Modules",
        "hours": "Hours",
    }
    return render(
        "page",
        title=report.title,
        live=live,
        report=report,
        cards=list(_cards(report)),
        parts=parts,
        timeline=report.timeline and timeline_chart(report.timeline, report.severities),
        hours=report.heat and hours_chart(report.heat),
        sections=sections,
        shown={one.group.fingerprint for each in sections for one in each.rows},
        bursts=list(_bursts(report.correlations, rows)),
        every=list(rows.values()),
    )


def render(template: str, *, title: str, live: Live | None, **values: object) -> str:
    """Return a page made of one of the templates."""
    found = environment().get_template(f"{template}.html.jinja")
    return found.render(title=title, live=live, digest=DIGEST, style=STYLE, **values)


def row_of(
    group: ErrorGroup,
    spark: Sequence[int] = (),
    releases: Sequence[str | None] = (),
) -> Row:
    """Return the row of one group."""
    example = group.example
    trace = read_trace(example.stack_trace) if example.stack_trace else None
    code = "" if group.error_code.startswith(_MADE_UP) else group.error_code
    kind = (trace.kind if trace else "") or code
    return Row(
        group,
        kind,
        group.template.removeprefix(f"{kind.rpartition('.')[2]}: "),
        trace,
        _bars(spark),
        max(spark, default=0),
        f"{group.count:,}×",
        " → ".join(dict.fromkeys(filter(None, releases))),
    )


def entries_of(
    entries: Sequence[ErrorEntry],
) -> list[tuple[ErrorEntry, Trace | None]]:
    """Return entries with their traces."""
    return [
        (one, read_trace(one.stack_trace) if one.stack_trace else None)
        for one in entries
    ]


def _row(report: Report, group: ErrorGroup) -> Row:
    name = group.fingerprint
    return row_of(group, report.sparks.get(name, ()), report.releases.get(name, ()))


def _bars(counts: Sequence[int]) -> str:
    """Return bars in a box of 4 times as many units wide, and 24 high."""
    top = max(counts, default=0)
    return "".join(
        f"M{at * 4} 24v-{max(count / top * 23, 2):.0f}h3V24z"
        for at, count in enumerate(counts)
        if count
    )


def _sections(report: Report, rows: dict[str, Row]) -> Iterator[Section]:
    """Yield the parts; a group is in the first for which there is a reason.

    What somebody muted or resolved is in the list of all groups alone.
    """
    seen = {name for name, row in rows.items() if row.group.state in _QUIET}

    def kept(groups: Sequence[ErrorGroup]) -> list[Row]:
        fresh = [one for one in groups if one.fingerprint not in seen]
        seen.update(one.fingerprint for one in fresh)
        return [rows.setdefault(one.fingerprint, _row(report, one)) for one in fresh]

    span = format_span(report.window).removeprefix("1 ")
    regressed = kept(report.regressed)
    if regressed:
        note = "Somebody had called them resolved."
        yield Section("regressed", "Came back", note, regressed)
    note = "Had never happened before."
    nothing = "no new kind of error"
    yield Section("new", f"New in the last {span}", note, kept(report.new), nothing)
    grown = {one.fingerprint: one for one in report.growing}
    growing = [
        row._replace(times=f"{grown[name].before:,} → {grown[name].now:,}")
        for name in grown
        if name in rows
        for row in kept([rows[name].group])
    ]
    note = f"More often than in the {span} before."
    nothing = "nothing grows" if not grown else "nothing else grows"
    yield Section("growing", f"Growing in the last {span}", note, growing, nothing)
    worst = kept(report.worst)
    if worst:
        yield Section("worst", "Worst groups", "Errors and worse.", worst)
    groups = kept(report.groups)
    if groups:
        note = "Equal but for numbers, names and paths."
        yield Section("groups", "Commonest groups", note, groups)


def _bursts(pairs: Sequence[Correlation], rows: dict[str, Row]) -> Iterator[Burst]:
    """Yield what happens together, each burst once, however many pairs it gives."""
    bursts: list[tuple[set[str], Correlation]] = []
    for pair in pairs:
        both = {pair.first, pair.second} & rows.keys()
        if len(both) < 2:
            continue
        near = [
            burst
            for burst in bursts
            if burst[0] & both and (pair.overlap >= _CLOSE or both <= burst[0])
        ]
        if not near:
            bursts.append((both, pair))
        for other in near[1:]:
            near[0][0].update(other[0])
            bursts.remove(other)
        if near:
            near[0][0].update(both)
    for names, pair in bursts:
        members = sorted((rows[one] for one in names), key=lambda row: -row.group.count)
        yield Burst(members, pair.together, pair.lift)


def _cards(report: Report) -> Iterator[tuple[int, str, str]]:
    yield report.totals.errors, "entries", "#timeline"
    counted = sum(one.counted for one in report.every)
    if counted:
        yield counted, "only counted", "#all"
    yield report.totals.groups, "groups", "#all"
    yield report.new_groups, "new groups", "#new"
    if report.regressed:
        yield len(report.regressed), "came back", "#regressed"
    for level in WORST_FIRST:
        if report.severities.get(level):
            yield report.severities[level], level.lower(), ""
