"""Models of every kind that a repository accepts, and the tables they live in.

Annotations are resolved in a module's own names; type checkers look at them too
(``tests/typing/api.py``).
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pydantic

from fm_storage.repositories import Column, uuid7

__all__ = [
    "TABLES",
    "Account",
    "Colour",
    "Everything",
    "Invoice",
    "Level",
    "Line",
    "Note",
    "Product",
    "Ticket",
    "invoice",
]

TABLES = """
CREATE SCHEMA billing;
CREATE TABLE billing.account (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE billing.invoice (
    id uuid PRIMARY KEY,
    number text NOT NULL UNIQUE,
    total numeric(12, 2) NOT NULL CONSTRAINT total_not_negative CHECK (total >= 0),
    paid boolean NOT NULL DEFAULT false,
    tags text[] NOT NULL DEFAULT '{}',
    meta jsonb,
    account uuid REFERENCES billing.account,
    version int NOT NULL DEFAULT 1
);
CREATE TABLE ticket (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title varchar(20) NOT NULL,
    opened timestamptz NOT NULL DEFAULT now(),
    priority int2 NOT NULL DEFAULT 0
);
CREATE TABLE product (sku text PRIMARY KEY, price int NOT NULL, label text);
CREATE TABLE note (id bigint PRIMARY KEY, body text, weight float8);
CREATE TABLE line (
    invoice uuid, place int, text text NOT NULL, PRIMARY KEY (invoice, place)
);
CREATE TABLE everything (
    id bigint PRIMARY KEY, small int2, flag boolean, real_number float8,
    amount numeric, data bytea, moment timestamptz, naive timestamp, day date,
    hour time, span interval, colour text, level int, words text[], numbers int8[],
    moments timestamptz[], spans interval[], blobs bytea[], colours text[],
    mapping jsonb, items jsonb, anything jsonb, plain json, choice text
);
"""


class Colour(enum.Enum):
    """Stored by value, as text."""

    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    """Stored by value, as a number."""

    LOW = 1
    HIGH = 2


@dataclass(slots=True)
class Account:
    """A row that others refer to."""

    name: str
    id: UUID = field(default_factory=uuid7)


@dataclass(slots=True)
class Invoice:
    """A dataclass with arrays, JSON and a version."""

    number: str
    total: Decimal
    paid: bool = False
    tags: list[str] = field(default_factory=list)
    meta: dict[str, Any] | None = None
    account: UUID | None = None
    version: int = 1
    id: UUID = field(default_factory=uuid7)


def invoice(number: str = "A-1", total: str = "10.50", **values: Any) -> Invoice:
    """Return an invoice."""
    return Invoice(number, Decimal(total), **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A frozen, keyword-only dataclass, some of whose values the server gives."""

    id: Annotated[int, Column(generated=True)] = 0
    title: str
    opened: Annotated[dt.datetime | None, Column(generated=True)] = None
    priority: Annotated[int, Column(type="int2")] = 0


class Product(pydantic.BaseModel):
    """A pydantic model."""

    sku: Annotated[str, pydantic.Field(max_length=12)]
    price: int
    label: str | None = None


class Note(msgspec.Struct):
    """A msgspec struct."""

    id: int
    body: str | None = None
    weight: float | None = None


@dataclass(slots=True)
class Line:
    """A dataclass whose key is two fields."""

    invoice: UUID
    place: Annotated[int, Column(type="int4")]
    text: str


@dataclass(slots=True)
class Everything:
    """One field of every kind, all but the key optional."""

    id: int
    small: Annotated[int | None, Column(type="smallint")] = None
    flag: bool | None = None
    real_number: float | None = None
    amount: Decimal | None = None
    data: bytes | None = None
    moment: dt.datetime | None = None
    naive: Annotated[dt.datetime | None, Column(type="timestamp")] = None
    day: dt.date | None = None
    hour: dt.time | None = None
    span: dt.timedelta | None = None
    colour: Colour | None = None
    level: Level | None = None
    words: list[str | None] | None = None
    numbers: tuple[int, ...] | None = None
    moments: list[dt.datetime] | None = None
    spans: list[dt.timedelta] | None = None
    blobs: list[bytes] | None = None
    colours: list[Colour] | None = None
    mapping: dict[str, Any] | None = None
    items: list[Any] | None = None
    anything: Annotated[Any, Column(type="jsonb")] = None
    plain: Annotated[dict[str, Any] | None, Column(type="json")] = None
    choice: Literal["a", "b"] | None = None
