"""Formats of log lines, and logs whose bytes are odd: what is read of them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zipfile
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fm_storage.catalog.logs.formats import LineParser, pattern_from
from fm_storage.catalog.logs.opening import open_log
from fm_storage.catalog.logs.patterns import FORMATS
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.errors import InvalidRecord

NOW = datetime(2026, 1, 5, tzinfo=UTC)
LINE = "2026-01-02 10:11:12,345 ERROR shop.billing - charge failed"
MOMENT = datetime(2026, 1, 2, 10, 11, 12, 345000, tzinfo=UTC)
HAPROXY = (
    "Jan  2 10:11:12 lb haproxy[31]: 10.0.0.1:51 [02/Jan/2026:10:11:12.345] web "
    "app/s1 0/0/1/2/3 503 217 - - SC-- 1/1/0/0/0 0/0"
)
TRACE = [
    "Traceback (most recent call last):",
    '  File "/srv/shop/pay.py", line 7, in pay',
    "    charge()",
    "ValueError: no money",
]


def read(lines, **options):
    """Return the entries of lines, and the report."""
    data = [one if isinstance(one, bytes) else f"{one}\n".encode() for one in lines]
    reader = LogReader(data, source="s", now=NOW, **options)
    return [entry for batch in reader.batches(1000) for entry in batch], reader.report


def read_file(path):
    """Return the entries of a file, and why it is incomplete."""
    log = open_log(path)
    reader = LogReader(log.lines(), source="s", now=NOW)
    found = [entry for batch in reader.batches(1000) for entry in batch]
    log.close()
    return found, log.broken


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_every_format_recognises_its_own_example(one):
    """By its own pattern, with time, severity and message where it has them."""
    parser = LineParser(now=NOW)
    header = parser.parse(one.example)
    assert header is not None
    assert list(parser.formats) == [one.name]
    found = one.pattern.match(one.example)
    assert found is not None
    groups = found.groupdict()
    if groups.get("day") or groups.get("at") or groups.get("epoch"):
        assert header.timestamp is not None
        assert header.timestamp.date() == MOMENT.date()
    assert header.severity or not header.message


@pytest.mark.parametrize(
    ("line", "severity", "module", "message"),
    [
        ("[2026-01-02 10:11:12,345: ERROR/Worker-1] task failed", "ERROR", None,
         "task failed"),
        ("2026-01-02 10:11:12 [scrapy.core] ERROR: no spider", "ERROR", "scrapy.core",
         "no spider"),
        ("2026-01-02T10:11:12Z\tERROR\tshop/pay.go:7\tno money", "ERROR", None,
         "no money"),
        ("2026-01-02T10:11:12Z\tERROR\thttp.log\tno money\t{}", "ERROR", "http.log",
         "no money\t{}"),
        ("2026-01-02 10:11:12 ERROR c.s.Cart  [] - no money", "ERROR", "c.s.Cart",
         "no money"),
        ("2026-01-02 10:11:12 [1] ERROR Shop.Cart [(null)] - no", "ERROR", "Shop.Cart",
         "no"),
        ("[2026-01-02 10:11:12] app.CRITICAL: no money {} []", "CRITICAL", "app",
         "no money {} []"),
        ("2026-01-02T10:11:12Z [WARN]  agent.fsm: no leader", "WARNING", "agent.fsm",
         "no leader"),
        ("[2026-01-02T10:11:12.345] [ERROR] shop - no", "ERROR", "shop", "no"),
        ("2026-01-02T10:11:12.345Z 7 [Warning] Access denied", "WARNING", None,
         "Access denied"),
        ("2026-01-02T10:11:12Z E NETWORK  [conn7] no peer", "ERROR", "NETWORK",
         "no peer"),
        ("2026.01.02 10:11:12.3 [ 31 ] {9b} <Error> execute: no", "ERROR", "execute",
         "no"),
        ("2026-01-02T10:11:12.345Z|00007|bridge|ERR|no link", "ERROR", "bridge",
         "no link"),
        ("02-Jan-2026 10:11:12.345 general: error: no zone", "ERROR", "general",
         "no zone"),
        ("Jan  2 10:11:12 dnsmasq[31]: failed to load", "ERROR", "dnsmasq",
         "failed to load"),
        ("Jan 02 10:11:12.345678 web1 systemd[1]: Failed", "ERROR", "systemd",
         "Failed"),
        ("[pod/web-1/app] 2026-01-02T10:11:12Z ERROR shop.pay: no", "ERROR",
         "shop.pay", "no"),
        (('{"timestamp":"2026-01-02T10:11:12Z","level":"ERROR","fields":{"message":'
         '"no"},"target":"shop::pay"}'), "ERROR", "shop::pay", "no"),
        ('{"short_message":"no","timestamp":1767348672.3,"level":3,"_logger":"shop"}',
         "ERROR", "shop", "no"),
        (('{"timeUnixNano":"1767348672345000000","severityText":"ERROR",'
         '"body":{"stringValue":"no"}}'), "ERROR", None, "no"),
        ("[2026-01-02T10:11:12,345][WARN ][o.e.Bootstrap] [n1] slow", "WARNING",
         "o.e.Bootstrap", "[n1] slow"),
        ("2026-01-02 10:11:12.345 +01:00 [FTL] gone", "CRITICAL", None, "gone"),
        ("2026-01-02 10:11:12, Info                  CBS    loaded", "INFO", "CBS",
         "loaded"),
        (HAPROXY, "ERROR", "haproxy", None),
        ("2026-01-02T10:11:12.3456789Z ##[error]build failed", "ERROR", None,
         "build failed"),
        (json.dumps({"t": {"$date": "2026-01-02T10:11:12.345Z"}, "s": "W",
                     "c": "REPL", "msg": "lagging"}), "WARNING", "REPL", "lagging"),
        (json.dumps({"instant": {"epochSecond": 1767348672, "nanoOfSecond": 345000000},
                     "level": "FATAL", "loggerName": "shop", "message": "gone"}),
         "CRITICAL", "shop", "gone"),
        (json.dumps({"@t": "2026-01-02T10:11:12.345Z", "@mt": "paid {n}",
                     "SourceContext": "Shop"}), "INFO", "Shop", "paid {n}"),
        (json.dumps({"severity": "ERROR", "textPayload": "no quota",
                     "timestamp": "2026-01-02T10:11:12.345Z"}), "ERROR", None,
         "no quota"),
        ("2026-01-02T10:11:12Z\terror\tads\tno stream", "ERROR", "ads", "no stream"),
        ("2026-01-02 10:11:12 [shop] warn: slow", "WARNING", "shop", "slow"),
        ("2026-01-02T10:11:12+00:00 [shop.web#critical] no", "CRITICAL", "shop.web",
         "no"),
        ("2026-01-02T10:11:12Z pid=31 tid=a class=Pay jid=9b elapsed=0.1 WARN: no",
         "WARNING", None, "no"),
        ("2026-01-02 10:11:12,345 [salt.minion     :1234][ERROR   ][31] no", "ERROR",
         "salt.minion", "no"),
        ("2026-01-02 10:11:12,345 fail2ban.actions        [31]: ERROR   no", "ERROR",
         "fail2ban.actions", "no"),
        ("2026-01-02 10:11:12,345 31 ERROR shop odoo.http: no", "ERROR", "odoo.http",
         "no"),
        ("2026-01-02T10:11:12.345+00:00 ERROR shop::pay - no", "ERROR", "shop::pay",
         "no"),
        ("  2026-01-02T10:11:12.345678Z ERROR shop::pay: no", "ERROR", "shop::pay",
         "no"),
        ("Jan 02 10:11:12.345 ERRO no money", "ERROR", None, "no money"),
        ("ERRO[2026-01-02T10:11:12Z] no money", "ERROR", None, "no money"),
        ("Jan 02 10:11:12 imap-login: Error: no auth", "ERROR", "imap-login",
         "Error: no auth"),
        ("Jan  2 10:11:12  fw1 rpd[31]: peer refused", "ERROR", "rpd", "peer refused"),
        ("node=a type=AVC msg=audit(1767348672.345:7): denied", "ERROR", "AVC",
         "denied"),
        (("2026-01-02 10:11:12 W3SVC1 WEB 10.0.0.1 GET /pay a=1 443 - 10.0.0.7 HTTP/2.0"
         " M/5 - - shop.test 500 19 5 1 2 3"), "ERROR", "access", None),
        ("2026-01-02T10:11:12Z Task timed out after 3.00 seconds", "ERROR", None, None),
        (json.dumps({"@level": "error", "@message": "no", "@module": "agent",
                     "@timestamp": "2026-01-02T10:11:12Z"}), "ERROR", "agent", "no"),
        (json.dumps({"time_local": "02/Jan/2026:10:11:12 +0000", "status": "502",
                     "request": "GET /"}), "ERROR", None, "GET /"),
        (json.dumps({"TimeCreated": "2026-01-02T10:11:12Z", "ProviderName": "App",
                     "LevelDisplayName": "Error", "Message": "no"}), "ERROR", "App",
         "no"),
        (json.dumps({"text": "x", "record": {"level": {"name": "ERROR"}, "name": "shop",
                     "message": "no", "time": {"timestamp": 1767348672.3}}}), "ERROR",
         "shop", "no"),
        (json.dumps({"level": "error", "timestamp": 1767348672345, "message": "no",
                     "context": "PayService"}), "ERROR", "PayService", "no"),
        (json.dumps({"status": "error", "timestamp": "2026-01-02T10:11:12Z",
                     "message": "no"}), "ERROR", None, "no"),
    ],
)  # fmt: skip
def test_further_layouts_keep_level_module_and_message(line, severity, module, message):
    """What follows a timestamp, and the names of fields, differ by program."""
    [entry], _ = read([line])
    assert entry.severity == severity
    assert entry.module == (module or "s")
    assert entry.message == message or message is None
    assert abs(entry.timestamp - MOMENT) < timedelta(hours=2)


@pytest.mark.parametrize(
    "date",
    [
        "2026/01/02 10:11:12.345",
        "[2026/01/02 10:11:12,345]",
        "2026.01.02 10:11:12.345",
        "[31] 2026/01/02 10:11:12.345",
        "20260102 10:11:12.345",
        "20260102T101112.345Z",
        "260102 10:11:12.345",
        "02 Jan 2026 10:11:12,345",
        "02-Jan-2026 10:11:12.345",
        "Fri, 02 Jan 2026 10:11:12.345 GMT",
        "02.01.2026 10:11:12.345",
        "01/02/2026 10:11:12.345",
        "1/2/2026, 10:11:12.345 AM",
        "02 Jan 10:11:12.345",
        "1767348672.345",
        "1.767348672345e+09",
    ],
)
def test_dates_in_any_of_the_usual_orders_begin_an_entry(date):
    """What follows them is read as behind an ISO 8601 time."""
    (entry,), _ = read([f"{date} ERROR shop.billing: charge failed"])
    assert abs(entry.timestamp - MOMENT) < timedelta(milliseconds=1)
    assert (entry.severity, entry.module) == ("ERROR", "shop.billing")
    assert entry.message == "charge failed"


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("10:11:12.345", datetime(2026, 1, 4, 10, 11, 12, 345000, tzinfo=UTC)),
        ("[10:11:12]", datetime(2026, 1, 4, 10, 11, 12, tzinfo=UTC)),
        ("1:11PM", datetime(2026, 1, 4, 13, 11, tzinfo=UTC)),
    ],
)
def test_a_time_of_day_alone_is_the_last_such_time(clock, expected):
    """It begins an entry where a level follows, and nothing else."""
    (entry,), _ = read([f"{clock} ERROR charge failed"])
    assert (entry.timestamp, entry.message) == (expected, "charge failed")
    assert LineParser(now=NOW).parse(f"{clock} and other words") is None


@pytest.mark.parametrize(
    ("lines", "message", "trace"),
    [
        (
            [
                "2026-01-02 10:11:12.345 31 ERROR nova.compute [req-9b - -] no money",
                *(
                    f"2026-01-02 10:11:12.345 31 ERROR nova.compute {line}"
                    for line in TRACE
                ),
            ],
            "no money",
            "\n".join(TRACE),
        ),
        (
            [
                "2026-01-02T10:11:12Z\tERROR\tpay.go:7\tno",
                "main.pay",
                "\t/srv/pay.go:7",
            ],
            "no",
            "main.pay\n\t/srv/pay.go:7",
        ),
        (
            [
                "F, [2026-01-02T10:11:12 #31] FATAL -- : no money",
                "  a.rb:7:in `pay'",
            ],
            "no money",
            "  a.rb:7:in `pay'",
        ),
        (
            ["2026-01-02 10:11:12 ERROR shop: no", "shop.pay", "went away"],
            "no\nshop.pay\nwent away",
            None,
        ),
    ],
)
def test_a_trace_belongs_to_the_entry_above_it(lines, message, trace):
    """Also where each of its lines has the header of the first, or names come first."""
    [entry], _ = read(lines)
    assert (entry.message, entry.stack_trace) == (message, trace)


def test_entries_of_one_moment_stay_entries():
    """Behind a trace, too."""
    head = "2026-01-02 10:11:12.345 31 ERROR nova.compute "
    entries, _ = read(
        [head + "no money", *(head + one for one in TRACE), head + "gone"]
    )
    assert [entry.message for entry in entries] == ["no money", "gone"]


def test_two_lines_of_java_util_logging_are_one_entry():
    """Time and place on the first line, level and message on the second."""
    entries, _ = read(
        ["Jan 02, 2026 10:11:12 PM com.shop.Cart pay", "SEVERE: no money"]
    )
    [entry] = entries
    assert (entry.severity, entry.message, entry.module) == (
        "ERROR", "no money", "com.shop.Cart"
    )  # fmt: skip
    assert entry.timestamp.hour == 22


def docker(text, stream="stderr", end="\n"):
    """Return a line as Docker's json-file driver writes it."""
    return json.dumps(
        {"log": text + end, "stream": stream, "time": "2026-01-02T10:11:12.345678901Z"}
    )


def cri(text, stream="stderr", tag="F"):
    """Return a line as a Kubernetes node writes it."""
    return f"2026-01-02T10:11:12.345678901Z {stream} {tag} {text}"


@pytest.mark.parametrize("wrap", [docker, cri])
def test_what_a_containers_runtime_wraps_is_the_applications(wrap):
    """Traces are whole, also where the other stream writes between their lines."""
    mixed = []
    for line in [LINE, *TRACE]:
        mixed += [wrap(line), wrap("GET /health 200 answered", "stdout")]
    entries, report = read(mixed)
    [failed] = [one for one in entries if one.message == "charge failed"]
    assert (failed.severity, failed.timestamp) == ("ERROR", MOMENT)
    assert failed.stack_trace == "\n".join(TRACE)
    assert report.unparsed == 5  # no format fits what the other stream wrote
    [bare], _ = read(map(wrap, TRACE))
    assert bare.timestamp.date() == MOMENT.date()
    assert bare.message == "ValueError: no money"


def test_partial_lines_of_a_container_are_joined():
    """Docker leaves out the end of line, Kubernetes tags with P."""
    [entry], _ = read([docker(LINE[:40], end=""), docker(LINE[40:])])
    assert entry.message == "charge failed"
    [entry], _ = read([cri(LINE[:40], tag="P"), cri(LINE[40:])])
    assert entry.message == "charge failed"
    [entry], _ = read([cri(LINE, tag="P")])  # a rotation has taken the rest
    assert entry.message == "charge failed"


def test_lines_of_an_unknown_format_do_not_vanish_in_the_entry_before():
    """Counted as unparsed, or entries of their own where they begin with a time."""
    entries, report = read(
        ["INFO: starting", *[f"<|{n}|> task {n} failed" for n in range(5000)]]
    )
    assert len(entries) == 1
    assert report.unparsed > 4900
    entries, report = read([LINE, "10:11:13.5 ~~ task failed", "10:11:14.5 ~~ done"])
    assert [one.severity for one in entries] == ["ERROR", "ERROR", "INFO"]
    assert report.formats["unknown"] == 2
    entries, report = read([LINE, "two", "  lines", *TRACE, "more about it"])
    assert len(entries) == 1
    assert entries[0].message == "charge failed\ntwo\n  lines"


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: gzip.compress(data, mtime=0)[:-100],
        lambda data: bz2.compress(data, 1)[:-5],
        lambda data: lzma.compress(data)[:-20],
    ],
    ids=["gz", "bz2", "xz"],
)
def test_of_a_truncated_archive_what_can_be_read_is_kept(tmp_path, pack):
    """And it is said that the end is missing."""
    lines = [f"2026-01-02 10:11:12 ERROR x: {n**9 % 10007}\n" for n in range(10_000)]
    path = tmp_path / "a.log"
    path.write_bytes(pack("".join(lines).encode()))
    entries, broken = read_file(path)
    assert len(entries) > 1000
    assert "cannot be unpacked" in (broken or "")


def test_a_zip_of_one_log_is_read_and_one_of_several_is_refused(tmp_path):
    """Stored or deflated; which of several is meant nobody can know."""
    path = tmp_path / "a.zip"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.log", f"{LINE}\n" * 3)
        assert len(read_file(path)[0]) == 3
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.log", LINE)
    with pytest.raises(InvalidRecord, match="2 files"):
        open_log(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 5000 + LINE.encode() + b"\n",
        b"\0" * 1_000_000 + LINE.encode() + b"\n",
        LINE.encode("utf-16"),
        LINE.encode("utf-16-le"),
        LINE.encode("utf-32"),
        f"{LINE}\r".encode(),
        f"\x1b]0;title\x07\x1b[1;31m{LINE}\x1b[0m\n".encode(),
        f"\ufeff{LINE}\n".encode(),
    ],
    ids=["NULs", "many NULs", "utf16", "unmarked", "utf32", "CR", "terminal", "mark"],
)
def test_a_log_in_odd_bytes_is_read(tmp_path, data):
    """What stands around the line is taken off it."""
    path = tmp_path / "a.log"
    path.write_bytes(data)
    [entry], broken = read_file(path)
    assert (entry.message, entry.timestamp) == ("charge failed", MOMENT)
    assert broken is None


def test_text_in_cp1252_is_read():
    """Windows writes quotes and the euro where Latin-1 has controls."""
    [entry], _ = read(
        ["2026-01-02 10:11:12 ERROR x: 5 € „due“".encode("cp1252") + b"\n"]
    )
    assert entry.message == "5 € „due“"


def test_json_that_python_writes_is_read():
    """NaN, infinity and halves of surrogate pairs are no reason to lose a line."""
    entries, report = read(
        [
            '{"level":"error","time":"2026-01-02T10:11:12Z","msg":"lost","loss":NaN}',
            '{"level":"error","time":"2026-01-02T10:11:12Z","msg":"no \\udcff"}',
        ]
    )
    assert [one.message for one in entries] == ["lost", "no \\udcff"]
    assert report.unparsed == 0


def test_a_long_line_of_json_is_read_and_a_longer_text_is_cut(tmp_path):
    """Half a megabyte of context is an entry; of a text without end the beginning."""
    path = tmp_path / "a.log"
    fields = {"level": "error", "time": "2026-01-02T10:11:12Z", "x": "y" * 600_000}
    path.write_text(json.dumps({**fields, "msg": "big"}) + f"\n{LINE}\n")
    entries, _ = read_file(path)
    assert [one.message for one in entries] == ["big", "charge failed"]
    with path.open("wb") as file:
        file.write(LINE.encode())
        for _ in range(32):
            file.write(b" 2026-01-02" * 100_000)
        file.write(b"\n" + LINE.encode())
    log = open_log(path)
    reader = LogReader(log.lines(), source="s", now=NOW)
    assert sum(map(len, reader.batches(9))) == 2
    assert reader.report.truncated == 1
    assert reader.report.bytes == path.stat().st_size
    log.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jan  4 10:11:12", datetime(2026, 1, 4, 10, 11, 12, tzinfo=UTC)),
        ("Jan  6 00:00:00", datetime(2026, 1, 6, tzinfo=UTC)),
        ("Jan  7 10:11:12", datetime(2025, 1, 7, 10, 11, 12, tzinfo=UTC)),
        ("Dec 31 23:59:59", datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("Feb 29 10:11:12", datetime(2024, 2, 29, 10, 11, 12, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_year_is_the_latest_before_the_log_was_written(text, expected):
    """With a day's tolerance; 29 February is in a leap year."""
    [entry], _ = read([f"{text} web1 shop[1]: error: no"])
    assert entry.timestamp == expected


def test_zones_by_name_and_leap_seconds_are_read():
    """PostgreSQL writes CET; a minute of 61 seconds ends with :60."""
    [entry], _ = read(["2026-01-02 10:11:12.345 CET [31] ERROR:  no table"])
    assert entry.timestamp == MOMENT.replace(tzinfo=timezone(timedelta(hours=1)))
    [entry], _ = read(["2016-12-31T23:59:60Z ERROR shop - late"])
    assert entry.timestamp == datetime(2017, 1, 1, tzinfo=UTC)


def test_a_format_of_the_applications_own_is_tried_first():
    """Named groups say what is what; others go into the context."""
    pattern = r"<\|(?P<task>\d+)\|> (?P<level>\w+) ~ (?P<message>.*)"
    [entry], report = read(["<|7|> warn ~ on fire"], format=pattern_from(pattern))
    assert (entry.severity, entry.message) == ("WARNING", "on fire")
    assert (entry.context or {})["task"] == "7"
    assert report.formats == {"given": 1}
    assert pattern_from(None) is None
    assert pattern_from(re.compile(pattern)) == re.compile(pattern)
    with pytest.raises(InvalidRecord, match="no group 'message'"):
        pattern_from(".*")
    with pytest.raises(InvalidRecord, match="no regular expression"):
        pattern_from("(?P<message>")
