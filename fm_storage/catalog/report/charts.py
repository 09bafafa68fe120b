"""The report's charts: when, where, at which hour.

Apart from the page's words. Bars are SVG that stretches, labels are text beside
it: so they stay readable on a telephone, and no shape needs a style of its own,
which the page's policy forbids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil, sqrt

from fm_storage.catalog.query.findings import TimelineBucket
from fm_storage.catalog.report.html import Markup, el, join
from fm_storage.repositories import Severity

__all__ = [
    "WORST_FIRST",
    "draw_hours",
    "draw_modules",
    "draw_timeline",
    "format_span",
    "format_time",
]

WORST_FIRST = tuple(reversed(Severity))

_WIDTH, _HEIGHT = 960, 160
_LEVELS = 8
_NUMBERS = 100
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def format_time(moment: datetime, step: timedelta | None = None) -> str:
    """Return a time as exactly as *step* (the distance to the next one) asks."""
    if step and step >= _DAY:
        return f"{moment:%Y-%m-%d}"
    if step and step >= _MINUTE:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def format_span(span: timedelta) -> str:
    """Return a span in the largest unit of which there are two, or exactly one."""
    seconds = span.total_seconds()
    for size, unit in _UNITS:
        if seconds >= 2 * size or seconds == size:
            number = round(seconds / size)
            return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
    return f"{seconds:.3g} seconds"


def draw_timeline(
    buckets: Sequence[TimelineBucket], severities: Mapping[str, int]
) -> Markup:
    """Return bars by time and severity, the worst on top, and the same as numbers."""
    if len(buckets) > _WIDTH // 2:
        buckets = _merged(buckets)
    top = max(1, *(bucket.total for bucket in buckets))
    step = _WIDTH / len(buckets)
    width = buckets[1].start - buckets[0].start if len(buckets) > 1 else timedelta()
    bars = [
        _bar(bucket, at * step, step, top, width)
        for at, bucket in enumerate(buckets)
        if bucket.total
    ]
    middle = buckets[len(buckets) // 2]
    each = f", each bar {format_span(width)}" if width else ""
    return el(
        "figure",
        el(
            "figcaption",
            f"Times are UTC{each}; the highest bar stands for {top:,}.",
            class_="note",
        ),
        el(
            "svg",
            *bars,
            class_="timeline",
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            preserveAspectRatio="none",
            role="img",
            aria_label="entries by time and severity",
        ),
        el(
            "div",
            el("span", format_time(buckets[0].start, width)),
            el("span", format_time(middle.start, width), class_="mid"),
            el("span", format_time(buckets[-1].start, width)),
            class_="axis",
        ),
        _legend(severities),
        _numbers(buckets, width),
    )


def _bar(
    bucket: TimelineBucket, x: float, step: float, top: int, width: timedelta
) -> Markup:
    said = ", ".join(
        f"{bucket.counts[level]:,} {level.lower()}"
        for level in WORST_FIRST
        if bucket.counts.get(level)
    )
    gap = min(1.0, step / 5)
    y = float(_HEIGHT)
    parts = [el("title", f"{format_time(bucket.start, width)}: {said}")]
    for level in Severity:
        count = bucket.counts.get(level, 0)
        if count:
            height = max(count / top * (_HEIGHT - 4), 2.0)
            y = max(y - height, 0.0)
            parts.append(
                el(
                    "rect",
                    class_=level,
                    x=f"{x:.1f}",
                    y=f"{y:.1f}",
                    width=f"{step - gap:.1f}",
                    height=f"{height:.1f}",
                )
            )
    return el("g", *parts)


def _merged(buckets: Sequence[TimelineBucket]) -> list[TimelineBucket]:
    size = -(-len(buckets) // (_WIDTH // 4))
    found: list[TimelineBucket] = []
    for start in range(0, len(buckets), size):
        counts: dict[Severity, int] = {}
        for bucket in buckets[start : start + size]:
            for level, count in bucket.counts.items():
                counts[level] = counts.get(level, 0) + count
        found.append(TimelineBucket(buckets[start].start, counts))
    return found


def _legend(severities: Mapping[str, int]) -> Markup:
    return el(
        "div",
        *[
            el(
                "span",
                el(
                    "svg",
                    el("rect", class_=level, width=10, height=10, rx=2),
                    viewBox="0 0 10 10",
                    aria_hidden="true",
                ),
                f"{level.lower()} {severities[level]:,}",
            )
            for level in WORST_FIRST
            if severities.get(level)
        ],
        class_="legend",
    )


def _numbers(buckets: Sequence[TimelineBucket], width: timedelta) -> Markup:
    """Return the highest bars as a table, for whoever cannot see or point at them."""
    filled = sorted((one for one in buckets if one.total), key=lambda one: -one.total)
    shown = sorted(filled[:_NUMBERS], key=lambda one: one.start)
    levels = [one for one in WORST_FIRST if any(b.counts.get(one) for b in shown)]
    head = el(
        "tr",
        el("th", "from", scope="col"),
        *[el("th", one.lower(), class_="n", scope="col") for one in levels],
    )
    rows = [
        el(
            "tr",
            el("td", format_time(bucket.start, width)),
            *[el("td", f"{bucket.counts.get(one, 0):,}", class_="n") for one in levels],
        )
        for bucket in shown
    ]
    table = el("table", el("thead", head), el("tbody", *rows))
    return el(
        "details",
        el("summary", el("span", "as numbers", class_="head note")),
        el(
            "div",
            table,
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="the timeline as numbers",
        ),
        class_="numbers",
    )


def draw_modules(counts: Mapping[str, int]) -> Markup:
    """Return one bar a module."""
    top = max(counts.values())
    rows = [
        el(
            "div",
            el("span", name or "(none)"),
            el("b", f"{count:,}"),
            el(
                "svg",
                el("rect", width=f"{max(count / top * 100, 0.5):.1f}%", height=8, rx=2),
                aria_hidden="true",
            ),
            class_="rank",
        )
        for name, count in counts.items()
    ]
    return join(*rows)


def draw_hours(heat: Mapping[str, Sequence[int]]) -> Markup:
    """Return a row of twenty-four cells a module: the darker, the more."""
    top = max(max(hours) for hours in heat.values()) or 1
    rows: list[Markup] = []
    for module, hours in heat.items():
        busiest = max(range(len(hours)), key=hours.__getitem__)
        said = f"most at {busiest:02}:00 ({hours[busiest]:,})"
        rows.append(el("p", module or "(none)", " ", el("span", said, class_="note")))
        rows.append(
            el(
                "div",
                *[
                    el(
                        "span",
                        class_=f"h{_level(count, top)}",
                        title=f"{hour:02}:00 UTC: {count:,}",
                    )
                    for hour, count in enumerate(hours)
                ],
                class_="hours",
                role="img",
                aria_label=f"{module} by hour: {said}",
            )
        )
    rows.append(
        el("div", *[el("span", f"{at:02}") for at in (0, 6, 12, 18, 23)], class_="axis")
    )
    scale = el(
        "div",
        *[el("span", class_=f"h{level}") for level in range(_LEVELS + 1)],
        class_="hours",
        aria_hidden="true",
    )
    rows.append(el("div", "none", scale, f"{top:,} in that hour", class_="scale note"))
    return el("div", *rows, class_="heat")


def _level(count: int, top: int) -> int:
    """Return 0 for nothing, else 1 to 8; by the root, so that little is seen too."""
    return ceil(_LEVELS * sqrt(count / top))
