"""The constant SQL of an entity, one text for each operation.

A text that never changes is parsed and planned once per connection: the driver
keys its statement cache on it, and the pool needs no reset after it. Values are
parameters, names are quoted, always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.table import Sources

_FOUND = "set_config('fm_storage.found', statement_timestamp()::text, TRUE) IS NOT NULL"
"""Condition of DO UPDATE, always true: leaves word that a row was in the way."""
CREATED = (
    "CASE WHEN current_setting('fm_storage.found', TRUE) = "
    "statement_timestamp()::text "
    "THEN set_config('fm_storage.found', '', TRUE) IS NULL ELSE TRUE END"
)
"""Whether the row that RETURNING is at was inserted; takes the word back.

Rows are written and returned in turn, so the word is the row's own. ``xmax = 0``
does not do: partitioned tables and views have no system columns.
"""


class Texts:
    """Keeps the statements that ``made_once()`` methods have made."""

    def __init__(self) -> None:
        self.made: dict[tuple[object, ...], Sql] = {}


T = TypeVar("T", bound=Texts)
P = ParamSpec("P")


def made_once(
    make: Callable[Concatenate[T, P], str],
) -> Callable[Concatenate[T, P], Sql]:
    """Make a method's text once for each set of arguments."""

    def known(self: T, /, *args: P.args, **options: P.kwargs) -> Sql:
        call = (make, args, *options.items())
        try:
            return self.made[call]
        except KeyError:
            sql = self.made[call] = Sql(make(self, *args, **options))
            return sql

    functools.update_wrapper(known, make)
    return known


class Statements(Texts):
    """The texts of one entity, made when they are first asked for.

    Attributes:
        living: Condition of the rows that are not deleted softly; empty where all
            rows count.
    """

    def __init__(self, entity: Entity[Any], *, every: bool = False) -> None:
        super().__init__()
        self._entity = entity
        self.living = ""
        if entity.deleted is not None and not every:
            self.living = f"{entity.deleted.quoted} IS NULL"
        self._and_living = f" AND {self.living}" if self.living else ""

    @cached_property
    def get(self) -> Sql:
        """Read the record with a key."""
        return self.get_by(self._entity.key)

    @cached_property
    def insert(self) -> Sql:
        """Write one new row; only what the server gives comes back."""
        entity = self._entity
        return Sql(insert_sql(entity) + _returning(entity.returned))

    @made_once
    def insert_many(self, sources: Sources) -> str:
        """Write new rows from one array per column, in order."""
        entity = self._entity
        return insert_many_sql(entity, sources) + _returning(entity.returned)

    @made_once
    def remove(
        self,
        *,
        many: Sources | None = None,
        versioned: bool = False,
        erase: bool = False,
    ) -> str:
        """Delete the row with a key, or those with keys; see ``removal_sql()``."""
        return removal_sql(self._entity, many=many, versioned=versioned, erase=erase)

    @made_once
    def restore(self, *, versioned: bool) -> str:
        """Make a softly deleted row live again and return it."""
        sql = restoration_sql(self._entity, versioned=versioned)
        return f"{sql} RETURNING {self._entity.select_list}"

    @cached_property
    def purge(self) -> Sql:
        """Erase the rows deleted softly before a moment."""
        return Sql(purge_sql(self._entity))

    @made_once
    def update(self, fields: tuple[str, ...], *, versioned: bool) -> str:
        """Change some fields of the row with a key and return all of it.

        Parameters: the key, the fields' values, the version if *versioned*.
        """
        sql = update_sql(self._entity, fields, versioned=versioned)
        return f"{sql}{self._and_living} RETURNING {self._entity.select_list}"

    @made_once
    def upsert(self, on: tuple[Stored, ...], many: Sources | None = None) -> str:
        """Write a row, or change the one with the same values in *on*.

        Returns *created* first, then the whole row: a type may round it and a
        trigger change it.
        """
        entity = self._entity
        insert = insert_many_sql(entity, many) if many else insert_sql(entity)
        insert = upsert_sql(entity, on, insert)
        return f"{insert} RETURNING {CREATED}, {entity.select_list}"

    @made_once
    def claim(self, on: tuple[Stored, ...]) -> str:
        """Write a row, or lock the one with the same values in *on*, unchanged.

        Returns *created* first, then the whole row.
        """
        entity = self._entity
        same = f"{on[0].quoted} = {entity.quoted}.{on[0].quoted}"
        return (
            f"{insert_sql(entity)} ON CONFLICT ({_names(on)}) DO UPDATE SET {same} "
            f"WHERE {_FOUND} RETURNING {CREATED}, {entity.select_list}"
        )

    @made_once
    def insert_missing(self, on: tuple[Stored, ...]) -> str:
        """Write a row unless a living one has the same values in *on*.

        Returns the whole row, or none.
        """
        entity = self._entity
        insert = insert_sql(entity)
        if entity.deleted is None:
            insert += f" ON CONFLICT ({_names(on)}) DO NOTHING"
        else:
            mark = f"{entity.quoted}.{entity.deleted.quoted}"
            insert = f"{upsert_sql(entity, on, insert)} AND {mark} IS NOT NULL"
        return f"{insert} RETURNING {entity.select_list}"

    @made_once
    def get_by(self, on: tuple[Stored, ...]) -> str:
        """Read the row with some values in *on*."""
        entity = self._entity
        return (
            f"SELECT {entity.select_list} FROM {entity.quoted} "
            f"WHERE {key_equals(on)}{self._and_living}"
        )


def statements_of(entity: Entity[Any], *, every: bool = False) -> Statements:
    """Return the entity's statements, made once however often it is bound."""
    if every not in entity.statements:
        entity.statements[every] = Statements(entity, every=every)
    found: Statements = entity.statements[every]
    return found


def insert_sql(entity: Entity[Any]) -> str:
    """Return the INSERT of one row."""
    names = _names(entity.inserted)
    places = ", ".join(f"${at}" for at in range(1, len(entity.inserted) + 1))
    if not names:
        return f"INSERT INTO {entity.quoted} DEFAULT VALUES"
    return f"INSERT INTO {entity.quoted} ({names}) VALUES ({places})"


def insert_many_sql(entity: Entity[Any], sources: Sources) -> str:
    """Return the INSERT of many rows, from one array per column."""
    return (
        f"INSERT INTO {entity.quoted} ({_names(entity.inserted)}) "
        f"{_select_arrays(sources)}"
    )


def _select_arrays(sources: Sources) -> str:
    """Return the SELECT of rows from one array per column."""
    columns = [f"c{at}" for at in range(1, len(sources) + 1)]
    values = ", ".join(
        source.expression.format(f"u.{column}")
        for source, column in zip(sources, columns, strict=True)
    )
    arrays = ", ".join(
        f"${at}::{source.type}[]" for at, source in enumerate(sources, 1)
    )
    return f"SELECT {values} FROM unnest({arrays}) AS u ({', '.join(columns)})"


def key_equals(key: Sequence[Stored]) -> str:
    """Return the condition that finds one key."""
    return " AND ".join(f"{item.quoted} = ${at}" for at, item in enumerate(key, 1))


def key_condition(key: Sequence[Stored], sources: Sources) -> str:
    """Return the condition that finds many keys, one array per key column."""
    if len(key) == 1 and sources[0].expression == "{}":
        return f"{key[0].quoted} = ANY($1::{sources[0].type}[])"
    return f"({_names(key)}) IN ({_select_arrays(sources)})"


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
    entity: Entity[Any], *, many: Sources | None, versioned: bool, erase: bool
) -> str:
    """Return the DELETE of rows, or the UPDATE that means one.

    Parameters: the key, or one array per key column if *many*; the version if
    *versioned*.
    """
    condition = key_condition(entity.key, many) if many else key_equals(entity.key)
    condition += _at_version(entity, versioned=versioned)
    if entity.deleted is None or erase:
        return f"DELETE FROM {entity.quoted} WHERE {condition}"
    mark = entity.deleted.quoted
    return (
        f"UPDATE {entity.quoted} SET {mark} = now(){rising(entity)} "
        f"WHERE {condition} AND {mark} IS NULL"
    )


def restoration_sql(entity: Entity[Any], *, versioned: bool) -> str:
    """Return the UPDATE that makes a softly deleted row live again."""
    assert entity.deleted is not None
    mark = entity.deleted.quoted
    return (
        f"UPDATE {entity.quoted} SET {mark} = NULL{rising(entity)} WHERE "
        f"{key_equals(entity.key)}{_at_version(entity, versioned=versioned)} "
        f"AND {mark} IS NOT NULL"
    )


def purge_sql(entity: Entity[Any]) -> str:
    """Return the DELETE of rows deleted softly before a moment."""
    assert entity.deleted is not None
    return f"DELETE FROM {entity.quoted} WHERE {entity.deleted.quoted} < $1"


def rising(entity: Entity[Any]) -> str:
    """Return what a SET list needs besides, so that the version rises."""
    if entity.version is None:
        return ""
    return f", {entity.version.quoted} = {entity.version.quoted} + 1"


def _at_version(entity: Entity[Any], *, versioned: bool) -> str:
    if not versioned or entity.version is None:
        return ""
    return f" AND {entity.version.quoted} = ${len(entity.key) + 1}"


def upsert_sql(entity: Entity[Any], on: Sequence[Stored], insert: str) -> str:
    """Return *insert* so that it changes the row that is in its way."""
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
    return (
        f"{insert} ON CONFLICT ({_names(on)}) DO UPDATE SET {', '.join(sets)} "
        f"WHERE {_FOUND}"
    )


def _names(fields: Sequence[Stored]) -> str:
    return ", ".join(item.quoted for item in fields)


def _returning(fields: Sequence[Stored]) -> str:
    return f" RETURNING {_names(fields)}" if fields else ""
