"""What a repository knows of a model: its table, columns, key, and constructor.

Worked out once per declaration and shared by every repository bound to it. Rows
become models by position, from an explicit column list: ``Model(**row)`` costs
1.4 times as much, validation 1.7 times.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import length_hint
from typing import Any, Generic, TypeVar
from uuid import UUID

from fm_storage._typing import Relation
from fm_storage.errors import ConfigurationInvalid, InvalidName, InvalidRecord
from fm_storage.postgres import Encoded
from fm_storage.postgres.sql import quote_qualified
from fm_storage.repositories.model.declaration import Column, read_model
from fm_storage.repositories.model.encoding import ParameterEncoder, getter
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.row_factory import RowFactory, as_reason, decoder_of
from fm_storage.repositories.model.scalar_types import Uuid
from fm_storage.repositories.model.time_types import Timestamp

M = TypeVar("M")

_PARAMETER = re.compile(r"\$(\d+)")


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
        deleted: The field with the moment of a soft deletion, or None.
        inserted: The fields that a new row is given.
        returned: The fields of a new row that only the server knows.
        insert_values: See ``ParameterEncoder.values()``.
        insert_columns: See ``ParameterEncoder.columns()``.
        from_row: Makes the record of a row in the order of ``stored``; a row that
            is none is an ``InvalidRecord`` that names its key.
        from_rows: The same for many rows.
        plain_key: Class of the keys that need no look.
        statements: The entity's SQL, kept here by ``statements_of()``.
    """

    def __init__(
        self,
        model: type[M],
        *,
        table: str | Relation | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
        deleted: str | None = None,
    ) -> None:
        declared = read_model(model, columns or {})
        self.statements: dict[bool, Any] = {}
        self.model: type[M] = typing.get_origin(model) or model
        self.schema, self.table = _table(
            _snake(self.model.__name__) if table is None else table
        )
        self.name = f"{self.schema}.{self.table}" if self.schema else self.table
        self.quoted = quote_qualified(self.schema, self.table)
        self.stored = declared.fields
        self.by_field = {item.field: item for item in self.stored}
        self.key = self._key(key)
        self.key_names = tuple(item.field for item in self.key)
        self.version = None if version is None else self._version(version)
        self.deleted = None if deleted is None else self._deleted(deleted)
        self.inserted = tuple(item for item in self.stored if not item.generated)
        self.returned = tuple(item for item in self.stored if item.generated)
        self.select_list = ", ".join(item.quoted for item in self.stored)
        self._construct: Callable[..., M] = declared.construct
        encoder = ParameterEncoder(self.model, self.inserted)
        self.insert_values = encoder.values
        self.insert_columns = encoder.columns
        self._get_all = getter(item.field for item in self.stored)
        self._get_key = getter(self.key_names)
        rows: RowFactory[M] = RowFactory(
            self.model,
            declared.construct,
            tuple(self.by_field),
            [
                decoder_of(item.type, decodes=declared.decodes, field=item.field)
                for item in self.stored
            ],
            unreadable=self._unreadable,
        )
        self.from_row = rows.one
        self.from_rows = rows.many
        self.plain_key = _plain_key(self.key)

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

    def _unreadable(
        self, row: Iterable[Any], exc: Exception, field: str | None
    ) -> InvalidRecord:
        """Return the error of a stored row that is no record of the model."""
        values = dict(zip(self.by_field, row, strict=True))
        key = self.shown([values[name] for name in self.key_names])
        return InvalidRecord(
            f"{self.name}: the row with key {key!r} is no {self.model.__name__} "
            f"({as_reason(exc, field)}); correct the row or the model",
            field=field,
        )

    def outgoing(self, columns: Sequence[Sequence[Any]]) -> Encoded:
        """Return the rows of ``insert_columns(…, copy=True)`` as COPY sends them."""
        sources = [iter(values) for values in columns]
        rows = zip(*sources, strict=True)
        # What is left of a list's iterator tells how far the driver has come,
        # and costs nothing on the way.
        return Encoded(rows, lambda: len(columns[0]) - 1 - length_hint(sources[0]))

    def key_of(self, record: M) -> tuple[Any, ...]:
        """Return the key of *record*, one value for each key field."""
        return self._get_key(record)

    def stored_key(self, record: M) -> tuple[Any, ...]:
        """Return the key of *record* as parameters.

        Raises:
            InvalidRecord: It cannot be a key of this table.
        """
        values = zip(self.key, self.key_of(record), strict=True)
        return tuple(item.encode(value) for item, value in values)

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

    def version_of(self, record: M) -> int | None:
        """Return the version of *record*, None without an optimistic lock."""
        if self.version is None:
            return None
        version: int = getattr(record, self.version.field)
        return version

    def is_deleted(self, record: M) -> bool:
        """Return whether *record* is deleted softly."""
        mark = self.deleted
        return mark is not None and getattr(record, mark.field) is not None

    def shown(self, values: Sequence[Any]) -> object:
        """Return a key as a message shows it."""
        return values[0] if len(values) == 1 else tuple(values)

    def completed(
        self, record: M, fields: Sequence[Stored], stored: Sequence[Any]
    ) -> M:
        """Return *record* with the *stored* values of *fields*; or itself."""
        if not fields:
            return record
        known = dict(zip((item.field for item in fields), stored, strict=True))
        given = self._get_all(record)
        values = list(given)
        for place, item in enumerate(self.stored):
            if item.field in known:
                value = known[item.field]
                decode = item.type.decode
                if decode is not None and value is not None:
                    value = decode(value)
                values[place] = value
        return record if tuple(values) == given else self._construct(*values)

    def named(
        self,
        exc: InvalidRecord,
        fields: Sequence[Stored | None],
        index: int | None = None,
    ) -> InvalidRecord:
        """Return the driver's refusal of parameter ``$n`` with the field's name."""
        place = _PARAMETER.fullmatch(exc.field or "")
        if place is None or int(place[1]) > len(fields):
            return exc
        item = fields[int(place[1]) - 1]
        if item is None:
            return exc
        return item.refusal(str(exc).partition(": ")[2] or str(exc), index)

    def _key(self, key: str | Sequence[str] | None) -> tuple[Stored, ...]:
        one = isinstance(key, str) or not isinstance(key or (), Iterable)
        names: Any = (key,) if one else tuple(key or ("id",))
        if key is None and "id" not in self.by_field:
            raise ConfigurationInvalid(
                f"{self.model.__name__}.key",
                "the model has no field 'id'; name its key with key=",
            )
        return tuple(dict.fromkeys(map(self.field, names)))

    def _version(self, name: str) -> Stored:
        item = self.field(name)
        if not item.type.sql.startswith("int") or item in self.key:
            raise ConfigurationInvalid(
                f"{self.model.__name__}.version",
                f"field {name!r} must be a whole number outside the key",
            )
        return item

    def _deleted(self, name: str) -> Stored:
        item = self.field(name)
        if not _is_mark(item) or item in self.key:
            raise ConfigurationInvalid(
                f"{self.model.__name__}.deleted",
                f"field {name!r} must be a 'datetime | None' outside the key",
            )
        return item


def _is_mark(item: Stored) -> bool:
    """Return whether NULL and a moment can tell live rows from deleted ones."""
    return (
        isinstance(item.type, Timestamp)
        and item.type.aware
        and item.nullable
        and not item.generated
    )


class _Nothing:
    """The class of no key."""


def _plain_key(key: Sequence[Stored]) -> type:
    """Return the class whose values are parameters as they are.

    The driver's own UUID is a subclass of Python's.
    """
    return UUID if len(key) == 1 and isinstance(key[0].type, Uuid) else _Nothing


def _key_value(item: Stored, value: object) -> Any:
    if type(value) in item.type.exact and not isinstance(value, str):
        return value
    if isinstance(value, str) and str not in item.type.exact:
        try:
            value = item.type.from_text(value)
        except (ValueError, KeyError):
            raise item.refusal(f"{value!r} is not a key") from None
    return item.encode(value)


def _table(name: str | Relation) -> tuple[str | None, str]:
    if not isinstance(name, str):
        quote_qualified(None, name)  # one that was not made is refused
        return name.schema, name.name
    schema, dot, table = name.rpartition(".")
    return (schema if dot else None), table


def _snake(name: str) -> str:
    """Return ``InvoiceLine`` as ``invoice_line``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
