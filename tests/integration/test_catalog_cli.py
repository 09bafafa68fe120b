"""``fm-storage errors``: what a person types and sees."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner

from fm_storage.cli import cli
from fm_storage.cli.errors.options import MOMENT

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

    def invoke(*arguments, code=0, both=False, **options):
        result = CliRunner().invoke(cli, ["errors", *map(str, arguments)], **options)
        assert result.exit_code == code, result.output
        return result.output if both else result.stdout

    return invoke


@pytest.mark.lengthy
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
    assert f"{top['fingerprint']}  2024-01-02" in run("groups")
    assert top["module"] in run("groups", "--order", "severity", "-n", "1")
    assert "no error matches" in run("groups", "--since", "1h", both=True)
    of_group = run("list", "--group", top["fingerprint"])
    assert "shop.disk" in of_group
    assert "shop.cart" not in of_group
    assert "OSError: gone" in run("show", first["id"][:13])
    assert "OSError: gone" in run("show", top["fingerprint"])

    assert "shop.disk" in run("similar", "volume gone", "-n", "1")
    assert run("similar", "item lost").count("item") == 1
    assert run("similar", "item lost", "--each", "-n", "4").count("item") == 4
    hits = json.loads(run("similar", first["id"], "--json"))
    assert first["id"] not in {hit["entry"]["id"] for hit in hits}
    tail = run("tail", "-n", "2")
    assert tail.index("item 19") < tail.index("volume is gone")


@pytest.mark.slow
def test_the_report_is_written_and_old_errors_purged(run, tmp_path):
    """A page for a colleague, JSON for a program, and an end to old errors."""
    log, page = tmp_path / "shop.log", tmp_path / "page.html"
    log.write_text(LOG)
    run("ingest", log)
    assert "21 errors in 2 groups" in run("report", page, "--title", "Shop")
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(run("report", "--json"))["totals"]["groups"] == 2
    run("report", code=2)
    assert run("report", "-").startswith("<!doctype html>")
    asked = run("purge", "--older-than", "7d", code=1, input="n\n", both=True)
    assert "Delete 21 errors" in asked
    assert "nothing is deleted" in asked
    unanswered = run("purge", "--older-than", "7d", code=2, both=True)
    assert "--yes deletes unasked" in unanswered
    assert "nothing is deleted" in run("purge", "--older-than", "2000-01-01")
    assert "21 errors deleted" in run("purge", "--older-than", "7d", "--yes")
    assert run("list") == ""
    assert "errors ingest LOG" in run("list", both=True)


def test_mistakes_are_answered_in_one_line(run, tmp_path):
    """A missing file, a binary file, unknown ids, odd ages and numbers."""
    run("ingest", tmp_path / "missing.log", code=2)
    assert "15min" in run("list", "--since", "yesterdayish", code=2, both=True)
    assert "x>=1" in run("list", "-n", "0", code=2, both=True)
    assert "errors groups" in run("list", "--group", "x", code=2, both=True)
    binary = tmp_path / "x.bin"
    binary.write_bytes(bytes(range(256)) * 99)
    run("ingest", binary, code=1)
    unknown = run("show", uuid4(), code=1, both=True)
    assert "fm-storage errors list" in unknown
    assert "find_by_id" not in unknown
    assert "is no id" in run("show", "rosebud", code=2, both=True)
    assert "shows ids" in run("similar", uuid4(), code=1, both=True)
    run("similar", " ", code=2)
    nowhere = run("report", tmp_path / "no" / "page.html", code=2, both=True)
    assert "create it" in nowhere
    run("report", "x.html", "--since", "1d", "--until", "2d", code=2)
    assert "no error matches" in run("similar", "x", "--module", "m", both=True)


@pytest.mark.lengthy
def test_a_page_that_may_not_be_written_and_an_id_that_is_not_clear(
    run, tmp_path, monkeypatch
):
    """Said before the work is done; the ids that begin alike are named."""
    run("ingest", "-", input=LOG)
    monkeypatch.setattr("os.access", lambda *_: False)
    said = run("report", tmp_path / "page.html", code=2, both=True)
    assert "may not be written" in said
    ids = {one["id"] for one in json.loads(run("list", "--json", "-n", "50"))}
    alike = run("show", min(ids)[:6], code=1, both=True)
    assert "give more of it" in alike
    named = set(re.findall(r"[0-9a-f-]{36}", alike))
    assert len(named) == 5
    assert named < ids


@pytest.mark.lengthy
def test_an_empty_catalogue_says_what_would_fill_it(run, tmp_path):
    """Every reading command, and the page."""
    for command in (["list"], ["groups"], ["similar", "x"], ["tail"]):
        assert "errors ingest LOG" in run(*command, both=True)
    assert json.loads(run("list", "--json")) == []
    said = run("report", tmp_path / "page.html", both=True)
    assert "errors ingest LOG" in said


@pytest.mark.slow
def test_a_log_may_be_piped_in_and_errors_out(run):
    """A dash reads standard input; tail --json writes one object a line."""
    assert "21 added" in run("ingest", "-", "--source", "pipe", input=LOG)
    assert "21 known before" in run("ingest", "-", "--source", "pipe", input=LOG)
    lines = run("tail", "-n", "3", "--json").splitlines()
    assert [json.loads(line)["module"] for line in lines][-1] == "shop.disk"
    assert len(lines) == 3


@pytest.mark.slow
async def test_a_pipe_that_never_ends_is_left_by_ctrl_c(child, dsn, tmp_path):
    """Reading a pipe does not keep Ctrl-C waiting for the next line."""
    ingest = await child(
        "from fm_storage.cli import main; print('ready'); "
        "main(['errors', 'ingest', '-'])",
        FM_STORAGE_POSTGRES__DSN=dsn,
        FM_STORAGE_QDRANT="none",
        FM_STORAGE_DATA_DIR=str(tmp_path / "data"),
    )
    assert await ingest.line() == "ready"
    await ingest.say("2024-01-02 03:04:05 ERROR [shop] gone")
    await asyncio.sleep(1)
    ingest.signal(signal.SIGINT)
    assert await ingest.wait() == 130


@pytest.mark.parametrize("width", [60, 140])
@pytest.mark.lengthy
def test_a_narrow_terminal_is_given_lines_that_fit(run, monkeypatch, width):
    """Below a hundred columns one thing stands under the other, ids whole."""
    run("ingest", "-", input=LOG)
    monkeypatch.setattr("fm_storage.cli.common._WIDE", width)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # a terminal, and a plain one
    monkeypatch.setenv("TERM", "dumb")
    [first, *_] = json.loads(run("list", "--json"))
    for shown in (run("list"), run("groups"), run("similar", "volume")):
        assert max(map(len, shown.splitlines())) <= width
    assert first["id"] in run("list")
    assert first["id"] in run("similar", "volume gone")


@pytest.mark.lengthy
def test_a_pipe_is_given_one_whole_line_an_error(run):
    """Nothing is cut or wrapped, so that grep and cut find what they look for."""
    long = f"the price list {'x' * 300} is missing"
    run("ingest", "-", input=f"2024-01-02 03:04:05 ERROR [shop.prices] {long}\n" + LOG)
    [line] = [line for line in run("list", "-n", "50").splitlines() if "price" in line]
    when, severity, module, message, error_id = line.split("\t")
    assert (severity, module, message) == ("ERROR", "shop.prices", long)
    assert when == "2024-01-02 03:04:05"
    assert json.loads(run("show", error_id, "--json"))["message"] == long
    [line] = [line for line in run("groups").splitlines() if "price" in line]
    assert line.startswith("1\tERROR\tshop.prices\t")
    assert long in run("similar", long)


@pytest.mark.slow
async def test_a_standard_input_that_is_no_pipe_ends_at_once(child, dsn, tmp_path):
    """From cron or systemd it is /dev/null, which a loop cannot wait for."""
    script = (
        "import os, sys; os.dup2(os.open(os.devnull, os.O_RDONLY), 0); "
        "from fm_storage.cli import main; main()"
    )
    ingest = await child(
        script,
        *("errors", "ingest", "-", "--source", "x"),
        FM_STORAGE_POSTGRES__DSN=dsn,
        FM_STORAGE_QDRANT="none",
        FM_STORAGE_DATA_DIR=str(tmp_path),
    )
    assert await ingest.wait() == 0


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


@pytest.mark.slow
async def test_tail_follows_until_it_is_interrupted(child, dsn, tmp_path, pool):
    """With -f new errors appear as they are committed; Ctrl-C ends it quietly."""
    from fm_storage.catalog.record.row import prepare
    from fm_storage.catalog.record.store import CatalogStore

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
