"""Writing many records at a time, all or none: arrays to 5,000 rows, COPY above."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.executor import Executor
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.query.statements import upsert_returned
from fm_storage.repositories.rows import writing
from fm_storage.repositories.rows.bad_row import naming_bad_row
from fm_storage.repositories.rows.bound import Bound, all_of, hooked
from fm_storage.repositories.rows.hooks import Change

__all__ = ["COPY_ABOVE", "copy", "create_many", "upsert_many"]

M = TypeVar("M")

COPY_ABOVE = 5000
"""Rows above which COPY beats arrays, whose elements the server unpacks."""

_CHUNK = 2000


async def create_many(
    bound: Bound[M],
    records: Iterable[M],
    vectors: Sequence[Vector | None] | None,
    payloads: Sequence[Payload | None] | None,
) -> list[M]:
    """Do what ``Repository.create_many()`` promises."""
    batch = list(records)
    if not batch:
        return []
    if bound.hooks.any and bound.hooks.wants("create"):
        return await hooked(
            bound,
            Change("create", batch),
            lambda inner: create_many(inner, batch, vectors, payloads),
            all_of,
        )
    entity = bound.entity
    points = bound.pointed(vectors, payloads)
    if points is not None:
        if any(item.generated for item in entity.key):
            return await _one_by_one(bound, batch, vectors, payloads)
        together = points.columns(len(batch), vectors, payloads)
        found = await _with_points(bound, batch, entity.key, together, upsert=False)
        return [record for record, _ in found]
    copied = len(batch) > COPY_ABOVE and entity.copied
    columns = entity.insert_columns(batch, copy=copied)
    if copied:
        await naming_bad_row(bound, batch, lambda to: copy(bound, to, batch, columns))
        return batch
    rows = await naming_bad_row(
        bound, batch, lambda to: _in_chunks(to, bound.statements.insert_many, columns)
    )
    if not entity.returned:
        return batch
    return [
        entity.completed(record, entity.returned, tuple(row))
        for record, row in zip(batch, rows, strict=True)
    ]


async def upsert_many(
    bound: Bound[M],
    records: Iterable[M],
    on: str | Sequence[str] | None,
    vectors: Sequence[Vector | None] | None,
    payloads: Sequence[Payload | None] | None,
) -> list[tuple[M, bool]]:
    """Do what ``Repository.upsert_many()`` promises."""
    batch = list(records)
    if not batch:
        return []
    if bound.hooks.any and bound.hooks.wants("upsert"):
        return await hooked(
            bound,
            Change("upsert", batch),
            lambda inner: upsert_many(inner, batch, on, vectors, payloads),
            lambda found: [record for record, _ in found],
        )
    target = bound.target(on)
    points = bound.pointed(vectors, payloads)
    if points is not None:
        together = points.columns(len(batch), vectors, payloads)
        return await _with_points(bound, batch, target, together, upsert=True)
    columns = bound.entity.insert_columns(batch)
    places = _places(target, batch)
    ordered = _in_order(places, columns)
    sql = bound.statements.upsert(target, many=True)
    found = await naming_bad_row(
        bound, batch, lambda to: _in_chunks(to, sql, ordered), on=target
    )
    returned = upsert_returned(bound.entity, target, many=True)
    return _matched(bound, target, batch, places, found, returned=returned)


async def copy(
    bound: Bound[M],
    executor: Executor,
    batch: list[M],
    columns: Sequence[Sequence[Any]],
) -> None:
    """Write *columns*, the values of *batch* made for it, by COPY."""
    entity = bound.entity
    try:
        await executor.copy_records(
            entity.table,
            schema=entity.schema,
            columns=[item.column for item in entity.inserted],
            records=entity.outgoing(columns),
        )
    except InvalidRecord:
        # A JSON value was changed while others were sent: a second look names
        # the field. Else the column is narrower than in the model.
        entity.insert_columns(batch, copy=True)
        raise


async def _in_chunks(
    executor: Executor, sql: Sql, columns: Sequence[Sequence[Any]], *last: object
) -> list[Any]:
    """Run *sql*, which takes an array per column and *last*; return all its rows."""
    count = len(columns[0])
    if count <= COPY_ABOVE:
        return await executor.fetch(sql, *columns, *last)
    async with executor.transaction() as transaction:
        return [
            row
            for at in range(0, count, _CHUNK)
            for row in await transaction.fetch(
                sql, *(values[at : at + _CHUNK] for values in columns), *last
            )
        ]


async def _one_by_one(
    bound: Bound[M],
    batch: list[M],
    vectors: Sequence[Vector | None] | None,
    payloads: Sequence[Payload | None] | None,
) -> list[M]:
    """Write rows whose ids, and so whose points' ids, only the server knows."""
    async with bound.executor.transaction() as transaction:
        inner = replace(bound, executor=transaction)
        return [
            await writing.create(
                inner,
                record,
                None if vectors is None else vectors[at],
                (payloads[at] if payloads is not None else None) or {},
            )
            for at, record in enumerate(batch)
        ]


async def _with_points(
    bound: Bound[M],
    batch: list[M],
    target: tuple[Stored, ...],
    points: list[list[Any]],
    *,
    upsert: bool,
) -> list[tuple[M, bool]]:
    """Write rows and points together, from arrays."""
    to = bound.points
    assert to is not None
    columns = bound.entity.insert_columns(batch)
    places = _places(target, batch)
    keys = [
        item.type.encode_many([getattr(record, item.field) for record in batch])
        for item in target
    ]
    ordered = _in_order(places, (*columns, *keys, *points))
    sql = to.many(target, upsert=upsert)
    found = await naming_bad_row(
        bound,
        batch,
        lambda executor: _in_chunks(executor, sql, ordered, to.collection),
        on=target if upsert else None,
    )
    to.wake()
    returned = upsert_returned(bound.entity, target, many=True)
    if not upsert:
        wanted = (*target, *bound.entity.returned)
        returned = tuple(item for item in bound.entity.stored if item in wanted)
    return _matched(bound, target, batch, places, found, returned=returned)


def _places(target: tuple[Stored, ...], batch: list[Any]) -> dict[tuple[Any, ...], int]:
    """Return where each value of *target* stands in the batch.

    Raises:
        InvalidRecord: Two records have the same values.
    """
    places: dict[tuple[Any, ...], int] = {}
    encoded = [
        [item.type.encode(getattr(record, item.field)) for record in batch]
        for item in target
    ]
    for at, values in enumerate(zip(*encoded, strict=True)):
        first = places.setdefault(values, at)
        if first != at:
            raise InvalidRecord(
                f"record {at}: the same "
                f"{', '.join(item.field for item in target)} as record {first}; "
                "give each once",
                field=target[0].field,
                index=at,
            )
    return places


def _in_order(
    places: dict[tuple[Any, ...], int], columns: Iterable[Sequence[Any]]
) -> list[list[Any]]:
    """Return *columns* in the order of the keys in *places*.

    Batches of several tasks lock rows in this order, and wait for each other
    instead of deadlocking.
    """
    keys = list(places)
    order = sorted(range(len(keys)), key=_sort_key(keys))
    return [[values[at] for at in order] for values in columns]


def _sort_key(values: list[tuple[Any, ...]]) -> Callable[[int], Any]:
    """Return the sort key of a position: the values, or their text."""
    try:
        sorted(values[:2])
    except TypeError:
        return lambda at: repr(values[at])
    if any(None in value for value in values):
        return lambda at: repr(values[at])
    return values.__getitem__


def _matched(
    bound: Bound[M],
    target: tuple[Stored, ...],
    batch: list[M],
    places: dict[tuple[Any, ...], int],
    rows: list[Any],
    *,
    returned: tuple[Stored, ...],
) -> list[tuple[M, bool]]:
    """Put the returned rows where their records stand in the batch."""
    at_target = [1 + returned.index(item) for item in target]
    found: list[Any] = [None] * len(batch)
    for row in rows:
        created, *stored = values = tuple(row)
        at = places[tuple(values[place] for place in at_target)]
        record = batch[at]
        if returned != target:
            record = bound.entity.completed(record, returned, stored)
        found[at] = (record, created)
    return found
