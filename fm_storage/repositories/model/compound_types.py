"""Types made of others: enums, arrays, JSON, and types that only the user knows.

They convert, inside containers too, and travel in bulk in another shape than alone.
"""

from __future__ import annotations

import builtins
import contextlib
import enum
import functools
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.connect.codecs import encode_json, encode_plain_json
from fm_storage.repositories.model.scalar_types import (
    Actual,
    Boolean,
    Bytes,
    ColumnType,
    Float,
    Integer,
    Numeric,
    Refused,
    Source,
    Text,
    classes,
    named,
)
from fm_storage.repositories.model.time_types import (
    Date,
    Interval,
    Time,
    Timestamp,
    TimeWithZone,
)


class JsonValue(ColumnType):
    """JSON; an object only when *container* is dict, an array only when list."""

    sql = "jsonb"

    def __init__(
        self,
        container: type | None = None,
        *,
        dump: Callable[[Any], Any] | None = None,
    ) -> None:
        self.container = container
        self.dump = dump
        if container is not None and dump is None:
            self.exact = self.given = frozenset({container})
            self.settled = True

    def encode(self, value: Any) -> Any:
        """Return *value* for the JSON codec, which looks inside it."""
        if self.dump is not None:
            value = self.dump(value)
        if self.container is not None and not isinstance(value, self.container):
            wanted = "an object (dict)" if self.container is dict else "an array (list)"
            raise Refused(f"is {named(value)}, not {wanted}; wrap it")
        return value

    def to_text(self, value: Any) -> str:
        """Return *value* as JSON text, looked at inside."""
        try:
            return encode_json(self.encode(value))
        except InvalidRecord as exc:
            raise Refused(str(exc).removeprefix("JSON value: ")) from exc

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return *values* as JSON texts."""
        found = classes(values, nullable=nullable)
        if self.dump is None and (self.container is None or found <= self.exact):
            present = [value for value in values if value is not None]
            texts = encode_plain_json(present)
            if texts is not None:
                made = iter(texts)
                return [None if value is None else next(made) for value in values]
        text = self.to_text
        return [None if value is None else text(value) for value in values]

    def source(self, actual: Actual) -> Source | None:
        """Return text: an array of it is encoded without a round of codecs."""
        return Source("text", f"{{}}::{actual.name}") if actual.is_json else None

    def fits(self, actual: Actual) -> bool:
        """Return whether the column holds JSON."""
        return actual.is_json


class _Members(dict[Any, enum.Enum]):
    """Members by value; looking one up costs no Python frame."""

    members: type[enum.Enum]

    def __missing__(self, value: Any) -> enum.Enum:
        # The enum's own ValueError names the value, unless _missing_() helps.
        return self.members(value)


class Enumeration(ColumnType):
    """The members of an ``Enum``, stored by value."""

    def __init__(self, members: type[enum.Enum], inner: ColumnType) -> None:
        self.members = members
        self.inner = inner
        self.sql = inner.sql
        self._stored = {member: member.value for member in members}
        self._stored.update({member.value: member.value for member in members})
        self.exact = frozenset({members})
        # A member that is text or a number itself goes to the driver as it is.
        self.settled = issubclass(members, str | int)
        by_value = _Members({member.value: member for member in members})
        by_value.members = members
        self.decode, self.known = by_value.__getitem__, dict(by_value)

    def encode(self, value: Any) -> Any:
        """Return the value of a member, or of the member with this value."""
        try:
            return self._stored[value]
        except (KeyError, TypeError):
            # Flags that are combined are members, but not listed.
            with contextlib.suppress(ValueError, TypeError):
                return self.members(value).value
            known = ", ".join(str(member.value) for member in self.members)
            raise Refused(f"is {value!r}, unknown; use one of {known}") from None

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Look all of *values* up without a step for each."""
        try:
            return list(map(self._stored.__getitem__, values))
        except (KeyError, TypeError):
            return self.encode_each(values, nullable=nullable)

    def to_text(self, value: Any) -> str:
        """Return a member's value as text."""
        return self.inner.to_text(value)

    def from_text(self, text: str) -> Any:
        """Return the member's value."""
        return self.encode(self.inner.from_text(text))


class Choice(ColumnType):
    """Some values of another type."""

    def __init__(self, inner: ColumnType, values: Sequence[Any]) -> None:
        self.inner, self.values = inner, values
        self.sql, self.decode, self.known = inner.sql, inner.decode, inner.known

    def encode(self, value: Any) -> Any:
        """Return what the other type stores, of a value that is among them."""
        if value not in self.values:
            raise Refused(f"is none of {', '.join(map(str, self.values))}")
        return self.inner.encode(value)

    def to_text(self, value: Any) -> str:
        """Return a stored value as the other type writes it."""
        return self.inner.to_text(value)

    def from_text(self, text: str) -> Any:
        """Return the stored value."""
        return self.inner.from_text(text)


class Converted(ColumnType):
    """Instances of a class, stored as something simpler."""

    def __init__(
        self,
        inner: ColumnType,
        accepted: type,
        dump: Callable[[Any], Any],
        load: Callable[[Any], Any],
    ) -> None:
        self.inner, self.accepted, self.dump = inner, accepted, dump
        self.sql, self.decode = inner.sql, load

    def encode(self, value: Any) -> Any:
        """Return what stands for an instance."""
        if not isinstance(value, self.accepted):
            raise Refused(f"is {named(value)}, not a {self.accepted.__name__}")
        return self.inner.encode(self.dump(value))

    def from_text(self, text: str) -> Any:
        """Return the stored value."""
        return self.inner.from_text(text)


class Array(ColumnType):
    """One-dimensional arrays of another type."""

    given = frozenset({list})

    def __init__(self, element: ColumnType, container: type = list) -> None:
        self.element = element
        self._carried: ColumnType | None = None
        self._taken: tuple[Any, ...] = (list, tuple, container)
        self.sql = f"{element.sql}[]"
        inner = element.decode
        if inner is None and element.given:
            inner = functools.partial(_allowed, element)
            (name,) = {given.__name__ for given in element.given}
            built_in = hasattr(builtins, name)  # its name is known where rows are made
            other = f" is not {name}" if built_in else f".__name__ != {name!r}"
            if container is list:
                self.decode_if = f"({{0}} and {{0}}[0].__class__{other})"
        if inner is not None:
            self.decode = functools.partial(_decode_array, container, inner)
        elif container is not list:
            self.decode = container

    def encode(self, value: Any) -> Any:
        """Return a list of stored elements."""
        if not isinstance(value, self._taken):
            raise Refused(f"is {named(value)}, not a list; convert it")
        return [None if item is None else self.element.encode(item) for item in value]

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return the arrays as JSON texts: unnest() would flatten them."""
        classes(values, nullable=nullable)
        return [
            None
            if value is None
            else encode_json(
                [
                    None if item is None else self._to_text(item)
                    for item in self.encode(value)
                ]
            )
            for value in values
        ]

    def _to_text(self, item: Any) -> str:
        kind = self._carried
        if kind is None:
            return self.element.to_text(item)
        return kind.to_text(as_stored(kind, item))

    def copy_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return *values* as lists."""
        return self.encode_each(values, nullable=nullable)

    def source(self, actual: Actual) -> Source | None:
        """Return text, from which the array is built; see ``encode_many()``.

        From now on its elements are those that the driver takes for the column.
        """
        if not actual.element or actual.holds_json:
            return None
        kind = leaf_of(actual.leaf or actual.element)
        differs = kind is not None and kind.sql != self.element.sql
        self._carried = kind if differs else None
        # Text of a negative number would be taken for an oid, a number is not.
        element = "int8::oid" if actual.element == "oid" else actual.element
        return Source(
            "text",
            f"CASE WHEN {{0}} IS NULL THEN NULL ELSE ARRAY(SELECT "
            f"e::{element} FROM jsonb_array_elements_text({{0}}::jsonb) "
            f"WITH ORDINALITY AS j(e, n) ORDER BY n) END",
        )

    def fits(self, actual: Actual) -> bool:
        """Return whether the column holds arrays."""
        return actual.element is not None and not actual.holds_json

    def beyond(self, name: str) -> str:
        """Return the condition of an element that Python cannot hold."""
        return any_of(name, self.element.beyond("e"))


class Other(ColumnType):
    """A PostgreSQL type named by the user; the driver checks the values."""

    checked = False

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def encode(self, value: Any) -> Any:
        """Return *value*, in which nothing is that no type stores as it is."""
        with _bottomless():
            _look_inside(value)
        return value

    def from_text(self, text: str) -> Any:
        """Return *text*."""
        return text


class Known(Other):
    """Values of a type whose name tells what they, their elements or bounds are."""

    def __init__(self, sql: str, leaf: ColumnType) -> None:
        super().__init__(_MODIFIERS.sub("", sql))
        self.leaf = leaf
        if leaf.decode is not None:
            self.decode = functools.partial(_bounded, leaf.decode)

    def encode(self, value: Any) -> Any:
        """Return *value* as the driver takes it, infinities among them."""
        with _bottomless():
            return _bounded(functools.partial(as_stored, self.leaf), value)

    def beyond(self, name: str) -> str:
        """Return the condition of a value or bound that Python cannot hold."""
        nested = "multirange" in self.sql or self.sql.endswith("[]")
        one = "e" if nested else name
        either = self.leaf.beyond(one)
        if either and "range" in self.sql:
            ends = (self.leaf.beyond(f"{end}({one})") for end in ("lower", "upper"))
            either = f"({' OR '.join(ends)})"
        return any_of(name, either) if nested else either


@contextlib.contextmanager
def _bottomless() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise Refused("contains itself, or is nested too deep; flatten it") from None


def as_stored(kind: ColumnType, value: Any) -> Any:
    """Return *value*, perhaps of another class, as a column of *kind* keeps it.

    Raises:
        Refused: The driver would refuse it, or store something else.
    """
    if isinstance(kind, Integer | Float | Numeric) and isinstance(
        value, Decimal | float | bool
    ):
        try:
            value = kind.convert(value)
        except (ValueError, ArithmeticError):
            raise Refused(f"is {named(value)} that {kind.sql} cannot keep") from None
    return kind.encode(value)


def any_of(name: str, condition: str) -> str:
    """Return whether *condition* holds of an element ``e`` of *name*; or nothing."""
    return (
        condition and f"EXISTS (SELECT FROM unnest({name}) AS u (e) WHERE {condition})"
    )


def _bounded(convert: Callable[[Any], Any], value: Any) -> Any:
    """Return a range, or a list of some, with its bounds converted."""
    if value is None or getattr(value, "isempty", False):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_bounded(convert, one) for one in value]
    if not hasattr(value, "isempty"):
        return convert(value)
    lower, upper = (
        None if bound is None else convert(bound)
        for bound in (value.lower, value.upper)
    )
    if lower is value.lower and upper is value.upper:
        return value
    return type(value)(
        lower, upper, lower_inc=value.lower_inc, upper_inc=value.upper_inc
    )


class Geometry(Other):
    """PostGIS's types: EWKT or hexadecimal EWKB as text, EWKB as bytes, alike.

    What a registered codec takes and gives passes unchanged.
    """

    def __init__(self, sql: str, *, binary: bool) -> None:
        super().__init__(sql)
        if binary:
            self.decode, self.decode_if = bytes.fromhex, "{0}.__class__ is str"

    def encode(self, value: Any) -> Any:
        """Return bytes as hexadecimal text, which the type reads like any other."""
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).hex().upper()
        return super().encode(value)


_MODIFIERS = re.compile(r" ?\([^)]*\)")

_NAMED: Mapping[str, ColumnType] = {
    name: kind
    for names, kind in (
        ("bool,boolean", Boolean()),
        ("int2,smallint", Integer(2)),
        ("int4,int,integer,int4range,int4multirange", Integer(4)),
        ("int8,bigint,int8range,int8multirange", Integer(8)),
        ("oid", Integer(4, signed=False)),
        ("float4,real", Float(4)),
        ("float8,double precision", Float()),
        ("numeric,decimal,numrange,nummultirange", Numeric()),
        ("text,varchar,character varying,bpchar,citext,name", Text()),
        ("bytea", Bytes()),
        ("date,daterange,datemultirange", Date()),
        ("time,time without time zone", Time()),
        ("timetz,time with time zone", TimeWithZone()),
        (
            "timestamp,timestamp without time zone,tsrange,tsmultirange",
            Timestamp(aware=False),
        ),
        (
            "timestamptz,timestamp with time zone,tstzrange,tstzmultirange",
            Timestamp(),
        ),
        ("interval", Interval()),
    )
    for name in names.split(",")
}
"""What the elements, bounds or values of a type are, by its name."""


def leaf_of(sql: str) -> ColumnType | None:
    """Return what a value of type *sql* consists of, if its name tells."""
    return _NAMED.get(_MODIFIERS.sub("", sql).rstrip("[]"))


def named_type(sql: str, annotation: Any) -> ColumnType | None:
    """Return the type that the name decides more than the annotation, if it does."""
    if sql.partition("(")[0] in {"geometry", "geography"}:
        return Geometry(sql, binary=annotation is bytes)
    leaf = leaf_of(sql)
    if leaf is None:
        return None
    element: Any = next(iter(typing.get_args(annotation)), None)
    if "range" in sql or (
        sql.endswith("[]") and (annotation is Any or typing.get_origin(element) is list)
    ):
        return Known(sql, leaf)
    if sql.endswith("[]"):
        origin = typing.get_origin(annotation)
        several = origin in {list, set, frozenset} or annotation == tuple[element, ...]
        return Array(leaf, origin) if several and element in leaf.exact else None
    if annotation is Any and isinstance(leaf, Integer | Float | Numeric):
        return Known(sql, leaf)
    return leaf if annotation is Any or annotation in leaf.exact else None


def _decode_array(
    container: type, inner: Callable[[Any], Any], values: Sequence[Any]
) -> Any:
    return container(None if value is None else inner(value) for value in values)


def _allowed(element: ColumnType, value: Any) -> Any:
    """Return an element, or one of several dimensions, as the annotation names it."""
    if type(value) in element.given or isinstance(value, list):
        return value
    return element.convert(value)


def _look_inside(value: Any) -> None:
    """Refuse texts and numbers that no type stores as they are.

    Raises:
        Refused: There is one.
    """
    if isinstance(value, str):
        _ANY_TEXT.encode(value)
    elif isinstance(value, Decimal):
        _ANY_NUMBER.encode(value)
    elif isinstance(value, Mapping):
        _look_inside([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        if not set(map(type, value)) <= _HARMLESS:
            for item in value:
                _look_inside(item)
    elif not getattr(value, "isempty", True):
        _look_inside((value.lower, value.upper))


_ANY_TEXT, _ANY_NUMBER = Text(), Numeric()
_HARMLESS = frozenset({int, float, bool, NoneType})
