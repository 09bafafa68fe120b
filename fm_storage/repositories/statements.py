"""The constant SQL of an entity, one text for each operation.

Apart because a text that never changes is parsed and planned once per
connection: the driver keys its statement cache on it, and the pool lends a lean
connection for it. Values are parameters, names are quoted, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from fm_storage.repositories.entity import Entity, Stored

__all__ = [
    "Statements",
    "arrays",
    "insert_many_sql",
    "insert_sql",
    "key_condition",
    "key_equals",
    "update_sql",
    "upsert_returned",
    "upsert_sql",
]


class Statements:
    """The texts of one entity, made when they are first asked for."""

    def __init__(self, entity: Entity[Any]) -> None:
        self._entity = entity
        self._updates: dict[tuple[tuple[str, ...], bool], Sql] = {}
        self._others: dict[tuple[object, ...], Sql] = {}

    @cached_property
    def get(self) -> Sql:
        """Read the record with a key."""
        entity = self._entity
        return Sql(
            f"SELECT {entity.select_list} FROM {entity.quoted} "  # noqa: S608 - quoted
            f"WHERE {key_equals(entity.key)}"
        )

    @cached_property
    def insert(self) -> Sql:
        """Write one new row; only what the server gives comes back."""
        entity = self._entity
        return Sql(insert_sql(entity) + _returning(entity.returned))

    @cached_property
    def insert_many(self) -> Sql:
        """Write new rows from one array per column, in order."""
        entity = self._entity
        return Sql(insert_many_sql(entity) + _returning(entity.returned))

    @cached_property
    def delete(self) -> Sql:
        """Delete the row with a key."""
        entity = self._entity
        return Sql(
            f"DELETE FROM {entity.quoted} WHERE {key_equals(entity.key)}"  # noqa: S608 - quoted
        )

    @cached_property
    def delete_version(self) -> Sql:
        """Delete the row with a key, if it is still at a version."""
        entity = self._entity
        assert entity.version is not None  # noqa: S101 - the caller looked
        return Sql(
            f"{self.delete} AND {entity.version.quoted} = ${len(entity.key) + 1}"
        )

    @cached_property
    def delete_many(self) -> Sql:
        """Delete the rows with keys, given as one array per key column."""
        entity = self._entity
        return Sql(f"DELETE FROM {entity.quoted} WHERE {key_condition(entity.key)}")  # noqa: S608 - quoted

    @cached_property
    def get_many(self) -> Sql:
        """Read the rows with keys, given as one array per key column."""
        entity = self._entity
        return Sql(
            f"SELECT {entity.select_list} FROM {entity.quoted} "  # noqa: S608 - quoted
            f"WHERE {key_condition(entity.key)}"
        )

    def update(self, fields: tuple[str, ...], *, versioned: bool) -> Sql:
        """Change some fields of the row with a key and return all of it.

        Parameters: the key, the fields' values, the version if *versioned*.
        """
        try:
            return self._updates[fields, versioned]
        except KeyError:
            entity = self._entity
            sql = self._updates[fields, versioned] = Sql(
                f"{update_sql(entity, fields, versioned=versioned)} "
                f"RETURNING {entity.select_list}"
            )
            return sql

    def upsert(self, on: tuple[Stored, ...], *, many: bool) -> Sql:
        """Write a row, or change the one with the same values in *on*.

        Returns *created* first, then what ``upsert_returned()`` lists.
        """
        known = ("upsert", on, many)
        if known not in self._others:
            entity = self._entity
            insert = insert_many_sql(entity) if many else insert_sql(entity)
            returned = upsert_returned(entity, on, many=many)
            self._others[known] = Sql(
                f"{upsert_sql(entity, on, insert)} "
                # A row that this statement inserted has no deleting transaction.
                f"RETURNING {', '.join(['xmax = 0', *(r.quoted for r in returned)])}"
            )
        return self._others[known]

    def insert_missing(self, on: tuple[Stored, ...]) -> Sql:
        """Write a row unless one has the same values in *on*."""
        known = ("insert_missing", on)
        if known not in self._others:
            entity = self._entity
            target = ", ".join(item.quoted for item in on)
            returned = ", ".join(["TRUE", *(r.quoted for r in entity.returned)])
            self._others[known] = Sql(
                f"{insert_sql(entity)} ON CONFLICT ({target}) DO NOTHING "
                f"RETURNING {returned}"
            )
        return self._others[known]

    def get_by(self, on: tuple[Stored, ...]) -> Sql:
        """Read the row with some values in *on*."""
        known = ("get_by", on)
        if known not in self._others:
            entity = self._entity
            self._others[known] = Sql(
                f"SELECT {entity.select_list} FROM {entity.quoted} "  # noqa: S608 - quoted
                f"WHERE {key_equals(on)}"
            )
        return self._others[known]


def upsert_returned(
    entity: Entity[Any], on: Sequence[Stored], *, many: bool
) -> tuple[Stored, ...]:
    """Return the fields whose stored values an upsert has to read back.

    What the server gives; the key, which a conflict on other fields keeps; the
    version, which it raises; and *on* itself, to tell the rows of a batch apart.
    """
    wanted = {item.field for item in entity.returned}
    if tuple(on) != entity.key:
        wanted |= {item.field for item in entity.key}
    if entity.version is not None:
        wanted.add(entity.version.field)
    if many:
        wanted |= {item.field for item in on}
    return tuple(item for item in entity.stored if item.field in wanted)


def insert_sql(entity: Entity[Any]) -> str:
    """Return the INSERT of one row."""
    names = ", ".join(item.quoted for item in entity.inserted)
    places = ", ".join(f"${at}" for at in range(1, len(entity.inserted) + 1))
    if not names:
        return f"INSERT INTO {entity.quoted} DEFAULT VALUES"
    return f"INSERT INTO {entity.quoted} ({names}) VALUES ({places})"  # noqa: S608 - quoted


def insert_many_sql(entity: Entity[Any]) -> str:
    """Return the INSERT of many rows, from one array per column."""
    names = ", ".join(item.quoted for item in entity.inserted)
    columns = [f"c{at}" for at in range(1, len(entity.inserted) + 1)]
    values = ", ".join(
        item.kind.bulk_expression(f"u.{column}")
        for item, column in zip(entity.inserted, columns, strict=True)
    )
    return (
        f"INSERT INTO {entity.quoted} ({names}) SELECT {values} "  # noqa: S608 - quoted
        f"FROM unnest({arrays(entity.inserted)}) AS u ({', '.join(columns)})"
    )


def arrays(fields: Sequence[Stored], first: int = 1) -> str:
    """Return one array placeholder per field."""
    return ", ".join(
        f"${at}::{item.kind.bulk_type()}[]" for at, item in enumerate(fields, first)
    )


def key_equals(key: Sequence[Stored]) -> str:
    """Return the condition that finds one key."""
    return " AND ".join(f"{item.quoted} = ${at}" for at, item in enumerate(key, 1))


def key_condition(key: Sequence[Stored]) -> str:
    """Return the condition that finds many keys, one array per key column."""
    if len(key) == 1:
        return f"{key[0].quoted} = ANY($1::{key[0].kind.sql}[])"
    names = ", ".join(item.quoted for item in key)
    return f"({names}) IN (SELECT * FROM unnest({arrays(key)}))"  # noqa: S608 - quoted


def update_sql(entity: Entity[Any], fields: Sequence[str], *, versioned: bool) -> str:
    """Return the UPDATE of some fields of one row."""
    place = len(entity.key)
    sets = [
        f"{entity.by_field[name].quoted} = ${place + at}"
        for at, name in enumerate(fields, 1)
    ]
    condition = key_equals(entity.key)
    if entity.version is not None:
        quoted = entity.version.quoted
        sets.append(f"{quoted} = {quoted} + 1")
        if versioned:
            condition += f" AND {quoted} = ${place + len(fields) + 1}"
    return f"UPDATE {entity.quoted} SET {', '.join(sets)} WHERE {condition}"  # noqa: S608 - quoted


def upsert_sql(entity: Entity[Any], on: Sequence[Stored], insert: str) -> str:
    """Return *insert* so that it changes the row that is in its way."""
    target = ", ".join(item.quoted for item in on)
    fixed = {item.field for item in (*on, *entity.key)}
    if entity.version is not None:
        fixed.add(entity.version.field)
    sets = [
        f"{item.quoted} = EXCLUDED.{item.quoted}"
        for item in entity.inserted
        if item.field not in fixed
    ]
    if entity.version is not None:
        quoted = entity.version.quoted
        sets.append(f"{quoted} = {entity.quoted}.{quoted} + 1")
    if not sets:
        # DO NOTHING would return no row; this changes nothing and returns it.
        sets = [f"{on[0].quoted} = EXCLUDED.{on[0].quoted}"]
    return f"{insert} ON CONFLICT ({target}) DO UPDATE SET {', '.join(sets)}"


def _returning(fields: Sequence[Stored]) -> str:
    if not fields:
        return ""
    return f" RETURNING {', '.join(item.quoted for item in fields)}"
