"""Reading: by key, by filters, in pages, as a stream.

None of it needs a transaction, a hook or a vector: one SELECT sees one snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.executor import Record
from fm_storage.postgres.sql import Sql
from fm_storage.postgres.typed_rows import Records
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.query.filters import Filter, Parameters
from fm_storage.repositories.query.ordering import OrderBy, order_sql, orders
from fm_storage.repositories.query.paging import (
    Page,
    decode_cursor,
    encode_cursor,
    keyset,
    page_order,
)
from fm_storage.repositories.query.statements import key_equals
from fm_storage.repositories.rows.bound import Bound
from fm_storage.repositories.rows.unreadable import named_unreadable

M = TypeVar("M")

_BIGGEST = (1 << 63) - 1


async def find_by_id(
    bound: Bound[M], key: object, *, for_update: bool = False
) -> M | None:
    """Do what ``Repository.find_by_id()`` promises, for ``get_by_id()`` too."""
    entity = bound.entity
    sql = bound.statements.get
    if for_update:
        sql = Sql(sql.text + bound.lock(for_update=True, skip_locked=False))
    values = (key,) if isinstance(key, entity.plain_key) else entity.key_values(key)
    try:
        row = await bound.executor.fetchrow(sql, *values)
    except InvalidRecord as exc:
        condition = f" WHERE {key_equals(entity.key)}"
        raise await named_unreadable(bound, exc, condition, values) from exc
    return None if row is None else entity.from_row(row)


async def find_many(
    bound: Bound[M],
    filters: Sequence[Filter],
    order_by: OrderBy | None,
    limit: int | None,
    lock: str = "",
) -> list[M]:
    """Do what ``Repository.find_many()`` promises."""
    sql, parameters = _select(bound, filters, order_by, limit, lock)
    return bound.entity.from_rows(await _fetch(bound, filters, sql, parameters))


async def _fetch(
    bound: Bound[M], filters: Sequence[Filter], sql: Sql, values: Sequence[Any]
) -> list[Record]:
    """Read rows; if one holds what Python cannot hold, name it."""
    try:
        return await bound.executor.fetch(sql, *values)
    except InvalidRecord as exc:
        raise await _named(bound, filters, exc) from exc


async def _named(
    bound: Bound[M], filters: Sequence[Filter], exc: InvalidRecord
) -> InvalidRecord:
    parameters = Parameters()
    condition = bound.condition(filters, parameters)
    return await named_unreadable(bound, exc, condition, parameters.values)


async def page(
    bound: Bound[M],
    filters: Sequence[Filter],
    order_by: OrderBy | None,
    size: int,
    cursor: str | None,
    *,
    total: bool,
) -> Page[M]:
    """Do what ``Repository.page()`` promises."""
    entity = bound.entity
    if size == 0:
        raise InvalidRecord("page: size 0 holds nothing; give 1 or more", field="size")
    steps = page_order(entity, orders(entity, order_by))
    parameters = Parameters()
    condition = bound.condition(filters, parameters)
    matched = list(parameters.values)
    place = condition
    if cursor is not None:
        values = decode_cursor(entity, steps, condition, cursor)
        after = keyset(entity, steps, values, parameters)
        place = f"{condition} AND {after}" if condition else f" WHERE {after}"
    limit = parameters.add(_limit(size) + 1)
    sql = _select_sql(entity, f"{place}{order_sql(entity, steps)} LIMIT {limit}")
    items = entity.from_rows(await _fetch(bound, filters, sql, parameters.values))
    following = None
    if len(items) > size:
        del items[size:]
        following = encode_cursor(entity, steps, condition, items[-1])
    number = await _count(bound, condition, matched) if total else None
    return Page(items, following, number)


def stream(
    bound: Bound[M], filters: Sequence[Filter], order_by: OrderBy | None, prefetch: int
) -> AbstractAsyncContextManager[AsyncIterator[M]]:
    """Do what ``Repository.stream()`` promises; wrong arguments raise at once."""
    sql, parameters = _select(bound, filters, order_by, None)
    opened = bound.executor.stream(sql, *parameters, prefetch=prefetch)
    return Records(opened, partial(_records, bound, filters))


async def _records(
    bound: Bound[M], filters: Sequence[Filter], rows: AsyncIterator[Record]
) -> AsyncGenerator[M, None]:
    from_row = bound.entity.from_row
    try:
        async for row in rows:
            yield from_row(row)
    except InvalidRecord as exc:
        raise await _named(bound, filters, exc) from exc


async def count(bound: Bound[M], filters: Sequence[Filter]) -> int:
    """Do what ``Repository.count()`` promises."""
    parameters = Parameters()
    condition = bound.condition(filters, parameters)
    return await _count(bound, condition, parameters.values)


async def exists(bound: Bound[M], filters: Sequence[Filter]) -> bool:
    """Do what ``Repository.exists()`` promises."""
    parameters = Parameters()
    condition = bound.condition(filters, parameters)
    found: bool = await bound.executor.fetchval(
        Sql(f"SELECT EXISTS (SELECT FROM {bound.entity.quoted}{condition})"),
        *parameters.values,
    )
    return found


async def _count(bound: Bound[M], condition: str, values: Sequence[Any]) -> int:
    number: int = await bound.executor.fetchval(
        Sql(f"SELECT count(*) FROM {bound.entity.quoted}{condition}"), *values
    )
    return number


def _select(
    bound: Bound[M],
    filters: Sequence[Filter],
    order_by: OrderBy | None,
    limit: int | None,
    lock: str = "",
) -> tuple[Sql, list[Any]]:
    entity = bound.entity
    parameters = Parameters()
    rest = bound.condition(filters, parameters)
    rest += order_sql(entity, orders(entity, order_by))
    if limit is not None:
        rest += f" LIMIT {parameters.add(_limit(limit))}"
    return _select_sql(entity, rest + lock), parameters.values


def _select_sql(entity: Entity[M], rest: str) -> Sql:
    return Sql(f"SELECT {entity.select_list} FROM {entity.quoted}{rest}")


def _limit(number: object) -> int:
    """Return *number* if it can be a LIMIT.

    Raises:
        InvalidRecord: It is no whole number from 0.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidRecord(
            f"limit: {number!r} is not a whole number; give one", field="limit"
        )
    if not 0 <= number < _BIGGEST:
        raise InvalidRecord(
            f"limit: {number} is out of range; give one from 0", field="limit"
        )
    return number
