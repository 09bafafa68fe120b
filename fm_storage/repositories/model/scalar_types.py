"""What may stand in a column: how a value is checked, stored, and read back.

Statements, filters, cursors and bulk writes ask one of these objects what a value
may be; nothing else knows Python's types. A column type refuses what the server
would refuse, or worse, would silently change, before anything is sent.
"""

from __future__ import annotations

import ipaddress as ip
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from fm_storage.postgres.executor import DriverUUID


class Refused(ValueError):
    """A value that its column cannot hold; the message is the reason."""


_JSON = frozenset({"json", "jsonb"})


class Actual(NamedTuple):
    """The type that a column really has, as the server spells it.

    Attributes:
        name: The type.
        base: The type below a domain, else the same.
        element: Type of an array's elements; empty if unknown, None for no array.
        leaf: The type below a domain of elements.
    """

    name: str
    base: str
    element: str | None
    leaf: str | None = None

    @property
    def is_json(self) -> bool:
        """Whether the column holds JSON."""
        return self.base in _JSON

    @property
    def holds_json(self) -> bool:
        """Whether it is an array of JSON, of which no text is an element."""
        return self.element in _JSON


class Source(NamedTuple):
    """How a column travels in bulk.

    Attributes:
        type: Element type of the array that carries it.
        expression: SQL of the column's value, a format of the array's element.
    """

    type: str
    expression: str = "{}"


class ColumnType:
    """What one column may hold.

    Attributes:
        sql: PostgreSQL type that a bulk statement's array elements are cast to.
        exact: Types whose values need no look at each one's class.
        settled: Whether a value of an exact class needs no further look, and is
            stored as it is.
        checked: Whether what the values are is known, not only to the driver.
        decode: Turns a stored value into the model's, or None if they are equal.
        decode_if: Condition, in Python, of the values that ``decode`` is for; empty
            if it is for all.
        given: Classes of which the driver's values are the model's as they are; empty
            if they are not looked at.
        known: What ``decode`` gives for the values that occur, if these are few.
    """

    sql: str = "text"
    exact: frozenset[type] = frozenset()
    settled: bool = False
    checked: bool = True
    decode: Callable[[Any], Any] | None = None
    decode_if: str = ""
    given: frozenset[type] = frozenset()
    known: Mapping[Any, Any] | None = None

    def convert(self, value: Any) -> Any:
        """Return a value of a class that is not among those *given*.

        Raises:
            Refused: The model's annotation does not allow it.
        """
        if isinstance(value, tuple(self.given)):
            return value
        raise Refused(f"is {named(value)}, which the annotation does not allow")

    def encode(self, value: Any) -> Any:
        """Return *value* as it is stored.

        Raises:
            Refused: It cannot be stored.
        """
        raise NotImplementedError

    def knows(self, found: type) -> bool:
        """Return whether ``encode()`` takes every value of exactly this class."""
        return found in self.exact

    def comparable(self, value: Any) -> Any:
        """Return *value* as a filter compares it: it need not fit the column.

        Raises:
            Refused: It cannot be compared.
        """
        return self.encode(value)

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return *values* as they are stored, None among them only if *nullable*.

        Raises:
            Refused: One cannot be stored; which one, ``encode()`` tells.
        """
        return self.encode_each(values, nullable=nullable)

    def encode_each(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Do what ``encode_many()`` promises, one value after the other."""
        if NoneType in set(map(type, values)):
            if not nullable:
                raise Refused("is None")
            return [None if value is None else self.encode(value) for value in values]
        return [self.encode(value) for value in values]

    def copy_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return *values*, all looked at, as COPY sends them.

        Raises:
            Refused: See ``encode_many()``.
        """
        return self.encode_many(values, nullable=nullable)

    def to_text(self, value: Any) -> str:
        """Return a stored value as text, for a cursor or an array's element."""
        return str(value)

    def from_text(self, text: str) -> Any:
        """Return the stored value of cursor *text* (ValueError if it is none)."""
        raise NotImplementedError

    def beyond(self, name: str) -> str:  # noqa: ARG002 - most hold whatever comes
        """Return the condition, in SQL, of values that Python cannot hold, if any.

        Args:
            name: The column, or another expression.
        """
        return ""

    def source(self, actual: Actual) -> Source | None:
        """Return how ``encode_many()`` travels to a column of the *actual* type.

        None if only ``encode()`` can: ``unnest()`` would flatten arrays.
        """
        return Source(actual.name) if actual.element is None else None

    def fits(self, actual: Actual) -> bool:
        """Return whether COPY sends such a column what ``copy_many()`` gives."""
        return actual.element is None and not actual.is_json


def classes(values: Sequence[Any], *, nullable: bool = True) -> set[type]:
    """Return the classes found in *values*, that of None left out.

    Raises:
        Refused: One is None, and not *nullable*.
    """
    found = set(map(type, values))
    if NoneType in found:
        if not nullable:
            raise Refused("is None")
        found.remove(NoneType)
    return found


_AS_TEXT = (UUID, ip.IPv4Address, ip.IPv6Address, ip.IPv4Network, ip.IPv6Network)


class Text(ColumnType):
    """Text without NUL and lone surrogates, at most *max_length* characters."""

    exact = given = frozenset({str})

    def __init__(
        self, max_length: int | None = None, *, choices: frozenset[str] | None = None
    ) -> None:
        self.max_length = max_length
        self.choices = choices

    def encode(self, value: Any) -> Any:
        """Return *value* if it is storable text."""
        if not isinstance(value, str):
            raise Refused(f"is {named(value)}, not text; convert it")
        if "\0" in value:
            raise Refused("holds a NUL, which PostgreSQL cannot store; remove it")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Refused("holds a lone surrogate; use valid text") from None
        if self.max_length is not None and len(value) > self.max_length:
            raise Refused(
                f"has {len(value)} characters, the column holds "
                f"{self.max_length}; shorten it"
            )
        if self.choices is not None and value not in self.choices:
            raise Refused(f"is none of {', '.join(sorted(self.choices))}")
        return value

    def convert(self, value: Any) -> Any:
        """Return a value that is written as text (uuid, inet, cidr) as one."""
        return str(value) if isinstance(value, _AS_TEXT) else super().convert(value)

    def comparable(self, value: Any) -> Any:
        """Return *value*, of whatever length."""
        return _ANY_TEXT.encode(value)

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Check *values* at once, ten times faster than one by one."""
        if self.choices is not None:
            return self.encode_each(values, nullable=nullable)
        present = values
        try:
            # Joining looks at every class, without a step of its own.
            joined = "".join(values)
        except TypeError:
            if not classes(values, nullable=nullable) <= self.exact:
                return self.encode_each(values, nullable=nullable)
            present = [value for value in values if value is not None]
            joined = "".join(present)
        if "\0" in joined:
            raise Refused("holds a NUL")
        if not joined.isascii():
            try:
                joined.encode()
            except UnicodeEncodeError:
                raise Refused("holds a lone surrogate") from None
            # Two lone halves side by side must not pass as one character; UTF-8
            # refuses every surrogate, so they do not.
        limit = self.max_length
        if limit is not None and max(map(len, present), default=0) > limit:
            raise Refused("is too long")
        return values

    def from_text(self, text: str) -> Any:
        """Return *text*."""
        return self.encode(text)


_ANY_TEXT = Text()


class Integer(ColumnType):
    """Whole numbers of 2, 4 or 8 bytes."""

    exact = given = frozenset({int})

    def convert(self, value: Any) -> Any:
        """Return a whole number of any other type (numeric, float8, bool) as an int."""
        if isinstance(value, Decimal | float | bool) and value == int(value):
            return int(value)
        return super().convert(value)

    def __init__(self, size: int = 8, *, signed: bool = True) -> None:
        self.sql = f"int{size}" if signed else "oid"
        self.high = (1 << (size * 8 - signed)) - 1
        self.low = -self.high - 1 if signed else 0

    def encode(self, value: Any) -> Any:
        """Return *value* if it is a whole number in range."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(f"is {named(value)}, not a whole number; convert it")
        if not self.low <= value <= self.high:
            raise Refused(f"is outside {self.low} … {self.high} ({self.sql})")
        return value

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Check *values* by their extremes."""
        if not classes(values, nullable=nullable) <= self.exact:
            return self.encode_each(values, nullable=nullable)
        present = [value for value in values if value is not None]
        if present and not (self.low <= min(present) and max(present) <= self.high):
            raise Refused("is out of range")
        return values

    def from_text(self, text: str) -> Any:
        """Return the number."""
        return self.encode(int(text))


class Plain(ColumnType):
    """A type whose values are right as soon as their class is."""

    accepted: ClassVar[tuple[type, ...]] = ()
    refused: ClassVar[tuple[type, ...]] = ()
    wanted: ClassVar[str] = ""

    def knows(self, found: type) -> bool:
        """Return whether the class is a right one (the driver has its own UUID)."""
        return issubclass(found, self.accepted) and not issubclass(found, self.refused)

    def encode(self, value: Any) -> Any:
        """Return *value* if its class is right."""
        if not isinstance(value, self.accepted) or isinstance(value, self.refused):
            raise Refused(f"is {named(value)}, not {self.wanted}; convert it")
        return value

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Look at the classes only."""
        if all(map(self.knows, classes(values, nullable=nullable))):
            return values
        return self.encode_each(values, nullable=nullable)


class Boolean(Plain):
    """True or False."""

    sql, wanted, settled = "bool", "True or False", True
    exact, accepted = frozenset({bool}), (bool,)
    given = exact

    def from_text(self, text: str) -> Any:
        """Return the truth value."""
        return {"True": True, "False": False}[text]


class Float(Plain):
    """Floating point numbers, NaN and infinities among them."""

    wanted = "a number"
    exact, accepted, refused = frozenset({float}), (float, int), (bool,)
    given = exact

    def __init__(self, size: int = 8) -> None:
        self.sql, self.settled = f"float{size}", size == 8

    def knows(self, found: type) -> bool:
        """Return whether the class is the one: whole numbers are converted."""
        return found in self.exact

    def convert(self, value: Any) -> Any:
        """Return a number of any other type as a float."""
        if not isinstance(value, Decimal | int):
            return super().convert(value)
        number = float(value)
        if math.isinf(number) and Decimal(value).is_finite():
            raise Refused("is too large for float8")
        return number

    def encode(self, value: Any) -> Any:
        """Return *value* as a float that the type rounds, but does not change."""
        try:
            number = float(super().encode(value))
            if self.sql == "float4" and number and not _as_float4(number):
                raise Refused("is too small for float4; round it to 0")
        except OverflowError:
            raise Refused(f"is too large for {self.sql}") from None
        if isinstance(value, int) and number != value:
            raise Refused("has more digits than float8 keeps; give a float")
        return number

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Convert whole numbers, which may be too large."""
        if self.settled and classes(values, nullable=nullable) <= self.exact:
            return values
        return self.encode_each(values, nullable=nullable)

    def from_text(self, text: str) -> Any:
        """Return the number."""
        return float(text)


def _as_float4(number: float) -> float:
    kept: float = struct.unpack("!f", struct.pack("!f", number))[0]
    return kept


_BEFORE_POINT = 131_071
"""Greatest power of ten in numeric."""
_BEHIND_POINT = 16_383


class Numeric(Plain):
    """Decimal numbers of any precision."""

    sql, wanted = "numeric", "a Decimal"
    exact, accepted, refused = frozenset({Decimal}), (Decimal, int), (bool,)
    given = exact

    def convert(self, value: Any) -> Any:
        """Return a number of any other type as a Decimal."""
        return (
            Decimal(value) if isinstance(value, int | float) else super().convert(value)
        )

    def encode(self, value: Any) -> Any:
        """Return *value* as a Decimal."""
        number = Decimal(super().encode(value))
        if number.is_finite():
            exponent = number.as_tuple().exponent
            if number.adjusted() > _BEFORE_POINT or int(exponent) < -_BEHIND_POINT:
                raise Refused(
                    "has more digits than numeric holds (131,072 before the point, "
                    "16,383 behind it); round it"
                )
        elif number.is_snan():
            raise Refused("is a signalling NaN, which numeric cannot hold")
        return number

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Convert one by one: whole numbers are taken too, odd ones are not."""
        return self.encode_each(values, nullable=nullable)

    def from_text(self, text: str) -> Any:
        """Return the number."""
        try:
            return Decimal(text)
        except ArithmeticError:
            raise Refused("is not a number") from None


class Bytes(Plain):
    """Binary data."""

    sql, wanted, settled = "bytea", "bytes", True
    exact = given = frozenset({bytes})
    accepted = (bytes, bytearray, memoryview)

    def knows(self, found: type) -> bool:
        """Return whether the class is the one: a view need not be contiguous."""
        return found in self.exact

    def encode(self, value: Any) -> Any:
        """Return *value* as bytes."""
        return bytes(super().encode(value))

    def to_text(self, value: Any) -> str:
        r"""Return *value* as PostgreSQL reads it (``\xdecafbad``)."""
        return "\\x" + bytes(value).hex()

    def from_text(self, text: str) -> Any:
        """Return the bytes."""
        return bytes.fromhex(text.removeprefix("\\x"))


class Uuid(Plain):
    """UUIDs."""

    sql, wanted, settled = "uuid", "a UUID", True
    exact, accepted = frozenset({UUID}), (UUID,)
    given = frozenset({UUID, DriverUUID})

    def from_text(self, text: str) -> Any:
        """Return the UUID."""
        return UUID(text)


_INTERFACES = (ip.IPv4Interface, ip.IPv6Interface)
"""Subclasses of the addresses', with a network beside it."""


class Address(Plain):
    """Addresses and networks of the Internet protocol."""

    def __init__(self, wanted: type) -> None:
        network = wanted in {ip.IPv4Network, ip.IPv6Network}
        self.sql, self._class = "cidr" if network else "inet", wanted
        self.exact = self.given = frozenset({wanted})

    def encode(self, value: Any) -> Any:
        """Return *value* if it is of the class; an interface is no address."""
        if not isinstance(value, self._class) or (
            isinstance(value, _INTERFACES) and not issubclass(self._class, _INTERFACES)
        ):
            raise Refused(f"is {named(value)}, not an {self._class.__name__}")
        return value

    def knows(self, found: type) -> bool:
        """Return whether the class is the one."""
        return found in self.exact

    def convert(self, value: Any) -> Any:
        """Return an address without its network, or with one."""
        return self._class(value)

    def from_text(self, text: str) -> Any:
        """Return the address."""
        return self._class(text)


ADDRESSES = frozenset(
    {
        ip.IPv4Address,
        ip.IPv6Address,
        ip.IPv4Interface,
        ip.IPv6Interface,
        ip.IPv4Network,
        ip.IPv6Network,
    }
)


def named(value: object) -> str:
    """Return what a wrong value is, as a message shows it."""
    return "None" if value is None else f"of type {type(value).__name__}"
