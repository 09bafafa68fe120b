"""Types made of others: enums, arrays, JSON, and types that only the user knows.

They convert, inside containers too, and travel in bulk in another shape than alone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import functools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.connect.codecs import encode_json, encode_plain_json
from fm_storage.repositories.model.scalar_types import (
    Actual,
    ColumnType,
    Refused,
    Source,
    classes,
    named,
)
from fm_storage.repositories.model.time_types import Date, Time, Timestamp


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

    def encode_text(self, value: Any) -> str:
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
        text = self.encode_text
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
        self._taken: tuple[Any, ...] = (list, tuple, container)
        self.sql = f"{element.sql}[]"
        inner = element.decode
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
                    None if item is None else self.element.to_text(item)
                    for item in self.encode(value)
                ]
            )
            for value in values
        ]

    def copy_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Return *values* as lists."""
        return self.encode_each(values, nullable=nullable)

    def source(self, actual: Actual) -> Source | None:
        """Return text, from which the array is built; see ``encode_many()``."""
        if not actual.element or actual.holds_json:
            return None
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
        """Return *value*."""
        return value

    def from_text(self, text: str) -> Any:
        """Return *text*."""
        return text


class TimeRange(Other):
    """Ranges and multiranges of times; their bounds are what times alone are."""

    bounds: ClassVar[Mapping[str, ColumnType]] = {
        "tstz": Timestamp(),
        "ts": Timestamp(aware=False),
        "date": Date(),
    }
    names = re.compile(r"(tstz|ts|date)(?:range(\[\])?|(multi)range)")

    def __init__(self, sql: str) -> None:
        super().__init__(sql)
        found = self.names.fullmatch(sql)
        assert found is not None
        self.bound, self._nested = self.bounds[found[1]], bool(found[2] or found[3])
        if self.bound.decode is not None:
            self.decode = functools.partial(_bounded, self.bound.decode)

    def encode(self, value: Any) -> Any:
        """Return the driver's range with the driver's infinities."""
        return _bounded(self.bound.encode, value)

    def beyond(self, name: str) -> str:
        """Return the condition of a bound that Python cannot hold."""
        one = "e" if self._nested else name
        ends = (self.bound.beyond(f"{end}({one})") for end in ("lower", "upper"))
        either = f"({' OR '.join(ends)})"
        return any_of(name, either) if self._nested else either


class TimeWithZone(Other):
    """Times of day with an offset."""

    def beyond(self, name: str) -> str:
        """Return the condition of the end of the day."""
        return Time().beyond(name)


def any_of(name: str, condition: str) -> str:
    """Return whether *condition* holds of an element ``e`` of *name*; or nothing."""
    return (
        condition and f"EXISTS (SELECT FROM unnest({name}) AS u (e) WHERE {condition})"
    )


def _bounded(convert: Callable[[Any], Any], value: Any) -> Any:
    """Return a range, or a list of some, with its bounds converted."""
    if isinstance(value, list | tuple):
        return [_bounded(convert, one) for one in value]
    if getattr(value, "isempty", True):
        return value
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
        return value


_WITHOUT_ZONE = re.compile(r"timestamp ?(\(\d\))?( without time zone)?(\[\])?")

_TIME_WITH_ZONE = re.compile(r"timetz ?(\(\d\))?|time ?(\(\d\))? with time zone")


def named_type(sql: str, annotation: Any) -> ColumnType | None:
    """Return the type that the name decides more than the annotation, if it does."""
    plain = _WITHOUT_ZONE.fullmatch(sql)
    if plain is not None and not plain[3]:
        return Timestamp(aware=False)
    if plain is not None and dt.datetime in typing.get_args(annotation):
        return Array(Timestamp(aware=False), typing.get_origin(annotation))
    if sql.partition("(")[0] in {"geometry", "geography"}:
        return Geometry(sql, binary=annotation is bytes)
    if TimeRange.names.fullmatch(sql):
        return TimeRange(sql)
    if sql.endswith("[]") and dt.time in typing.get_args(annotation):
        element = Time()
        element.sql = sql.removesuffix("[]")
        return Array(element, typing.get_origin(annotation))
    return TimeWithZone(sql) if _TIME_WITH_ZONE.fullmatch(sql) else None


def _decode_array(
    container: type, inner: Callable[[Any], Any], values: Sequence[Any]
) -> Any:
    return container(None if value is None else inner(value) for value in values)
