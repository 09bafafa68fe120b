"""Writing one record: create, get or create, upsert.

Every microsecond counts here: a call is one look at the values, one statement,
and nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from fm_storage.errors import InvalidRecord, SerializationFailed
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.rows.bound import (
    Bound,
    despite_race,
    first_of,
    hooked,
    only,
    suppressed,
)
from fm_storage.repositories.rows.hooks import Change

M = TypeVar("M")

_ATTEMPTS = 20
"""Looks at a row that others delete and create again all the time."""
_PAUSE = 0.002
"""Seconds by which the pause between two attempts may grow."""


async def create(
    bound: Bound[M], record: M, vector: Vector | None, payload: Payload | None
) -> M:
    """Do what ``Repository.create()`` promises."""
    if bound.hooks.any and bound.hooks.wants("create"):
        return await hooked(
            bound,
            Change("create", (record,)),
            lambda inner: create(inner, record, vector, payload),
            only,
        )
    entity = bound.entity
    values = entity.insert_values(record)
    points = None
    sql = bound.statements.insert
    if vector is not None or payload is not None:
        points = bound.pointed(vector, payload)
        assert points is not None
        sql = points.insert()
        values = [*values, *points.values(vector, payload), points.collection]
    try:
        if not entity.returned:
            if (await bound.executor.execute(sql, *values)).endswith(" 0"):
                raise suppressed(entity)
        else:
            row = await bound.executor.fetchrow(sql, *values)
            if row is None:
                raise suppressed(entity)
            record = entity.completed(record, entity.returned, tuple(row))
    except InvalidRecord as exc:
        raise entity.named(exc, entity.inserted) from exc
    if points is not None:
        points.wake()
    return record


async def get_or_create(
    bound: Bound[M], record: M, on: str | Sequence[str] | None
) -> tuple[M, bool]:
    """Do what ``Repository.get_or_create()`` promises."""
    if bound.hooks.any and bound.hooks.wants("create"):
        return await hooked(
            bound,
            Change("create", (record,)),
            lambda inner: get_or_create(inner, record, on),
            first_of,
        )
    entity = bound.entity
    target = bound.target(on)
    values = entity.insert_values(record)
    sought = [item.encode(getattr(record, item.field)) for item in target]
    get_by = bound.statements.get_by(target)
    insert_missing = bound.statements.insert_missing(target)
    claim = bound.statements.claim(target)
    for attempt in range(_ATTEMPTS):
        if attempt:  # out of step with the one that deletes the row each time
            await asyncio.sleep(random.uniform(0.0, _PAUSE * attempt))
        row = await bound.executor.fetchrow(get_by, *sought)
        if row is not None:
            return entity.from_row(row), False
        # Another task may write the row between these two statements: then no
        # row comes back here, and the next look finds theirs.
        try:
            row = await despite_race(
                bound, partial(bound.executor.fetchrow, insert_missing, *values)
            )
        except InvalidRecord as exc:
            raise entity.named(exc, entity.inserted) from exc
        if row is not None:
            return entity.from_row(row), True
        if attempt:
            # Something is in the way that is not found by the values given: the
            # server stores them in another spelling, or a trigger or policy does
            # not let the row in.
            row = await bound.executor.fetchrow(claim, *values)
            if row is None:
                raise suppressed(entity)
            created, *stored = row
            found = entity.from_row(stored)
            if created or not entity.is_deleted(found):
                return found, created
    raise SerializationFailed(
        f"{entity.name}: the row with key {entity.shown(sought)!r} comes and goes "
        f"faster than it can be read ({_ATTEMPTS} attempts); try again",
        sqlstate="40001",
        table=entity.name,
    )


async def upsert(
    bound: Bound[M],
    record: M,
    on: str | Sequence[str] | None,
    vector: Vector | None,
    payload: Payload | None,
) -> tuple[M, bool]:
    """Do what ``Repository.upsert()`` promises."""
    if bound.hooks.any and bound.hooks.wants("upsert"):
        return await hooked(
            bound,
            Change("upsert", (record,)),
            lambda inner: upsert(inner, record, on, vector, payload),
            first_of,
        )
    entity = bound.entity
    target = bound.target(on)
    values = entity.insert_values(record)
    points = bound.pointed(vector, payload)
    sql = bound.statements.upsert(target)
    if points is not None:
        sql = points.upsert(target)
        values = [*values, *points.values(vector, payload), points.collection]
    try:
        row = await despite_race(bound, partial(bound.executor.fetchrow, sql, *values))
    except InvalidRecord as exc:
        raise entity.named(exc, entity.inserted) from exc
    if row is None:
        raise suppressed(entity)
    if points is not None:
        points.wake()
    created, *stored = row
    return entity.from_row(stored), created
