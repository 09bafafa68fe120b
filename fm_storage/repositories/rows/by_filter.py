"""Changes and deletions of all rows that match, in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.query.filters import Filter, Parameters, by_keys
from fm_storage.repositories.query.statements import rising
from fm_storage.repositories.rows.bound import Bound, as_list
from fm_storage.repositories.rows.hooks import Change, HookTable, Operation
from fm_storage.repositories.rows.updates import changed_fields

M = TypeVar("M")

Filters = Filter | Sequence[Filter]


async def update_where(
    bound: Bound[M],
    filters: Filters,
    values: Mapping[str, Any],
    *,
    everything: bool,
) -> int:
    """Do what ``Repository.update_where()`` promises."""
    entity = bound.entity
    wanted = _wanted(entity, filters, everything=everything)
    fields = changed_fields(entity, values, some=True)
    if bound.hooks.any and bound.hooks.wants("update"):
        return await _hooked(bound, "update", wanted, values)
    parameters = Parameters()
    condition = bound.condition(wanted, parameters)
    sets = [
        f"{item.quoted} = {parameters.add(item.encode(values[item.field]))}"
        for item in fields
    ]
    sql = f"UPDATE {entity.quoted} SET {', '.join(sets)}{rising(entity)}{condition}"
    try:
        tag = await bound.executor.execute(Sql(sql), *parameters.values)
    except InvalidRecord as exc:
        before = [None] * (len(parameters.values) - len(fields))
        raise entity.named(exc, [*before, *fields]) from exc
    return int(tag.rpartition(" ")[2])


async def delete_where(bound: Bound[M], filters: Filters, *, everything: bool) -> int:
    """Do what ``Repository.delete_where()`` promises."""
    entity = bound.entity
    wanted = _wanted(entity, filters, everything=everything)
    if bound.hooks.any and bound.hooks.wants("delete"):
        return await _hooked(bound, "delete", wanted, None)
    parameters = Parameters()
    condition = bound.condition(wanted, parameters)
    sql = f"DELETE FROM {entity.quoted}{condition}"
    if entity.deleted is not None:
        mark = entity.deleted.quoted
        living = f"{condition} AND" if condition else " WHERE"
        sql = (
            f"UPDATE {entity.quoted} SET {mark} = now(){rising(entity)}"
            f"{living} {mark} IS NULL"
        )
    if bound.points is None:
        tag = await bound.executor.execute(Sql(sql), *parameters.values)
        return int(tag.rpartition(" ")[2])
    collection = parameters.add(bound.points.collection)
    number: int = await bound.executor.fetchval(
        bound.points.removal(sql, collection), *parameters.values
    )
    bound.points.wake()
    return number


async def _hooked(
    bound: Bound[M],
    operation: Operation,
    wanted: Sequence[Filter],
    values: Mapping[str, Any] | None,
) -> int:
    """Lock the rows that match, and change just those between the hooks."""
    entity = bound.entity
    parameters = Parameters()
    names = ", ".join(item.quoted for item in entity.key)
    sql = f"SELECT {names} FROM {entity.quoted}{bound.condition(wanted, parameters)}"
    async with bound.executor.transaction() as transaction:
        rows = await transaction.fetch(Sql(f"{sql} FOR UPDATE"), *parameters.values)
        keys = [entity.shown(tuple(row)) for row in rows]
        changes = None if values is None else dict(values)
        change: Change[M] = Change(operation, (), keys, changes)
        await bound.hooks.run("before", transaction, change)
        if not keys:
            return 0
        inner = replace(bound, executor=transaction, hooks=HookTable())
        these = by_keys(entity, keys)
        if changes is None:
            number = await delete_where(inner, these, everything=False)
        else:
            number = await update_where(inner, these, changes, everything=False)
            condition = bound.condition([these], parameters := Parameters())
            sql = f"SELECT {entity.select_list} FROM {entity.quoted}{condition}"
            stored = await transaction.fetch(Sql(sql), *parameters.values)
            change = replace(change, records=entity.from_rows(stored))
        await bound.hooks.run("after", transaction, change)
    return number


def _wanted(
    entity: Entity[M], filters: Filters, *, everything: bool
) -> Sequence[Filter]:
    """Return the filters, of which there is one at least unless all rows are meant.

    Raises:
        InvalidRecord: There is none.
    """
    wanted = (filters,) if isinstance(filters, Filter) else as_list(filters, "filters")
    if not wanted and not everything:
        raise InvalidRecord(
            f"{entity.name}: no filter would mean every row; give one, or "
            "everything=True"
        )
    return wanted
