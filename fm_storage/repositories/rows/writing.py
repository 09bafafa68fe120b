"""The writing half of a repository: one record at a time.

Apart from the bulk writes because here every microsecond counts: a call is one
check of the values, one statement, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from fm_storage.errors import InvalidRecord, SerializationFailed
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.query.statements import missing_returned, upsert_returned
from fm_storage.repositories.rows.hooks import Change
from fm_storage.repositories.rows.writer import Writer, one, the_created

__all__ = ["Writes"]

M = TypeVar("M")

_ATTEMPTS = 20
"""Looks at a row that others delete and create again all the time."""
_PAUSE = 0.002
"""Seconds by which the pause between two attempts may grow."""


class Writes(Writer[M]):
    """An entity's rows, written one by one through one executor."""

    async def create(
        self,
        record: M,
        *,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> M:
        """Write a new row, and with it what its point should be.

        If cancelled, the row may or may not be written; its key tells.

        Args:
            record: The new row.
            vector: Of its point in the repository's collection: numbers, a sparse
                vector, or several by name. None with a payload: to be embedded.
            payload: Of its point.

        Returns:
            *record* itself, or, where the server gives values, a new one.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            DuplicateRecord: A row with this key, or another unique value, exists.
            ForeignKeyViolated: A row it refers to is missing.
            CheckViolated: A check constraint refuses it.
            NotNullViolated: A column that is no field must have a value.
        """
        if self.hooks.any and self.hooks.wants("create"):
            return await self._hooked(
                Change("create", (record,)),
                lambda inner: inner.create(record, vector=vector, payload=payload),
                one,
            )
        entity = self.entity
        values = entity.insert_values(record)
        try:
            if vector is not None or payload is not None:
                return await self._create_point(record, values, vector, payload)
            if not entity.returned:
                await self.executor.execute(self._sql.insert, *values)
                return record
            row = await self.executor.fetchrow(self._sql.insert, *values)
        except InvalidRecord as exc:
            raise entity.named(exc, entity.inserted) from exc
        return entity.completed(record, entity.returned, tuple(row or ()))

    async def _create_point(
        self,
        record: M,
        values: Sequence[Any],
        vector: Vector | None,
        payload: Payload | None,
    ) -> M:
        points = self._pointed(vector, payload)
        assert points is not None
        entity = self.entity
        point = points.values(vector, payload)
        if not entity.returned:
            await self.executor.execute(
                points.insert(), *values, points.collection, *point
            )
            points.wake()
            return record
        row = await self.executor.fetchrow(
            points.insert(), *values, points.collection, *point
        )
        points.wake()
        return entity.completed(record, entity.returned, tuple(row or ()))

    async def get_or_create(
        self, record: M, *, on: str | Sequence[str] | None = None
    ) -> tuple[M, bool]:
        """Return the row with the same values in *on*, or write *record*.

        Any number of tasks and processes may do this at once: exactly one creates
        the row, and all get it. A row that was deleted softly counts as none: it
        is made *record* and live again, and that is creating it; its point stays
        deleted until one is written.

        Args:
            record: Written if there is no such row.
            on: Fields with a unique constraint (default: the key).

        Returns:
            The stored record, and whether this call created it.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            SerializationFailed: Inside a transaction that may not see the row
                which is in the way; run the transaction again.
        """
        if self.hooks.any and self.hooks.wants("create"):
            return await self._hooked(
                Change("create", (record,)),
                lambda inner: inner.get_or_create(record, on=on),
                the_created,
            )
        entity = self.entity
        target = self._target(on)
        values = entity.insert_values(record)
        sought = [item.encode(getattr(record, item.field)) for item in target]
        for attempt in range(_ATTEMPTS):
            if attempt:  # out of step with whoever deletes the row each time
                await asyncio.sleep(random.uniform(0.0, _PAUSE * attempt))
            row = await self.executor.fetchrow(self._sql.get_by(target), *sought)
            if row is not None:
                return entity.from_row(row), False
            try:
                row = await self.executor.fetchrow(
                    self._sql.insert_missing(target), *values
                )
            except InvalidRecord as exc:
                raise entity.named(exc, entity.inserted) from exc
            if row is not None:
                returned = missing_returned(entity, target)
                return entity.completed(record, returned, tuple(row)[1:]), True
        raise SerializationFailed(
            f"{entity.name}: the row with key {entity.shown(sought)!r} comes and goes "
            f"faster than it can be read ({_ATTEMPTS} attempts); try again",
            sqlstate="40001",
            table=entity.name,
        )

    async def upsert(
        self,
        record: M,
        *,
        on: str | Sequence[str] | None = None,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> tuple[M, bool]:
        """Write a row, or change the one that has the same values in *on*.

        One statement, so that any number of tasks and processes may do this at
        once. An existing row keeps its key; its version, if there is one, rises.
        One that was deleted softly is live again, as *record* says, but was not
        created; its point comes back only with a vector or payload.

        Args:
            record: What the row shall be.
            on: Fields with a unique constraint (default: the key).
            vector: Of its point; None with a payload: to be embedded.
            payload: Of its point.

        Returns:
            The stored record, and whether this call created it.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            QueryFailed: *on* has no unique constraint (42P10), among others.
        """
        if self.hooks.any and self.hooks.wants("upsert"):
            return await self._hooked(
                Change("upsert", (record,)),
                lambda inner: inner.upsert(
                    record, on=on, vector=vector, payload=payload
                ),
                the_created,
            )
        entity = self.entity
        target = self._target(on)
        values = entity.insert_values(record)
        points = self._pointed(vector, payload)
        if points is None:
            sql = self._sql.upsert(target, many=False)
        else:
            sql = points.upsert(target)
            values = [*values, points.collection, *points.values(vector, payload)]
        try:
            row = await self.executor.fetchrow(sql, *values)
        except InvalidRecord as exc:
            raise entity.named(exc, entity.inserted) from exc
        if points is not None:
            points.wake()
        created, *stored = tuple(row or ())
        returned = upsert_returned(entity, target, many=False)
        return entity.completed(record, returned, stored), created
