"""Composite types as instances of a class: rows inside a row, typed.

The driver knows a type by its number on one connection, so a registered type is
installed on every connection that is made later.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from fm_storage.errors import ConfigurationInvalid, InvalidName
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.errors import FromCaller
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor

_log = logging.getLogger("fm_storage.postgres")

_ATTRIBUTES = Sql(
    "SELECT a.attname::text AS name FROM pg_catalog.pg_type t"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid"
    " WHERE n.nspname = $1 AND t.typname = $2 AND t.typtype = 'c'"
    " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Composite:
    """A type of the database and how it becomes an instance, and back."""

    schema: str
    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    format: Literal["text", "binary", "tuple"] = "tuple"

    @property
    def is_builtin(self) -> bool:
        """Whether the driver knows the type, and never looks it up."""
        return self.schema == "pg_catalog"

    def install(self, settings: Any, types: list[Any], found: Any) -> None:
        """Take it for *found*, of the *types* that a connection has looked up."""
        kind = "composite" if found["kind"] == b"c" else "scalar"
        if (kind == "composite") is not (self.format == "tuple"):
            _log.warning(
                "type %s.%s: it is %s by now, and not read as it was registered",
                self.schema,
                self.name,
                kind,
            )
            return
        settings.add_python_codec(
            found["oid"],
            self.name,
            self.schema,
            types if kind == "composite" else [],
            kind,
            self.encode,
            self.decode,
            self.format,
        )
        settings.clear_type_cache()  # arrays of it were taken for arrays of rows

    async def try_on(self, raw: asyncpg.Connection[Any]) -> None:
        """Register it on *raw*.

        Raises:
            ValueError: There is no such type.
            ConfigurationInvalid: The driver cannot read one of its fields inside a
                row (json).
        """
        try:
            await raw.set_type_codec(
                self.name,
                schema=self.schema,
                encoder=self.encode,
                decoder=self.decode,
                format=self.format,
            )
        except asyncpg.InterfaceError as exc:
            raise ConfigurationInvalid(
                f"type {self.schema}.{self.name}",
                f"cannot be registered ({exc}); keep json in a column of its own, and "
                "give a scalar type the format text or binary",
            ) from exc


async def composite_of(
    executor: Executor, name: str, kind: type[Any], schema: str
) -> Composite:
    """Compare *kind* with the type of the database and return how they meet.

    Raises:
        InvalidName: There is no such composite type.
        ConfigurationInvalid: The class has other fields than the type.
    """
    of_kind(kind, type, "kind", "give a dataclass or a named tuple")
    found = [row["name"] for row in await executor.fetch(_ATTRIBUTES, schema, name)]
    if not found:
        raise InvalidName(
            f"type {schema}.{name}: there is no composite type of this name; "
            "create it first, or name its schema"
        )
    fields = _fields(kind)
    if set(fields) != set(found):
        raise ConfigurationInvalid(
            kind.__name__,
            f"has the fields {', '.join(fields) or 'none'}, but type {schema}.{name} "
            f"has {', '.join(found)}; let them be the same",
        )
    take = attrgetter(*found)
    one = len(found) == 1

    def encode(value: Any) -> tuple[Any, ...]:
        if isinstance(value, kind):
            try:
                taken = take(value)
            except Exception as exc:  # the class is the application's
                raise FromCaller(exc) from None
            return (taken,) if one else taken
        return tuple(value)

    by_position = tuple(fields) == tuple(found)

    def decode(values: tuple[Any, ...]) -> Any:
        try:
            if by_position:
                return kind(*values)
            return kind(**dict(zip(found, values, strict=True)))
        except Exception as exc:  # the class's own
            raise FromCaller(exc) from None

    return Composite(schema, name, encode, decode)


def _fields(kind: type[Any]) -> tuple[str, ...]:
    """Return the names that *kind* is made from, in order."""
    if dataclasses.is_dataclass(kind):
        return tuple(each.name for each in dataclasses.fields(kind) if each.init)
    named = getattr(kind, "_fields", None) or getattr(kind, "__struct_fields__", None)
    if named is None:
        raise ConfigurationInvalid(
            kind.__name__,
            "is neither a dataclass nor a named tuple; make it one",
        )
    return tuple(named)
