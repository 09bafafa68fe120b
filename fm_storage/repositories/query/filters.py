"""Which rows: conditions that become SQL and parameters.

Here a user's choice shapes the text of a statement. A field name must be one of
the model's, a value always travels as a parameter, and everything else is a
constant of this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fm_storage.errors import InvalidName, InvalidRecord
from fm_storage.repositories.model.compound_types import Array, JsonValue, Other
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.scalar_types import Refused, Text

_LANGUAGE = re.compile(r"[a-z_]{1,63}")


class Parameters:
    """The values of a statement under construction."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: Any) -> str:
        """Take *value* and return its placeholder."""
        self.values.append(value)
        return f"${len(self.values)}"


class Filter:
    """A condition on rows; combine with ``&``, ``|`` and ``~``.

    ``~`` means *the rows that do not match*, those with NULL among them.
    """

    __slots__ = ()

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        """Return the condition, its values added to *parameters*.

        Raises:
            InvalidName: It names a field that the model has not.
            InvalidRecord: Its value cannot be compared with the field.
        """
        raise NotImplementedError

    def __and__(self, other: Filter) -> Filter:
        return _joined("AND", self, other)

    def __or__(self, other: Filter) -> Filter:
        return _joined("OR", self, other)

    def __invert__(self) -> Filter:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "filter: it has no truth value of its own; combine filters with & and |"
        )


@dataclass(frozen=True, slots=True)
class _Joined(Filter):
    word: str
    parts: tuple[Filter, ...]

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        joined = f" {self.word} ".join(
            _sql_of(part, entity, parameters) for part in self.parts
        )
        return f"({joined})"


def _joined(word: str, one: Filter, other: Filter) -> Filter:
    """Return both, beside those that *one* has joined already, not inside."""
    if isinstance(one, _Joined) and one.word == word:
        return _Joined(word, (*one.parts, other))
    return _Joined(word, (one, other))


@dataclass(frozen=True, slots=True)
class _Not(Filter):
    part: Filter

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        # NOT would drop the rows for which the condition is NULL.
        return f"(({self.part.sql(entity, parameters)}) IS NOT TRUE)"


@dataclass(frozen=True, slots=True)
class _Compared(Filter):
    """``field operator value``."""

    field: Field
    operator: str
    value: Any

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        item, left = self.field.sql(entity, parameters)
        value = self.value
        if value is None and self.operator in {"=", "IS DISTINCT FROM"}:
            return f"{left} IS {'' if self.operator == '=' else 'NOT '}NULL"
        if self.field.path:
            return f"{left} {self.operator} {parameters.add(value)}::jsonb"
        place = parameters.add(_comparable(item, value))
        return f"{left} {self.operator} {place}{_cast(item)}"


@dataclass(frozen=True, slots=True)
class _Null(Filter):
    field: Field
    negated: bool

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        _, left = self.field.sql(entity, parameters)
        return f"{left} IS {'NOT ' if self.negated else ''}NULL"


@dataclass(frozen=True, slots=True)
class _In(Filter):
    field: Field
    values: tuple[Any, ...]

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        item, left = self.field.sql(entity, parameters)
        given = [value for value in self.values if value is not None]
        # Arrays and JSON are compared whole: an array of arrays would be flattened.
        if self.field.path or isinstance(item.type, Array | JsonValue | Other):
            cast = "::jsonb" if self.field.path else _cast(item)
            values = (
                value if self.field.path else _comparable(item, value)
                for value in given
            )
            places = ", ".join(f"{parameters.add(value)}{cast}" for value in values)
            among = f"{left} IN ({places})" if places else "FALSE"
        else:
            stored = [_comparable(item, value) for value in given]
            among = f"{left} = ANY({parameters.add(stored)})"
        if len(given) < len(self.values):
            return f"({among} OR {left} IS NULL)"
        return among


@dataclass(frozen=True, slots=True)
class _Like(Filter):
    field: Field
    pattern: str
    ignore_case: bool

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        _, left = self.field.sql(entity, parameters, as_text=True)
        word = "ILIKE" if self.ignore_case else "LIKE"
        return f"{left} {word} {parameters.add(_pattern(self.field, self.pattern))}"


@dataclass(frozen=True, slots=True)
class _Contains(Filter):
    """``@>`` or ``&&`` of arrays, ``@>`` of JSON."""

    field: Field
    operator: str
    value: Any

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        item, left = self.field.sql(entity, parameters)
        if self.field.path or isinstance(item.type, JsonValue):
            if self.operator != "@>":
                raise InvalidName(
                    f"{item.field}: JSON has no overlaps(); use contains()"
                )
            return f"{left} {self.operator} {parameters.add(self.value)}::jsonb"
        if not isinstance(item.type, Array):
            raise InvalidName(
                f"{item.field}: it is no array, JSON or text; compare it instead"
            )
        stored = _comparable(item, self.value)
        return f"{left} {self.operator} {parameters.add(stored)}"


@dataclass(frozen=True, slots=True)
class _Substring(Filter):
    """``contains()`` of a text, or of whatever else the field turns out to be."""

    field: Field
    value: Any
    ignore_case: bool

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        item, _ = self.field.sql(entity, Parameters())
        if isinstance(item.type, Text) and isinstance(self.value, str):
            pattern = f"%{_escaped(self.field, self.value)}%"
            return _Like(self.field, pattern, self.ignore_case).sql(entity, parameters)
        return _Contains(self.field, "@>", self.value).sql(entity, parameters)


@dataclass(frozen=True, slots=True)
class _Matches(Filter):
    field: Field
    query: str
    language: str

    def sql(self, entity: Entity[Any], parameters: Parameters) -> str:
        _, left = self.field.sql(entity, parameters, as_text=True)
        # The configuration is part of the text: as a parameter it would keep an
        # index on to_tsvector('simple', …) from being used.
        query = parameters.add(_pattern(self.field, self.query))
        return (
            f"to_tsvector('{self.language}', {left}) @@ "
            f"websearch_to_tsquery('{self.language}', {query})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field of the model in a condition; made by ``where()``."""

    name: str
    path: tuple[str, ...] = ()

    def sql(
        self,
        entity: Entity[Any],
        parameters: Parameters,
        *,
        as_text: bool = False,
    ) -> tuple[Stored, str]:
        """Return the stored field and the SQL of its value."""
        item = entity.field(self.name)
        if self.path:
            if not isinstance(item.type, JsonValue):
                raise InvalidName(f"{self.name}: it is no JSON and has no path")
            operator = "#>>" if as_text else "#>"
            cast = "" if item.type.sql == "jsonb" else "::jsonb"
            path = parameters.add(list(self.path))
            return item, f"({item.quoted}{cast} {operator} {path}::text[])"
        if as_text and not isinstance(item.type, Text):
            return item, f"{item.quoted}::text"
        return item, item.quoted

    def at(self, *path: str | int) -> Field:
        """Return the value at *path* inside a JSON field."""
        return Field(self.name, self.path + tuple(map(str, path)))

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a condition
        return _Compared(self, "=", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a condition
        return _Compared(self, "IS DISTINCT FROM", value)

    def __hash__(self) -> int:
        raise TypeError("field: == makes a condition of it; use its name as a key")

    def __lt__(self, value: Any) -> Filter:
        return _Compared(self, "<", value)

    def __le__(self, value: Any) -> Filter:
        return _Compared(self, "<=", value)

    def __gt__(self, value: Any) -> Filter:
        return _Compared(self, ">", value)

    def __ge__(self, value: Any) -> Filter:
        return _Compared(self, ">=", value)

    def in_(self, values: Iterable[Any]) -> Filter:
        """Match any of *values*; None among them matches NULL."""
        return _In(self, self._several(values))

    def _several(self, values: Iterable[Any]) -> tuple[Any, ...]:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise InvalidRecord(
                f"{self.name}: is compared with a {type(values).__name__}, not with "
                "several values; give a list",
                field=self.name,
            )
        return tuple(values)

    def between(self, low: Any, high: Any) -> Filter:
        """Match from *low* to *high*, both included."""
        return _Compared(self, ">=", low) & _Compared(self, "<=", high)

    def is_null(self) -> Filter:
        """Match NULL."""
        return _Null(self, negated=False)

    def is_not_null(self) -> Filter:
        """Match what is not NULL."""
        return _Null(self, negated=True)

    def like(self, pattern: str) -> Filter:
        """Match an SQL pattern: ``%`` any text, ``_`` one character."""
        return _Like(self, pattern, ignore_case=False)

    def ilike(self, pattern: str) -> Filter:
        """Match an SQL pattern whatever the case."""
        return _Like(self, pattern, ignore_case=True)

    def starts_with(self, text: str, *, ignore_case: bool = False) -> Filter:
        """Match what begins with exactly *text*; ``%`` and ``_`` mean themselves."""
        return _Like(self, f"{_escaped(self, text)}%", ignore_case)

    def ends_with(self, text: str, *, ignore_case: bool = False) -> Filter:
        """Match what ends with exactly *text*; ``%`` and ``_`` mean themselves."""
        return _Like(self, f"%{_escaped(self, text)}", ignore_case)

    def contains(self, value: Any, *, ignore_case: bool = False) -> Filter:
        """Match a text that holds *value*, an array with all its items, or JSON.

        ``%`` and ``_`` mean themselves; JSON follows PostgreSQL's ``@>``.
        """
        return _Substring(self, value, ignore_case)

    def overlaps(self, values: Sequence[Any]) -> Filter:
        """Match an array that has at least one of *values*."""
        return _Contains(self, "&&", list(self._several(values)))

    def matches(self, query: str, *, language: str = "simple") -> Filter:
        """Match by full text search, in the syntax of web search engines.

        Args:
            query: ``card refused -test "exact words"``.
            language: Text search configuration of the server.

        See https://www.postgresql.org/docs/current/textsearch-controls.html.
        """
        if not _LANGUAGE.fullmatch(language):
            raise InvalidName(
                f"language {language!r}: it is no text search configuration"
            )
        return _Matches(self, query, language)


def where(field: str) -> Field:
    """Name a field of the model in a condition.

    ``where("module") == "billing"``, ``where("timestamp") >= noon``,
    ``where("manager_context").at("user", "id") == 7``.
    """
    return Field(field)


def where_sql(
    entity: Entity[Any], filters: Sequence[Filter], parameters: Parameters
) -> str:
    """Return ``WHERE``, or nothing for no filters.

    Raises:
        InvalidRecord: One of them is no filter, but SQL perhaps.
    """
    if not filters:
        return ""
    try:
        parts = [_sql_of(item, entity, parameters) for item in filters]
    except RecursionError:
        raise InvalidRecord(
            f"{entity.name}: a filter is nested too deep; join conditions side by "
            "side, or use in_()"
        ) from None
    return f" WHERE {' AND '.join(parts)}"


def _sql_of(item: object, entity: Entity[Any], parameters: Parameters) -> str:
    if not isinstance(item, Filter):
        raise InvalidRecord(
            f"{entity.name}: {item!r} is no filter; write one as "
            "where('field') == value"
        )
    return item.sql(entity, parameters)


def _cast(item: Stored) -> str:
    """Return what names a type that the server cannot infer, as of a composite."""
    return "" if item.type.checked else f"::{item.type.sql}"


def by_keys(entity: Entity[Any], keys: Sequence[Any]) -> Filter:
    """Return the condition of the rows with *keys*, each as ``shown()`` gives it."""
    names = entity.key_names
    if len(names) == 1:
        return where(names[0]).in_(keys)
    each: list[Filter] = [
        _Joined("AND", tuple(where(n) == v for n, v in zip(names, key, strict=True)))
        for key in keys
    ]
    return _Joined("OR", tuple(each))


def _comparable(item: Stored, value: object) -> Any:
    if value is None:
        raise item.refusal("is compared with None; use is_null() or ==")
    try:
        return item.type.comparable(value)
    except Refused as exc:
        raise item.refusal(f"the compared value {exc}") from exc


def _escaped(field: Field, text: object) -> str:
    return re.sub(r"([\\%_])", r"\\\1", _pattern(field, text))


def _pattern(field: Field, text: object) -> str:
    try:
        found: str = _ANY_TEXT.encode(text)
    except Refused as exc:
        raise InvalidRecord(
            f"{field.name}: the compared value {exc}", field=field.name
        ) from exc
    return found


_ANY_TEXT = Text()
