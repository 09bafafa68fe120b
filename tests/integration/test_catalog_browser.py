"""The report in a real browser: how it looks, what it loads, what it runs.

The pictures lie in build/artefacts afterwards. Without Chromium these tests are
deselected, and pytest's header says so.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.report.style import STYLE

# Each starts a browser, and some a whole storage.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
HOSTILE = (
    "</pre></style><script>document.title='taken'</script>"
    "<img src=x onerror=\"document.title='taken'\">"
    "<svg onload=\"document.title='taken'\">"
    "<a href=\"javascript:document.title='taken'\">"
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>"
    "<style>*{display:none}</style>"
)
TRACE = "Traceback (most recent call last):\n" + "".join(
    f'  File "{"long/" * 30}module_{n}.py", line {n}, in function_{n}\n'
    for n in range(30)
)


def log():
    """Yield a day of a shop, with long names and a hostile customer."""
    for minute in range(0, 24 * 60, 6):
        stamp = f"{BEGIN + timedelta(minutes=minute):%Y-%m-%d %H:%M}"
        yield f"{stamp}:01 INFO [shop.web] GET /item/{minute} took {minute} ms\n"
        yield f"{stamp}:02 DEBUG [shop.{'very.' * 12}long] cache {minute} is cold\n"
        if minute % 60 == 0:
            yield f"{stamp}:03 WARNING [shop.db] pool {minute} is full\n"
            yield f"{stamp}:04 ERROR [shop.cart] {'unbreakable' * 30} {minute}\n"
            yield TRACE + "ValueError: no\n"
        if minute >= 22 * 60:
            yield f"{stamp}:05 CRITICAL [shop.disk] volume {minute} is gone\n"


@pytest.fixture
async def page(storage, tmp_path):
    """Give the report of that day as a file."""
    async with ErrorManager(storage) as errors:
        await errors.ingest(log(), source="day")
        for n in range(3):
            await errors.record(
                f"{HOSTILE} {n}",
                module=HOSTILE,
                error_code=HOSTILE,
                severity="CRITICAL",
                timestamp=BEGIN + timedelta(hours=23, minutes=n),
            )
        report = await errors.report(
            title=f"A day of the shop {HOSTILE}", severity="DEBUG"
        )
    file = tmp_path / "report.html"
    file.write_text(report.to_html(), encoding="utf-8")
    return file


@pytest.mark.slow
async def test_the_page_fits_a_telephone_and_a_desk_in_light_and_dark(
    browser, page, artefacts
):
    """No part is wider than the window, open or closed; nothing is loaded."""
    widest = (
        "Math.max(document.documentElement.scrollWidth,"
        " ...[...document.querySelectorAll('main *')]"
        ".filter(e => !e.closest('svg') && !e.closest('.scroll'))"
        ".map(e => Math.ceil(e.getBoundingClientRect().right)))"
    )
    pictures = set()
    for width in (390, 1200):
        for dark in (False, True):
            await browser.open(page, width=width, dark=dark)
            name = f"report-{width}-{'dark' if dark else 'light'}.png"
            pictures.add(await browser.shoot(artefacts / name))
            assert await browser.evaluate(widest) <= width
            opened = await browser.evaluate(
                "[...document.querySelectorAll('details')]"
                ".map(one => one.open = true).length"
            )
            assert opened > 6
            assert await browser.evaluate(widest) <= width
            assert browser.requests() == [page.as_uri()]
    assert len(pictures) == 4


async def test_every_part_is_there_and_has_a_height(browser, page):
    """What is new, grows, is worst, happens together, where, and at which hour."""
    await browser.open(page, width=1200)
    heights = await browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('section')]"
        ".map(one => [one.id, one.getBoundingClientRect().height]))"
    )
    parts = "timeline new growing together all modules hours"
    assert set(heights) - {"worst", "groups", "regressed"} == set(parts.split())
    assert min(heights.values()) > 60
    bars = await browser.evaluate(
        "[...document.querySelectorAll('.timeline rect')]"
        ".filter(one => one.getBoundingClientRect().height >= 1).length"
    )
    assert bars >= 24
    cells = await browser.evaluate(
        "[...document.querySelectorAll('.heat .hours[role] span')]"
        ".map(one => one.getBoundingClientRect())"
        ".filter(one => one.width > 4 && one.height > 8).length"
    )
    assert cells % 24 == 0
    assert cells >= 24 * 4
    dangling = await browser.evaluate(
        "[...document.querySelectorAll('a')]"
        ".filter(one => !document.getElementById(one.getAttribute('href').slice(1)))"
        ".length"
    )
    assert dangling == 0


async def test_hostile_text_is_shown_and_does_nothing(browser, page):
    """Neither script nor image nor style nor redirection comes out of a message."""
    await browser.open(page, width=1200)
    shown = await browser.evaluate("document.body.innerText")
    assert "onerror" in shown
    assert await browser.evaluate("document.title") != "taken"
    found = await browser.evaluate(
        "document.querySelectorAll('script,img,iframe,link,object,form,base').length"
    )
    assert found == 0
    assert await browser.evaluate("document.querySelectorAll('style').length") == 1
    assert await browser.evaluate("document.querySelectorAll('meta').length") == 5
    assert browser.requests() == [page.as_uri()]


async def test_the_policy_holds_even_where_escaping_would_fail(browser, page):
    """A script, a style or an image that got into the page is refused all the same."""
    slipped = (
        "<script>document.title='taken'</script>"
        "<img src='http://127.0.0.1:9/x.png' onerror=\"document.title='taken'\">"
        "<style>main{display:none}</style><p style='color:red' id=red>x</p></body>"
    )
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", slipped), encoding="utf-8")
    await browser.open(page, width=1200)
    assert await browser.evaluate("document.title") != "taken"
    assert await browser.evaluate("document.querySelector('main').offsetHeight") > 100
    colour = "getComputedStyle(document.getElementById('red')).color"
    assert await browser.evaluate(colour) != "rgb(255, 0, 0)"
    assert len(browser.requests()) == 1 + browser.refused()


async def test_groups_open_by_keyboard_and_print_open(browser, page, artefacts):
    """Enter opens what has the focus; paper shows every example."""
    await browser.open(page, width=1200)
    first = "document.querySelector('details.group')"
    await browser.evaluate(f"{first}.querySelector('summary').focus()")
    assert not await browser.evaluate(f"{first}.open")
    await browser.press_enter()
    assert await browser.evaluate(f"{first}.open")
    await browser.open(page, width=1200, media="print", dark=True)
    hidden = await browser.evaluate(
        "[...document.querySelectorAll('details:not(.numbers) pre')]"
        ".filter(one => one.getBoundingClientRect().height < 5).length"
    )
    assert hidden == 0
    ground = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    await browser.shoot(artefacts / "report-print.png")


def luminance(colour):
    """Return the relative luminance of ``#rrggbb``, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_in_light_and_dark():
    """4.5 to 1 at least, for every colour of text on every ground."""
    schemes = re.findall(r":root\{([^}]*)\}", STYLE)[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", scheme))
        inks = {n for n in colours if n.endswith("-ink")} | {"ink", "dim", "accent"}
        assert len(inks) == 9
        for ink in inks:
            for ground in ("bg", "card", "mark"):
                light, dark = sorted(
                    (luminance(colours[ink]), luminance(colours[ground])), reverse=True
                )
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
