"""Rows that go, for good or until they are restored.

A soft deletion is an UPDATE that means a DELETE: to readers the row is gone, to
the vector store its point is; what both need to come back is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidRecord,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.query.filters import Filter
from fm_storage.repositories.query.point_statements import Points
from fm_storage.repositories.query.statements import statements_of
from fm_storage.repositories.rows.bound import (
    Bound,
    as_list,
    hooked,
    only,
    suppressed,
)
from fm_storage.repositories.rows.hooks import Change

M = TypeVar("M")


async def delete(bound: Bound[M], record_or_key: object, *, erase: bool) -> bool:
    """Do what ``Repository.delete()`` and ``erase()`` promise."""
    entity = bound.entity
    key, expected, records = _meant(entity, record_or_key)
    if bound.hooks.any and bound.hooks.wants("delete"):
        return await hooked(
            bound,
            Change("delete", records, (entity.shown(key),)),
            lambda inner: delete(inner, record_or_key, erase=erase),
            None,
        )
    versioned = expected is not None
    arguments = (*key, expected) if versioned else key
    get = (statements_of(entity, every=True) if erase else bound.statements).get
    for _ in range(2):  # another task may write the row after the first look
        if await _removed(
            bound,
            bound.statements.remove(versioned=versioned, erase=erase),
            lambda points: points.delete(versioned=versioned, erase=erase),
            arguments,
        ):
            return True
        row = await bound.executor.fetchrow(get, *key)
        if row is None:
            break
        there = entity.from_row(row)
        if (entity.is_deleted(there) and not erase) or (
            versioned and entity.version_of(there) != expected
        ):
            break
    else:
        raise suppressed(entity)
    if versioned:
        raise StaleRecord(entity.name, entity.shown(key), version=expected or 0)
    return False


async def delete_many(bound: Bound[M], keys: Iterable[Any]) -> int:
    """Do what ``Repository.delete_many()`` promises."""
    if isinstance(keys, Filter):
        raise InvalidRecord(
            f"{bound.entity.name}: delete_many() takes keys, not a filter; use "
            "delete_where(), or give the keys of records"
        )
    wanted = as_list(keys, "keys")
    if not wanted:
        return 0
    if bound.hooks.any and bound.hooks.wants("delete"):
        return await hooked(
            bound,
            Change("delete", (), wanted),
            lambda inner: delete_many(inner, wanted),
            None,
        )
    if not bound.table.known:
        await bound.look_up()
    columns, many = _key_columns(bound.entity, wanted), bound.table.keys
    if many is None:
        raise InvalidRecord(
            f"{bound.entity.name}: delete_many() takes no keys that are arrays; "
            "delete() them one by one"
        )
    return await _removed(
        bound,
        bound.statements.remove(many=many),
        lambda points: points.delete(many=many),
        columns,
    )


async def restore(bound: Bound[M], record_or_key: object) -> M:
    """Do what ``Repository.restore()`` promises."""
    entity = bound.entity
    _mark(entity)
    key, expected, records = _meant(entity, record_or_key)
    if bound.hooks.any and bound.hooks.wants("restore"):
        return await hooked(
            bound,
            Change("restore", records, (entity.shown(key),)),
            lambda inner: restore(inner, record_or_key),
            only,
        )
    versioned = expected is not None
    arguments: tuple[Any, ...] = (*key, expected) if versioned else key
    sql = bound.statements.restore(versioned=versioned)
    if bound.points is not None:
        sql = bound.points.restore(versioned=versioned)
        arguments = (*arguments, bound.points.collection)
    row = await bound.executor.fetchrow(sql, *arguments)
    if bound.points is not None:
        bound.points.wake()
    if row is not None:
        return entity.from_row(row)
    # It was not deleted, is at another version, or is not there at all.
    row = await bound.executor.fetchrow(statements_of(entity, every=True).get, *key)
    if row is None:
        raise RecordNotFound(entity.name, entity.shown(key))
    found = entity.from_row(row)
    if versioned and entity.version_of(found) != expected:
        raise StaleRecord(entity.name, entity.shown(key), version=expected or 0)
    if entity.is_deleted(found):
        raise suppressed(entity)
    return found


async def purge(bound: Bound[M], before: datetime) -> int:
    """Do what ``Repository.purge()`` promises."""
    moment = _mark(bound.entity).encode(before)
    purge_sql = bound.statements.purge
    return await _removed(bound, purge_sql, Points.purge, (moment,))


async def _removed(
    bound: Bound[M],
    rows: Sql,
    with_points: Callable[[Points], Sql],
    arguments: Sequence[Any],
) -> int:
    """Remove rows, and their points if there is a collection; return how many."""
    points = bound.points
    if points is None:
        tag = await bound.executor.execute(rows, *arguments)
        return int(tag.rpartition(" ")[2])
    number: int = await bound.executor.fetchval(
        with_points(points), *arguments, points.collection
    )
    points.wake()
    return number


def _key_columns(entity: Entity[M], wanted: list[Any]) -> list[Sequence[Any]]:
    if len(entity.key) == 1 and set(map(type, wanted)) <= entity.key[0].type.exact:
        return [entity.key[0].type.encode_many(wanted)]
    values = [entity.key_values(key) for key in wanted]
    return [
        item.type.encode_many(column)
        for item, column in zip(entity.key, zip(*values, strict=True), strict=True)
    ]


def _mark(entity: Entity[M]) -> Stored:
    """Return the field with the moment of a soft deletion."""
    if entity.deleted is None:
        raise ConfigurationInvalid(
            "deleted",
            f"{entity.name} deletes for good; declare the repository with deleted=",
        )
    return entity.deleted


def _meant(
    entity: Entity[M], record_or_key: object
) -> tuple[tuple[Any, ...], int | None, tuple[M, ...]]:
    """Return the key, the version expected, and the record if it was one."""
    if not isinstance(record_or_key, entity.model):
        return entity.key_values(record_or_key), None, ()
    key, version = entity.stored_key(record_or_key), entity.version_of(record_or_key)
    return key, version, (record_or_key,)
