"""How the report formats times and spans, and what its charts hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fm_storage.catalog.query.findings import TimelineBucket
from fm_storage.catalog.report.charts import (
    format_span,
    format_time,
    hours_chart,
    timeline_chart,
)
from fm_storage.catalog.report.html import environment
from fm_storage.repositories import Severity

CHARTS: Any = environment().get_template("charts.html.jinja").module
MOMENT = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (None, "2024-01-02 03:04:05"),
        (timedelta(seconds=30), "2024-01-02 03:04:05"),
        (timedelta(minutes=5), "2024-01-02 03:04"),
        (timedelta(days=2), "2024-01-02"),
    ],
)
def test_a_time_is_as_exact_as_its_neighbour_is_near(step, said):
    """Seconds between bars of seconds, dates between bars of days."""
    assert format_time(MOMENT, step) == said


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(days=7), "7 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(hours=30), "30 hours"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(seconds=90), "90 seconds"),
        (timedelta(minutes=2), "2 minutes"),
        (timedelta(seconds=0.25), "0.25 seconds"),
    ],
)
def test_a_span_is_spelt_in_the_largest_unit_that_fits_twice(span, said):
    """One day is one day, thirty hours are not."""
    assert format_span(span) == said


def test_a_timeline_is_drawn_and_told_in_numbers():
    """A bar for each bucket with errors, its parts by severity; the same as a table."""
    buckets = [
        TimelineBucket(
            MOMENT + timedelta(hours=n), {Severity.ERROR: n, Severity.INFO: 1}
        )
        for n in range(3)
    ]
    drawn = CHARTS.timeline(timeline_chart(buckets, {"ERROR": 3, "INFO": 3}))
    assert drawn.count('<rect class="ERROR" x') == 2
    assert drawn.count('<rect class="INFO" x') == 3
    assert "each bar 1 hour" in drawn
    assert "the highest bar stands for 3" in drawn
    assert "<td>2024-01-02 05:04</td>" in drawn
    alone = CHARTS.timeline(timeline_chart(buckets[:1], {"INFO": 1}))
    assert "each bar" not in alone


def test_little_is_seen_beside_much():
    """One error among a million still has a shade and a width."""
    hours = [0] * 24
    heat = {"busy": [1_000_000, *hours[1:]], "quiet": [1, *hours[1:]], "": hours}
    drawn = CHARTS.hours(hours_chart(heat))
    assert drawn.count('class="h8"') == 2  # the cell and the scale's
    assert drawn.count('class="h1"') == 2
    assert "(none)" in drawn
    assert '<rect width="0.5%"' in CHARTS.modules({"busy": 1_000_000, "quiet": 1})
