"""Lines become entries: formats, traces of four languages, bad input; no database."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fm_storage.catalog.logs.formats import LineParser
from fm_storage.catalog.logs.levels import severity_of
from fm_storage.catalog.logs.opening import open_log, source_name
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Severity


def read(text, **options):
    """Return the entries of a log, and its report."""
    lines = text.encode("utf-8", "surrogateescape").splitlines(keepends=True)
    reader = LogReader(lines, **{"source": "app.log", **options})
    entries = [entry for batch in reader.batches(2) for entry in batch]
    return entries, reader.report


@pytest.mark.parametrize(
    ("line", "severity", "module", "message"),
    [
        ("2024-01-02 03:04:05,678 - my.app - ERROR - boom", "ERROR", "my.app", "boom"),
        (
            "2024-01-02 03:04:05,678 INFO [main] org.x.Y: made",
            "INFO",
            "org.x.Y",
            "made",
        ),
        (
            "2024-01-02 03:04:05,678 - WARN  [Send:1:Net$Worker@688] - left",
            "WARNING",
            "Net$Worker",
            "left",
        ),
        (
            "api.log 2024-01-02 03:04:05.008 25746 INFO nova.api [req-1 a b] got it",
            "INFO",
            "nova.api",
            "got it",
        ),
        (
            "2024-01-02T03:04:05Z ERROR 1 --- [main] c.e.App : no",
            "ERROR",
            "c.e.App",
            "no",
        ),
        (
            "2024-01-02 03:04:05.678 | ERROR    | pkg.mod:f:12 - l",
            "ERROR",
            "pkg.mod",
            "l",
        ),
        (
            "2024-01-02 03:04:05 [main] WARN com.foo.Bar - lb",
            "WARNING",
            "com.foo.Bar",
            "lb",
        ),
        (
            "2024-01-02 03:04:05 ERROR [shop.billing] in it",
            "ERROR",
            "shop.billing",
            "in it",
        ),
        (
            "[2024-01-02 03:04:05,6] ERROR in app: Exception on /",
            "ERROR",
            "app",
            "Exception on /",
        ),
        ("[2024-01-02 03:04:05 +0000] [12] [ERROR] worker", "ERROR", "app", "worker"),
        (
            "2024-01-02 03:04:05 WARNING django.request: Not Found",
            "WARNING",
            "django.request",
            "Not Found",
        ),
        (
            "2024-01-02 03:04:05.678 UTC [12] ERROR:  no table",
            "ERROR",
            "app",
            "no table",
        ),
        ("2024-01-02 03:04:05.678 UTC [12] u@d FATAL:  bye", "CRITICAL", "app", "bye"),
        (
            "2024-01-02 03:04:05 thing failed badly",
            "ERROR",
            "app",
            "thing failed badly",
        ),
        ("2024-01-02 03:04:05 thing went well", "INFO", "app", "thing went well"),
        (
            "2024/01/02 03:04:05 main.go:12: cannot bind",
            "ERROR",
            "main.go",
            "cannot bind",
        ),
        (
            "2024/01/02 03:04:05 [crit] 12#0: *1 open() x",
            "CRITICAL",
            "app",
            "*1 open() x",
        ),
        ("E0102 03:04:05.678901   12 file.go:123] klog", "ERROR", "file.go", "klog"),
        (
            "Jan  2 03:04:05 host sshd[12]: Failed password",
            "ERROR",
            "sshd",
            "Failed password",
        ),
        ("<11>Jan  2 03:04:05 host cron: run", "ERROR", "cron", "run"),
        (
            '<34>1 2024-01-02T03:04:05Z host su - ID47 [ex@1 a="b"] su failed',
            "CRITICAL",
            "su",
            "su failed",
        ),
        ("2024-01-02T03:04:05.6+00:00 host app[12]: hello", "INFO", "app", "hello"),
        (
            "[Tue Jan 02 03:04:05 2024] [error] [client 10.0.0.1] denied",
            "ERROR",
            "app",
            "denied",
        ),
        (
            "[Tue Jan 02 03:04:05.9 2024] [core:error] [pid 3:tid 4] gone",
            "ERROR",
            "core",
            "gone",
        ),
        (
            '10.0.0.1 - - [02/Jan/2024:03:04:05 +0000] "GET /x HTTP/1.0" 500 2',
            "ERROR",
            "access",
            '"GET /x HTTP/1.0" 500',
        ),
        (
            '10.0.0.1 - - [02/Jan/2024:03:04:05 +0000] "GET /y HTTP/1.0" 404 2',
            "WARNING",
            "access",
            '"GET /y HTTP/1.0" 404',
        ),
        (
            'time="2024-01-02T03:04:05Z" level=error msg="a \\"b\\"" component=db',
            "ERROR",
            "db",
            'a "b"',
        ),
        ("web_1  | 2024-01-02 03:04:05 ERROR bad", "ERROR", "app", "bad"),
        ("db-1 | LOG something | ERROR x", None, None, None),
        ("ERROR:root:bare python", "ERROR", "root", "bare python"),
        ("INFO:     Uvicorn running", "INFO", "app", "Uvicorn running"),
        ("\x1b[31m2024-01-02 03:04:05 ERROR red\x1b[0m", "ERROR", "app", "red"),
        ("\ufeff2024-01-02 03:04:05 ERROR marked", "ERROR", "app", "marked"),
    ],
)
def test_a_line_of_a_common_format_is_understood(line, severity, module, message):
    """Level, module and message are where the format puts them."""
    entries, report = read(line + "\n")
    if severity is None:
        assert (entries, report.unparsed) == ([], 1)
        return
    [entry] = entries
    assert (entry.severity, entry.module, entry.message) == (severity, module, message)


def test_json_lines_of_several_libraries_are_understood():
    """Names differ, times are text or numbers, traces are text or lists."""
    lines = [
        {"timestamp": "2024-01-02T03:04:05Z", "level": "error", "message": "a",
         "logger": "x.y", "user": 7},
        {"level": 50, "time": 1704164645000, "msg": "b", "name": "pino"},
        {"@timestamp": "2024-01-02T03:04:05Z", "log.level": "WARN", "message": "c",
         "error": {"stack_trace": "Traceback (most recent call last):\nValueError: c"}},
        {"ts": 1704164645.5, "severity": "fatal", "event": "d",
         "exception": ["x", "y"]},
        {"__REALTIME_TIMESTAMP": "1704164645000000", "PRIORITY": "3", "MESSAGE": "e",
         "SYSLOG_IDENTIFIER": "sshd"},
        {"ts": 1704164645000000000, "level": "info", "stack": {"a": 1},
         "message": {"message": "f"}},
        {"time": 1e300, "level": "info", "message": {"no": 1}},
        {"no": "log line"},
        ["no", "object"],
    ]  # fmt: skip
    entries, report = read("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    assert [entry.message for entry in entries[:6]] == list("abcdef")
    assert [entry.severity for entry in entries[:5]] == [
        "ERROR", "ERROR", "WARNING", "CRITICAL", "ERROR",
    ]  # fmt: skip
    assert [entry.module for entry in entries[:5]] == [
        "x.y",
        "pino",
        "app",
        "app",
        "sshd",
    ]
    assert entries[0].context["user"] == 7
    assert entries[2].error_code == "ValueError"
    assert entries[3].stack_trace == "x\ny"
    assert {entry.timestamp.replace(microsecond=0) for entry in entries[:6]} == {
        datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    }
    assert report.formats["json"] == 7


PYTHON = """Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
ValueError: no
"""
JAVA = """java.io.IOException: reset
\tat com.x.A.b(A.java:1)
\t... 3 more
Caused by: java.net.SocketException: gone
\tat com.x.C.d(C.java:2)
"""
GO = """panic: runtime error: index out of range

goroutine 1 [running]:
main.f(0x1)
\t/app/main.go:9 +0x1d
"""
JAVASCRIPT = """TypeError: Cannot read x
    at f (/app/a.js:1:2)
    at g (/app/b.js:3:4)
"""


@pytest.mark.parametrize(
    ("trace", "code"),
    [(PYTHON, "ValueError"), (JAVA, "java.io.IOException"), (JAVASCRIPT, "TypeError")],
)
def test_a_trace_belongs_to_the_line_above_it(trace, code):
    """An error's trace is part of it, whatever the language; the next line is not."""
    entries, report = read(
        f"2024-01-02 03:04:05 ERROR x: it failed\n{trace}"
        "2024-01-02 03:04:06 INFO x: next\n"
    )
    first, second = entries
    assert first.message == "it failed"
    assert first.stack_trace == trace.rstrip()
    assert first.error_code == code
    assert second.stack_trace is None
    assert report.unparsed == 0


def test_an_exception_group_is_one_entry():
    """The indented, boxed form of Python 3.11 stays together."""
    trace = """  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 1, in f
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | ValueError: a
    +---------------- 2 ----------------
    | OSError: b
    +------------------------------------
"""
    entries, _ = read(f"2024-01-02 03:04:05 WARNING x: grouped\n{trace}")
    assert len(entries) == 1
    assert entries[0].stack_trace == trace.rstrip()


@pytest.mark.parametrize(
    ("trace", "code", "message", "severity"),
    [
        (PYTHON, "ValueError", "ValueError: no", "ERROR"),
        (JAVA, "java.io.IOException", "java.io.IOException: reset", "ERROR"),
        (GO, "panic", "panic: runtime error: index out of range", "CRITICAL"),
        (JAVASCRIPT, "TypeError", "TypeError: Cannot read x", "ERROR"),
    ],
)
def test_a_trace_without_a_line_above_is_an_entry_of_its_own(
    trace, code, message, severity
):
    """What a crashing process prints is kept, also behind a harmless line."""
    for before, count in (("", 1), ("2024-01-02 03:04:05 INFO x: fine\n", 2)):
        entries, report = read(before + trace)
        assert len(entries) == count
        assert (entries[-1].error_code, entries[-1].message) == (code, message)
        assert entries[-1].severity == severity
        assert entries[-1].stack_trace.splitlines()[0] == trace.splitlines()[0]
        assert report.unparsed == 0


def test_a_message_of_several_lines_stays_together():
    """Lines that begin no entry belong to the one before."""
    [entry], _ = read("2024-01-02 03:04:05 ERROR x: first\nsecond\n\n  third\n")
    assert entry.message == "first\nsecond\n\n  third"


def test_endless_entries_and_lines_are_cut_and_counted():
    """Memory stays bounded, whatever the log holds."""
    [entry], report = read("2024-01-02 03:04:05 ERROR x: y\n" + "  more\n" * 3000)
    assert report.truncated == 1000
    [entry], report = read("2024-01-02 03:04:05 ERROR x: " + "y" * 600_000 + "\n")
    assert len(entry.message) < 70_000
    assert entry.context["_repaired"]


def test_unknown_lines_are_counted_and_shown():
    """What begins no entry is no entry; the report says how many and which."""
    entries, report = read("hello\nworld\n\n2024-01-02 03:04:05 ERROR x: y\n")
    assert len(entries) == 1
    assert (report.unparsed, report.samples) == (2, ["hello", "world"])
    assert "2 lines not recognised" in str(report)


def test_entries_below_a_severity_are_left_out_and_counted():
    """The least severity is the reader's choice."""
    text = "2024-01-02 03:04:05 INFO x: y\n2024-01-02 03:04:05 ERROR x: z\n"
    entries, report = read(text, least=Severity.WARNING)
    assert [entry.message for entry in entries] == ["z"]
    assert (report.entries, report.skipped) == (2, 1)
    assert "1 below the severity" in str(report)


def test_times_without_zone_year_or_anything_are_completed():
    """A zone and a year are given; without any time the log's own counts."""
    now = datetime(2024, 6, 1, tzinfo=UTC)
    zone = timezone(timedelta(hours=2))
    entries, _ = read(
        "ERROR:x:none yet\n2024-01-02 03:04:05 ERROR x: y\nERROR:x:after\n"
        "Jan  2 03:04:05 h app: syslog failed\n",
        zone=zone,
        now=now,
    )
    assert [entry.timestamp.astimezone(UTC) for entry in entries] == [
        now,
        datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC),
        datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC),
        datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "2024-13-45 03:04:05 ERROR x: y",
        "2024/13/45 03:04:05 ERROR x: y",
        "[Foo Bar 99 03:04:05 2024] [error] y",
        '1.1.1.1 - - [45/Xxx/2024:03:04:05 +0000] "GET / HTTP/1.0" 500 2',
        "Foo  2 03:04:05 host app: y",
    ],
)
def test_an_impossible_date_is_no_header(line):
    """A line that only looks dated is not believed."""
    entries, _ = read(line + "\n")
    assert all(entry.timestamp.year != 2024 or entry.module for entry in entries)


def test_ids_are_made_of_source_offset_and_content():
    """Again the same; a grown log only adds; another source or text is another."""
    text = "2024-01-02 03:04:05 ERROR x: a\n2024-01-02 03:04:06 ERROR x: b\n"
    ids = [entry.id for entry in read(text)[0]]
    assert [entry.id for entry in read(text)[0]] == ids
    assert [entry.id for entry in read(text + "2024-01-02 03:04:07 ERROR x: c\n")[0]][
        :2
    ] == ids
    assert not {entry.id for entry in read(text, source="other.log")[0]} & set(ids)
    assert not {entry.id for entry in read(text.replace("a", "z", 1))[0]} & set(ids)
    assert sorted(ids) == ids
    assert len({entry.id for entry in read("ERROR:x:same\n" * 3)[0]}) == 3
    assert read(text.replace("\n", "\r\n"))[0][0].id == ids[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("app.log", "app.log"),
        ("app.log.1", "app.log"),
        ("app.log.2.gz", "app.log"),
        ("app.log-20240102", "app.log"),
        ("app.log.2024-01-02", "app.log"),
        ("/var/log/syslog.old", "syslog"),
        (".1", ".1"),
    ],
)
def test_rotation_does_not_change_the_source(name, source):
    """A log that was renamed and packed holds the same entries."""
    assert source_name(name) == source


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress],
    ids=["plain", "gzip", "bzip2", "xz"],
)
def test_packed_logs_are_read(tmp_path, pack):
    """Packed with gzip, bzip2 or xz, known by their first bytes."""
    path = tmp_path / "any.name"
    path.write_bytes(pack(b"2024-01-02 03:04:05 ERROR x: y\n"))
    opened = open_log(path)
    reader = LogReader(opened.lines(), source="s")
    assert [e.message for batch in reader.batches(9) for e in batch] == ["y"]
    assert (opened.size is None) == (pack is not bytes)
    opened.close()


def test_utf16_and_latin1_logs_are_read(tmp_path):
    """Windows writes UTF-16; old daemons write Latin-1."""
    path = tmp_path / "windows.log"
    path.write_bytes("2024-01-02 03:04:05 ERROR x: größe\n".encode("utf-16"))
    opened = open_log(path)
    reader = LogReader(opened.lines(), source="s")
    assert [e.message for batch in reader.batches(9) for e in batch] == ["größe"]
    opened.close()
    reader = LogReader(
        ["2024-01-02 03:04:05 ERROR x: größe\n".encode("latin-1")], source="s"
    )
    assert [e.message for batch in reader.batches(9) for e in batch] == ["größe"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (gzip.compress(b"", mtime=0), "empty inside"),
        (gzip.compress(b"2024 x\n" * 999, mtime=0)[:14], "unpacked"),
        (bytes(range(256)) * 40, "not text"),
        (b"\x7fELF\x02\x01\x01" + b"\x00" * 500, "not text"),
    ],
)
def test_what_is_no_log_is_refused_with_a_reason(tmp_path, data, problem):
    """Empty, broken and binary files: typed, named, nothing read."""
    path = tmp_path / "bad.log"
    path.write_bytes(data)
    with pytest.raises(InvalidRecord, match=problem) as caught:
        open_log(path)
    assert str(path) in str(caught.value)
    assert caught.value.field == "path"
    with pytest.raises(FileNotFoundError):
        open_log(tmp_path / "missing.log")


def test_levels_of_many_systems_are_known():
    """Words, syslog numbers and the numbers of JSON loggers."""
    assert severity_of("Warn") == "WARNING"
    assert severity_of(3) == "ERROR"
    assert severity_of("6") == "INFO"
    assert severity_of(60) == "CRITICAL"
    assert severity_of(None) is None
    assert severity_of("odd") is None
    assert severity_of(-1) is None
    assert severity_of(object()) is None


def test_the_parser_counts_formats():
    """Mixed logs are understood line by line."""
    parser = LineParser()
    for line in (
        "2024-01-02 03:04:05 ERROR x: y",
        "ERROR:x:y",
        "2024-01-02 03:04:05 INFO a: b",
        "no",
    ):
        parser.parse(line)
    assert parser.formats == {"iso": 2, "level": 1}
    assert parser.parse("") is None


@pytest.mark.slow
def test_a_batch_of_long_entries_ends_before_it_is_large():
    """Whatever size of batch was asked for."""
    frames = "".join(f'  File "a{n}.py", line {n}, in f\n' for n in range(1500))
    lines = [
        line.encode()
        for n in range(400)
        for line in (
            f"2024-01-02 03:04:05 ERROR {n}\n",
            "Traceback (most recent call last):\n",
            *frames.splitlines(keepends=True),
        )
    ]
    reader = LogReader(lines, source="s")
    sizes = [len(batch) for batch in reader.batches(1000)]
    assert sum(sizes) == 400
    assert 1 < len(sizes) < 10


LONG = {"<5000>": "9" * 5000, "<400>": "9" * 400, "<deep>": "[" * 900 + "]" * 900}


def with_two(line):
    """Read *line*, its long parts written out, and an ordinary one behind it."""
    for mark, meant in LONG.items():
        line = line.replace(mark, meant)
    return read(f'{line}\n{{"level": "ERROR", "message": "last"}}\n')


@pytest.mark.parametrize(
    "line",
    [
        '{"level": "²", "message": "m", "status": "²²²"}',
        '{"level": "INFO", "message": "m", "time": "²"}',
        '{"level": "<5000>", "message": "m"}',
        '{"level": "INFO", "message": "m", "time": "<5000>"}',
        '{"level": "INFO", "message": "m", "time": <400>}',
        '{"level": "INFO", "message": "m", "time": "9999-12-31T23:59:60"}',
        '{"level": "INFO", "message": "m", "instant": {"epochSecond": "x"}}',
        '{"level": "INFO", "message": "m", "instant": {"epochSecond": null}}',
        '{"level": "INFO", "message": {"a": "\\ud800"}}',
        '{"level": "INFO", "stack_trace": " "}',
        '{"__REALTIME_TIMESTAMP": "²", "MESSAGE": "m", "PRIORITY": "²"}',
        "level=² msg=m time=²",
    ],
)
def test_an_odd_value_costs_no_more_than_itself(line):
    """It ended the reading of the whole log; the entry is there, and those behind."""
    [_, last], report = with_two(line)
    assert last.message == "last"
    assert report.unparsed == 0


@pytest.mark.parametrize(
    "line",
    [
        '{"level": "INFO", "message": <deep>}',
        '{"__REALTIME_TIMESTAMP": "1", "MESSAGE": <deep>}',
        '{"log": "x", "a": {"stream": 1}}',
    ],
)
def test_an_object_that_is_no_entry_costs_one_line(line):
    """Nested deeper than Python counts, or a container's in a part only."""
    [last], report = with_two(line)
    assert last.message == "last"
    assert report.unparsed == 1
