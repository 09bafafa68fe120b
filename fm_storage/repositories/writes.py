"""The writing half of a repository: one record at a time.

Apart from the bulk writes because here every microsecond counts: a call is one
check of the values, one statement, and nothing else.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidRecord,
    RecordNotFound,
    SerializationFailed,
    StaleRecord,
)
from fm_storage.repositories.changes import Change, HookTable
from fm_storage.repositories.points import Payload, Points, Vector
from fm_storage.repositories.reads import Reads
from fm_storage.repositories.statements import Statements, upsert_returned

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.entity import Entity, Stored

__all__ = ["Writes"]

M = TypeVar("M")
R = TypeVar("R")

_ATTEMPTS = 20
"""Looks at a row that others delete and create again all the time."""
_PAUSE = 0.002
"""Seconds by which the pause between two attempts may grow."""


class Writes(Reads[M]):
    """An entity's rows, written one by one through one executor."""

    def __init__(
        self,
        executor: Executor,
        entity: Entity[M],
        statements: Statements,
        hooks: HookTable[M],
        points: Points | None = None,
    ) -> None:
        super().__init__(executor, entity, statements)
        self.hooks = hooks
        self.points = points

    def _rebound(self, executor: Executor, hooks: HookTable[M]) -> Self:
        bound = copy.copy(self)
        bound.executor = executor
        bound.hooks = hooks
        return bound

    def _pointed(self, *given: object) -> Points | None:
        """Return what writes points, if any of *given* asks for one.

        Raises:
            ConfigurationInvalid: The repository has no collection.
        """
        if all(item is None for item in given):
            return None
        if self.points is None:
            raise ConfigurationInvalid(
                "collection",
                f"{self.entity.name} has no vectors; declare the repository with "
                "collection=",
            )
        return self.points

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
                _one,
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
        assert points is not None  # noqa: S101 - the caller looked
        row = await self.executor.fetchrow(
            points.insert(),
            *values,
            points.collection,
            *points.values(vector, payload),
        )
        points.wake()
        stored = tuple(row or ())[1:]
        return self.entity.completed(record, self.entity.returned, stored)

    async def get_or_create(
        self, record: M, *, on: str | Sequence[str] | None = None
    ) -> tuple[M, bool]:
        """Return the row with the same values in *on*, or write *record*.

        Any number of tasks and processes may do this at once: exactly one creates
        the row, and all get it.

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
                _created,
            )
        entity = self.entity
        target = self._target(on)
        values = entity.insert_values(record)
        sought = [item.encode(getattr(record, item.field)) for item in target]
        for attempt in range(_ATTEMPTS):
            if attempt:  # out of step with whoever deletes the row each time
                await asyncio.sleep(random.uniform(0.0, _PAUSE * attempt))  # noqa: S311 - jitter
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
                returned = tuple(row)[1:]
                return entity.completed(record, entity.returned, returned), True
        raise SerializationFailed(
            f"{entity.name}: the row with key {entity.shown(sought)!r} comes and goes "
            f"faster than it can be read ({_ATTEMPTS} attempts); try again",
            sqlstate="40001",
            table=entity.name,
        )

    async def update(
        self,
        record_or_key: M | Any,  # noqa: ANN401 - the key's type is the model's
        changes: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> M:
        """Change a row, and with it its point, and return it as it is then.

        Args:
            record_or_key: A record, all of whose fields are written unless
                *changes* names some; or a key.
            changes: Fields and their new values.
            version: With the optimistic lock: change the row only if it is still
                at this version. A record brings its own.
            vector: New vector of its point; None with a payload: to be embedded.
            payload: New payload of its point, in place of the whole old one.

        Raises:
            InvalidName: *changes* names a field that the model has not.
            InvalidRecord: A value cannot be stored; nothing was sent.
            RecordNotFound: There is no such row.
            StaleRecord: The row is at another version, or gone.
        """
        entity = self.entity
        fields, values, key, expected = self._changed(record_or_key, changes, version)
        if self.hooks.any and self.hooks.wants("update"):
            change: Change[M] = Change(
                "update",
                (record_or_key,) if isinstance(record_or_key, entity.model) else (),
                (entity.shown(key),),
                None if changes is None else dict(changes),
            )
            return await self._hooked(
                change,
                lambda inner: inner.update(
                    record_or_key,
                    change.values,
                    version=version,
                    vector=vector,
                    payload=payload,
                ),
                _one,
            )
        names = tuple(item.field for item in fields)
        arguments = [*key, *values]
        if expected is not None:
            arguments.append(expected)
        points = self._pointed(vector, payload)
        if points is None:
            sql = self._sql.update(names, versioned=expected is not None)
        else:
            sql = points.update(names, versioned=expected is not None)
            arguments += [points.collection, *points.values(vector, payload)]
        try:
            row = await self.executor.fetchrow(sql, *arguments)
        except InvalidRecord as exc:
            raise entity.named(exc, (*entity.key, *fields)) from exc
        if row is not None:
            if points is not None:
                points.wake()
            return entity.from_row(row)
        if expected is not None:
            raise StaleRecord(entity.name, entity.shown(key), version=expected)
        raise RecordNotFound(entity.name, entity.shown(key))

    def _changed(
        self,
        record_or_key: object,
        changes: Mapping[str, Any] | None,
        version: int | None,
    ) -> tuple[list[Stored], list[Any], tuple[Any, ...], int | None]:
        """Return the fields to set, their values, the key, the version expected."""
        entity = self.entity
        if version is not None and entity.version is None:
            raise ConfigurationInvalid(
                "version", f"{entity.name} has no version field; declare version="
            )
        if isinstance(record_or_key, entity.model):
            key = tuple(
                item.encode(value)
                for item, value in zip(
                    entity.key, entity.key_of(record_or_key), strict=True
                )
            )
            if version is None and entity.version is not None:
                version = getattr(record_or_key, entity.version.field)
            if changes is None:
                own = {*entity.key, entity.version}
                fields = [item for item in entity.inserted if item not in own]
                changes = {
                    item.field: getattr(record_or_key, item.field) for item in fields
                }
        else:
            key = entity.key_values(record_or_key)
            if changes is None:
                raise InvalidRecord(
                    f"{entity.name}: nothing to change; give a record, or a key and "
                    "the changes"
                )
        given = {entity.field(name).field for name in changes}
        fixed = given & {*entity.key_names}
        if entity.version is not None:
            fixed |= given & {entity.version.field}
        if fixed:
            raise InvalidName(
                f"{entity.name}: {', '.join(sorted(fixed))} cannot be changed by "
                "update(); leave it out"
            )
        # In the model's order, so that the same fields are the same statement.
        fields = [item for item in entity.stored if item.field in given]
        if not fields and entity.version is None:
            raise InvalidRecord(f"{entity.name}: no changes given; give some")
        values = [item.encode(changes[item.field]) for item in fields]
        expected = None
        if version is not None and entity.version is not None:
            expected = entity.version.encode(version)
        return fields, values, key, expected

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
                _created,
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

    async def delete(self, record_or_key: M | Any) -> bool:  # noqa: ANN401 - the key's type is the model's
        """Delete a row, and its point if the repository has a collection.

        Args:
            record_or_key: A key; or a record, which with the optimistic lock is
                deleted only at its own version.

        Returns:
            Whether there was one.

        Raises:
            StaleRecord: The row is at another version than the record, or gone.
            ForeignKeyViolated: Other rows refer to it.
        """
        entity = self.entity
        expected = None
        key: tuple[Any, ...]
        if isinstance(record_or_key, entity.model):
            key = tuple(
                item.encode(value)
                for item, value in zip(
                    entity.key, entity.key_of(record_or_key), strict=True
                )
            )
            if entity.version is not None:
                expected = getattr(record_or_key, entity.version.field)
        else:
            key = entity.key_values(record_or_key)
        if self.hooks.any and self.hooks.wants("delete"):
            records = (
                (record_or_key,) if isinstance(record_or_key, entity.model) else ()
            )
            return await self._hooked(
                Change("delete", records, (entity.shown(key),)),
                lambda inner: inner.delete(record_or_key),
                None,
            )
        arguments = key if expected is None else (*key, expected)
        if self.points is not None:
            found: bool = await self.executor.fetchval(
                self.points.delete(versioned=expected is not None),
                *arguments,
                self.points.collection,
            )
            self.points.wake()
        else:
            sql = self._sql.delete if expected is None else self._sql.delete_version
            found = await self.executor.execute(sql, *arguments) != "DELETE 0"
        if expected is not None and not found:
            raise StaleRecord(entity.name, entity.shown(key), version=expected)
        return bool(found)

    def _target(self, on: str | Sequence[str] | None) -> tuple[Stored, ...]:
        """Return the fields of a conflict target."""
        if on is None:
            target = self.entity.key
        else:
            names = (on,) if isinstance(on, str) else tuple(on)
            target = tuple(map(self.entity.field, names))
        for item in target:
            if item.generated:
                raise InvalidName(
                    f"{self.entity.name}: {item.field} is given by the server and "
                    "cannot tell whether a row exists; name other fields with on="
                )
        return target

    async def _hooked(
        self,
        change: Change[M],
        work: Callable[[Any], Awaitable[R]],
        records_of: Callable[[R], Sequence[M]] | None,
    ) -> R:
        """Run *work* between the hooks of *change*, in one transaction."""
        async with self.executor.transaction() as transaction:
            await self.hooks.run("before", transaction, change)
            result = await work(self._rebound(transaction, HookTable()))
            stored = change.records if records_of is None else records_of(result)
            done = Change(change.operation, stored, change.keys, change.values)
            await self.hooks.run("after", transaction, done)
        return result


def _one(record: M) -> Sequence[M]:
    return (record,)


def _created(found: tuple[M, bool]) -> Sequence[M]:
    return (found[0],)
