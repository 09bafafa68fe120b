"""Changes of a row that exists: which fields, and whether it changed meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidRecord,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.postgres.arguments import of_kind
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.rows.bound import Bound, hooked, only, suppressed
from fm_storage.repositories.rows.hooks import Change

M = TypeVar("M")


async def update(
    bound: Bound[M],
    record_or_key: object,
    changes: Mapping[str, Any] | None,
    *,
    version: int | None,
    vector: Vector | None,
    payload: Payload | None,
) -> M:
    """Do what ``Repository.update()`` promises."""
    entity = bound.entity
    key, given, version = _meant_by(entity, record_or_key, changes, version)
    fields = changed_fields(entity, given)
    if bound.hooks.any and bound.hooks.wants("update"):
        change: Change[M] = Change(
            "update",
            (record_or_key,) if isinstance(record_or_key, entity.model) else (),
            (entity.shown(key),),
            None if changes is None else dict(changes),
        )
        return await hooked(
            bound,
            change,
            lambda inner: update(
                inner,
                record_or_key,
                change.values,
                version=version,
                vector=vector,
                payload=payload,
            ),
            only,
        )
    names = tuple(item.field for item in fields)
    arguments = [*key, *(item.encode(given[item.field]) for item in fields)]
    expected = None
    if version is not None and entity.version is not None:
        expected = entity.version.encode(version)
        arguments.append(expected)
    versioned = expected is not None
    points = bound.pointed(vector, payload)
    if points is None:
        sql = bound.statements.update(names, versioned=versioned)
    else:
        living = bound.statements.living
        sql = points.update(names, versioned=versioned, living=living)
        arguments += [*points.values(vector, payload), points.collection]
    try:
        row = await bound.executor.fetchrow(sql, *arguments)
    except InvalidRecord as exc:
        raise entity.named(exc, (*entity.key, *fields)) from exc
    if row is not None:
        if points is not None:
            points.wake()
        return entity.from_row(row)
    there = await bound.executor.fetchrow(bound.statements.get, *key)
    if there is not None and (
        expected is None or entity.version_of(entity.from_row(there)) == expected
    ):
        raise suppressed(entity)
    if expected is not None:
        raise StaleRecord(entity.name, entity.shown(key), version=expected)
    raise RecordNotFound(entity.name, entity.shown(key))


def _meant_by(
    entity: Entity[M],
    record_or_key: object,
    changes: Mapping[str, Any] | None,
    version: int | None,
) -> tuple[tuple[Any, ...], Mapping[str, Any], int | None]:
    """Return the key, what is to change, and the version expected."""
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
            f"{entity.name}: nothing to change; give a record, or a key and the changes"
        )
    return key, changes, version


def changed_fields(
    entity: Entity[M], changes: Mapping[str, Any], *, some: bool = False
) -> list[Stored]:
    """Return the fields to set, whose values are looked at after the hooks.

    Args:
        entity: Of the rows.
        changes: Their new values.
        some: Refuse no changes also where a version could rise.
    """
    of_kind(changes, Mapping, "changes", "give the fields' names and values")
    given = {entity.field(name).field for name in changes}
    own = (*entity.key, entity.version, entity.deleted)
    fixed = given & {item.field for item in own if item is not None}
    if fixed:
        raise InvalidName(
            f"{entity.name}: {', '.join(sorted(fixed))} cannot be changed by "
            "update(); leave it out"
        )
    # In the model's order, so that the same fields are the same statement.
    fields = [item for item in entity.stored if item.field in given]
    if not fields and (some or entity.version is None):
        raise InvalidRecord(f"{entity.name}: no changes given; give some")
    return fields
