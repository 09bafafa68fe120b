"""Records of a statement's own columns, matched by name."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from fm_storage.errors import InvalidName, InvalidRecord
from fm_storage.postgres.executor import Record
from fm_storage.repositories.model.declaration import read_model
from fm_storage.repositories.model.row_factory import RowFactory, as_reason, decoder_of

M = TypeVar("M")


@functools.lru_cache(maxsize=512)
def _factory(model: Any, columns: tuple[str, ...]) -> RowFactory[Any]:
    declared = read_model(model, {})
    model = typing.get_origin(model) or model
    by_column = {item.column: item for item in declared.fields}
    wrong = [
        f"column {name!r} is no field of it"
        for name in columns
        if name not in by_column
    ]
    wrong += [
        f"field {name!r} has no column" for name in by_column if name not in columns
    ]
    wrong += [
        f"column {name!r} occurs more than once"
        for name in dict.fromkeys(columns)
        if columns.count(name) > 1
    ]
    if wrong:
        raise InvalidName(
            f"{model.__name__}: {', '.join(wrong)}; name the columns as the fields are "
            "named, with AS"
        )

    def unreadable(
        _row: Iterable[Any], exc: Exception, field: str | None
    ) -> InvalidRecord:
        return InvalidRecord(
            f"result: a row is no {model.__name__} ({as_reason(exc, field)}); "
            "correct the row, the statement or the model",
            field=field,
        )

    fields = [by_column[name] for name in columns]
    return RowFactory(
        model,
        declared.construct,
        [item.field for item in fields],
        [
            decoder_of(item.type, decodes=declared.decodes, field=item.field)
            for item in fields
        ],
        unreadable=unreadable,
        order=[item.field for item in declared.fields],
        required=[
            item.field for item in fields if not (item.nullable or declared.decodes)
        ],
    )


def row_maker(
    model: type[M], columns: tuple[str, ...], /
) -> Callable[[Sequence[Record]], list[M]]:
    """Return what makes records of *model* of rows with *columns*.

    Raises:
        ConfigurationInvalid: It is no model.
        InvalidName: A column is no field, or the other way round.
    """
    known: Any = model
    return _factory(known, columns).many


def tests_beyond(model: type[Any], /) -> list[tuple[str, str, str]]:
    """Return the fields whose columns may hold what Python cannot, as ``Beyond``."""
    return [
        (item.field, f"{item.type.sql} in {item.column}", test)
        for item in read_model(model, {}).fields
        if (test := item.type.beyond(item.quoted))
    ]
