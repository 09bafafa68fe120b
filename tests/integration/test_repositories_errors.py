"""The error catalogue's repository: what issue-takers ask of it every day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from fm_storage.errors import (
    DuplicateRecord,
    InvalidRecord,
    RecordNotFound,
)
from fm_storage.repositories import ErrorEntry, ErrorEntryRepository, Severity

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def errors(pool):
    """Give the repository under test, on the pool."""
    return ErrorEntryRepository(pool)


def entry(number: int = 0, **values) -> ErrorEntry:
    """Return an entry, *number* minutes after noon."""
    given: dict[str, Any] = {
        "message": f"message {number}",
        "module": "billing",
        "error_code": "E1",
        "timestamp": NOON + timedelta(minutes=number),
    }
    return ErrorEntry(**(given | values))


async def test_what_was_created_is_read_back_equal(errors):
    """Every column keeps its value, text with every alphabet among them."""
    written = entry(
        message="Überweisung 拒否 \U0001f4a5\r\n\t'; DROP TABLE project_errors; --",
        stack_trace="Traceback …",
        manager_context={"a": [1, 2.5, None, True], "é": {"x": "y"}, "big": 2**70},
        severity=Severity.CRITICAL,
    )

    assert await errors.create(written) is written
    assert await errors.get_by_id(written.id) == written


async def test_severity_may_be_given_as_text_and_comes_back_as_member(errors):
    """Text in, ``Severity`` out."""
    written = await errors.create(entry(severity="DEBUG"))

    found = await errors.get_by_id(written.id)

    assert found.severity is Severity.DEBUG


async def test_ids_are_accepted_as_text(errors):
    """An id from a URL works."""
    written = await errors.create(entry())

    assert await errors.get_by_id(str(written.id)) == written


async def test_absent_entry_is_an_error_or_none_as_asked(errors):
    """``get_by_id()`` raises, ``find_by_id()`` returns None."""
    absent = UUID(int=1)

    assert await errors.find_by_id(absent) is None
    with pytest.raises(RecordNotFound, match=r"project_errors: no record") as caught:
        await errors.get_by_id(absent)
    assert caught.value.key == absent


async def test_key_that_is_none_is_refused_by_name(errors):
    """Neither nonsense nor a number is a UUID."""
    for key in ("nonsense", 7, None):
        with pytest.raises(InvalidRecord) as caught:
            await errors.find_by_id(key)
        assert caught.value.field == "id"


async def test_creating_twice_is_a_duplicate(errors):
    """The second is refused with the constraint's name."""
    written = await errors.create(entry())

    with pytest.raises(DuplicateRecord) as caught:
        await errors.create(written)

    assert caught.value.constraint == "project_errors_pkey"
    assert caught.value.sqlstate == "23505"


async def test_create_many_writes_all(errors):
    """By arrays and by COPY alike, None and JSON included."""
    written = 0
    for count in (0, 1, 3, 6000):
        batch = [
            entry(n, manager_context={"n": n, "none": None} if n % 2 else None)
            for n in range(count)
        ]
        written += count

        assert await errors.create_many(iter(batch)) == batch

        assert await errors.count() == written
        for one in batch[-2:]:
            assert await errors.get_by_id(one.id) == one


REFUSED = [
    ("message", "a\0b", "NUL"),
    ("stack_trace", "\ud800", "surrogate"),
    ("message", None, "None"),
    ("message", b"bytes", "not text"),
    ("module", "m" * 256, "256 characters"),
    ("error_code", "c" * 101, "101 characters"),
    ("severity", "FATAL", "DEBUG, INFO"),
    ("severity", ["x"], "unknown"),
    ("timestamp", datetime(2026, 5, 1), "time zone"),
    ("timestamp", "2026-05-01", "not a datetime"),
    ("manager_context", {"x": float("nan")}, "nan"),
    ("manager_context", {"x": [float("inf")]}, "inf"),
    ("manager_context", {"x": "a\0b"}, "NUL"),
    ("manager_context", {"\ud800": 1}, "surrogate"),
    ("manager_context", [1], "not an object"),
    ("manager_context", {"x": object()}, "JSON"),
    ("id", "not a uuid", "not a UUID"),
]


async def test_what_cannot_be_stored_is_refused_by_name(errors):
    """Alone or in a batch of any size: field and record named, nothing written."""
    many = [entry(n) for n in range(5001)]
    for field, value, why in REFUSED:
        bad = entry()
        setattr(bad, field, value)

        with pytest.raises(InvalidRecord, match=why) as alone:
            await errors.create(bad)
        assert alone.value.field == field
        for batch in (many[:5], many):
            good, batch[3] = batch[3], bad
            with pytest.raises(InvalidRecord, match=why) as together:
                await errors.create_many(batch)
            batch[3] = good
            assert (together.value.field, together.value.index) == (field, 3)

    assert await errors.count() == 0


async def test_wrong_model_is_refused(errors):
    """A record of another class names the class wanted."""
    with pytest.raises(InvalidRecord, match="str is not a ErrorEntry"):
        await errors.create("text")
    with pytest.raises(InvalidRecord, match="record 1: int") as caught:
        await errors.create_many([entry(), 5])
    assert caught.value.index == 1


@pytest.mark.parametrize("count", [10, 6000])
async def test_one_bad_row_of_a_batch_is_named(errors, count):
    """The server's refusal names row, column and constraint; nothing is written."""
    present = await errors.create(entry())
    batch = [entry(n) for n in range(count)]
    batch[7].id = present.id

    with pytest.raises(DuplicateRecord) as caught:
        await errors.create_many(batch)

    assert caught.value.index == 7
    assert caught.value.column == "id"
    assert caught.value.constraint == "project_errors_pkey"
    assert await errors.count() == 1


async def test_twin_inside_a_batch_is_the_second_one(errors):
    """Of two rows with one id, the second is to blame."""
    batch = [entry(n) for n in range(20)]
    batch[15].id = batch[4].id

    with pytest.raises(DuplicateRecord) as caught:
        await errors.create_many(batch)

    assert caught.value.index == 15


async def test_bad_batch_leaves_the_callers_transaction_usable(pool, errors):
    """The batch is undone, what was written before it stays."""
    async with pool.transaction() as transaction:
        bound = errors.bind(transaction)
        first = await bound.create(entry())
        with pytest.raises(DuplicateRecord) as caught:
            await bound.create_many([entry(1), first])
        await bound.create(entry(2))

    assert caught.value.index == 1
    assert await errors.count() == 2


async def test_recent_errors_come_newest_first_and_limited(errors):
    """The newest first, ties by id."""
    batch = [entry(n) for n in range(9)] + [entry(8)]
    await errors.create_many(batch)

    found = await errors.get_recent_errors(3)

    assert found == [batch[9], batch[8], batch[7]]


async def test_time_ranges_are_half_open(errors):
    """The first moment counts, the last does not."""
    batch = [entry(n) for n in range(5)]
    await errors.create_many(batch)

    found = await errors.get_recent_errors(
        since=batch[1].timestamp, until=batch[3].timestamp
    )

    assert found == [batch[2], batch[1]]


async def test_errors_are_found_by_module_code_and_severity(errors):
    """Each question finds its own, newest first."""
    a = entry(1, module="a", error_code="X", severity="ERROR")
    b = entry(2, module="a", error_code="Y", severity="CRITICAL")
    c = entry(3, module="b", error_code="X", severity="CRITICAL")
    await errors.create_many([a, b, c])

    modules = await errors.find_by_module("a")
    codes = await errors.find_by_code("X", since=NOON)
    severities = await errors.find_by_severity(Severity.CRITICAL, limit=1)

    assert [item.id for item in modules] == [b.id, a.id]
    assert [item.id for item in codes] == [c.id, a.id]
    assert [item.id for item in severities] == [c.id]
    assert await errors.find_by_module("m" * 400) == []
    with pytest.raises(InvalidRecord, match="severity"):
        await errors.find_by_severity("FATAL")


async def test_counts_by_module_code_severity_and_hour(errors):
    """The greatest first; hours are UTC and in order."""
    await errors.create_many(
        [
            entry(0, module="a", error_code="X", severity="ERROR"),
            entry(59, module="a", error_code="Y", severity="ERROR"),
            entry(60, module="b", error_code="X", severity="DEBUG"),
            entry(200, module="a", error_code="X", severity="ERROR"),
        ]
    )
    until = NOON + timedelta(hours=3)

    assert await errors.count_by_module() == {"a": 3, "b": 1}
    assert list(await errors.count_by_code(until=until)) == ["X", "Y"]
    assert await errors.count_by_severity(until=until) == {
        Severity.DEBUG: 1,
        Severity.ERROR: 2,
    }
    assert await errors.count_by_hour(since=NOON, until=until) == {
        NOON: 2,
        NOON + timedelta(hours=1): 1,
    }


async def test_limit_that_is_none_is_refused(errors):
    """Negative, fractional and absurd limits never reach the server."""
    for limit in (-1, 1.5, True, 1 << 63):
        with pytest.raises(InvalidRecord) as caught:
            await errors.get_recent_errors(limit)
        assert caught.value.field == "limit"
