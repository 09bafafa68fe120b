"""The report as one page: drawn here, escaped in ``html.py``, without a script.

Apart from the report's data, because it is all form. Charts are SVG, sections
open and close by themselves, light and dark follow the reader's system, and a
narrow screen gets one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fm_storage.catalog.html import Markup, document, el, join
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage.catalog.findings import Correlation, Growth, TimelineBucket
    from fm_storage.catalog.groups import ErrorGroup
    from fm_storage.catalog.report import Report
    from fm_storage.catalog.similarity import SimilarGroup

__all__ = ["draw"]

_WORST_FIRST = tuple(reversed(Severity))
_WIDTH, _HEIGHT = 960, 180
_TRACE = 6000
_STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1d1f23;--dim:#646a73;
--line:#dfe1e5;--accent:#3457d5;--critical:#8e1652;--error:#d03b2f;--warning:#d98e04;
--info:#4d8fcf;--debug:#9aa3ad}
@media(prefers-color-scheme:dark){:root{--bg:#131518;--card:#1c1f24;--ink:#e8eaed;
--dim:#9aa1ab;--line:#31363d;--accent:#8aa4ff;--critical:#e0559c;--error:#f0685c;
--warning:#f0b23c;--info:#6fb0ee;--debug:#77808a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;margin:0 0 4px}h2{font-size:1.1rem;margin:0 0 12px}
p{margin:0 0 8px}.dim{color:var(--dim)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px;margin-top:16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;
margin-top:16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:12px 14px}
.card b{display:block;font-size:1.5rem;line-height:1.2;
font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:1fr 1fr;gap:16px}
.two section{min-width:0}
@media(max-width:760px){.two{grid-template-columns:1fr;gap:0}}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font-size:11px;font-family:inherit}
.grid{stroke:var(--line)}
.CRITICAL{fill:var(--critical)}.ERROR{fill:var(--error)}.WARNING{fill:var(--warning)}
.INFO{fill:var(--info)}.DEBUG{fill:var(--debug)}.bar{fill:var(--accent)}
.tag{display:inline-block;border-radius:4px;padding:0 6px;font-size:.75rem;
font-weight:600;border:1px solid currentColor;white-space:nowrap}
.tag.CRITICAL{color:var(--critical)}.tag.ERROR{color:var(--error)}
.tag.WARNING{color:var(--warning)}.tag.INFO{color:var(--info)}
.tag.DEBUG{color:var(--debug)}
details{border-top:1px solid var(--line);padding:8px 0}
details:first-of-type{border-top:0}
summary{cursor:pointer;display:grid;grid-template-columns:4.5em 5.5em 1fr;gap:10px;
align-items:baseline}
@media(max-width:760px){summary{grid-template-columns:auto 1fr;gap:2px 10px}
summary .what{grid-column:1/-1}}
summary .count::before{content:"▸";color:var(--dim);margin-right:6px}
details[open] .count::before{content:"▾"}
.count{font-weight:700;font-variant-numeric:tabular-nums;text-align:right}
.what{overflow-wrap:anywhere;min-width:0}
.what code,td code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
font-size:.85em}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--bg);
border:1px solid var(--line);border-radius:6px;padding:10px;margin:8px 0 0;
font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
max-height:26em;overflow:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;color:var(--dim);font-size:.8rem}
th,td{padding:5px 8px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
ul{margin:8px 0 0;padding-left:18px}
.legend span{margin-right:14px;white-space:nowrap}
.legend svg{display:inline-block;width:10px;height:10px;margin-right:5px}
footer{margin-top:24px;font-size:.85rem}
"""


def draw(report: Report) -> str:
    """Return the whole page."""
    return document(
        report.title,
        _STYLE,
        el(
            "main",
            el("h1", report.title),
            el("p", _period(report), class_="dim"),
            _cards(report),
            _section(
                "Timeline",
                _timeline(report.timeline),
                _legend(report.severities),
            ),
            el(
                "div",
                _section(
                    f"New in the last {_span(report.window)}",
                    _groups(report.new, {}) or _nothing("no new kind of error"),
                ),
                _section(
                    f"Growing in the last {_span(report.window)}",
                    _growing(report.growing) or _nothing("nothing grows"),
                ),
                class_="two",
            ),
            _section(
                "Commonest groups, each with its worst error",
                _groups(report.groups, report.similar) or _nothing("no errors"),
            ),
            _section(
                "What happens together",
                _correlations(report.correlations)
                or _nothing("no two kinds of error keep each other company"),
            ),
            el(
                "div",
                _section("Modules", _bars(report.modules)),
                _section("By module and hour (UTC)", _heat(report.heat)),
                class_="two",
            ),
            el(
                "footer",
                f"Made {_when(report.made)} by fm_storage. This page loads nothing "
                "and runs nothing.",
                class_="dim",
            ),
        ),
    )


def _section(title: str, *content: object) -> Markup:
    return el("section", el("h2", title), *content)


def _nothing(text: str) -> Markup:
    return el("p", text, class_="dim")


def _period(report: Report) -> str:
    first, last = report.totals.first, report.totals.last
    if first is None or last is None:
        return "no errors in this period"
    return f"{_when(first)} to {_when(last)}"


def _cards(report: Report) -> Markup:
    found: list[tuple[object, str]] = [
        (report.totals.errors, "errors"),
        (report.totals.groups, "groups"),
        (len(report.new), "new lately"),
    ]
    found += [
        (report.severities[level], level.lower())
        for level in _WORST_FIRST
        if report.severities.get(level)
    ]
    return el(
        "div",
        *[
            el(
                "div",
                el("b", f"{number:,}"),
                el("span", name, class_="dim"),
                class_="card",
            )
            for number, name in found
        ],
        class_="cards",
    )


def _timeline(buckets: Sequence[TimelineBucket]) -> Markup:
    if not buckets:
        return _nothing("no errors")
    if len(buckets) > _WIDTH // 2:
        buckets = _merged(buckets)
    top = max(1, *(bucket.total for bucket in buckets))
    step = _WIDTH / len(buckets)
    base = _HEIGHT - 18
    marks: list[Markup] = [
        el("line", class_="grid", x1=0, x2=_WIDTH, y1=base, y2=base),
        el("line", class_="grid", x1=0, x2=_WIDTH, y1=12, y2=12),
        el("text", f"{top:,}", x=2, y=10),
    ]
    for at, bucket in enumerate(buckets):
        y = float(base)
        said = ", ".join(
            f"{bucket.counts[level]} {level.lower()}"
            for level in _WORST_FIRST
            if bucket.counts.get(level)
        )
        bars: list[Markup] = []
        for level in Severity:
            count = bucket.counts.get(level, 0)
            if count:
                height = max(count / top * (base - 12), 1.0)
                y -= height
                bars.append(
                    el(
                        "rect",
                        class_=level,
                        x=f"{at * step + 0.5:.1f}",
                        y=f"{y:.1f}",
                        width=f"{max(step - 1, 0.8):.1f}",
                        height=f"{height:.1f}",
                    )
                )
        if bars:
            marks.append(el("g", el("title", f"{_when(bucket.start)}: {said}"), *bars))
    for at in sorted({0, len(buckets) // 2, len(buckets) - 1}):
        anchor = "start" if at == 0 else "end" if at == len(buckets) - 1 else "middle"
        x = 0 if at == 0 else _WIDTH if anchor == "end" else at * step
        marks.append(
            el("text", _when(buckets[at].start), x=f"{x:.0f}", y=_HEIGHT - 3,
               text_anchor=anchor)
        )  # fmt: skip
    return el(
        "svg", *marks, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label="errors by time and severity",
    )  # fmt: skip


def _merged(buckets: Sequence[TimelineBucket]) -> list[TimelineBucket]:
    from fm_storage.catalog.findings import TimelineBucket as Bucket  # noqa: PLC0415 - a cycle otherwise

    size = -(-len(buckets) // (_WIDTH // 4))
    found: list[TimelineBucket] = []
    for start in range(0, len(buckets), size):
        counts: dict[Severity, int] = {}
        for bucket in buckets[start : start + size]:
            for level, count in bucket.counts.items():
                counts[level] = counts.get(level, 0) + count
        found.append(Bucket(buckets[start].start, counts))
    return found


def _legend(severities: dict[str, int]) -> Markup:
    return el(
        "p",
        *[
            el(
                "span",
                el("svg", el("rect", class_=level, width=10, height=10),
                   viewBox="0 0 10 10", aria_hidden="true"),
                f"{level.lower()} {severities[level]:,}",
            )
            for level in _WORST_FIRST
            if severities.get(level)
        ],
        class_="legend dim",
    )  # fmt: skip


def _tag(severity: str) -> Markup:
    return el("span", severity, class_=f"tag {severity}")


def _groups(
    groups: Iterable[ErrorGroup], similar: dict[str, list[SimilarGroup]]
) -> Markup:
    return join(*[_group(one, similar.get(one.fingerprint, [])) for one in groups])


def _group(group: ErrorGroup, similar: Sequence[SimilarGroup]) -> Markup:
    entry = group.example
    parts: list[object] = [
        el(
            "summary",
            el("span", f"{group.count:,}", class_="count"),
            el("span", _tag(group.severity)),
            el(
                "span",
                el("code", group.template or "(empty)"),
                el("br"),
                el("span", group.module, class_="dim"),
                class_="what",
            ),
        ),
        el(
            "p",
            f"{group.error_code} · first {_when(group.first_seen)} · "
            f"last {_when(group.last_seen)} · ",
            el("code", group.fingerprint),
            class_="dim",
        ),
        el("pre", _cut(entry.message)),
    ]
    if entry.stack_trace:
        parts.append(el("pre", _cut(entry.stack_trace)))
    if similar:
        parts.append(el("p", "Similar groups:"))
        parts.append(
            el(
                "ul",
                *[
                    el("li", el("code", one.template), " ",
                       el("span", one.module, class_="dim"))
                    for one in similar
                ],
            )
        )  # fmt: skip
    return el("details", *parts)


def _growing(growing: Sequence[Growth]) -> Markup | None:
    if not growing:
        return None
    rows = [
        el(
            "tr",
            el("td", f"{one.before:,} → {one.now:,}", class_="n"),
            el("td", _tag(one.severity)),
            el(
                "td",
                el("code", one.template),
                " ",
                el("span", one.module, class_="dim"),
            ),
        )
        for one in growing
    ]
    return el("div", el("table", el("tbody", *rows)), class_="scroll")


def _correlations(found: Sequence[Correlation]) -> Markup | None:
    if not found:
        return None
    head = el(
        "tr",
        el("th", "together", class_="n"),
        el("th", "overlap", class_="n"),
        el("th", "× chance", class_="n"),
        el("th", "one"),
        el("th", "other"),
    )
    rows = [
        el(
            "tr",
            el("td", f"{one.together:,}", class_="n"),
            el("td", f"{one.overlap:.0%}", class_="n"),
            el("td", f"{one.lift:.1f}", class_="n"),
            el("td", el("code", one.first_template), " ",
               el("span", one.first_module, class_="dim")),
            el("td", el("code", one.second_template), " ",
               el("span", one.second_module, class_="dim")),
        )
        for one in found
    ]  # fmt: skip
    return el(
        "div", el("table", el("thead", head), el("tbody", *rows)), class_="scroll"
    )


def _bars(counts: dict[str, int]) -> Markup:
    if not counts:
        return _nothing("no errors")
    top = max(counts.values())
    marks: list[Markup] = []
    for at, (name, count) in enumerate(counts.items()):
        y = at * 34
        marks += [
            el("text", f"{_short(name, 48)} · {count:,}", x=0, y=y + 12),
            el("rect", class_="bar", x=0, y=y + 17, rx=2, height=8,
               width=f"{max(count / top * 440, 2):.1f}"),
        ]  # fmt: skip
    return el(
        "svg", *marks, viewBox=f"0 0 440 {len(counts) * 34}", role="img",
        aria_label="errors by module",
    )  # fmt: skip


def _heat(heat: dict[str, list[int]]) -> Markup:
    if not heat:
        return _nothing("no errors")
    top = max(max(hours) for hours in heat.values()) or 1
    marks: list[Markup] = []
    for at, (module, hours) in enumerate(heat.items()):
        y = at * 34
        marks.append(el("text", _short(module, 56), x=0, y=y + 12))
        for hour, count in enumerate(hours):
            opacity = 0.08 if not count else 0.25 + 0.75 * count / top
            cell = el("rect", class_="bar", x=hour * 18, y=y + 16, width=16, height=12,
                      rx=2, fill_opacity=f"{opacity:.2f}")  # fmt: skip
            marks.append(
                el("g", el("title", f"{module} {hour:02}:00 UTC: {count:,}"), cell)
            )
    return el(
        "svg", *marks, viewBox=f"0 0 440 {len(heat) * 34}", role="img",
        aria_label="errors by module and hour",
    )  # fmt: skip


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _span(span: timedelta) -> str:
    seconds = span.total_seconds()
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def _cut(text: str) -> str:
    if len(text) <= _TRACE:
        return text
    return f"{text[: _TRACE // 2]}\n…\n{text[-_TRACE // 2 :]}"
