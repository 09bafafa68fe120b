"""Which row, and which column of it, holds what Python cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.rows.bound import Bound

M = TypeVar("M")


async def named_unreadable(
    bound: Bound[M], exc: InvalidRecord, condition: str, values: Sequence[Any]
) -> InvalidRecord:
    """Return *exc* with the row and the column that it is about, if they are found.

    Args:
        bound: Where rows were read.
        exc: What reading them raised.
        condition: ``WHERE`` of the rows, or nothing.
        values: Its parameters.
    """
    entity = bound.entity
    tests = [
        (item, test)
        for item in entity.stored
        if (test := item.type.beyond(item.quoted))
    ]
    if exc.field is not None or not isinstance(
        exc.__cause__, ValueError | ArithmeticError
    ):
        return exc
    if not tests:
        return exc
    key = ", ".join(f"{item.quoted}::text" for item in entity.key)
    whens = " ".join(f"WHEN {test} THEN {at}" for at, (_, test) in enumerate(tests))
    beyond = " OR ".join(test for _, test in tests)
    joined = f"{condition} AND" if condition else " WHERE"
    chosen = f"SELECT CASE {whens} END, {key} FROM {entity.quoted}"
    sql = f"{chosen}{joined} ({beyond}) LIMIT 1"
    try:
        row = await bound.executor.fetchrow(Sql(sql), *values)
    except StorageError:
        return exc  # the first error is the caller's answer
    if row is None:
        return exc
    at, *found = row
    item = tests[at][0]
    return InvalidRecord(
        f"{entity.name}: the row with key {entity.shown(found)!r} holds a "
        f"{item.type.sql} in {item.column} that Python cannot hold; correct the row, "
        "or leave it out by a filter",
        field=item.field,
    )
