"""The writing half of a repository: rows that go, for good or until restored.

Apart because a soft deletion is an UPDATE that means a DELETE. To readers the row
is gone, to the vector store its point is; what both need to come back is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidRecord,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.repositories.model.entity import Stored
from fm_storage.repositories.query.filters import Filter
from fm_storage.repositories.rows.hooks import Change
from fm_storage.repositories.rows.updates import Updates
from fm_storage.repositories.rows.writer import one

__all__ = ["Deletes"]

M = TypeVar("M")


class Deletes(Updates[M]):
    """An entity's rows, deleted and restored through one executor."""

    async def delete(self, record_or_key: M | Any) -> bool:
        """Delete a row, and its point if the repository has a collection.

        With ``deleted=`` the row stays, marked with the time, and ``restore()``
        brings it back; its point goes, and comes back with it.

        Args:
            record_or_key: A key; or a record, which with the optimistic lock is
                deleted only at its own version.

        Returns:
            Whether there was one.

        Raises:
            StaleRecord: The row is at another version than the record, or gone.
            ForeignKeyViolated: Other rows refer to it.
        """
        return await self._remove(record_or_key, erase=False)

    async def erase(self, record_or_key: M | Any) -> bool:
        """Delete a row for good, whether or not it is deleted softly already.

        As ``delete()``, which does just this where the repository was declared
        without ``deleted=``.
        """
        return await self._remove(record_or_key, erase=True)

    async def _remove(self, record_or_key: object, *, erase: bool) -> bool:
        entity = self.entity
        key, expected, records = self._meant(record_or_key)
        if self.hooks.any and self.hooks.wants("delete"):
            return await self._hooked(
                Change("delete", records, (entity.shown(key),)),
                lambda inner: inner._remove(record_or_key, erase=erase),  # noqa: SLF001 - another of us
                None,
            )
        versioned = expected is not None
        arguments = (*key, expected) if versioned else key
        if self.points is not None:
            found = await self.executor.fetchval(
                self.points.delete(versioned=versioned, erase=erase),
                *arguments,
                self.points.collection,
            )
            self.points.wake()
        else:
            sql = self._sql.remove(versioned=versioned, erase=erase)
            tag = await self.executor.execute(sql, *arguments)
            found = not tag.endswith(" 0")
        if versioned and not found:
            raise StaleRecord(entity.name, entity.shown(key), version=expected or 0)
        return bool(found)

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete the rows with *keys*, and their points, and return how many.

        With ``deleted=`` they stay and can be restored, as by ``delete()``.

        Raises:
            InvalidRecord: A key cannot be one of this table, or a filter was given
                in place of keys; nothing was sent.
            ForeignKeyViolated: Other rows refer to one of them; none is deleted.
        """
        if isinstance(keys, Filter):
            raise InvalidRecord(
                f"{self.entity.name}: delete_many() takes keys, not a filter; give "
                "those of the records that find_many() returns"
            )
        wanted = list(keys)
        if not wanted:
            return 0
        if self.hooks.any and self.hooks.wants("delete"):
            return await self._hooked(
                Change("delete", (), wanted),
                lambda inner: inner.delete_many(wanted),
                None,
            )
        columns = self._key_columns(wanted)
        if self.points is not None:
            number: int = await self.executor.fetchval(
                self.points.delete(many=True), *columns, self.points.collection
            )
            self.points.wake()
            return number
        tag = await self.executor.execute(self._sql.remove(many=True), *columns)
        return int(tag.rpartition(" ")[2])

    def _key_columns(self, wanted: list[Any]) -> list[Sequence[Any]]:
        entity = self.entity
        if len(entity.key) == 1 and set(map(type, wanted)) <= entity.key[0].kind.exact:
            return [entity.key[0].kind.encode_many(wanted)]
        values = [entity.key_values(key) for key in wanted]
        return [
            item.kind.encode_many(column)
            for item, column in zip(entity.key, zip(*values, strict=True), strict=True)
        ]

    async def restore(self, record_or_key: M | Any) -> M:
        """Bring a softly deleted row back, and its point as it last was.

        A row that is not deleted is returned as it is. Its version, if there is
        one, rises when the row comes back.

        Args:
            record_or_key: A key; or a record, which with the optimistic lock is
                restored only at its own version.

        Returns:
            The row as it is now.

        Raises:
            RecordNotFound: There is no such row; it was erased, or never was.
            StaleRecord: The row is at another version than the record.
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        entity = self.entity
        self._mark()
        key, expected, records = self._meant(record_or_key)
        if self.hooks.any and self.hooks.wants("restore"):
            return await self._hooked(
                Change("restore", records, (entity.shown(key),)),
                lambda inner: inner.restore(record_or_key),
                one,
            )
        versioned = expected is not None
        arguments = (*key, expected) if versioned else key
        if self.points is None:
            sql = self._sql.restore(versioned=versioned)
            row = await self.executor.fetchrow(sql, *arguments)
        else:
            row = await self.executor.fetchrow(
                self.points.restore(versioned=versioned),
                *arguments,
                self.points.collection,
            )
            self.points.wake()
        if row is not None:
            return entity.from_row(row)
        found = await self.with_deleted().find_by_id(entity.shown(key))
        if found is None:
            raise RecordNotFound(entity.name, entity.shown(key))
        if entity.version is not None and versioned:
            at = getattr(found, entity.version.field)
            if at != expected:
                raise StaleRecord(entity.name, entity.shown(key), version=expected or 0)
        return found

    async def purge(self, before: datetime) -> int:
        """Erase the rows that were deleted softly before a moment.

        Returns:
            How many there were.

        Raises:
            InvalidRecord: *before* has no time zone.
            ForeignKeyViolated: Other rows refer to one of them; none is erased.
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        moment = self._mark().encode(before)
        if self.points is not None:
            number: int = await self.executor.fetchval(
                self.points.purge(), moment, self.points.collection
            )
            self.points.wake()
            return number
        tag = await self.executor.execute(self._sql.purge, moment)
        return int(tag.rpartition(" ")[2])

    def _mark(self) -> Stored:
        """Return the field that says when a row was deleted."""
        if self.entity.deleted is None:
            raise ConfigurationInvalid(
                "deleted",
                f"{self.entity.name} deletes for good; declare the repository with "
                "deleted=",
            )
        return self.entity.deleted

    def _meant(
        self,
        record_or_key: Any,
    ) -> tuple[tuple[Any, ...], int | None, tuple[M, ...]]:
        """Return the key, the version expected, and the record if it was one."""
        entity = self.entity
        if not isinstance(record_or_key, entity.model):
            return entity.key_values(record_or_key), None, ()
        expected = None
        if entity.version is not None:
            expected = getattr(record_or_key, entity.version.field)
        return entity.stored_key(record_or_key), expected, (record_or_key,)
