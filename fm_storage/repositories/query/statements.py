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
    from fm_storage.repositories.model.entity import Entity, Stored

__all__ = [
    "Statements",
    "arrays",
    "insert_many_sql",
    "insert_sql",
    "key_condition",
    "key_equals",
    "missing_returned",
    "purge_sql",
    "removal_sql",
    "restoration_sql",
    "statements_of",
    "update_sql",
    "upsert_returned",
    "upsert_sql",
]


class Statements:
    """The texts of one entity, made when they are first asked for.

    Attributes:
        living: Condition of the rows that are not deleted softly; empty where all
            rows count.
    """

    def __init__(self, entity: Entity[Any], *, every: bool = False) -> None:
        self._entity = entity
        self.living = ""
        if entity.deleted is not None and not every:
            self.living = f"{entity.deleted.quoted} IS NULL"
        self._updates: dict[tuple[tuple[str, ...], bool], Sql] = {}
        self._others: dict[tuple[object, ...], Sql] = {}

    @cached_property
    def get(self) -> Sql:
        """Read the record with a key."""
        entity = self._entity
        return Sql(
            f"SELECT {entity.select_list} FROM {entity.quoted} "
            f"WHERE {key_equals(entity.key)}{self._and_living}"
        )

    @property
    def _and_living(self) -> str:
        return f" AND {self.living}" if self.living else ""

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

    def remove(
        self, *, many: bool = False, versioned: bool = False, erase: bool = False
    ) -> Sql:
        """Delete the row with a key, or those with keys; see ``removal_sql()``."""
        known = ("remove", many, versioned, erase)
        if known not in self._others:
            self._others[known] = Sql(
                removal_sql(self._entity, many=many, versioned=versioned, erase=erase)
            )
        return self._others[known]

    def restore(self, *, versioned: bool) -> Sql:
        """Make a softly deleted row live again and return it."""
        known = ("restore", versioned)
        if known not in self._others:
            self._others[known] = Sql(
                f"{restoration_sql(self._entity, versioned=versioned)} "
                f"RETURNING {self._entity.select_list}"
            )
        return self._others[known]

    @cached_property
    def purge(self) -> Sql:
        """Erase the rows deleted softly before a moment."""
        return Sql(purge_sql(self._entity))

    def update(self, fields: tuple[str, ...], *, versioned: bool) -> Sql:
        """Change some fields of the row with a key and return all of it.

        Parameters: the key, the fields' values, the version if *versioned*.
        """
        try:
            return self._updates[fields, versioned]
        except KeyError:
            entity = self._entity
            sql = self._updates[fields, versioned] = Sql(
                f"{update_sql(entity, fields, versioned=versioned)}"
                f"{self._and_living} RETURNING {entity.select_list}"
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
        """Write a row unless a living one has the same values in *on*.

        Returns TRUE, then what ``missing_returned()`` lists; or no row.
        """
        known = ("insert_missing", on)
        if known not in self._others:
            entity = self._entity
            target = ", ".join(item.quoted for item in on)
            insert = f"{insert_sql(entity)} ON CONFLICT ({target}) DO NOTHING"
            if entity.deleted is not None:
                insert = (
                    f"{upsert_sql(entity, on, insert_sql(entity))} "
                    f"WHERE {entity.quoted}.{entity.deleted.quoted} IS NOT NULL"
                )
            stored = missing_returned(entity, on)
            returned = ", ".join(["TRUE", *(item.quoted for item in stored)])
            self._others[known] = Sql(f"{insert} RETURNING {returned}")
        return self._others[known]

    def get_by(self, on: tuple[Stored, ...]) -> Sql:
        """Read the row with some values in *on*."""
        known = ("get_by", on)
        if known not in self._others:
            entity = self._entity
            self._others[known] = Sql(
                f"SELECT {entity.select_list} FROM {entity.quoted} "
                f"WHERE {key_equals(on)}{self._and_living}"
            )
        return self._others[known]


def statements_of(entity: Entity[Any], *, every: bool = False) -> Statements:
    """Return the entity's statements, made once however often it is bound."""
    if every not in entity.statements:
        entity.statements[every] = Statements(entity, every=every)
    found: Statements = entity.statements[every]
    return found


def missing_returned(entity: Entity[Any], on: Sequence[Stored]) -> tuple[Stored, ...]:
    """Return the fields that ``insert_missing()`` reads back.

    A softly deleted row that comes back keeps its key and raises its version.
    """
    if entity.deleted is None:
        return entity.returned
    return upsert_returned(entity, on, many=False)


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
    return f"INSERT INTO {entity.quoted} ({names}) VALUES ({places})"


def insert_many_sql(entity: Entity[Any]) -> str:
    """Return the INSERT of many rows, from one array per column."""
    names = ", ".join(item.quoted for item in entity.inserted)
    columns = [f"c{at}" for at in range(1, len(entity.inserted) + 1)]
    values = ", ".join(
        item.kind.bulk_expression(f"u.{column}")
        for item, column in zip(entity.inserted, columns, strict=True)
    )
    return (
        f"INSERT INTO {entity.quoted} ({names}) SELECT {values} "
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
    return f"({names}) IN (SELECT * FROM unnest({arrays(key)}))"


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
    return f"UPDATE {entity.quoted} SET {', '.join(sets)} WHERE {condition}"


def removal_sql(
    entity: Entity[Any], *, many: bool, versioned: bool, erase: bool
) -> str:
    """Return the DELETE of rows, or the UPDATE that means one.

    Parameters: the key, or one array per key column if *many*; the version if
    *versioned*.
    """
    condition = key_condition(entity.key) if many else key_equals(entity.key)
    condition += _at_version(entity, versioned=versioned)
    if entity.deleted is None or erase:
        return f"DELETE FROM {entity.quoted} WHERE {condition}"
    mark = entity.deleted.quoted
    return (
        f"UPDATE {entity.quoted} SET {mark} = now(){_rising(entity)} "
        f"WHERE {condition} AND {mark} IS NULL"
    )


def restoration_sql(entity: Entity[Any], *, versioned: bool) -> str:
    """Return the UPDATE that makes a softly deleted row live again."""
    assert entity.deleted is not None
    mark = entity.deleted.quoted
    return (
        f"UPDATE {entity.quoted} SET {mark} = NULL{_rising(entity)} WHERE "
        f"{key_equals(entity.key)}{_at_version(entity, versioned=versioned)} "
        f"AND {mark} IS NOT NULL"
    )


def purge_sql(entity: Entity[Any]) -> str:
    """Return the DELETE of rows deleted softly before a moment."""
    assert entity.deleted is not None
    return f"DELETE FROM {entity.quoted} WHERE {entity.deleted.quoted} < $1"


def _rising(entity: Entity[Any]) -> str:
    if entity.version is None:
        return ""
    return f", {entity.version.quoted} = {entity.version.quoted} + 1"


def _at_version(entity: Entity[Any], *, versioned: bool) -> str:
    if not versioned or entity.version is None:
        return ""
    return f" AND {entity.version.quoted} = ${len(entity.key) + 1}"


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
