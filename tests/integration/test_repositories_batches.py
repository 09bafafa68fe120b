"""Batches, small ones as arrays and large ones by COPY: nothing is lost for speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pydantic
import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.repositories import ErrorEntry, ErrorEntryRepository, Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE, Batch

SIZES = [3, COPY_ABOVE + 1]


def entries(count: int) -> list[ErrorEntry]:
    """Return entries, some of whose optional fields are empty."""
    return [
        ErrorEntry(
            f"m\u00e9ssage {n}",
            "billing",
            "E1",
            stack_trace=None if n % 2 else "trace",
            manager_context=None if n % 3 else {"n": n, "none": None, "big": 2**70},
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_written_together_is_read_back_equal(pool, size):
    """NULLs, JSON nulls and numbers beyond 64 bits among the values."""
    errors = ErrorEntryRepository(pool)
    batch = entries(size)

    assert await errors.create_many(batch) == batch

    assert await errors.find_many(order_by="id") == batch


BAD: list[tuple[str, Any]] = [
    ("message", None),
    ("message", "a\0b"),
    ("message", "\ud800"),
    ("message", 7),
    ("module", "x" * 256),
    ("error_code", "\udfff"),
    ("severity", "FATAL"),
    ("stack_trace", b"bytes"),
    ("timestamp", datetime(2026, 1, 1)),
    ("timestamp", None),
    ("manager_context", {"ratio": math.nan}),
    ("manager_context", {"deep": [{"text": "a\0b"}]}),
    ("manager_context", {"text": "\ud800"}),
    ("manager_context", {"what": object()}),
    ("manager_context", [1]),
    ("id", "not a UUID"),
    ("id", None),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "value"), BAD)
async def test_the_bad_value_of_a_batch_is_named_before_anything_is_sent(
    pool, size, name, value
):
    """Record and field; a closed pool shows that nothing goes out."""
    errors = ErrorEntryRepository(pool)
    batch = entries(size)
    place = size - 2
    setattr(batch[place], name, value)
    await pool.aclose()

    with pytest.raises(InvalidRecord) as caught:
        await errors.create_many(batch)

    assert (caught.value.index, caught.value.field) == (place, name)


async def test_two_halves_of_a_character_in_two_records_are_refused(pool):
    """Joined they must not pass for a whole one."""
    errors = ErrorEntryRepository(pool)
    batch = [
        ErrorEntry("\ud83d", "billing", "E1"),
        ErrorEntry("\ude00", "billing", "E1"),
    ]

    with pytest.raises(InvalidRecord) as caught:
        await errors.create_many(batch)

    assert (caught.value.index, caught.value.field) == (0, "message")


async def test_a_value_changed_while_others_are_sent_is_stored_as_it_was(pool):
    """JSON becomes text when it is looked at, before anything is sent."""
    errors = ErrorEntryRepository(pool)
    changed: dict[str, Any] = {"ratio": 0.5}
    batch = [
        replace(one, manager_context=changed if n == 7 else {"n": n})
        for n, one in enumerate(entries(COPY_ABOVE + 1))
    ]
    columns = errors.entity.insert_columns(batch, copy=True)
    changed["ratio"] = math.nan

    await Batch(errors._bound, batch).copy(columns, pool)

    assert (await errors.get_by_id(batch[7].id)).manager_context == {"ratio": 0.5}


@dataclass(slots=True)
class Reading:
    """A model with wider numbers than its table."""

    id: int
    amount: int


async def test_a_record_too_wide_for_its_column_is_named_by_copy_too(pool):
    """The driver refuses it on the way out; nothing is written."""
    await pool.execute("CREATE TABLE reading (id bigint PRIMARY KEY, amount int4)")
    readings: Repository[Reading] = Repository(pool, Reading)
    batch = [Reading(n, 1) for n in range(COPY_ABOVE + 1)]
    batch[4321].amount = 2**40

    with pytest.raises(InvalidRecord, match="record 4321") as caught:
        await readings.create_many(batch)

    assert caught.value.index == 4321
    assert await readings.count() == 0


class Address(pydantic.BaseModel):
    """Part of a model, kept as JSON."""

    town: str
    note: str | None = None


class Customer(pydantic.BaseModel):
    """A model whose JSON is made of another model."""

    id: int
    home: Address
    others: list[Address] = []


async def test_models_inside_models_are_copied(pool):
    """They become text when they are looked at."""
    await pool.execute(
        "CREATE TABLE customer (id bigint PRIMARY KEY, home jsonb, others jsonb)"
    )
    customers: Repository[Customer] = Repository(pool, Customer)
    batch = [
        Customer(id=n, home=Address(town="\u00c5rhus"), others=[Address(town="B")])
        for n in range(COPY_ABOVE + 1)
    ]

    await customers.create_many(batch)

    assert await customers.find_many(where("id") == 5) == [batch[5]]


async def test_a_text_of_another_class_is_stored_as_text(pool):
    """A subclass of ``str`` is text, alone and among others."""

    class Word(str):
        __slots__ = ()

    errors = ErrorEntryRepository(pool)
    plain = entries(2)
    batch = [replace(one, message=Word(one.message)) for one in plain]

    await errors.create_many(batch)

    assert await errors.find_many(order_by="id") == plain
    assert all(isinstance(one.id, UUID) for one in plain)
