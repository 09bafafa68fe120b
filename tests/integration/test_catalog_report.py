"""What the catalogue says as a whole, as numbers and as a page."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.report.html import environment
from fm_storage.config import StorageConfig
from fm_storage.manager import StorageManager
from fm_storage.repositories import ErrorEntry, Severity

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
async def errors(storage):
    """Give a manager whose catalogue holds a day of a shop."""
    async with ErrorManager(storage) as manager:
        lines = []
        for minute in range(0, 24 * 60, 10):
            at = BEGIN + timedelta(minutes=minute)
            stamp = f"{at:%Y-%m-%d %H:%M}"
            lines.append(
                f"{stamp}:01 INFO [shop.web] GET /item/{minute} took {minute} ms\n"
            )
            if minute % 60 == 0:
                lines.append(f"{stamp}:02 WARNING [shop.db] pool {minute} is full\n")
                lines.append(f"{stamp}:03 ERROR [shop.cart] cart {minute} was lost\n")
            if minute >= 22 * 60:
                lines.append(
                    f"{stamp}:04 CRITICAL [shop.disk] volume {minute} is gone\n"
                )
            if minute >= 21 * 60:
                lines.append(f"{stamp}:05 ERROR [shop.web] GET /item/{minute} failed\n")
        await manager.ingest(lines, source="day")
        yield manager


async def test_patterns_and_frequencies_count_everything(errors):
    """Shares add up; names come commonest first, parts of time in order."""
    analyzer = errors.analyzer
    patterns = await analyzer.patterns()
    assert patterns[0].template == "GET <path> took <n>"
    assert patterns[0].count == 144
    assert sum(pattern.share for pattern in patterns) == pytest.approx(1)
    assert len(await analyzer.patterns(limit=2)) == 2
    by_module = await analyzer.frequencies()
    assert next(iter(by_module)) == "shop.web"
    assert by_module["shop.cart"] == 24
    assert await analyzer.frequencies("severity") == {
        "INFO": 144,
        "WARNING": 24,
        "ERROR": 42,
        "CRITICAL": 12,
    }
    hours = await analyzer.frequencies("hour", severity=Severity.CRITICAL)
    assert hours == {"22": 6, "23": 6}
    assert await analyzer.frequencies("weekday") == {"1": 222}
    assert len(await analyzer.frequencies("error_code")) == 5
    totals = await analyzer.totals(since=BEGIN + timedelta(hours=22))
    assert (totals.errors, totals.groups) == (12 + 4 + 12 + 12, 5)


async def test_a_timeline_has_no_holes(errors):
    """Buckets of any width, also those without errors."""
    timeline = await errors.analyzer.timeline(bucket=timedelta(hours=1))
    assert len(timeline) == 24
    assert timeline[0].start == BEGIN
    assert timeline[0].counts == {"INFO": 6, "WARNING": 1, "ERROR": 1}
    assert sum(bucket.total for bucket in timeline) == 222
    critical = await errors.analyzer.timeline(
        bucket=timedelta(minutes=1), severity=Severity.CRITICAL
    )
    assert any(bucket.total == 0 for bucket in critical)
    assert 20 <= len(await errors.analyzer.timeline()) <= 61
    assert len(await errors.analyzer.timeline(bucket=timedelta(seconds=1))) == 222


async def test_new_growing_and_correlated_groups_are_found(errors):
    """What began lately, what happens more often, what happens together."""
    late = BEGIN + timedelta(hours=21, minutes=30)
    [new] = await errors.analyzer.new_since(late)
    assert new.module == "shop.disk"
    [worse] = await errors.analyzer.new_since(
        BEGIN + timedelta(hours=20), severity=Severity.ERROR, limit=1
    )
    assert worse.severity == Severity.CRITICAL
    assert await errors.analyzer.count_new(late) == 1
    assert await errors.analyzer.count_new(BEGIN) == 5
    assert (
        await errors.analyzer.new_since(late, until=late + timedelta(minutes=1)) == []
    )
    growing = await errors.analyzer.growing(
        timedelta(hours=2), until=BEGIN + timedelta(days=1)
    )
    assert (growing[0].module, growing[0].now, growing[0].before) == (
        "shop.disk",
        12,
        0,
    )
    found = await errors.analyzer.correlations(timedelta(minutes=1))
    assert {found[0].first_module, found[0].second_module} == {"shop.cart", "shop.db"}
    assert found[0].overlap == 1
    assert found[0].together == 24
    assert found[0].lift == pytest.approx(6)
    heat = await errors.analyzer.heat()
    assert heat["shop.disk"][22] == 6


class Reader(HTMLParser):
    """Collects what a browser would load or run, and all text."""

    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag, attrs):
        """Note a tag, what it would load, and the page's policy."""
        self.tags.add(tag)
        values = dict(attrs)
        self.loads += [f"{k}={v}" for k, v in attrs if k in {"src", "srcset"}]
        self.loads += [v or "" for k, v in attrs if k == "href" and v[:1] != "#"]
        self.loads += [k for k, _ in attrs if k.startswith("on") or k == "style"]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values.get("content") or ""

    def handle_data(self, data):
        """Note text."""
        self.text.append(data)


async def test_the_page_loads_nothing_runs_nothing_and_escapes_everything(errors):
    """Hostile text in message, module, trace and code stays text."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m \u202e"
    try:
        raise ValueError(hostile)
    except ValueError as exc:
        await errors.record(exc, module=hostile, error_code=hostile)
    report = await errors.report(
        title=hostile, until=None, since=BEGIN, severity="DEBUG"
    )
    page = report.to_html()
    reader = Reader()
    reader.feed(page)
    assert not reader.tags & {"script", "img", "link", "iframe", "object", "base"}
    assert reader.loads == []
    assert reader.policy.startswith("default-src 'none'; style-src 'sha256-")
    assert re.search(r"sha256-[A-Za-z0-9+/]{43}='", reader.policy)
    shown = "".join(reader.text)
    assert "<script>alert(1)</script>" in shown
    assert "\x1b" not in page
    assert "\u202e" not in page
    for words in ("Timeline", "New in the last", "Growing", "What happens together"):
        assert words in shown
    data = json.loads(report.to_json())
    assert data["totals"]["errors"] == 223
    assert data["window"] == report.window.total_seconds()
    assert any(report.similar.values())
    assert data["new_groups"] == len(report.new)
    assert report.worst[0].severity == Severity.CRITICAL
    every = {one.fingerprint for one in report.every}
    assert {one.fingerprint for one in report.growing} <= every
    assert {one.second for one in report.correlations} <= every
    assert set(report.sparks) == every


async def test_a_report_of_nothing_is_a_page_too(dsn, tmp_path):
    """No errors, no vectors: the page says so."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        page = (await errors.report()).to_html()
        assert "no errors" in page
        assert await errors.analyzer.timeline() == []


async def test_a_long_timeline_is_drawn_in_bounded_width(errors):
    """Ten years of minutes are still a few hundred bars."""
    for year in (2014, 2019):
        at = datetime(year, 1, 1, tzinfo=UTC)
        await errors.record("x", module="m", timestamp=at, severity="DEBUG")
    report = await errors.report()
    assert report.to_html().count("<rect") < 1500
    from dataclasses import replace

    wide = await errors.analyzer.timeline(
        bucket=timedelta(minutes=1), since=BEGIN, until=BEGIN + timedelta(days=1)
    )
    assert len(wide) > 1000
    assert replace(report, timeline=wide).to_html().count("<rect") < 3000


def test_a_template_escapes_every_value():
    """Text is escaped wherever it is printed; only a template's own output is not."""
    template = environment().from_string(
        """{% macro bold(x) %}<b>{{ x }}</b>{% endmacro -%}
        <p title="{{ title }}" class="a">{{ text }}{{ bold("&") }}{{ text|cut }}</p>"""
    )
    made = template.render(title='"x"', text="<b>")
    assert made == (
        '<p title="&#34;x&#34;" class="a">&lt;b&gt;<b>&amp;</b>&lt;b&gt;</p>'
    )
    assert template.render(title="", text="\udcff\x00").count("?\ufffd") == 2
    with pytest.raises(UndefinedError):
        template.render(title="a value that was forgotten is no empty text")


async def test_each_group_is_shown_once_where_it_matters_most(errors):
    """Came back, new, growing, worst, commonest: the first that fits; all in a list."""
    await errors.record("volume 1441 is gone", module="shop.disk", severity="CRITICAL")
    [disk] = await errors.groups(module="shop.disk")
    await errors.resolve(disk)
    await errors.record("volume 1442 is gone", module="shop.disk", severity="CRITICAL")
    [pool] = await errors.groups(module="shop.db")
    await errors.mute(pool)
    report = await errors.report()
    page = report.to_html()
    for group in report.every:
        name = group.fingerprint
        assert page.count(f'id="l{name}"') == 1
        assert page.count(f'id="g{name}"') == (group.state != "muted")
    assert page.index("Came back") < page.index(f'id="g{disk.fingerprint}"')
    assert page.index(f'id="g{disk.fingerprint}"') < page.index('<h2 id="h-new"')
    assert '<span class="tag state muted">muted</span>' in page
    assert [one.fingerprint for one in report.regressed] == [disk.fingerprint]
    assert {one.state for one in report.every} == {"open", "muted", "regressed"}
    quiet = await errors.report(limit=1)
    assert 'href="#worst"' in quiet.to_html() or 'id="g' in quiet.to_html()


async def test_what_is_mild_is_left_out_and_counted_unless_it_is_asked_for(errors):
    """Warnings and worse by default; the page says how much that leaves out."""
    report = await errors.report()
    assert (report.totals.errors, report.left_out) == (78, 144)
    assert set(report.severities) == {"WARNING", "ERROR", "CRITICAL"}
    page = report.to_html()
    assert "144 below warning left out" in page
    assert "took" not in page
    whole = await errors.report(severity="DEBUG")
    assert (whole.totals.errors, whole.left_out) == (222, 0)
    assert "left out" not in whole.to_html()


async def test_a_burst_is_said_once(storage):
    """Four groups that always happen together are six pairs, and one burst."""
    async with ErrorManager(storage) as errors:
        lines = []
        for minute in range(0, 600, 30):
            for later, texts in (
                (0, ("disk is full", "cannot write", "queue stops here", "lost")),
                (7, ("no route to that host", "gave up")),
            ):
                at = f"{BEGIN + timedelta(minutes=minute + later):%Y-%m-%d %H:%M}"
                lines += [f"{at}:01 ERROR [shop] {text}\n" for text in texts]
        await errors.ingest(lines, source="bursts")
        report = await errors.report()
    assert len(report.correlations) == 7
    page = report.to_html()
    assert page.count('<div class="burst">') == 2
    assert "4 groups" in page


TRACE = """Traceback (most recent call last):
  File "/srv/shop/cart.py", line 12, in charge
    client.send(order)
  File "/srv/venv/lib/python3.12/site-packages/httpx/_client.py", line 914, in send
    raise exc from None
httpx.ConnectError: refused"""


async def test_a_row_names_type_message_and_culprit_and_tells_frames_apart(storage):
    """The last frame of one's own stands in the row, its line in what opens."""
    async with ErrorManager(storage) as errors:
        entry = ErrorEntry(
            message="order 17 refused",
            module="shop",
            error_code="httpx.ConnectError",
            stack_trace=TRACE,
        )
        await errors.record(entry)
        page = (await errors.report()).to_html()
    row = page[page.index('<details class="group') :]
    summary = row[: row.index("</summary>")]
    assert '<b class="kind">ConnectError</b>' in summary
    assert "order <i>&lt;n&gt;</i> refused" in summary
    assert '<span class="culprit">shop/cart.py:charge</span>' in summary
    near = row[row.index("</summary>") : row.index('<details class="trace">')]
    assert '<span class="own">  File &#34;/srv/shop/cart.py&#34;, line 12' in near
    assert '<span class="library">  File &#34;/srv/venv/lib' in near
    assert "Traceback (most recent" not in near
    assert "Traceback (most recent" in row


async def test_a_row_names_the_releases_between_which_it_happened(storage):
    """From the first error's to the last one's; nothing where none is known."""
    async with ErrorManager(storage) as errors:
        for n in range(3):
            done = await errors.record(f"order {n} refused", module="shop")
            await storage.pool.execute(
                "INSERT INTO fm_storage.error_origins (error_id, release) "
                "VALUES ($1, $2) ON CONFLICT (error_id) DO UPDATE "
                "SET release = EXCLUDED.release",
                done.id,
                f"2.{n}",
            )
        await errors.record("disk is full", module="store")
        report = await errors.report()
    assert list(report.releases.values()) == [("2.0", "2.2")]
    assert report.to_html().count("<span>release 2.0 → 2.2</span>") == 1


async def test_parts_that_are_missing_are_left_out_of_the_page(errors):
    """No example, no template, a trace of a megabyte: the page stands."""
    from dataclasses import replace

    report = await errors.report()
    group = report.groups[0]
    example = replace(group.example, stack_trace="x" * 1_000_000)
    odd = replace(group, template="", example=example)
    page = replace(report, groups=[odd], worst=[], every=[odd]).to_html()
    assert "(empty)" in page
    assert len(page) < 200_000
