"""Logs of the systemd journal, and traces of Rust."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from fm_storage.catalog.logs.formats import LineParser
from fm_storage.catalog.logs.journal import is_journal_export
from fm_storage.catalog.logs.opening import open_log
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.catalog.record.frames import exception_type, frames_of

NOW = datetime(2024, 5, 6, tzinfo=UTC)
MICROSECONDS = 1_704_164_645_123_456
AT = datetime(2024, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
TRACE = (
    'Traceback (most recent call last):\n  File "/srv/shop/cart.py", line 7, in pay\n'
    "ValueError: no money"
)


def entry(**fields):
    """Return an entry of the journal with what it always holds."""
    return {
        "__CURSOR": "s=1",
        "__REALTIME_TIMESTAMP": str(MICROSECONDS),
        "_MACHINE_ID": "0123",
        "_HOSTNAME": "web1",
        "_SYSTEMD_UNIT": "shop.service",
        **fields,
    }


def exported(*entries):
    """Return entries in the export format; bytes are written behind their length."""
    said = b""
    for fields in entries:
        for name, value in fields.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bytes):
                    length = len(one).to_bytes(8, "little")
                    said += name.encode() + b"\n" + length + one + b"\n"
                else:
                    said += f"{name}={one}\n".encode()
        said += b"\n"
    return said


def read(path):
    """Return the entries of a file and the report."""
    log = open_log(path)
    reader = LogReader(log.lines(), source=path.name, now=NOW)
    found = [one for batch in reader.batches(100) for one in batch]
    log.close()
    return found, reader.report


def test_the_export_format_is_read_with_binary_fields(tmp_path):
    """A message of several lines lies behind its length, whatever it holds."""
    path = tmp_path / "journal"
    path.write_bytes(
        exported(
            entry(
                MESSAGE="disk full", PRIORITY="3", SYSLOG_IDENTIFIER="shop", ORDER="7"
            ),
            entry(MESSAGE=TRACE.encode(), PRIORITY="2", _PID="12"),
            entry(MESSAGE=b"a\n\nb=c", PRIORITY="6", TAG=["x", "y", "z"]),
            entry(PRIORITY="6"),
        )[:-1]
    )
    found, report = read(path)
    assert (report.lines, report.entries, report.unparsed) == (4, 4, 0)
    full, trace, lines, empty = found
    assert empty.message == "(no message)"
    assert (full.message, full.module, full.severity) == ("disk full", "shop", "ERROR")
    assert full.timestamp == AT
    assert full.context is not None
    assert full.context["ORDER"] == "7"
    assert full.context["_HOSTNAME"] == "web1"
    assert "_MACHINE_ID" not in full.context
    assert (trace.message, trace.error_code) == ("ValueError: no money", "ValueError")
    assert (trace.module, trace.severity) == ("shop.service", "CRITICAL")
    assert trace.stack_trace == TRACE
    assert lines.message == "a\n\nb=c"
    assert lines.context is not None
    assert lines.context["TAG"] == "x, y, z"


def test_over_long_fields_of_an_export_are_cut_and_the_next_ones_read(tmp_path):
    """Memory stays bounded, whatever a service has written."""
    path = tmp_path / "journal"
    long = "x" * 200_000
    path.write_bytes(
        exported(
            entry(MESSAGE=long.encode(), PRIORITY="3"),
            entry(MESSAGE=long, PRIORITY="3"),
            entry(MESSAGE="short", PRIORITY="3"),
        )
    )
    found, report = read(path)
    assert report.entries == 3
    assert [len(one.message) < 20_000 for one in found] == [True] * 3
    assert found[2].message == "short"


def test_an_export_that_breaks_off_gives_what_it_holds(tmp_path):
    """Copied while it was being written."""
    path = tmp_path / "journal"
    path.write_bytes(exported(entry(MESSAGE=b"whole message"))[:-9])
    found, _ = read(path)
    assert found[0].message.startswith("whole")
    assert is_journal_export(path.read_bytes())
    assert not is_journal_export(b"2024-01-02 03:04:05 ERROR x")


def test_the_journals_json_is_read(tmp_path):
    """Bytes come as a list of numbers, a message that is too long as null."""
    path = tmp_path / "journal.json"
    entries = [
        entry(MESSAGE=list(b"caf\xc3\xa9 closed"), PRIORITY="4", _COMM="sh"),
        entry(MESSAGE=None, PRIORITY="3"),
        entry(MESSAGE="thread failed\n" + TRACE, SYSLOG_IDENTIFIER=["a", "b"]),
        entry(MESSAGE="no unit", _SYSTEMD_UNIT=None, ODD=[1, 999]),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    found, report = read(path)
    assert (report.entries, report.unparsed) == (4, 0)
    cafe, empty, failed, plain = found
    assert (empty.message, empty.severity) == ("(no message)", "ERROR")
    assert (cafe.message.splitlines()[0], cafe.severity) == ("café closed", "WARNING")
    assert cafe.context is not None
    assert cafe.context["_COMM"] == "sh"
    assert (failed.message, failed.module) == ("thread failed", "a, b")
    assert failed.error_code == "ValueError"
    assert plain.module == "journal"
    assert plain.context is not None
    assert plain.context["ODD"] == "1, 999"


PANIC = """\
thread 'main' panicked at src/main.rs:4:5:
index out of bounds: the len is 3 but the index is 7
stack backtrace:
   0: rust_begin_unwind
             at /rustc/f6e511eec7342f59/library/std/src/panicking.rs:665:5
   1: core::panicking::panic_fmt
             at /rustc/f6e511eec7342f59/library/core/src/panicking.rs:76:14
   2: <alloc::boxed::Box<F,A> as core::ops::function::FnOnce<Args>>::call_once
   3: shop::cart::pay::h0123456789abcdef
             at ./src/cart.rs:40:9
   4: shop::main::{{closure}}
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
"""
ANYHOW = """\
Error: could not open the shop

Caused by:
    0: failed to read settings from /etc/shop.toml
    1: No such file or directory (os error 2)

Stack backtrace:
   0: anyhow::error::<impl core::convert::From<E> for anyhow::Error>::from
             at /home/me/.cargo/anyhow-1.0.86/src/error.rs:565:25
   1: shop::settings::load
             at ./src/settings.rs:12:20
"""


def entries_of(text):
    """Return the entries of a log given as text."""
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    [found] = LogReader(lines, source="shop.log", now=NOW).batches(100)
    return found


def test_a_panic_is_one_entry_that_says_what_happened():
    """Its place, which moves with every edit, is not the message."""
    first, second = entries_of(PANIC + PANIC.replace("'main'", "'worker-1' (4711)"))
    assert (
        first.message
        == "panicked: index out of bounds: the len is 3 but the index is 7"
    )
    assert (first.severity, first.error_code) == ("CRITICAL", "panic")
    assert first.stack_trace is not None
    assert frames_of(first.stack_trace)[-2:] == ("shop::cart::pay", "shop::main::")
    assert first.fingerprint == second.fingerprint
    [old] = entries_of("thread 'main' panicked at 'no shop', src/main.rs:4:5\n")
    assert "no shop" in old.message
    [cut] = entries_of("thread 'main' panicked at src/main.rs:4:5:\n")
    assert cut.message == "thread 'main' panicked at src/main.rs:4:5:"


def test_a_chain_of_anyhow_is_one_entry_with_its_causes():
    """Blank lines inside do not end it; without a backtrace it has no frames."""
    [found] = entries_of(ANYHOW)
    assert found.message == "Error: could not open the shop"
    assert (found.severity, found.error_code) == ("ERROR", "anyhow::Error")
    assert found.stack_trace is not None
    assert "No such file" in found.stack_trace
    assert frames_of(found.stack_trace)[-1] == "shop::settings::load"
    short = ANYHOW.partition("\n\nStack")[0]
    assert frames_of(short) == ()
    assert exception_type(short) == "anyhow::Error"
    assert exception_type("Error: could not open the shop") is None


def test_a_panic_behind_a_log_line_does_not_belong_to_it():
    """And a chain behind an error line does."""
    head = "2024-01-02T03:04:05Z ERROR shop::cart: payment failed\n"
    line, panic = entries_of(head + PANIC)
    assert (line.message, line.module) == ("payment failed", "shop::cart")
    assert panic.error_code == "panic"
    [both] = entries_of(head + ANYHOW)
    assert both.message == "payment failed"
    assert both.error_code == "anyhow::Error"


@pytest.mark.parametrize(
    ("line", "module", "message"),
    [
        (
            "2024-01-02T03:04:05.123456Z ERROR shop::cart: no money",
            "shop::cart",
            "no money",
        ),
        (
            "2024-01-02T03:04:05.123456Z  WARN request{id=7}:pay: shop::cart: slow: 5",
            "shop::cart",
            "slow: 5",
        ),
        ("[2024-01-02T03:04:05Z ERROR shop::cart] no money", "shop::cart", "no money"),
        ("[2024-01-02T03:04:05Z INFO  shop] opened", "shop", "opened"),
    ],
)
def test_lines_of_rusts_loggers(line, module, message):
    """As tracing and env_logger write them."""
    header = LineParser().parse(line)
    assert header is not None
    assert (header.module, header.message) == (module, message)
