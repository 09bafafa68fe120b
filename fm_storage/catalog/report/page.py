"""The report as one page: drawn here, escaped in ``html.py``, without a script.

Apart from the report's data, because it is all form: what stands where, in which
words. Sections open and close by themselves, light and dark follow the reader's
system, and a narrow screen gets one column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from fm_storage.catalog.report.charts import (
    WORST_FIRST,
    draw_hours,
    draw_modules,
    draw_timeline,
    format_span,
    format_time,
)
from fm_storage.catalog.report.html import Markup, document, el, join
from fm_storage.catalog.report.style import STYLE

if TYPE_CHECKING:
    from fm_storage.catalog.query.findings import Correlation, Growth
    from fm_storage.catalog.query.groups import ErrorGroup
    from fm_storage.catalog.query.similarity import SimilarGroup
    from fm_storage.catalog.report.report import Report
    from fm_storage.repositories import ErrorEntry

__all__ = ["draw"]

_TRACE = 6000
_VARIABLE = re.compile(r"(<\w+>)")


def draw(report: Report) -> str:
    """Return the whole page."""
    lately = format_span(report.window)
    worst = _worst(report)
    known = {group.fingerprint for group in (*worst, *report.groups)}
    anchored = {group.fingerprint for group in worst}
    sections = {
        "timeline": _section(
            "timeline",
            "Timeline",
            draw_timeline(report.timeline, report.severities)
            if report.timeline
            else _nothing("no errors"),
        ),
        "new": el(
            "div",
            _section(
                "new",
                f"New in the last {lately}",
                _note("Had never happened before."),
                *[_group(one) for one in report.new]
                or [_nothing("no new kind of error")],
            ),
            _section(
                "growing",
                f"Growing in the last {lately}",
                _note(f"More often than in the {lately} before."),
                *[_growth(one, report.examples, known) for one in report.growing]
                or [_nothing("nothing grows")],
            ),
            class_="two",
        ),
        "worst": _section(
            "worst",
            "Worst groups",
            _note("Errors and worse; open one for an example."),
            *[
                _group(one, report.similar.get(one.fingerprint, ()), known, own=True)
                for one in worst
            ],
        )
        if worst
        else join(),
        "groups": _section(
            "groups",
            "Commonest groups",
            _note("Equal but for numbers, names and paths; open one for its worst."),
            *[
                _group(
                    one,
                    report.similar.get(one.fingerprint, ()),
                    known,
                    own=one.fingerprint not in anchored,
                )
                for one in report.groups
            ]
            or [_nothing("no errors")],
        ),
        "together": _section(
            "together",
            "What happens together",
            _note("In the same minute, more often than by chance."),
            *[_pair(one, report.examples) for one in report.correlations]
            or [_nothing("no two kinds of error keep each other company")],
        ),
        "modules": el(
            "div",
            _section(
                "modules",
                "Modules",
                draw_modules(report.modules)
                if report.modules
                else _nothing("no errors"),
            ),
            _section(
                "hours",
                "By module and hour (UTC)",
                draw_hours(report.heat) if report.heat else _nothing("no errors"),
            ),
            class_="two",
        ),
    }
    return document(
        report.title,
        STYLE,
        el(
            "main",
            el(
                "header",
                el("h1", report.title),
                el("p", _period(report), class_="dim"),
                _cards(report),
                _contents(worst=bool(worst)),
            ),
            *sections.values(),
            el(
                "footer",
                f"Made {format_time(report.made)} UTC by fm_storage. Secrets were "
                "masked before they were stored. This page loads nothing and runs "
                "nothing.",
            ),
        ),
    )


def _worst(report: Report) -> list[ErrorGroup]:
    """Return the worst groups, unless the commonest tell the same."""
    shown = {group.fingerprint for group in report.groups}
    if all(group.fingerprint in shown for group in report.worst):
        return []
    return report.worst


def _contents(*, worst: bool) -> Markup:
    names = {
        "timeline": "Timeline",
        "new": "New",
        "growing": "Growing",
        **({"worst": "Worst"} if worst else {}),
        "groups": "Commonest",
        "together": "Together",
        "modules": "Modules",
        "hours": "Hours",
    }
    links = [el("a", name, href=f"#{key}") for key, name in names.items()]
    return el("nav", *links, aria_label="parts of this page")


def _section(key: str, title: str, *content: object) -> Markup:
    return el("section", el("h2", title), *content, id=key)


def _nothing(text: str) -> Markup:
    return el("p", text, class_="dim")


def _note(text: str) -> Markup:
    return el("p", text, class_="note")


def _period(report: Report) -> str:
    first, last = report.totals.first, report.totals.last
    if first is None or last is None:
        return "no errors in this period"
    return f"{format_time(first)} to {format_time(last)} UTC"


def _cards(report: Report) -> Markup:
    found: list[tuple[int, str]] = [
        (report.totals.errors, "entries"),
        (report.totals.groups, "groups"),
        (report.new_groups, "new groups"),
    ]
    found += [
        (report.severities[level], level.lower())
        for level in WORST_FIRST
        if report.severities.get(level)
    ]
    return el(
        "ul",
        *[
            el(
                "li",
                el("b", f"{number:,}"),
                el("span", name, class_="dim"),
                class_="card",
            )
            for number, name in found
        ],
        class_="cards",
    )


def _tag(severity: str) -> Markup:
    return el("span", severity, class_=f"tag {severity}")


def _template(template: str) -> Markup:
    """Return a template, its variable parts less dark than its words."""
    parts = _VARIABLE.split(template) if template else ["(empty)"]
    return el(
        "code", *[el("i", one) if at % 2 else one for at, one in enumerate(parts)]
    )


def _fold(
    count: str, severity: str, module: str, what: object, *body: object, key: str | None
) -> Markup:
    """Return what opens: a line of facts and the template; inside, the rest."""
    head = el(
        "span",
        el("span", count, class_="count"),
        _tag(severity),
        el("span", module, class_="dim what"),
        class_="head",
    )
    return el(
        "details",
        el("summary", head, el("span", what, class_="what")),
        el("div", *body, class_="body"),
        id=key,
    )


def _example(entry: ErrorEntry | None) -> Markup:
    if entry is None:
        return join()
    parts = [
        el(
            "p",
            f"The worst of them, {format_time(entry.timestamp)} UTC, ",
            el("code", str(entry.id)),
            class_="note",
        ),
        el("pre", _cut(entry.message), tabindex=0),
    ]
    if entry.stack_trace:
        parts.append(el("pre", _cut(entry.stack_trace), tabindex=0))
    return join(*parts)


def _link(fingerprint: str, template: str, known: Collection[str]) -> Markup:
    shown = _template(template)
    if fingerprint not in known:
        return shown
    return el("a", shown, href=f"#g{fingerprint}")


def _group(
    group: ErrorGroup,
    similar: Sequence[SimilarGroup] = (),
    known: Collection[str] = (),
    *,
    own: bool = False,
) -> Markup:
    alike = [
        el("li", _link(one.fingerprint, one.template, known), " ",
           el("span", one.module, class_="dim"))
        for one in similar
    ]  # fmt: skip
    return _fold(
        f"{group.count:,}×",
        group.severity,
        group.module,
        _template(group.template),
        el(
            "p",
            f"{group.error_code} · first {format_time(group.first_seen)} · "
            f"last {format_time(group.last_seen)} · ",
            el("code", group.fingerprint),
            class_="note",
        ),
        _example(group.example),
        *([el("p", "Similar groups:", class_="note"), el("ul", *alike)] * bool(alike)),
        key=f"g{group.fingerprint}" if own else None,
    )


def _growth(
    one: Growth, examples: Mapping[str, ErrorEntry], known: Collection[str]
) -> Markup:
    more = (
        [el("p", el("a", "its group", href=f"#g{one.fingerprint}"), class_="note")]
        if one.fingerprint in known
        else []
    )
    return _fold(
        f"{one.before:,} → {one.now:,}",
        one.severity,
        one.module,
        _template(one.template),
        _example(examples.get(one.fingerprint)),
        *more,
        key=None,
    )


def _pair(one: Correlation, examples: Mapping[str, ErrorEntry]) -> Markup:
    def side(module: str, template: str) -> Markup:
        return el(
            "span",
            _template(template),
            " ",
            el("span", module, class_="dim"),
            class_="pair",
        )

    head = el(
        "span",
        el("span", f"{one.together:,}×", class_="count"),
        el(
            "span",
            f"{one.overlap:.0%} of the minutes of either · "
            f"{one.lift:,.1f} times as often as by chance",
            class_="dim",
        ),
        class_="head",
    )
    both = el(
        "span",
        side(one.first_module, one.first_template),
        side(one.second_module, one.second_template),
        class_="what",
    )
    return el(
        "details",
        el("summary", head, both),
        el(
            "div",
            _example(examples.get(one.first)),
            _example(examples.get(one.second)),
            class_="body",
        ),
    )


def _cut(text: str) -> str:
    if len(text) <= _TRACE:
        return text
    return f"{text[: _TRACE // 2]}\n…\n{text[-_TRACE // 2 :]}"
