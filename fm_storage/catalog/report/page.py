"""The report as one page: what its template is given."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

from fm_storage.catalog.report.charts import (
    WORST_FIRST,
    hours_chart,
    timeline_chart,
)
from fm_storage.catalog.report.html import environment
from fm_storage.catalog.report.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fm_storage.catalog.query.groups import ErrorGroup
    from fm_storage.catalog.report.report import Report

_PARTS = {
    "timeline": "Timeline",
    "new": "New",
    "growing": "Growing",
    "worst": "Worst",
    "groups": "Commonest",
    "together": "Together",
    "modules": "Modules",
    "hours": "Hours",
}


def draw(report: Report) -> str:
    """Return the whole page."""
    worst = _worst(report)
    return environment().get_template("page.html.jinja").render(
        report=report,
        digest=b64encode(sha256(STYLE.encode()).digest()).decode(),
        style=STYLE,
        cards=list(_cards(report)),
        parts=[part for part in _PARTS.items() if worst or part[0] != "worst"],
        timeline=report.timeline and timeline_chart(report.timeline, report.severities),
        hours=report.heat and hours_chart(report.heat),
        worst=worst,
        known={group.fingerprint for group in (*worst, *report.groups)},
    )  # fmt: skip


def _worst(report: Report) -> list[ErrorGroup]:
    """Return the worst groups, unless all of them are among the commonest."""
    shown = {group.fingerprint for group in report.groups}
    if all(group.fingerprint in shown for group in report.worst):
        return []
    return report.worst


def _cards(report: Report) -> Iterator[tuple[int, str]]:
    yield report.totals.errors, "entries"
    yield report.totals.groups, "groups"
    yield report.new_groups, "new groups"
    for level in WORST_FIRST:
        if report.severities.get(level):
            yield report.severities[level], level.lower()
