"""Conditions of the server, and of rows and models that do not fit, by name."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest

from fm_storage.errors import (
    ConfigurationInvalid,
    DeadlockDetected,
    InvalidName,
    InvalidRecord,
    LockTimeout,
    PermissionDenied,
    QueryFailed,
    SerializationFailed,
)
from fm_storage.repositories import (
    Column,
    ErrorEntry,
    ErrorEntryRepository,
    Repository,
    uuid7,
    where,
)
from fm_storage.repositories.model.entity import Entity
from tests.support.repository_models import Invoice, Note, Product


@pytest.fixture
async def products(tables):
    """Give the products, two of them stored."""
    repository = Repository(tables, Product, key="sku")
    await repository.create_many([Product(sku="a", price=1), Product(sku="b", price=2)])
    return repository


async def test_locked_row_is_a_lock_timeout(products, pool):
    """Within the server's lock_timeout, and worth another try."""

    async def wait_for_it() -> None:
        async with pool.transaction() as second:
            await second.execute("SET LOCAL lock_timeout = '50ms'")
            await products.bind(second).update("a", {"price": 4})

    async with pool.transaction() as first:
        await products.bind(first).update("a", {"price": 3})
        with pytest.raises(LockTimeout) as caught:
            await wait_for_it()

    assert caught.value.retryable


async def test_rows_locked_crosswise_are_a_deadlock(products, pool):
    """One of the two is refused and may run again; the other commits."""
    ready = asyncio.Barrier(2)

    async def change(first: str, second: str) -> None:
        async with pool.transaction() as transaction:
            bound = products.bind(transaction)
            await transaction.execute("SET LOCAL deadlock_timeout = '50ms'")
            await bound.update(first, {"price": 5})
            await ready.wait()
            await bound.update(second, {"price": 6})

    outcomes = await asyncio.gather(
        change("a", "b"), change("b", "a"), return_exceptions=True
    )

    (loser,) = [one for one in outcomes if one is not None]
    assert isinstance(loser, DeadlockDetected)
    assert loser.retryable


async def test_lost_update_is_a_serialization_failure(products, pool):
    """Not an integrity error: run the transaction again."""

    async def change() -> None:
        async with pool.transaction(isolation="repeatable_read") as transaction:
            bound = products.bind(transaction)
            await bound.get_by_id("a")
            await products.update("a", {"price": 7})
            await bound.update("a", {"price": 8})

    with pytest.raises(SerializationFailed) as caught:
        await change()
    assert caught.value.retryable


async def test_missing_rights_and_tables_have_their_sqlstate(products, pool):
    """A role without rights, a table that is not there."""
    role = f"fm_nobody_{uuid7().hex}"
    await pool.execute(f"CREATE ROLE {role}; GRANT {role} TO CURRENT_USER")
    try:
        with pytest.raises(PermissionDenied) as denied:
            await as_role(role, products, pool)
    finally:
        await pool.execute(f"DROP ROLE {role}")
    with pytest.raises(QueryFailed) as absent:
        await Repository(pool, Note, table="nowhere.note").count()

    assert denied.value.sqlstate == "42501"
    assert absent.value.sqlstate == "42P01"


async def as_role(role: str, products: Repository[Product], pool: Any) -> None:
    """Read the products with a role that may not."""
    async with pool.transaction() as transaction:
        await transaction.execute(f"SET LOCAL ROLE {role}")
        await products.bind(transaction).count()


async def test_stored_row_that_is_no_record_is_named(pool):
    """Written past the model: its key is named, alone and among others."""
    errors = ErrorEntryRepository(pool)
    good = await errors.create(ErrorEntry("m", "m", "E"))
    bad = await errors.create(ErrorEntry("m", "m", "E"))
    await pool.execute(
        "UPDATE project_errors SET severity = 'FATAL' WHERE id = $1", bad.id
    )

    for attempt in (errors.get_by_id(bad.id), errors.find_many(order_by="id")):
        with pytest.raises(InvalidRecord, match=str(bad.id)):
            await attempt
    assert await errors.get_by_id(good.id) == good


async def test_hostile_names_are_quoted(pool):
    """A table and columns with quotes, capitals and semicolons work as they are."""

    @dataclass(slots=True)
    class Odd:
        id: int
        text: str

    await pool.execute(
        'CREATE SCHEMA "My ""Schema"; CREATE TABLE "My ""Schema"."odd; --" '
        '("Id" bigint PRIMARY KEY, "select ""x" text)'
    )
    repository = Repository(
        pool,
        Odd,
        table='My "Schema.odd; --',
        columns={"id": "Id", "text": 'select "x'},
    )
    rows = [Odd(n, str(n)) for n in range(5100)]

    await repository.create_many(rows)
    await repository.create(Odd(9999, "x"))
    await repository.upsert_many([Odd(1, "new")])

    found = await repository.find_many(where("text") == "new", order_by="-text")
    assert found == [Odd(1, "new")]
    assert await repository.count() == 5101


Name = NewType("Name", str)


class Shape(TypedDict):
    """A typed JSON object."""

    sides: int


class Flag(enum.Flag):
    """Values that are numbers."""

    A = 1
    B = 2


class Mixed(enum.Enum):
    """Values of two types, which no column has."""

    A = "a"
    B = 1


class Address(pydantic.BaseModel):
    """A nested model, stored as JSON."""

    city: str


@dataclass(slots=True)
class Person:
    """A model whose annotations are wrapped in many ways."""

    id: UUID
    name: Annotated[Name, Column(type="varchar(5)")]
    nick: Annotated[str, msgspec.Meta(max_length=3)] | None
    shape: Shape | None
    address: Address | None
    addresses: list[Address] | None
    flag: Flag | None
    bare: dict | None = None  # type: ignore[type-arg]  # a bare annotation is the test
    many: list | None = None  # type: ignore[type-arg]  # a bare annotation is the test
    either: int | str | list[str] | None = None
    amount: Annotated[Decimal, Column(type="numeric(12,2)")] = Decimal(0)
    mood: Annotated[str, Column(type="mood")] | None = None


PERSON = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE person (
    id uuid PRIMARY KEY, name varchar(5), nick text, shape jsonb, address jsonb,
    addresses jsonb, flag int, bare jsonb, many jsonb, either jsonb,
    amount numeric(12,2), mood mood
)
"""


@pytest.mark.lengthy
async def test_wrapped_annotations_are_read(pool):
    """NewType, Annotated, TypedDict, nested models, unions of JSON."""
    await pool.execute(PERSON)
    people = Repository(pool, Person)
    person = Person(
        uuid7(),
        Name("Ann"),
        "an",
        {"sides": 3},
        Address(city="Bonn"),
        [Address(city="Ulm")],
        Flag.A,
        {"x": 1},
        [1],
        ["a"],
        Decimal("1.50"),
        "calm",
    )

    await people.create(person)
    await people.upsert_many([person])
    copied = [dataclasses.replace(person, id=uuid7()) for _ in range(5001)]
    await people.create_many(copied)

    assert await people.get_by_id(copied[-1].id) == copied[-1]
    assert await people.get_by_id(person.id) == person
    wrong: list[tuple[str, Any]] = [
        ("name", "Sixsix"),
        ("nick", "four"),
        ("shape", []),
    ]
    for name, value in wrong:
        with pytest.raises(InvalidRecord, match=name):
            await people.create(dataclasses.replace(person, **{name: value}))


def test_models_that_cannot_be_stored_are_refused_at_declaration():
    """What is wrong, by the field's name."""
    model: Any
    for annotation in (Mixed, object, tuple[int, str], set[int], int | bytes, Any):
        model = dataclasses.make_dataclass("Bad", [("id", int), ("x", annotation)])
        with pytest.raises(ConfigurationInvalid, match=r"Bad\.x"):
            Entity(model)
    hidden = dataclasses.make_dataclass(
        "Hidden", [("id", int, field(init=False, default=1))]
    )
    with pytest.raises(ConfigurationInvalid, match="init=False"):
        Entity(hidden)
    with pytest.raises(ConfigurationInvalid, match="no dataclass"):
        Entity(dict)
    with pytest.raises(ConfigurationInvalid, match="has no fields"):
        Entity(dataclasses.make_dataclass("Empty", []))
    unknown = dataclasses.make_dataclass("Unknown", [("id", "Missing")])
    with pytest.raises(ConfigurationInvalid, match="cannot be resolved"):
        Entity(unknown)
    odd = dataclasses.make_dataclass(
        "Odd", [("id", int), ("x", Annotated[str, Column(type="int; DROP")])]
    )
    with pytest.raises(ConfigurationInvalid, match=r"Odd\.x"):
        Entity(odd)
    good = dataclasses.make_dataclass("Good", [("id", int), ("x", Literal["a"])])
    with pytest.raises(InvalidName, match="63"):
        Entity(good, table="t" * 64)


def test_names_default_to_the_models():
    """Snake case, the schema before the last dot."""
    entity: Entity[Any] = Entity(
        dataclasses.make_dataclass("InvoiceLine2", [("id", int)])
    )
    qualified = Entity(ErrorEntry, table="a.b")

    assert entity.quoted == '"invoice_line2"'
    assert qualified.quoted == '"a"."b"'
    assert qualified.name == "a.b"


def test_identifiers_are_unique_ordered_and_dated():
    """Version 7, ever greater in one process, their time the present."""
    before = dt.datetime.now(dt.UTC)
    made = [uuid7() for _ in range(10_000)]
    moment = dt.datetime.fromtimestamp((made[0].int >> 80) / 1000, dt.UTC)

    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(one.version, one.variant) for one in made} == {
        (7, "specified in RFC 4122")
    }
    assert abs(moment - before) < dt.timedelta(seconds=1)


def test_importing_the_room_loads_no_model_library_but_its_own():
    """Msgspec is recognised without being imported."""
    module = sys.modules["fm_storage.repositories.model.declaration"]
    assert "msgspec" not in vars(module)


async def test_sql_in_place_of_a_filter_is_refused(products):
    """The refusal shows how a filter is written."""
    for asks in (products.find_many, products.count, products.exists):
        with pytest.raises(InvalidRecord, match="where"):
            await asks("price = 3")


WRONG: list[tuple[Callable[[Any], Any], type[Exception]]] = [
    (lambda rows: rows.find_many(where("price").in_(5)), InvalidRecord),
    (lambda rows: rows.find_many(where("sku").in_("ab")), InvalidRecord),
    (lambda rows: rows.find_many(where("sku").starts_with(None)), InvalidRecord),
    (lambda rows: rows.find_many(where("sku").ends_with(b"x")), InvalidRecord),
    (lambda rows: rows.find_many((where("price") == 1) & True), InvalidRecord),
    (lambda rows: rows.find_many(~((where("price") == 1) | "x")), InvalidRecord),
    (lambda rows: rows.find_many(order_by=5), InvalidName),
    (lambda rows: rows.find_many(order_by=("sku", None)), InvalidName),
    (lambda rows: rows.create_many(None), ConfigurationInvalid),
    (lambda rows: rows.upsert_many(Product(sku="x", price=1)), InvalidRecord),
    (lambda rows: rows.upsert_many([None]), InvalidRecord),
    (lambda rows: rows.upsert_many([Note(id=1)]), InvalidRecord),
    (lambda rows: rows.delete_many(None), ConfigurationInvalid),
    (lambda rows: rows.delete_where(None), ConfigurationInvalid),
    (lambda rows: rows.update("a", ["price"]), ConfigurationInvalid),
    (lambda rows: rows.update_where(where("price") == 1, {}), InvalidRecord),
    (lambda rows: rows.update_where([], None), InvalidRecord),
    (lambda rows: rows.before("create")(5), ConfigurationInvalid),
]


async def test_arguments_of_other_kinds_are_refused(products):
    """Before anything is sent, whatever stands in their place."""
    before = await products.find_many(order_by="sku")
    for call, error in WRONG:
        with pytest.raises(error):
            await call(products)
    assert await products.find_many(order_by="sku") == before


@dataclass
class Pair:
    """A model to declare wrongly."""

    id: int
    text: str = ""


def test_wrong_arguments_of_a_declaration_are_refused():
    """At once, as what they are."""
    wrong: list[dict[str, Any]] = [
        {"key": 5},
        {"columns": 5},
        {"columns": {"text": 5}},
        {"columns": {"text": "id"}},
        {"version": 5},
    ]
    for arguments in wrong:
        with pytest.raises((ConfigurationInvalid, InvalidName)):
            Entity(Pair, **arguments)
    lengths: list[Any] = [0, -1, "x"]
    for length in lengths:
        with pytest.raises(ConfigurationInvalid, match="from 1"):
            Column(max_length=length)


async def test_thousands_of_conditions_are_joined_side_by_side(products):
    """As by a loop; nested ones are refused when they are too deep."""
    either = both = where("price") == 1
    for number in range(2, 2000):
        either |= where("price") == number
        both = ~both
    assert await products.count(either) == 2
    with pytest.raises(InvalidRecord, match="nested too deep"):
        await products.count(both)


async def test_an_update_of_nothing_is_refused_where_versions_rise_too(tables):
    """Before it is SQL."""
    invoices = Repository(tables, Invoice, table="billing.invoice", version="version")
    with pytest.raises(InvalidRecord, match="no changes"):
        await invoices.update_where([], {}, everything=True)


async def test_delete_many_takes_keys_not_a_filter(products):
    """A filter in their place says so, and deletes nothing."""
    with pytest.raises(InvalidRecord, match="takes keys, not a filter"):
        await products.delete_many(where("price") == 1)
    assert await products.count() == 2
