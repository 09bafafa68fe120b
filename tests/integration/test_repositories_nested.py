"""Models inside JSON, generic models, and classes that are stored as text."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress as ip
import math
import pathlib
import zoneinfo
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest

from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where

T = TypeVar("T")
Json = Column(type="jsonb")


@dataclass
class Line:
    """A dataclass inside a record."""

    amount: int
    note: str = ""


class Priced(pydantic.BaseModel):
    """A pydantic model inside a record."""

    amount: int


class Strict(pydantic.BaseModel):
    """A pydantic model that takes no value of another type, as JSON has them."""

    model_config = pydantic.ConfigDict(strict=True)

    days: set[dt.date]


class Aliased(pydantic.BaseModel):
    """A pydantic model with another name outside, and a field of its own making."""

    model_config = pydantic.ConfigDict(extra="forbid")

    amount: int = pydantic.Field(alias="theAmount")

    @pydantic.computed_field
    def double(self) -> int:
        """Return what is not stored."""
        return self.amount * 2


class Struct(msgspec.Struct):
    """A msgspec struct inside a record."""

    amount: int


@attrs.define
class Attrs:
    """An attrs class inside a record."""

    amount: int


class Named(NamedTuple):
    """A named tuple inside a record."""

    amount: int
    note: str


class Typed(TypedDict):
    """A typed dictionary inside a record."""

    amount: int


class Holding(TypedDict):
    """A typed dictionary that holds a model."""

    line: Line


NESTED: list[tuple[Any, Any, Any]] = [
    (Line, Line(1), {"amount": "x"}),
    (Priced, Priced(amount=1), 5),
    (Aliased, Aliased(theAmount=1), 5),
    (Strict, Strict(days={dt.date(2026, 1, 2)}), {"days": ["2026-01-02"]}),
    (Struct, Struct(1), Line(1)),
    (Attrs, Attrs(1), [1]),
    (Named, Named(1, "a"), {"amount": []}),
    (Typed, {"amount": 1}, [1]),
    (Holding, {"line": Line(1)}, {"line": 5}),
    (list[Line], [Line(1), Line(2)], [5]),
    (dict[str, Line], {"a": Line(1)}, {"a": 5}),
    (list[Struct], [Struct(1)], [Line(1)]),
    (dict[int, str], {1: "a"}, {"x": "a"}),
    (tuple[int, str], (1, "a"), (1,)),
    (set[int], {1, 2}, {"x"}),
    (Line | int, Line(3), "x"),
    (list[Line | None], [Line(1), None], ["x"]),
]


@pytest.mark.parametrize(("annotation", "value", "wrong"), NESTED, ids=str)
async def test_what_is_annotated_comes_back(pool: Pool, annotation, value, wrong):
    """From every way of writing; what is not what was annotated is refused."""
    model = dataclasses.make_dataclass(
        "Row", [("id", int), ("v", Annotated[annotation | None, Json])]
    )
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v jsonb)")
    rows: Repository[Any] = Repository(pool, model, table="t")
    await rows.create(model(1, value))
    await rows.create_many([model(2, value), model(3, None)])
    await rows.upsert_many([model(3, value), model(4, None)])
    await rows.update(4, {"v": value})
    found = await rows.find_many(order_by="id")
    assert found == [model(n, value) for n in range(1, 5)]
    assert await rows.count(where("v") == value) == 4
    for call in (
        lambda: rows.create(model(9, wrong)),
        lambda: rows.create_many([model(8, value), model(9, wrong)]),
        lambda: rows.update(1, {"v": wrong}),
    ):
        with pytest.raises(InvalidRecord, match="v: "):
            await call()
    assert await rows.count() == 4


async def test_a_nested_model_is_jsonb_unless_declared_otherwise(pool):
    """Without Column(type=…) too; NaN inside is refused, not stored as null."""

    @dataclass
    class Weight:
        grams: float

    model = dataclasses.make_dataclass("Row", [("id", int), ("v", Weight)])
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v jsonb)")
    rows: Repository[Any] = Repository(pool, model, table="t")
    assert await rows.create(model(1, Weight(1.5))) == await rows.get_by_id(1)
    with pytest.raises(InvalidRecord, match="nan"):
        await rows.create(model(2, Weight(math.nan)))
    with pytest.raises(InvalidRecord, match="nan"):
        await pool.fetchval("SELECT $1::jsonb", Weight(math.nan))


class Colour(enum.Enum):
    """Stored by value."""

    RED = "red"


class StrictRow(pydantic.BaseModel):
    """A strict model of a table."""

    model_config = pydantic.ConfigDict(strict=True)

    id: int
    v: Colour


async def test_a_strict_model_reads_what_it_wrote(pool):
    """The stored value of a member is none to it."""
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    rows: Repository[StrictRow] = Repository(pool, StrictRow, table="t")
    red = await rows.create(StrictRow(id=1, v=Colour.RED))
    assert await rows.update(1, {"v": Colour.RED}) == red
    assert await pool.fetch_as(StrictRow, "SELECT id, v FROM t") == [red]


def test_an_attrs_field_that_init_does_not_take_is_refused():
    """At the declaration, as a dataclass's is."""

    @attrs.define
    class Late:
        id: int
        made: int = attrs.field(init=False, default=1)

    with pytest.raises(ConfigurationInvalid, match=r"Late\.made: .*init=False"):
        Repository(None, Late)


async def test_what_would_not_come_back_is_refused(pool):
    """A secret is written as stars by pydantic, silently."""

    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    model = dataclasses.make_dataclass("Row", [("id", int), ("v", Login)])
    await pool.execute("CREATE TABLE t (id int PRIMARY KEY, v jsonb)")
    rows: Repository[Any] = Repository(pool, model, table="t")
    with pytest.raises(InvalidRecord, match=r"v: .*not come back"):
        await rows.create(model(1, Login(password=pydantic.SecretStr("x"))))


def test_what_nothing_converts_is_refused_at_declaration():
    """The message names the field."""
    model = dataclasses.make_dataclass(
        "Bad", [("id", int), ("x", Annotated[Strange, Json])]
    )
    with pytest.raises(ConfigurationInvalid, match=r"Bad\.x"):
        Repository(None, model)


class Strange:
    """A class that no converter knows."""


@dataclass
class Box(Generic[T]):
    """A generic dataclass."""

    id: int
    value: T
    more: list[T] | None = None


@dataclass
class Crate(Box[T]):
    """A generic subclass."""

    label: T | None = None


class Point(NamedTuple):
    """A named tuple as a model."""

    id: int
    x: float


@attrs.define
class Place:
    """An attrs class as a model."""

    id: int
    _name: str


@pytest.mark.parametrize(
    ("model", "good", "bad"),
    [
        (Box[str], Box(1, "a", ["b"]), Box(2, 5)),
        (Crate[int], Crate[int](1, 5, [6], 7), Crate[Any](2, 5, [6], "x")),
        (Point, Point(1, 0.5), Point(2, "x")),
        (Place, Place(1, "a"), Place(2, 5)),
    ],
    ids=str,
)
async def test_models_of_every_kind(pool, model, good, bad):
    """Generic dataclasses mean their arguments; named tuples and attrs are models."""
    kinds = {"str": "text", "int": "bigint", "float": "float8"}
    rows: Repository[Any] = Repository(
        pool, model, table="t", columns={"_name": "name"} if model is Place else None
    )
    columns = ", ".join(
        f"{item.quoted} {kinds.get(item.type.sql, item.type.sql)}"
        for item in rows.entity.stored
    )
    await pool.execute(f"CREATE TABLE t ({columns}, PRIMARY KEY (id))")
    await rows.create(good)
    assert await rows.find_many() == [good]
    assert await rows.upsert(good) == (good, False)
    for call in (lambda: rows.create(bad), lambda: rows.create_many([bad])):
        with pytest.raises(InvalidRecord):
            await call()


@dataclass
class Host:
    """Classes that stand for text or addresses."""

    id: int
    address: ip.IPv4Address
    network: ip.IPv4Network
    face: ip.IPv4Interface
    path: pathlib.Path
    zone: zoneinfo.ZoneInfo
    text: str
    ports: Annotated[set[int], Column(type="int4[]")]


async def test_addresses_paths_zones_and_sets(pool):
    """The class that the annotation names, whatever the driver gives."""
    await pool.execute(
        "CREATE TABLE host (id int PRIMARY KEY, address inet, network cidr, face inet,"
        " path text, zone text, text inet, ports int[])"
    )
    hosts = Repository(pool, Host)

    def host(number: int) -> Host:
        return Host(
            number,
            ip.IPv4Address("10.0.0.1"),
            ip.IPv4Network("10.0.0.0/8"),
            ip.IPv4Interface("10.0.0.1/32"),
            pathlib.Path("/a/b"),
            zoneinfo.ZoneInfo("UTC"),
            "10.1.2.3",
            {1, 2},
        )

    await hosts.create(host(1))
    await hosts.create_many([host(2), host(3)])
    await hosts.upsert_many([host(3), host(4)])
    assert await hosts.find_many(order_by="id") == [host(n) for n in range(1, 5)]
    found = await hosts.get_by_id(1)
    assert [type(getattr(found, item.name)) for item in dataclasses.fields(Host)] == [
        type(getattr(host(1), item.name)) for item in dataclasses.fields(Host)
    ]
    assert await hosts.count(where("address") == ip.IPv4Address("10.0.0.1")) == 4
    for change in ({"path": "/a"}, {"zone": "UTC"}, {"address": "10.0.0.1"}):
        with pytest.raises(InvalidRecord):
            await hosts.update(1, change)
