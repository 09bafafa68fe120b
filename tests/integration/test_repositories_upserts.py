"""Records that may be there already: upserts, one and many, and get_or_create."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from fm_storage.errors import (
    DuplicateRecord,
    InvalidName,
    InvalidRecord,
    QueryFailed,
    SerializationFailed,
)
from fm_storage.repositories import Repository
from tests.support.repository_models import Product, Ticket, invoice


async def test_upsert_says_whether_it_created(invoices):
    """On the key or on another unique field; the stored key is kept."""
    first, created = await invoices.upsert(invoice())
    again, recreated = await invoices.upsert(replace(first, paid=True))
    other, third = await invoices.upsert(invoice(total="7.00"), on="number")

    assert (created, recreated, third) == (True, False, False)
    assert again.version == 2
    assert (other.id, other.version) == (first.id, 3)
    assert await invoices.find_many() == [other]


async def test_get_or_create_reads_or_writes(invoices):
    """On the key or another unique field."""
    first, created = await invoices.get_or_create(invoice())
    again, recreated = await invoices.get_or_create(invoice(total="99"), on=("number",))

    assert (created, recreated) == (True, False)
    assert again == first


@pytest.mark.parametrize("method", ["upsert", "get_or_create"])
async def test_concurrent_calls_on_new_keys_all_succeed(tables, method):
    """16 tasks × 15 keys: 240 of 240 succeed, exactly 15 rows are created."""
    products = Repository(tables, Product, key="sku")

    async def task(number: int) -> list[bool]:
        return [
            (await getattr(products, method)(Product(sku=f"k{key}", price=number)))[1]
            for key in range(15)
        ]

    outcomes = await asyncio.gather(*map(task, range(16)))

    assert sum(map(len, outcomes)) == 240
    assert sum(map(sum, outcomes)) == 15
    assert await products.count() == 15


@dataclass(slots=True)
class Member:
    """A row with two unique fields."""

    id: int
    name: str


async def test_concurrent_calls_that_meet_at_another_unique_field_succeed(pool):
    """Whichever index the server looks at first; a real duplicate stays one."""
    await pool.execute("CREATE TABLE member (id int PRIMARY KEY, name text UNIQUE)")
    members = Repository(pool, Member)
    for number in range(10):
        for call in (members.upsert, members.get_or_create):
            await members.delete(number)
            await asyncio.gather(*(call(Member(number, "ann")) for _ in range(8)))
        assert await members.count() == 1
        await members.delete(number)
    await members.create(Member(1, "ann"))

    for call in (members.upsert, members.get_or_create):
        with pytest.raises(DuplicateRecord):
            await call(Member(2, "ann"))


async def test_get_or_create_survives_a_deletion_between_its_steps(tables):
    """A row deleted between the look and the write is created after all."""
    products = Repository(tables, Product, key="sku")
    gone = asyncio.Event()

    async def churn() -> None:
        while not gone.is_set():
            await products.upsert(Product(sku="x", price=1))
            await products.delete("x")

    churning = asyncio.create_task(churn())
    found = [await products.get_or_create(Product(sku="x", price=2)) for _ in range(50)]
    gone.set()
    await churning

    assert all(record.sku == "x" for record, _ in found)


async def test_get_or_create_that_may_not_see_the_row_asks_for_a_new_transaction(
    tables,
):
    """Under REPEATABLE READ an unseen row is a serialization failure."""
    products = Repository(tables, Product, key="sku")

    async def attempt() -> None:
        async with tables.transaction(isolation="repeatable_read") as transaction:
            bound = products.bind(transaction)
            await bound.count()
            await products.create(Product(sku="x", price=1))
            await bound.get_or_create(Product(sku="x", price=2))

    with pytest.raises(SerializationFailed) as caught:
        await attempt()
    assert caught.value.retryable


async def test_upsert_many_keeps_the_order_of_its_records(invoices):
    """Created and changed rows stand where their records stood."""
    kept = [await invoices.create(invoice(f"A-{n}")) for n in range(3)]
    batch = [invoice("N-1"), kept[2], invoice("N-0"), kept[0]]

    found = await invoices.upsert_many(batch)

    assert [created for _, created in found] == [True, False, True, False]
    assert [row.id for row, _ in found] == [one.id for one in batch]
    assert [row.version for row, _ in found] == [1, 2, 1, 2]
    assert await invoices.upsert_many([]) == []


async def test_upsert_many_of_thousands_is_all_or_none(tables):
    """More rows than one statement takes, in one transaction."""
    products = Repository(tables, Product, key="sku")
    batch = [Product(sku=f"k{n}", price=n) for n in range(5100)]
    await products.create_many(batch[:100])

    found = await products.upsert_many(batch)

    assert sum(created for _, created in found) == 5000
    assert [row for row, _ in found] == batch


async def test_upsert_many_refuses_twins(tables):
    """Two records for one row are a mistake, named before anything is sent."""
    products = Repository(tables, Product, key="sku")
    with pytest.raises(InvalidRecord, match="same sku as record 0") as caught:
        await products.upsert_many([Product(sku="a", price=n) for n in (1, 2)])
    assert caught.value.index == 1
    assert await products.count() == 0


async def test_upsert_many_batches_in_any_order_do_not_deadlock(tables):
    """Eight batches of the same rows, each shuffled its own way."""
    products = Repository(tables, Product, key="sku")
    rows = [Product(sku=f"k{n}", price=n) for n in range(300)]
    batches = [rows[n * 37 :] + rows[: n * 37] for n in range(8)]

    await asyncio.gather(*map(products.upsert_many, batches))

    assert await products.count() == 300


async def test_conflict_target_must_be_sound(tables):
    """Neither a field without unique constraint nor one the server gives."""
    products = Repository(tables, Product, key="sku")
    tickets = Repository(tables, Ticket)
    with pytest.raises(QueryFailed) as caught:
        await products.upsert(Product(sku="x", price=1), on="price")
    assert caught.value.sqlstate == "42P10"
    assert "a unique constraint" in str(caught.value)
    for nothing in ((), []):
        with pytest.raises(InvalidName, match="names no field"):
            await products.upsert(Product(sku="x", price=1), on=nothing)
    with pytest.raises(InvalidName, match="no field 5"):
        await products.upsert(Product(sku="x", price=1), on=5)
    with pytest.raises(InvalidName, match="given by the server"):
        await tickets.upsert(Ticket(title="x"))
