"""A log read by another process: the same entries, and no process left behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest

from fm_storage.catalog.logs import reading_process
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.catalog.logs.reading_process import (
    ReadingProcess,
    Task,
    serve,
    worth_a_process,
)
from fm_storage.catalog.record.row import columns_of
from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Severity

NOW = datetime(2024, 5, 6, tzinfo=UTC)
LINES = [
    f"2024-01-02 03:04:{n % 60:02} {'ERROR' if n % 2 else 'INFO'} item {n} failed\n"
    for n in range(250)
]


@pytest.fixture
def log(tmp_path):
    """Give the descriptor of a small log, and the task to read it."""
    path = tmp_path / "a.log"
    path.write_text("".join(LINES) + "no header\n")
    descriptor = os.open(path, os.O_RDONLY)
    yield Task(descriptor, "a.log", None, None, UTC, NOW, 100)
    os.close(descriptor)


def here(task):
    """Return what this process makes of the same log."""
    with os.fdopen(os.dup(task.descriptor), "rb") as file:
        file.seek(0)
        reader = LogReader(file, source="a.log", least=task.least, zone=UTC, now=NOW)
        batches = [columns_of(batch) for batch in reader.batches(100)]
    for columns in batches:
        columns[0] = [one.hex for one in columns[0]]
    return batches, reader.report


@pytest.mark.slow
def test_the_child_sends_what_a_thread_would_have_read(log):
    """Entries, ids, order and report are the same; it ends by itself."""
    child = ReadingProcess(log)
    try:
        batches = [*iter(child.next, None)]
        assert child.child.wait(10) == 0
    finally:
        child.close()
    expected, report = here(log)
    assert batches == expected
    assert child.report == report


@pytest.mark.lengthy
def test_the_child_loads_only_what_reads(log):
    """Half a second for driver, models and pages would be longer than 4 MB take."""
    assert reading_process.BOOT.rstrip().endswith("main()")
    code = reading_process.BOOT.rstrip().removesuffix("main()") + (
        "print(*sys.modules.keys() & {'asyncio', 'asyncpg', 'jinja2', 'pydantic'})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sys.path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == ""
    child = ReadingProcess(log._replace(least=Severity.ERROR, zone=ZoneInfo("UTC")))
    assert sum(len(columns[0]) for columns in iter(child.next, None)) == 125
    child.close()


def test_a_killed_child_is_an_error_that_says_what_to_do(log):
    """Not the end of the log, which would be a silent loss."""
    child = ReadingProcess(log)
    os.kill(child.child.pid, signal.SIGKILL)
    child.child.wait()
    with pytest.raises(EOFError, match="ingest it again"):
        [*iter(child.next, None)]
    child.close()


def test_a_child_that_ends_at_once_is_noticed_at_the_first_batch(log, monkeypatch):
    """It may end before it has its task."""
    monkeypatch.setattr(reading_process, "BOOT", "import os; os._exit(3)")
    child = ReadingProcess(log._replace(source="x" * 2**20))
    with pytest.raises(EOFError, match="status 3"):
        child.next()
    child.close()


@pytest.mark.slow
def test_a_child_that_nobody_reads_from_ends(log):
    """The parent may be killed, or stop: no process stays."""
    big = log._replace(size=1, source="s" * 2000)
    child = ReadingProcess(big)
    assert child.next() is not None
    child.child.stdout.close()  # it is a pipe
    assert child.child.wait(20) == 1


@pytest.mark.slow
def test_what_reading_raises_there_is_raised_here(tmp_path):
    """A file that is no log, though the parent took it for one."""
    path = tmp_path / "a.log"
    path.write_bytes(bytes(range(256)) * 40)
    descriptor = os.open(path, os.O_RDONLY)
    child = ReadingProcess(Task(descriptor, "a", None, None, UTC, NOW, 1000))
    try:
        with pytest.raises(InvalidRecord, match="not text"):
            [*iter(child.next, None)]
    finally:
        child.close()
        os.close(descriptor)


@pytest.mark.slow
def test_of_an_archive_that_breaks_off_the_readable_part_is_read_there(tmp_path):
    """The report has come over the pipe, and says that the end is missing."""
    path = tmp_path / "a.log.gz"
    path.write_bytes(gzip.compress("".join(LINES * 300).encode())[:-20])
    descriptor = os.open(path, os.O_RDONLY)
    child = ReadingProcess(Task(descriptor, "a", None, None, UTC, NOW, 1000))
    try:
        assert [*iter(child.next, None)]
        assert "end-of-stream" in (child.report.incomplete or "")
    finally:
        child.close()
        os.close(descriptor)


def test_the_childs_work_can_be_done_in_this_process_too(log):
    """With a least severity; the last message carries the report."""
    out = io.BytesIO()
    wanted = log._replace(least=Severity.ERROR, descriptor=os.dup(log.descriptor))
    serve(wanted, out)
    out.seek(0)
    said = []
    while out.tell() < len(out.getvalue()):
        said.append(pickle.load(out))
    assert said[-1][0] is None
    assert [one[0] for one in said[:-1]] == here(log._replace(least=Severity.ERROR))[0]
    lines, _, entries, skipped, *_ = said[-1][1]
    assert (lines, entries, skipped) == (251, 250, 125)


def test_what_fails_in_the_child_is_sent(tmp_path):
    """Also what is found out at opening."""
    path = tmp_path / "empty.log"
    path.touch()
    out = io.BytesIO()
    task = Task(os.open(path, os.O_RDONLY), "e", None, None, UTC, NOW, 10)
    serve(task, out)
    out.seek(0)
    columns, error = pickle.load(out)
    assert columns is None
    assert isinstance(error, InvalidRecord)


def test_a_reader_that_went_away_is_not_answered(log):
    """There is nobody to tell."""

    class Gone(io.BytesIO):
        def write(self, _data):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        serve(log._replace(descriptor=os.dup(log.descriptor)), Gone())


class _Zone(tzinfo):
    def utcoffset(self, _when):
        return timedelta(hours=1)

    def dst(self, _when):
        return None

    def tzname(self, _when):
        return None


@pytest.mark.parametrize(
    ("size", "zone", "worth"),
    [
        (2**30, UTC, True),
        (2**30, timezone(timedelta(hours=2)), True),
        (2**30, ZoneInfo("Europe/Paris"), True),
        (2**30, _Zone(), False),
        (1000, UTC, False),
    ],
)
def test_only_large_files_are_worth_a_process(size, zone, worth):
    """And only with a zone that a child knows too."""
    assert worth_a_process(size, zone) is worth


def test_without_an_interpreter_there_is_no_process(monkeypatch):
    """A frozen application, an embedded one."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not worth_a_process(2**30, UTC)
    monkeypatch.setattr(sys, "frozen", False)
    monkeypatch.setattr(sys, "executable", "")
    assert not worth_a_process(2**30, UTC)
