"""The report in a real browser: drawn at the width of a phone and of a desk."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fm_storage.catalog import ErrorManager

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("width", [390, 1200])
async def test_the_page_is_shown_by_a_browser(storage, tmp_path, width):
    """Chromium draws the page; the picture lies beside it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "apt-get install chromium"
    async with ErrorManager(storage) as errors:
        for n in range(50):
            await errors.record(f"order {n} refused", module=f"shop.{n % 4}")
        page = tmp_path / "report.html"
        page.write_text((await errors.report(title="A day")).to_html())
    shot = tmp_path / f"report-{width}.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},1400",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=200)  # noqa: ASYNC221 - a test may wait
    assert shot.read_bytes()[:4] == b"\x89PNG"
