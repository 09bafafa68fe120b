"""The report's charts as numbers: bars of the timeline, shades of the hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil, sqrt
from typing import NamedTuple

from fm_storage.catalog.query.findings import TimelineBucket
from fm_storage.repositories import Severity

WORST_FIRST = tuple(reversed(Severity))

_WIDTH, _HEIGHT = 960, 160
_SHADES = 8
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


class Part(NamedTuple):
    """The errors of one severity in a bar."""

    level: Severity
    x: float
    y: float
    width: float
    height: float


class Bar(NamedTuple):
    """The errors of one bucket, the worst on top."""

    start: datetime
    counts: str
    parts: list[Part]


class TimelineChart(NamedTuple):
    """Bars by time and severity, and the highest of them as a table."""

    box: tuple[int, int]
    width: timedelta
    top: int
    bars: list[Bar]
    labels: list[tuple[datetime, str]]
    severities: list[tuple[Severity, int]]
    levels: list[Severity]
    highest: list[TimelineBucket]


def timeline_chart(
    buckets: Sequence[TimelineBucket], severities: Mapping[str, int]
) -> TimelineChart:
    """Return the chart of at least one bucket, in bounded width."""
    if len(buckets) > _WIDTH // 2:
        buckets = _merged(buckets)
    top = max(1, *(bucket.total for bucket in buckets))
    step = _WIDTH / len(buckets)
    highest = sorted((one for one in buckets if one.total), key=lambda one: -one.total)
    shown = sorted(highest[:_NUMBERS], key=lambda one: one.start)
    return TimelineChart(
        box=(_WIDTH, _HEIGHT),
        width=buckets[1].start - buckets[0].start if len(buckets) > 1 else timedelta(),
        top=top,
        bars=[
            Bar(bucket.start, _counts(bucket), list(_parts(bucket, at, step, top)))
            for at, bucket in enumerate(buckets)
            if bucket.total
        ],
        labels=[
            (buckets[0].start, ""),
            (buckets[len(buckets) // 2].start, "mid"),
            (buckets[-1].start, ""),
        ],
        severities=[
            (level, severities[level]) for level in WORST_FIRST if severities.get(level)
        ],
        levels=[one for one in WORST_FIRST if any(b.counts.get(one) for b in shown)],
        highest=shown,
    )


def _counts(bucket: TimelineBucket) -> str:
    return ", ".join(
        f"{bucket.counts[level]:,} {level.lower()}"
        for level in WORST_FIRST
        if bucket.counts.get(level)
    )


def _parts(bucket: TimelineBucket, at: int, step: float, top: int) -> Iterator[Part]:
    gap = min(1.0, step / 5)
    y = float(_HEIGHT)
    for level in Severity:
        count = bucket.counts.get(level, 0)
        if count:
            height = max(count / top * (_HEIGHT - 4), 2.0)
            y = max(y - height, 0.0)
            yield Part(level, at * step, y, step - gap, height)


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


class Cell(NamedTuple):
    """The errors of one hour of the day."""

    errors: int
    shade: int


class HourRow(NamedTuple):
    """The hours of one module."""

    module: str
    summary: str
    cells: list[Cell]


class HoursChart(NamedTuple):
    """A row of twenty-four cells for each module: the darker, the more errors."""

    top: int
    shades: int
    rows: list[HourRow]


def hours_chart(heat: Mapping[str, Sequence[int]]) -> HoursChart:
    """Return the chart of at least one module."""
    top = max(max(hours) for hours in heat.values()) or 1
    rows: list[HourRow] = []
    for module, hours in heat.items():
        busiest = max(range(len(hours)), key=hours.__getitem__)
        rows.append(
            HourRow(
                module,
                f"most at {busiest:02}:00 ({hours[busiest]:,})",
                # By the root, so that little is seen beside much.
                [Cell(count, ceil(_SHADES * sqrt(count / top))) for count in hours],
            )
        )
    return HoursChart(top, _SHADES, rows)
