"""Hooks of a repository: when they run, what they see, what they may put right."""

from __future__ import annotations

from typing import Any

import pytest

from fm_storage.errors import (
    ConfigurationInvalid,
    DuplicateRecord,
    InvalidName,
    InvalidRecord,
)
from fm_storage.postgres import Pool
from fm_storage.repositories import Change, Repository
from tests.support.repository_models import Note, Product


async def test_hooks_see_each_change_before_and_after(tables):
    """In the order of registration, with records, keys and values."""
    products = Repository(tables, Product, key="sku")
    seen: list[tuple[object, ...]] = []

    @products.before()
    async def before(_transaction, change: Change[Product]) -> None:
        seen.append(("before", change.operation, len(change.records), change.keys))

    @products.after("create", "update", "upsert", "delete")
    async def after(_transaction, change: Change[Product]) -> None:
        seen.append(("after", change.operation, len(change.records), change.values))

    tea = Product(sku="tea", price=1)
    await products.create(tea)
    await products.create_many([Product(sku="a", price=1), Product(sku="b", price=2)])
    await products.get_or_create(Product(sku="c", price=3))
    await products.upsert(tea)
    await products.upsert_many([tea])
    await products.update("tea", {"price": 5})
    await products.update(tea)
    await products.delete("tea")
    await products.delete(Product(sku="a", price=1))
    await products.delete_many(["b", "c"])

    assert seen == [
        ("before", "create", 1, ()),
        ("after", "create", 1, None),
        ("before", "create", 2, ()),
        ("after", "create", 2, None),
        ("before", "create", 1, ()),
        ("after", "create", 1, None),
        ("before", "upsert", 1, ()),
        ("after", "upsert", 1, None),
        ("before", "upsert", 1, ()),
        ("after", "upsert", 1, None),
        ("before", "update", 0, ("tea",)),
        ("after", "update", 1, {"price": 5}),
        ("before", "update", 1, ("tea",)),
        ("after", "update", 1, None),
        ("before", "delete", 0, ("tea",)),
        ("after", "delete", 0, None),
        ("before", "delete", 1, ("a",)),
        ("after", "delete", 1, None),
        ("before", "delete", 0, ["b", "c"]),
        ("after", "delete", 0, None),
    ]
    with pytest.raises(InvalidName, match="use one of"):
        products.before("read")


async def test_hooks_run_in_the_transaction_of_the_change(tables):
    """What a hook writes, and the change, are undone together when one fails."""
    products = Repository(tables, Product, key="sku")
    notes = Repository(tables, Note)

    @products.after("create")
    async def note(transaction, change: Change[Product]) -> None:
        await notes.bind(transaction).create(Note(change.records[0].price))

    @products.after("create")
    async def refuse_dear_ones(_transaction, change: Change[Product]) -> None:
        if change.records[0].price > 10:
            raise ValueError("too expensive")

    await products.create(Product(sku="a", price=1))
    with pytest.raises(ValueError, match="too expensive"):
        await products.create(Product(sku="b", price=11))
    with pytest.raises(DuplicateRecord):
        await products.create(Product(sku="a", price=2))
    async with tables.transaction() as transaction:
        await products.bind(transaction).create(Product(sku="c", price=3))

    assert [p.sku for p in await products.find_many(order_by="sku")] == ["a", "c"]
    assert [n.id for n in await notes.find_many(order_by="id")] == [1, 3]


async def test_before_hook_may_complete_the_record(tables):
    """What it changes is checked and written."""
    products = Repository(tables, Product, key="sku")

    @products.before("create", "update")
    async def label(_transaction, change: Change[Product]) -> None:
        for record in change.records:
            record.label = record.label or record.sku.upper()
        if change.values is not None:
            change.values["label"] = "changed"

    await products.create_many([Product(sku="a", price=1)])
    assert (await products.get_by_id("a")).label == "A"
    assert (await products.update("a", {"price": 2})).label == "changed"


@pytest.fixture
def tidied(tables: Pool) -> Repository[Product]:
    """Give products whose hook makes short, lower-case names and whole prices."""
    products = Repository(tables, Product, key="sku")

    @products.before("create", "update", "upsert")
    async def tidy(_transaction: object, change: Change[Product]) -> None:
        for record in change.records:
            record.sku = record.sku.strip("\0 ").lower()[:12]
            record.price = int(record.price)
        if change.values is not None and "price" in change.values:
            change.values["price"] = int(change.values["price"])

    return products


def dirty(sku: str) -> Product:
    """Return a product that no column would take."""
    return Product.model_construct(sku=f" {sku}-OF-MANY-WORDS\0", price="7", label=None)


async def test_before_hook_puts_right_what_would_be_refused(
    tidied: Repository[Product],
):
    """Every way of writing looks at the values that the hook has left."""
    await tidied.create(dirty("A"))
    await tidied.create_many([dirty("B"), dirty("C")])
    await tidied.get_or_create(dirty("D"))
    await tidied.upsert(dirty("E"))
    await tidied.upsert_many([dirty("F"), dirty("A")])
    stored = {"sku": "a-of-many-wo", "price": "8", "label": None}
    await tidied.update(Product.model_construct(**stored))
    await tidied.update("b-of-many-wo", {"price": "9"})

    found = {one.sku[0]: one.price for one in await tidied.find_many()}
    assert found == {"a": 8, "b": 9, "c": 7, "d": 7, "e": 7, "f": 7}


async def test_what_a_before_hook_leaves_wrong_is_refused_and_undone(tables: Pool):
    """It has run by then; what it wrote in the transaction goes with the change."""
    products = Repository(tables, Product, key="sku")
    notes = Repository(tables, Note)
    seen: list[str] = []

    @products.before()
    async def count(transaction: object, change: Change[Product]) -> None:
        await notes.bind(transaction).create(Note(len(seen)))
        seen.append(change.operation)

    tea = Product(sku="tea", price=1)
    await products.create(tea)
    bad = Product.model_construct(sku="b", price="x", label=None)
    for attempt in (
        products.create(bad),
        products.create_many([bad]),
        products.upsert(bad),
        products.upsert_many([bad]),
        products.update("tea", {"price": "x"}),
    ):
        with pytest.raises(InvalidRecord, match="price"):
            await attempt

    assert seen == ["create", "create", "create", "upsert", "upsert", "update"]
    assert [note.id for note in await notes.find_many()] == [0]
    assert await products.find_many() == [tea]


async def test_a_call_that_names_nothing_to_change_reaches_no_hook(
    tidied: Repository[Product],
):
    """Names and keys are the caller's mistake: no hook can put them right."""
    await tidied.create(Product(sku="tea", price=1))
    seen: list[object] = []

    @tidied.before("update")
    async def look(_transaction: object, change: Change[Product]) -> None:
        seen.append(change)

    with pytest.raises(InvalidName, match="no field 'prize'"):
        await tidied.update("tea", {"prize": 2})
    with pytest.raises(InvalidName, match="cannot be changed"):
        await tidied.update("tea", {"sku": "coffee"})
    with pytest.raises(InvalidRecord, match="nothing to change"):
        await tidied.update("tea")
    with pytest.raises(InvalidRecord, match="sku"):
        await tidied.update(7, {"price": 2})
    assert seen == []


async def test_a_hook_that_is_no_coroutine_function_is_refused(tables):
    """What it has done is undone with the change."""
    products: Repository[Any] = Repository(tables, Product, key="sku")
    register: Any = products.before("create")
    register(lambda _transaction, _change: None)

    with pytest.raises(ConfigurationInvalid, match="async def"):
        await products.create(Product(sku="tea", price=1))

    assert await products.count() == 0
