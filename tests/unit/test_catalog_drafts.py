"""Whatever an application hands in becomes a row: no argument fails a call."""

from __future__ import annotations

import enum
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.logging_handler import CatalogHandler
from fm_storage.repositories import ErrorEntry, Severity


class Unshowable:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("not bound to a session")

    def __bool__(self) -> bool:
        raise RuntimeError("ambiguous")


class Empty(Exception):
    """An exception that is falsy."""

    def __len__(self) -> int:
        return 0


class Code(enum.Enum):
    """Codes as applications have them."""

    TEXT = "E-7"
    NUMBER = 404


class Hostile(dict):  # type: ignore[type-arg]  # hostile on purpose
    """A mapping that cannot be read."""

    def keys(self):
        """Fail."""
        raise RuntimeError("no keys")

    def items(self):
        """Fail."""
        raise RuntimeError("no items")


def prepared(error: Any = "x", **options: Any):
    """Return the row of an error."""
    return draft_of(error, **options).prepared()


@pytest.mark.parametrize(
    ("code", "stored"),
    [(404, "404"), (0, "0"), (Code.TEXT, "E-7"), (Code.NUMBER, "404"), (b"x", "b'x'")],
)
def test_a_code_of_any_type_is_stored_as_text(code, stored):
    """Numbers and enums are codes too."""
    assert prepared(error_code=code).error_code == stored


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("FATAL", Severity.CRITICAL),
        ("warn", Severity.WARNING),
        (logging.ERROR, Severity.ERROR),
        (55, Severity.CRITICAL),
        ("dire", Severity.ERROR),
        (Unshowable(), Severity.ERROR),
    ],
)
def test_a_severity_of_other_systems_is_understood_and_the_repair_named(given, meant):
    """FATAL is CRITICAL, numbers are those of logging; what is unknown is an ERROR."""
    row = prepared(severity=given)
    assert row.severity is meant
    assert row.repairs[0].startswith("severity: ")
    assert prepared(severity="error").repairs == ()


@pytest.mark.parametrize("context", [[1, 2], "text", 7, Unshowable(), Hostile(a=1)])
def test_any_context_is_stored(context):
    """What is no mapping is its value; what cannot be read is named by its type."""
    assert prepared(context=context).context
    assert prepared(ValueError("x"), context=context).context
    entry = ErrorEntry("x", "m", "c", manager_context=context)
    assert prepared(entry, context={"more": 1}).context


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1767348672, datetime(2026, 1, 2, 10, 11, 12, tzinfo=UTC)),
        ("2026-01-02T10:11:12+00:00", datetime(2026, 1, 2, 10, 11, 12, tzinfo=UTC)),
        ("soon", None),
        (float("inf"), None),
    ],
)
def test_a_time_of_another_type_is_understood_or_named(given, stored):
    """Seconds and ISO 8601; anything else is as of now."""
    row = prepared(timestamp=given)
    if stored is None:
        assert row.repairs[0].startswith("timestamp: ")
        assert (datetime.now(UTC) - row.timestamp).total_seconds() < 60
    else:
        assert row.timestamp == stored


def test_messages_modules_and_entries_of_any_type_are_stored():
    """Objects by their text, modules by their name, odd entries repaired."""
    assert prepared(Unshowable()).message == "<unprintable Unshowable>"
    assert prepared(module=logging).module == "logging"
    odd = ErrorEntry(7, None, 404, stack_trace=["a"], id="x")
    row = prepared(odd)
    assert (row.message, row.module, row.error_code) == ("7", "unknown", "404")
    assert row.stack_trace == "['a']"
    assert isinstance(row.id, UUID)


def test_notes_and_causes_are_kept_whatever_they_are():
    """A note that cannot be shown, the cause of a falsy exception."""
    noted = ValueError("noted")
    noted.__notes__ = [Unshowable(), "plain"]  # careless
    assert prepared(noted).context == {"notes": ["<unprintable Unshowable>", "plain"]}
    falsy = Empty("falsy")
    falsy.__cause__ = KeyError("the cause")
    row = prepared(falsy)
    assert "the cause" in (row.stack_trace or "")
    assert "falsy" in (row.stack_trace or "")
    assert row.context == {"caused_by": ["KeyError"]}


@pytest.mark.parametrize(
    ("message", "args"),
    [("payment of %s failed", (Unshowable(),)), ("%d", ("x",)), (Unshowable(), ())],
)
def test_the_handler_loses_no_line_whatever_its_arguments_do(message, args):
    """A record that logging itself could not format is stored all the same."""
    drafts: list[Any] = []
    handler = CatalogHandler(drafts.append, logging.ERROR)
    record = logging.LogRecord("shop", logging.ERROR, "a.py", 7, message, args, None)
    record.exc_info = True  # type: ignore[assignment]  # as a careless adapter sets it
    handler.handle(record)
    [make] = drafts
    assert make().prepared().message
