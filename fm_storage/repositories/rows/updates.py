"""The writing half of a repository: changes of a row that exists.

Apart because a change has questions of its own: which fields, from a record or
by name, and whether somebody else has changed the row meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidRecord,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.rows.hooks import Change
from fm_storage.repositories.rows.writer import one
from fm_storage.repositories.rows.writing import Writes

if TYPE_CHECKING:
    from fm_storage.repositories.model.entity import Stored

__all__ = ["Updates"]

M = TypeVar("M")


class Updates(Writes[M]):
    """An entity's rows, changed one by one through one executor."""

    async def update(
        self,
        record_or_key: M | Any,
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
            RecordNotFound: There is no such row, or it is deleted softly.
            StaleRecord: The row is at another version, or gone.
        """
        entity = self.entity
        key, given, version = self._meant_by(record_or_key, changes, version)
        fields = self._changed(given)
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
                one,
            )
        names = tuple(item.field for item in fields)
        arguments = [*key, *(item.encode(given[item.field]) for item in fields)]
        expected = None
        if version is not None and entity.version is not None:
            expected = entity.version.encode(version)
            arguments.append(expected)
        points = self._pointed(vector, payload)
        if points is None:
            sql = self._sql.update(names, versioned=expected is not None)
        else:
            sql = points.update(
                names, versioned=expected is not None, living=self._sql.living
            )
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

    def _meant_by(
        self,
        record_or_key: object,
        changes: Mapping[str, Any] | None,
        version: int | None,
    ) -> tuple[tuple[Any, ...], Mapping[str, Any], int | None]:
        """Return the key, what is to change, and the version expected."""
        entity = self.entity
        if version is not None and entity.version is None:
            raise ConfigurationInvalid(
                "version", f"{entity.name} has no version field; declare version="
            )
        if isinstance(record_or_key, entity.model):
            if version is None and entity.version is not None:
                version = getattr(record_or_key, entity.version.field)
            if changes is None:
                own = {*entity.key, entity.version, entity.deleted}
                changes = {
                    item.field: getattr(record_or_key, item.field)
                    for item in entity.inserted
                    if item not in own
                }
            return entity.stored_key(record_or_key), changes, version
        key = entity.key_values(record_or_key)
        if changes is None:
            raise InvalidRecord(
                f"{entity.name}: nothing to change; give a record, or a key and "
                "the changes"
            )
        return key, changes, version

    def _changed(self, changes: Mapping[str, Any]) -> list[Stored]:
        """Return the fields to set, whose values are looked at after the hooks."""
        entity = self.entity
        given = {entity.field(name).field for name in changes}
        fixed = given & {*entity.key_names}
        fixed |= given & {
            item.field for item in (entity.version, entity.deleted) if item is not None
        }
        if fixed:
            raise InvalidName(
                f"{entity.name}: {', '.join(sorted(fixed))} cannot be changed by "
                "update(); leave it out"
            )
        # In the model's order, so that the same fields are the same statement.
        fields = [item for item in entity.stored if item.field in given]
        if not fields and entity.version is None:
            raise InvalidRecord(f"{entity.name}: no changes given; give some")
        return fields
