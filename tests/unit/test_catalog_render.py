"""Exceptions as text, however hostile; drafts of everything; the spool's files."""

# Raising and catching is what is tested here.

from __future__ import annotations

import logging
import os
import stat
import sys
from datetime import UTC, datetime
from uuid import UUID

import pytest

from fm_storage.catalog.record.drafts import draft_of, draft_of_log, module_of
from fm_storage.catalog.record.render import render, type_name
from fm_storage.catalog.record.row import Prepared, prepare
from fm_storage.catalog.record.spool import Spool, spool_folder
from fm_storage.errors import PermissionDenied, QueryFailed
from fm_storage.repositories import ErrorEntry, Severity


def raised(error):
    """Return *error* with a traceback."""
    try:
        raise error
    except BaseException as exc:
        return exc


def test_message_code_and_trace_are_those_python_prints():
    """The code is the qualified type, with the SQLSTATE where there is one."""
    found = render(raised(ValueError("bad")))
    assert (found.message, found.error_code) == ("bad", "ValueError")
    assert found.stack_trace.startswith("Traceback (most recent call last):")
    assert found.stack_trace.endswith("ValueError: bad")
    assert render(KeyError("sku")).message == "KeyError: 'sku'"
    assert render(ValueError()).message == "ValueError"
    refused = QueryFailed("no", sqlstate="42P01")
    assert render(refused).error_code == "fm_storage.errors.QueryFailed:42P01"

    class Local(Exception):
        pass

    assert type_name(Local()).endswith("codes_are.Local") or "Local" in type_name(
        Local()
    )


def test_hostile_exceptions_are_rendered_all_the_same():
    """A broken ``str``, a broken property, a loop of causes, a deep recursion."""

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no")

        @property
        def sqlstate(self):
            raise RuntimeError("no")

    assert "unprintable" in render(raised(Broken())).message
    assert "Broken" in render(raised(Broken())).stack_trace

    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert render(first).context["caused_by"] == ["ValueError"]

    def recurse(depth):
        if not depth:
            raise ValueError("deep")
        recurse(depth - 1)

    with pytest.raises(ValueError, match="deep") as caught:
        recurse(sys.getrecursionlimit() // 4)
    assert len(render(caught.value).stack_trace) < 20_000


def test_a_trace_that_cannot_be_made_is_replaced_by_a_short_one(monkeypatch):
    """Whatever goes wrong inside traceback, the error is not lost."""

    def fail(*_, **__):
        raise RuntimeError("no source")

    monkeypatch.setattr("traceback.TracebackException.from_exception", fail)
    assert render(raised(ValueError("x"))).stack_trace.endswith("ValueError: x")


def test_structure_is_kept_for_programs():
    """Causes, suppressed contexts, groups within groups, notes."""
    try:
        raise OSError("a")
    except OSError:
        without, with_one = raised(ValueError("b")), raised(ValueError("b"))
    without.__suppress_context__ = True  # as "from None" does
    with_one.__notes__ = ["n"]
    assert render(without).context == {}
    assert render(with_one).context == {"caused_by": ["OSError"], "notes": ["n"]}
    many = ExceptionGroup("g", [ValueError(str(n)) for n in range(40)])
    assert str(render(many).context["exceptions"]).count("ValueError") == 20


def test_log_records_become_drafts():
    """Level, logger, place, extras; trace from exc_info, exc_text or stack_info."""
    record = logging.LogRecord(
        "shop.cart", logging.WARNING, "/a/b.py", 7, "m", (), None
    )
    record.user = "ada"
    entry = draft_of_log(record, "message").entry
    assert entry.manager_context is not None
    assert (entry.module, entry.severity, entry.message) == (
        "shop.cart",
        "WARNING",
        "message",
    )
    assert entry.manager_context["place"] == "/a/b.py:7"
    assert entry.manager_context["user"] == "ada"
    exc = raised(ValueError("x"))
    record.exc_info = (type(exc), exc, exc.__traceback__)
    assert draft_of_log(record, "m").entry.error_code == "ValueError"
    record.exc_info, record.exc_text = None, "trace text"
    assert draft_of_log(record, "m").entry.stack_trace == "trace text"
    record.exc_text, record.stack_info = None, "stack"
    assert draft_of_log(record, "m", module="own").entry.stack_trace == "stack"
    levels = {
        logging.CRITICAL: "CRITICAL",
        logging.ERROR: "ERROR",
        25: "INFO",
        5: "DEBUG",
    }
    for level, severity in levels.items():
        record.levelno = level
        assert draft_of_log(record, "m").entry.severity == severity


def test_drafts_say_what_was_unclear():
    """An unknown severity is ERROR and noted; a module is found where none is given."""
    draft = draft_of(ErrorEntry("m", "", "", severity="odd"))
    row = draft.prepared()
    assert row is draft.prepared()
    assert row.severity is Severity.ERROR
    assert row.module == "unknown"
    assert "odd" in row.repairs[0]
    assert module_of(ValueError()) == "builtins"
    assert module_of(raised(ValueError())) == __name__


def test_a_row_survives_the_spools_form():
    """What is written is what is read, and anything else is refused."""
    row = prepare(
        "m",
        module="x",
        stack_trace="t",
        context={"a": [1]},
        timestamp=datetime(2024, 1, 2, tzinfo=UTC),
        entry_id=UUID(int=5),
    )
    assert Prepared.from_json(row.to_json()) == row
    for torn in (
        b"",
        b"[1]",
        b"{}",
        row.to_json()[:-5],
        row.to_json().replace(b"ERROR", b"ODD"),
    ):
        with pytest.raises(ValueError, match=r"."):
            Prepared.from_json(torn)


def test_the_spool_is_private(tmp_path):
    """0700 and 0600, refused where others may look, or where it is a link."""
    spool = Spool(spool_folder(tmp_path, "postgresql://a/b"))
    assert not spool.has_any()
    spool.append([prepare("m")])
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    [file] = spool.folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    spool.close()
    assert spool_folder(tmp_path, "postgresql://c/d") != spool.folder

    spool.folder.chmod(0o755)
    with pytest.raises(PermissionDenied, match="chmod 700"):
        Spool(spool.folder).append([prepare("m")])
    spool.folder.chmod(0o700)
    elsewhere = Spool(tmp_path / "spool" / "link")
    elsewhere.folder.symlink_to(spool.folder)
    with pytest.raises(PermissionDenied, match="not a folder"):
        elsewhere.append([prepare("m")])


def test_what_a_dead_process_left_is_taken_over_and_a_living_one_is_left(tmp_path):
    """A lock tells the living from the dead; a torn last line is nothing."""
    folder = spool_folder(tmp_path, "x")
    living, dead, next_one = Spool(folder), Spool(folder), Spool(folder)
    living.append([prepare("living")])
    dead.append([prepare("dead"), prepare("dead too")])
    dead.close()
    [path] = [p for p in folder.iterdir() if b"dead" in p.read_bytes()]
    with path.open("ab") as file:
        file.write(b'["torn')
    [segment] = next_one.take()
    assert [row.message for row in segment.entries()] == ["dead", "dead too"]
    segment.remove()
    segment.close()
    assert living.has_own()
    [own] = living.take()
    assert [row.message for row in own.entries()] == ["living"]
    own.remove()
    assert not next_one.has_any()


def test_a_large_spool_is_written_in_segments(tmp_path, monkeypatch):
    """No file grows without bound, and a lost race for a new file is tried again."""
    monkeypatch.setattr("fm_storage.catalog.record.spool._MAX_SEGMENT", 100)
    spool = Spool(spool_folder(tmp_path, "x"))
    for n in range(3):
        spool.append([prepare(f"m{n}" + "x" * 200)], sync=False)
    assert len(list(spool.folder.iterdir())) == 3
    assert sum(len(s.entries()) for s in spool.take()) == 3

    real = os.fstat
    lost = iter([True])

    class Gone:
        st_nlink = 0

    monkeypatch.setattr(
        "os.fstat", lambda fd: Gone() if next(lost, False) else real(fd)
    )
    other = Spool(spool_folder(tmp_path, "y"))
    other.append([prepare("m")])
    assert other.has_own()


def test_rejected_entries_are_set_aside_for_a_person(tmp_path):
    """What the database refuses lies beside the spool, with the reason."""
    spool = Spool(spool_folder(tmp_path, "x"))
    spool.append([prepare("a")])
    path = spool.reject(prepare("bad"), "because")
    assert b"because" in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    spool.close()
