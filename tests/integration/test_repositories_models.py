"""Repositories of dataclasses, pydantic models and msgspec structs."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from fm_storage.errors import (
    CheckViolated,
    ConfigurationInvalid,
    DuplicateRecord,
    ForeignKeyViolated,
    InvalidName,
    InvalidRecord,
    NotNullViolated,
    QueryFailed,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.repositories import Repository, uuid7, where
from tests.support.repository_models import (
    Account,
    Colour,
    Everything,
    Level,
    Line,
    Note,
    Product,
    Ticket,
    invoice,
)

EVERYTHING = Everything(
    id=1,
    small=-32768,
    flag=True,
    real_number=float("inf"),
    amount=Decimal("123456789012345678901234567890.123456789"),
    data=b"\x00\xff",
    moment=dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
    naive=dt.datetime(2026, 1, 2, 3, 4, 5, 678901),
    day=dt.date(2026, 1, 2),
    hour=dt.time(23, 59, 59, 999999),
    span=dt.timedelta(days=-3, seconds=7, microseconds=1),
    colour=Colour.GREEN,
    level=Level.HIGH,
    words=["a", None, 'quo"te', "{}", "\\"],
    numbers=(1, -2, 1 << 62),
    moments=[dt.datetime(2026, 1, 2, tzinfo=dt.UTC)],
    spans=[dt.timedelta(days=-3, microseconds=1), dt.timedelta(hours=30)],
    blobs=[b"", b"\x00"],
    colours=[Colour.RED],
    mapping={"a": {"b": [None]}},
    items=[1, "x", None],
    anything="text",
    plain={"z": 1, "a": 2},
    choice="b",
)


@pytest.mark.lengthy
async def test_every_kind_of_value_survives_every_way_of_writing(tables):
    """Alone, by arrays, by COPY and by upsert: what went in comes out."""
    repository = Repository(tables, Everything)
    empty = Everything(0)
    hollow = replace(EVERYTHING, id=2, words=[], numbers=(), blobs=[], colours=[])
    many = [replace(EVERYTHING, id=n) for n in range(10, 5020)]

    await repository.create(EVERYTHING)
    await repository.create_many([empty, hollow])
    await repository.create_many(many)
    await repository.upsert_many([replace(EVERYTHING, id=3), replace(hollow, id=4)])

    assert await repository.get_by_id(1) == EVERYTHING
    assert await repository.get_by_id(0) == empty
    assert await repository.get_by_id(2) == hollow
    assert await repository.get_by_id(5019) == many[-1]
    assert await repository.get_by_id(3) == replace(EVERYTHING, id=3)
    assert await repository.get_by_id(4) == replace(hollow, id=4)


async def test_wrong_values_are_refused_before_anything_is_sent(tables):
    """Each kind names what it wants."""
    repository = Repository(tables, Everything)
    wrong: dict[str, list[Any]] = {
        "small": [40000, "1", True, 1.0],
        "flag": [1, "true"],
        "real_number": ["1", True, 10**400],
        "amount": ["1", 1.5, Decimal("sNaN")],
        "data": ["text"],
        "moment": [EVERYTHING.naive, EVERYTHING.day],
        "naive": [EVERYTHING.moment],
        "day": [EVERYTHING.moment, "2026-01-01"],
        "hour": ["12:00"],
        "span": [3],
        "colour": ["blue", 3],
        "level": [3],
        "words": ["text", [1], ["a\0"], {"a"}],
        "numbers": [(1 << 63,), [None, "x"]],
        "mapping": [[], "x"],
        "items": [{}],
        "choice": ["c"],
    }
    for field, values in wrong.items():
        for value in values:
            bad = replace(EVERYTHING, **{field: value})
            with pytest.raises(InvalidRecord, match=field) as alone:
                await repository.create(bad)
            with pytest.raises(InvalidRecord, match=field) as together:
                await repository.create_many([Everything(7), bad])
            assert alone.value.field == field
            assert (together.value.field, together.value.index) == (field, 1)
    assert await repository.count() == 0


async def test_pydantic_models_come_back_validated(tables):
    """With the model's own length limit, and equal to what was written."""
    products = Repository(tables, Product, key="sku")
    tea = Product(sku="tea", price=3)

    await products.create_many([tea, Product(sku="pot", price=20, label="blue")])

    assert await products.get_by_id("tea") == tea
    assert [p.sku for p in await products.find_many(order_by="-price")] == [
        "pot",
        "tea",
    ]
    with pytest.raises(InvalidRecord, match="13 characters"):
        await products.create(tea.model_copy(update={"sku": "x" * 13}))


async def test_msgspec_structs_come_back_equal(tables):
    """By position, None included."""
    notes = Repository(tables, Note)
    first = Note(1, "body", 0.5)

    await notes.create(first)
    await notes.create_many([Note(2), Note(3, "x")])

    assert await notes.get_by_id(1) == first
    assert await notes.find_many(where("body").is_null()) == [Note(2)]


async def test_what_the_server_gives_is_filled_in(tables):
    """Identity and default columns, alone and in batches of any size, in order."""
    tickets = Repository(tables, Ticket)
    asked = Ticket(title="first")

    made = await tickets.create(asked)
    batch = await tickets.create_many([Ticket(title=f"t{n}") for n in range(3)])
    large = await tickets.create_many([Ticket(title=f"t{n}") for n in range(5500)])

    assert asked.id == 0
    assert made.id == 1
    assert made.opened is not None
    assert [ticket.id for ticket in batch] == [2, 3, 4]
    assert [ticket.id for ticket in large] == list(range(5, 5505))
    assert await tickets.get_by_id(5504) == large[-1]


async def test_columns_may_be_named_otherwise(tables):
    """A field and its column need not share a name; unknown fields are refused."""
    accounts = Repository(
        tables, Product, table="billing.account", key="sku", columns={"sku": "name"}
    )
    assert "name" in accounts.entity.select_list
    with pytest.raises(InvalidName, match="no field 'nmae'"):
        Repository(tables, Account, columns={"nmae": "name"})
    with pytest.raises(InvalidName, match="no field 'key'"):
        Repository(tables, Account, key="key")
    with pytest.raises(ConfigurationInvalid, match="name its key"):
        Repository(tables, Product)
    with pytest.raises(ConfigurationInvalid, match="whole number"):
        Repository(tables, Account, version="name")


async def test_key_of_two_fields(tables):
    """Reads, updates and deletes by tuple, in batches too."""
    lines = Repository(tables, Line, key=("invoice", "place"))
    one, two = uuid7(), uuid7()
    await lines.create_many([Line(one, n, f"l{n}") for n in range(4)])
    await lines.create(Line(two, 0, "other"))

    assert (await lines.get_by_id((one, 3))).text == "l3"
    assert (await lines.get_by_id((str(one), 3))).text == "l3"
    assert (await lines.get_by_id(Line(two, 0, ""))).text == "other"
    assert (await lines.update((one, 0), {"text": "new"})).text == "new"
    assert await lines.upsert_many([Line(one, 0, "up"), Line(two, 9, "in")]) == [
        (Line(one, 0, "up"), False),
        (Line(two, 9, "in"), True),
    ]
    assert await lines.delete_many([(one, 1), (one, 2), (two, 1)]) == 2
    assert await lines.delete((one, 3))
    assert await lines.count() == 3
    page = await lines.page(size=2, order_by="-place")
    rest = await lines.page(size=2, order_by="-place", cursor=page.next_cursor)
    assert [line.place for line in page.items + rest.items] == [9, 0, 0]
    with pytest.raises(InvalidRecord, match="invoice, place"):
        await lines.get_by_id(one)
    with pytest.raises(RecordNotFound):
        await lines.get_by_id((one, 77))


async def test_update_changes_the_named_fields_and_returns_the_row(invoices):
    """Other fields stay; the version rises."""
    made = await invoices.create(invoice(tags=["new"]))

    changed = await invoices.update(made.id, {"paid": True, "tags": []})

    assert changed == replace(made, paid=True, tags=[], version=2)
    assert await invoices.get_by_id(made.id) == changed


async def test_update_of_a_record_writes_all_of_it(invoices):
    """All fields but the key."""
    made = await invoices.create(invoice())
    made.total = Decimal("99.00")
    made.meta = {"k": 1}

    changed = await invoices.update(made)

    assert changed == replace(made, version=2)


async def test_stale_record_is_refused_and_nothing_changes(invoices):
    """The loser of two writers learns it; so does who deletes or names a version."""
    made = await invoices.create(invoice())
    theirs = await invoices.get_by_id(made.id)
    await invoices.update(theirs, {"paid": True})

    with pytest.raises(StaleRecord) as caught:
        await invoices.update(made, {"paid": False})
    with pytest.raises(StaleRecord):
        await invoices.update(made.id, {"paid": False}, version=1)
    with pytest.raises(StaleRecord):
        await invoices.delete(made)

    assert caught.value.version == 1
    assert (await invoices.get_by_id(made.id)).paid
    assert await invoices.delete(await invoices.get_by_id(made.id))


async def test_only_one_of_many_writers_of_one_version_wins(invoices):
    """Sixteen at once: one succeeds, fifteen are stale."""
    made = await invoices.create(invoice())

    outcomes = await asyncio.gather(
        *(invoices.update(replace(made, paid=True)) for _ in range(16)),
        return_exceptions=True,
    )

    assert sum(isinstance(one, StaleRecord) for one in outcomes) == 15
    assert (await invoices.get_by_id(made.id)).version == 2


async def test_update_misuse_is_refused(invoices, tables):
    """Absent rows, keys, versions and unknown fields each have their error."""
    made = await invoices.create(invoice())
    accounts = Repository(tables, Account, table="billing.account")
    with pytest.raises(RecordNotFound):
        await invoices.update(uuid7(), {"paid": True})
    with pytest.raises(InvalidName, match="no field 'payed'"):
        await invoices.update(made.id, {"payed": True})
    with pytest.raises(InvalidName, match="cannot be changed"):
        await invoices.update(made.id, {"id": uuid7()})
    with pytest.raises(InvalidName, match="version cannot be changed"):
        await invoices.update(made, {"version": 9})
    with pytest.raises(InvalidRecord, match="nothing to change"):
        await invoices.update(made.id)
    with pytest.raises(InvalidRecord, match="no changes"):
        await accounts.update(uuid7(), {})
    with pytest.raises(ConfigurationInvalid, match="no version field"):
        await accounts.update(uuid7(), {"name": "x"}, version=1)
    with pytest.raises(InvalidRecord, match="paid"):
        await invoices.update(made.id, {"paid": "yes"})


async def test_every_refusal_names_row_column_and_constraint(tables, invoices):
    """Unique, check, foreign key, not null, and a length the model does not know."""
    await invoices.create(invoice("taken"))
    good = [invoice(f"g{n}") for n in range(9)]
    cases = [
        (invoice("taken"), DuplicateRecord, "invoice_number_key", "number"),
        (invoice(total="-1"), CheckViolated, "total_not_negative", "total"),
        (
            invoice(account=UUID(int=1)),
            ForeignKeyViolated,
            "invoice_account_fkey",
            "account",
        ),
    ]
    for bad, kind, constraint, column in cases:
        with pytest.raises(kind) as alone:
            await invoices.create(bad)
        with pytest.raises(kind) as together:
            await invoices.create_many([*good, bad])
        with pytest.raises(kind) as upserted:
            await invoices.upsert_many([bad, *good])
        assert alone.value.constraint == constraint
        for caught in (together, upserted):
            assert caught.value.constraint == constraint
            assert caught.value.column == column
        assert (together.value.index, upserted.value.index) == (9, 0)

    tickets = Repository(tables, Ticket)
    with pytest.raises(QueryFailed) as too_long:
        await tickets.create_many([Ticket(title="x"), Ticket(title="x" * 21)])
    assert (too_long.value.index, too_long.value.column) == (1, "title")

    await tables.execute(
        "UPDATE billing.invoice SET meta = '{}'; "
        "ALTER TABLE billing.invoice ALTER meta SET NOT NULL"
    )
    with pytest.raises(NotNullViolated) as missing:
        await invoices.create_many([invoice("m", meta={}), invoice("n")])
    assert (missing.value.index, missing.value.column) == (1, "meta")
    assert await invoices.count() == 1


async def test_deletes_say_how_many_there_were(invoices):
    """Keys that are absent do not count."""
    made = [await invoices.create(invoice(f"A-{n}")) for n in range(3)]

    assert await invoices.delete(made[0].id)
    assert not await invoices.delete(made[0].id)
    assert await invoices.delete_many([one.id for one in made]) == 2
    assert await invoices.delete_many([]) == 0
    assert await invoices.delete_many([str(made[0].id)]) == 0
    with pytest.raises(InvalidRecord, match="id"):
        await invoices.delete_many([made[0].id, None])


async def test_referenced_row_is_not_deleted(tables, invoices):
    """A foreign key refuses, and says which."""
    accounts = Repository(tables, Account, table="billing.account")
    account = await accounts.create(Account("ACME"))
    await invoices.create(invoice(account=account.id))

    with pytest.raises(ForeignKeyViolated) as caught:
        await accounts.delete_many([account.id])

    assert caught.value.constraint == "invoice_account_fkey"
