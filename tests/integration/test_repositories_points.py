"""Records and the points they should have, written by one statement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fm_storage.errors import (
    ConfigurationInvalid,
    DuplicateRecord,
    InvalidRecord,
    InvalidVector,
    StaleRecord,
)
from fm_storage.repositories import Repository, uuid7
from tests.support.repository_models import (
    Invoice,
    Line,
    Note,
    Product,
    Ticket,
    invoice,
)
from tests.support.vector_states import states


@pytest.fixture
def invoices(tables):
    """Give invoices that have points, and count the wake-ups."""
    woken: list[bool] = []
    repository = Repository(
        tables,
        Invoice,
        table="billing.invoice",
        version="version",
        collection="invoices",
        wake=lambda: woken.append(True),
    )
    repository.woken = woken  # type: ignore[attr-defined]  # for the tests alone
    return repository


async def test_create_update_upsert_and_delete_carry_the_point(tables, invoices):
    """Each write leaves the state it says, and its version grows."""
    made = await invoices.create(invoice(), vector=[1.0, 2.0], payload={"n": 1})
    name = str(made.id)
    assert await states(tables) == {name: ("u", [1.0, 2.0], {"n": 1})}

    changed = await invoices.update(made, {"paid": True}, payload={"n": 2})
    assert changed == replace(made, paid=True, version=2)
    assert await states(tables) == {name: ("u", None, {"n": 2})}

    stored, created = await invoices.upsert(
        invoice(total="7.00"), on="number", vector=[3.0]
    )
    assert (stored.id, created) == (made.id, False)
    assert await states(tables) == {name: ("u", [3.0], {})}

    assert await invoices.delete(stored.id)
    assert await states(tables) == {name: ("d", None, None)}
    assert len(invoices.woken) == 4


async def test_a_write_without_vector_leaves_the_point_alone(tables, invoices):
    """Only what asks for a point writes one."""
    made = await invoices.create(invoice())
    await invoices.update(made, {"paid": True})

    assert await states(tables) == {}
    assert invoices.woken == []


async def test_refused_record_leaves_no_state(tables, invoices):
    """One statement: neither row nor point; a stale or absent row changes none."""
    made = await invoices.create(invoice(), vector=[1.0])
    before = await states(tables)

    with pytest.raises(DuplicateRecord):
        await invoices.create(invoice(), vector=[2.0])
    with pytest.raises(StaleRecord):
        await invoices.update(replace(made, version=9), vector=[2.0])
    with pytest.raises(StaleRecord):
        await invoices.delete(replace(made, version=9))
    with pytest.raises(DuplicateRecord) as caught:
        await invoices.create_many([invoice("B"), invoice()], vectors=[[1.0], [2.0]])
    assert not await invoices.delete(uuid7())

    assert caught.value.index == 1
    assert await states(tables) == before


async def test_rollback_takes_the_state_along(tables, invoices):
    """The point belongs to the transaction of its record."""

    async def fail() -> None:
        async with tables.transaction() as transaction:
            await invoices.bind(transaction).create(invoice(), vector=[1.0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()

    assert await states(tables) == {}
    assert await invoices.count() == 0


async def test_batches_carry_their_points(tables, invoices):
    """create_many(), upsert_many() and delete_many(), each point beside its record."""
    batch = [invoice(f"A-{n}") for n in range(5)]
    vectors = [[float(n)] for n in range(5)]
    await invoices.create_many(batch, vectors=vectors)
    found = await invoices.upsert_many(
        [invoice("A-3"), invoice("N")], on="number", payloads=[{"n": 3}, None]
    )

    assert [created for _, created in found] == [False, True]
    expected: dict[str, tuple[Any, ...]] = {
        str(one.id): ("u", [float(n)], {}) for n, one in enumerate(batch) if n != 3
    }
    expected[str(batch[3].id)] = ("u", None, {"n": 3})
    expected[str(found[1][0].id)] = ("u", None, {})
    assert await states(tables) == expected

    assert await invoices.delete_many([one.id for one in batch]) == 5
    assert {op for op, _, _ in (await states(tables)).values()} == {"u", "d"}


@pytest.mark.slow
async def test_large_batches_carry_their_points(tables):
    """More rows than one statement takes, all or none."""
    notes = Repository(tables, Note, collection="notes")
    batch = [Note(n) for n in range(5100)]

    made = await notes.create_many(batch, payloads=[{"n": n} for n in range(5100)])
    await notes.upsert_many(batch, vectors=[[1.0]] * 5100)

    assert made == batch
    found = await states(tables)
    assert found["77"] == ("u", [1.0], {})
    assert len(found) == 5100


async def test_keys_that_the_server_gives_name_the_points(tables):
    """The id is known only inside the statement, and is the point's."""
    tickets = Repository(tables, Ticket, collection="tickets")

    one = await tickets.create(Ticket(title="one"), vector=[1.0])
    more = await tickets.create_many(
        [Ticket(title="two"), Ticket(title="three")], payloads=[{"t": 2}, None]
    )

    assert [one.id, *(ticket.id for ticket in more)] == [1, 2, 3]
    assert await states(tables) == {
        "1": ("u", [1.0], {}),
        "2": ("u", None, {"t": 2}),
        "3": ("u", None, {}),
    }


async def test_text_keys_are_encoded_as_the_outbox_does(tables):
    """Text that is no UUID has its prefix, in state and in deletion."""
    products = Repository(tables, Product, key="sku", collection="products")
    await products.create(Product(sku="tea", price=1), payload={})
    await products.delete("tea")

    assert await states(tables) == {"s:tea": ("d", None, None)}


async def test_what_cannot_be_a_point_is_refused_before_anything_is_sent(
    tables, invoices
):
    """Vectors, payloads, counts, keys, and repositories without a collection."""
    with pytest.raises(InvalidVector, match="invoices"):
        await invoices.create(invoice(), vector=[float("nan")])
    with pytest.raises(InvalidVector) as caught:
        await invoices.create_many([invoice()], vectors=["text"])
    assert caught.value.index == 0
    with pytest.raises(InvalidRecord):
        await invoices.create(invoice(), payload={"x": object()})
    with pytest.raises(InvalidRecord, match="2 for 1 records"):
        await invoices.create_many([invoice()], payloads=[{}, {}])
    plain = Repository(tables, Invoice, table="billing.invoice")
    for attempt in (
        plain.create(invoice(), vector=[1.0]),
        plain.create_many([invoice()], payloads=[{}]),
        plain.upsert(invoice(), payload={}),
        plain.update(uuid7(), {"paid": True}, vector=[1.0]),
    ):
        with pytest.raises(ConfigurationInvalid, match="collection="):
            await attempt
    with pytest.raises(ConfigurationInvalid, match="one field"):
        Repository(tables, Line, key=("invoice", "place"), collection="lines")
    assert await invoices.count() == 0
