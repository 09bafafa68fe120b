"""What a repository knows of a model: its table, columns, key, and constructor.

Apart because it is worked out once per declaration and shared by every
repository bound to it. Rows become models by position, from an explicit column
list: ``Model(**row)`` costs 1.4 times as much, validation 1.7 times.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import NoneType
from typing import Any, Generic, TypeVar

from fm_storage.errors import ConfigurationInvalid, InvalidName, InvalidRecord
from fm_storage.postgres.sql import quote_ident, quote_qualified
from fm_storage.repositories.kinds import Kind, Refused
from fm_storage.repositories.models import Column, Declared, read_model

__all__ = ["Entity", "Stored"]

M = TypeVar("M")

_PARAMETER = re.compile(r"\$(\d+)")


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored field.

    Attributes:
        field: Name in the model.
        column: Name in the table, as it is.
        quoted: The same as an SQL identifier.
        kind: What it holds.
        nullable: Whether the model allows None.
        generated: Whether the server gives the value of a new row.
    """

    field: str
    column: str
    quoted: str
    kind: Kind
    nullable: bool
    generated: bool

    def encode(self, value: Any, index: int | None = None) -> Any:  # noqa: ANN401 - any value
        """Return *value* as it is stored.

        Raises:
            InvalidRecord: It cannot be stored.
        """
        if value is None:
            if self.nullable:
                return None
            raise self.refusal("is None; give a value", index)
        try:
            return self.kind.encode(value)
        except Refused as exc:
            raise self.refusal(str(exc), index) from exc

    def refusal(self, why: str, index: int | None = None) -> InvalidRecord:
        """Return the error that says what is wrong with this field's value."""
        at = "" if index is None else f"record {index}: "
        return InvalidRecord(f"{at}{self.field}: {why}", field=self.field, index=index)


class Entity(Generic[M]):
    """A model and the table it is kept in.

    Attributes:
        model: The class of the records.
        schema: Schema of the table, None for the search path's.
        table: Name of the table.
        name: Both together, for messages.
        quoted: Both together, as SQL.
        stored: The stored fields, in the model's order.
        by_field: The same by name.
        key: The fields that identify a record.
        version: The field of the optimistic lock, or None.
        inserted: The fields that a new row is given.
        returned: The fields of a new row that only the server knows.
        statements: The entity's SQL, kept here by the repositories.
    """

    def __init__(
        self,
        model: type[M],
        *,
        table: str | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
    ) -> None:
        declared = read_model(model, columns or {})
        self.statements: Any = None
        self.model = model
        self.schema, self.table = _table(table or _snake(model.__name__))
        self.name = f"{self.schema}.{self.table}" if self.schema else self.table
        self.quoted = quote_qualified(self.schema, self.table)
        self.stored = tuple(map(_stored, declared.fields))
        self.by_field = {item.field: item for item in self.stored}
        self.key = self._key(key)
        self.key_names = tuple(item.field for item in self.key)
        self.version = None if version is None else self._version(version)
        self.inserted = tuple(item for item in self.stored if not item.generated)
        self.returned = tuple(item for item in self.stored if item.generated)
        self.select_list = ", ".join(item.quoted for item in self.stored)
        self._construct: Callable[..., M] = declared.construct
        self._get_all = _getter(item.field for item in self.stored)
        self._get_inserted = _getter(item.field for item in self.inserted)
        self._get_key = _getter(self.key_names)
        self._steps = tuple(enumerate(self.inserted))
        self._decoders = tuple(
            (place, item.kind.decode, item.nullable)
            for place, item in enumerate(self.stored)
            if item.kind.decode is not None and not declared.decodes
        )
        self._inserted_at = tuple(
            place for place, item in enumerate(self.stored) if not item.generated
        )

    def field(self, name: str) -> Stored:
        """Return the stored field *name*.

        Raises:
            InvalidName: The model has none of this name.
        """
        try:
            return self.by_field[name]
        except (KeyError, TypeError):
            known = ", ".join(self.by_field)
            raise InvalidName(
                f"{self.model.__name__}: no field {name!r}; it has {known}"
            ) from None

    def from_row(self, row: Iterable[Any]) -> M:
        """Return the record of a row in the order of ``stored``."""
        if not self._decoders:
            return self._construct(*row)
        values = list(row)
        for place, decode, nullable in self._decoders:
            value = values[place]
            if not (nullable and value is None):
                values[place] = decode(value)
        return self._construct(*values)

    def from_rows(self, rows: Iterable[Iterable[Any]]) -> list[M]:
        """Return the records of *rows*."""
        construct = self._construct
        if not self._decoders:
            return [construct(*row) for row in rows]
        if len(self._decoders) == 1:
            return self._from_rows_decoding_one(rows)
        from_row = self.from_row
        return [from_row(row) for row in rows]

    def _from_rows_decoding_one(self, rows: Iterable[Iterable[Any]]) -> list[M]:
        """Take the commonest way, one enum, without a call per row."""
        construct = self._construct
        ((place, decode, nullable),) = self._decoders
        found: list[M] = []
        append = found.append
        for row in rows:
            values = list(row)
            value = values[place]
            if not (nullable and value is None):
                values[place] = decode(value)
            append(construct(*values))
        return found

    def insert_values(self, record: M, index: int | None = None) -> list[Any]:
        """Return the values of a new row, in the order of ``inserted``.

        Raises:
            InvalidRecord: One cannot be stored; *record* is no such model.
        """
        try:
            values = list(self._get_inserted(record))
        except AttributeError:
            raise self._not_a_record(record, index) from None
        for place, item in self._steps:
            value = values[place]
            if value is not None:
                try:
                    values[place] = item.kind.encode(value)
                except Refused as exc:
                    raise item.refusal(str(exc), index) from exc
            elif not item.nullable:
                raise item.refusal("is None; give a value", index)
        return values

    def insert_columns(
        self,
        records: Sequence[M],
        fields: Sequence[Stored] | None = None,
        *,
        copy: bool = False,
    ) -> list[Sequence[Any]]:
        """Return the values of new rows column by column, all of them checked.

        Args:
            records: The models.
            fields: The fields wanted (default: ``inserted``).
            copy: Whether the values are for COPY, not for arrays.

        Raises:
            InvalidRecord: It names the first wrong record and its field.
        """
        fields = self.inserted if fields is None else fields
        columns: list[Sequence[Any]] = []
        try:
            for item in fields:
                values = list(map(attrgetter(item.field), records))
                kind = item.kind
                if not item.nullable and NoneType in set(map(type, values)):
                    raise Refused("is None")  # noqa: TRY301 - named below
                columns.append(
                    kind.copy_many(values) if copy else kind.encode_many(values)
                )
        except (Refused, AttributeError) as exc:
            for index, record in enumerate(records):
                self.insert_values(record, index)
                self._look_inside(record, index)
            raise InvalidRecord(f"{self.model.__name__}: {exc}") from exc
        return columns

    def _look_inside(self, record: M, index: int) -> None:
        """Find what only the text of a JSON value shows."""
        for item in self.inserted:
            value = getattr(record, item.field)
            if value is not None:
                try:
                    item.kind.encode_many([value])
                except Refused as exc:
                    raise item.refusal(str(exc), index) from exc

    def key_of(self, record: M) -> tuple[Any, ...]:
        """Return the key of *record*, one value for each key field."""
        return self._get_key(record)

    def key_values(self, key: object) -> tuple[Any, ...]:
        """Return a caller's *key* as parameters.

        Text is read where the column is not text, so that ids from a URL work.

        Raises:
            InvalidRecord: It cannot be a key of this table.
        """
        if len(self.key) == 1:
            return (_key_value(self.key[0], key),)
        if isinstance(key, self.model):
            key = self.key_of(key)
        if not isinstance(key, tuple) or len(key) != len(self.key):
            wanted = ", ".join(self.key_names)
            raise InvalidRecord(f"{self.name}: a key is a tuple ({wanted})")
        return tuple(map(_key_value, self.key, key))

    def shown(self, values: Sequence[Any]) -> object:
        """Return a key as a message shows it."""
        return values[0] if len(values) == 1 else tuple(values)

    def completed(
        self, record: M, fields: Sequence[Stored], stored: Sequence[Any]
    ) -> M:
        """Return *record* with the *stored* values of *fields*, or itself."""
        if not fields:
            return record
        known = dict(zip((item.field for item in fields), stored, strict=True))
        values = list(self._get_all(record))
        for place, item in enumerate(self.stored):
            if item.field in known:
                value = known[item.field]
                decode = item.kind.decode
                if decode is not None and value is not None:
                    value = decode(value)
                values[place] = value
        return self._construct(*values)

    def named(self, exc: InvalidRecord, fields: Sequence[Stored]) -> InvalidRecord:
        """Return the driver's refusal of parameter ``$n`` with the field's name."""
        place = _PARAMETER.fullmatch(exc.field or "")
        if place is None or int(place[1]) > len(fields):
            return exc
        item = fields[int(place[1]) - 1]
        why = str(exc).partition(": ")[2] or str(exc)
        return InvalidRecord(f"{item.field}: {why}", field=item.field, index=exc.index)

    def _not_a_record(self, record: object, index: int | None) -> InvalidRecord:
        at = "" if index is None else f"record {index}: "
        return InvalidRecord(
            f"{at}{type(record).__name__} is not a {self.model.__name__}; "
            "give the repository's own model",
            index=index,
        )

    def _key(self, key: str | Sequence[str] | None) -> tuple[Stored, ...]:
        names = (key,) if isinstance(key, str) else tuple(key or ("id",))
        if key is None and "id" not in self.by_field:
            raise ConfigurationInvalid(
                f"{self.model.__name__}.key",
                "the model has no field 'id'; name its key with key=",
            )
        return tuple(map(self.field, names))

    def _version(self, name: str) -> Stored:
        item = self.field(name)
        if not item.kind.sql.startswith("int") or item in self.key:
            raise ConfigurationInvalid(
                f"{self.model.__name__}.version",
                f"field {name!r} must be a whole number outside the key",
            )
        return item


def _stored(declared: Declared) -> Stored:
    return Stored(
        declared.field,
        declared.column,
        quote_ident(declared.column),
        declared.kind,
        declared.nullable,
        declared.generated,
    )


def _getter(names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads *names*, always as a tuple."""
    wanted = tuple(names)
    if not wanted:
        return lambda _: ()
    get = attrgetter(*wanted)
    if len(wanted) == 1:
        return functools.partial(_single, get)
    return get


def _single(get: Callable[[Any], Any], record: object) -> tuple[Any, ...]:
    return (get(record),)


def _key_value(item: Stored, value: object) -> Any:  # noqa: ANN401 - any key
    if type(value) in item.kind.exact and not isinstance(value, str):
        return value
    if isinstance(value, str) and str not in item.kind.exact:
        try:
            value = item.kind.from_text(value)
        except (ValueError, KeyError):
            raise item.refusal(f"{value!r} is not a key") from None
    return item.encode(value)


def _table(name: str) -> tuple[str | None, str]:
    schema, dot, table = name.rpartition(".")
    return (schema if dot else None), table


def _snake(name: str) -> str:
    """Return ``InvoiceLine`` as ``invoice_line``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
