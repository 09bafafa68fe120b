"""``fm-storage errors``: what a person types and sees."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner

from fm_storage.cli import cli
from fm_storage.cli.errors_options import MOMENT

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

LOG = "".join(
    f"2024-01-02 03:04:{n:02} ERROR [shop.cart] item {n} [red]lost[/red] \x1b[31mnow\n"
    for n in range(20)
) + (
    "2024-01-02 03:05:00 CRITICAL [shop.disk] volume is gone\n"
    "Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\n'
    "OSError: gone\n"
)


@pytest.fixture
def run(monkeypatch, dsn, vector_folder, tmp_path):
    """Give a function that runs the command line against fresh engines."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", f"embedded:{vector_folder}")
    monkeypatch.setenv("FM_STORAGE_DATA_DIR", str(tmp_path / "data"))

    def invoke(*arguments, code=0, **options):
        result = CliRunner().invoke(cli, ["errors", *map(str, arguments)], **options)
        assert result.exit_code == code, result.output
        return result.stdout

    return invoke


def test_a_log_is_ingested_listed_shown_grouped_and_compared(run, tmp_path):
    """The whole way of a log, as text and as JSON; hostile text is shown as text."""
    log = tmp_path / "shop.log"
    log.write_text("what is this\n" + LOG)
    said = run("ingest", log)
    assert "21 entries: 21 added" in said
    assert "what is this" in said
    report = json.loads(run("ingest", log, "--json", "--severity", "error"))
    assert (report["added"], report["duplicates"]) == (0, 21)

    listed = run("list", "-n", "5", "--severity", "error")
    assert "[red]lost[/red]" in listed
    assert "\x1b[31m" not in listed
    [first, *_] = json.loads(run("list", "--json", "--module", "shop.disk"))
    shown = run("show", first["id"])
    assert "OSError: gone" in shown
    assert "source = shop.log" in shown
    assert json.loads(run("show", first["id"], "--json"))["module"] == "shop.disk"

    assert "item <n>" in run("groups")
    [top, *_] = json.loads(run("groups", "--json", "--order", "last_seen"))
    assert top["module"] == "shop.disk"
    assert "none" in run("groups", "--since", "1h")

    assert "shop.disk" in run("similar", "volume gone", "-n", "1")
    hits = json.loads(run("similar", first["id"], "--json"))
    assert first["id"] not in {hit["entry"]["id"] for hit in hits}
    tail = run("tail", "-n", "2")
    assert tail.index("item 19") < tail.index("volume is gone")


def test_the_report_is_written_and_old_errors_purged(run, tmp_path):
    """A page for a colleague, JSON for a program, and an end to old errors."""
    log, page = tmp_path / "shop.log", tmp_path / "page.html"
    log.write_text(LOG)
    run("ingest", log)
    assert "21 errors in 2 groups" in run("report", page, "--title", "Shop")
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(run("report", "--json"))["totals"]["groups"] == 2
    run("report", code=2)
    assert "Delete every error" in run(
        "purge", "--older-than", "7d", code=1, input="n\n"
    )
    assert "21 errors deleted" in run("purge", "--older-than", "7d", "--yes")
    assert "none" in run("list")


def test_mistakes_are_answered_in_one_line(run, tmp_path):
    """A missing file, a binary file, an unknown id, an odd age."""
    run("ingest", tmp_path / "missing.log", code=2)
    run("list", "--since", "yesterdayish", code=2)
    binary = tmp_path / "x.bin"
    binary.write_bytes(bytes(range(256)) * 99)
    run("ingest", binary, code=1)
    run("show", uuid4(), code=1)


def test_ages_and_times_are_understood():
    """``2h`` is two hours ago; a time without zone is the local one."""
    now = datetime.now(UTC)
    assert abs(
        MOMENT.convert("2h", None, None) - (now - timedelta(hours=2))
    ) < timedelta(seconds=5)
    assert MOMENT.convert("2024-01-02T03:04:05Z", None, None).year == 2024
    assert MOMENT.convert("2024-01-02", None, None).tzinfo is not None
    assert MOMENT.convert(now, None, None) is now
    with pytest.raises(click.BadParameter):
        MOMENT.convert("soon", None, None)


async def test_tail_follows_until_it_is_interrupted(child, dsn, tmp_path, pool):
    """With -f new errors appear as they are committed; Ctrl-C ends it quietly."""
    from fm_storage.catalog.prepared import prepare  # noqa: PLC0415 - here only
    from fm_storage.catalog.store import CatalogStore  # noqa: PLC0415 - here only

    tail = await child(
        "from fm_storage.cli import main; print('ready'); "
        "main(['errors', 'tail', '-f', '-n', '0'])",
        FM_STORAGE_POSTGRES__DSN=dsn,
        FM_STORAGE_QDRANT="none",
        FM_STORAGE_DATA_DIR=str(tmp_path / "data"),
    )
    assert await tail.line() == "ready"
    store = CatalogStore(None)
    arriving = asyncio.create_task(tail.line())
    while not arriving.done():
        # It may not listen yet: go on until it has seen one.
        await store.write(pool, prepare("loud and clear", module="m"))
        await pool.execute("SELECT pg_notify('fm_storage_errors', '')")
        await asyncio.wait({arriving}, timeout=0.2)
    assert "loud and clear" in await arriving
    tail.signal(signal.SIGINT)
    assert await tail.wait() in {0, 130}
