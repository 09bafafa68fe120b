"""Random models and values, through every way of writing them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_storage.postgres import Pool
from fm_storage.repositories import Repository
from fm_storage.repositories.model.compound_types import JsonValue

_tables = itertools.count()


class _Rollback(Exception):
    """Undoes the table of an example."""


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda number: not number.is_integer()
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text("abc\u00e9", max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
days = st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
instants = st.datetimes(
    dt.datetime(1900, 1, 1),
    dt.datetime(2100, 1, 1),
    timezones=st.just(dt.UTC),
)
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, texts),
    (int, st.integers(-(2**63), 2**63 - 1)),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=6)),
    (bytes, st.binary()),
    (UUID, st.uuids()),
    (dt.datetime, instants),
    (dt.date, days),
    (dt.timedelta, st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999))),
    (list[str], st.lists(texts, max_size=4)),
    (list[int], st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)),
    (list[dt.timedelta], st.lists(st.timedeltas(dt.timedelta(-9), dt.timedelta(9)))),
    (list[bytes], st.lists(st.binary(max_size=4), max_size=3)),
    (dict[str, Any], st.dictionaries(st.text("abc", max_size=3), json_values)),
    (list[Any], st.lists(json_values, max_size=3)),
]


@st.composite
def models(draw: st.DrawFn) -> tuple[type[Any], list[Any]]:
    """Return a model and some records of it."""
    chosen = draw(st.lists(st.sampled_from(range(len(KINDS))), min_size=1, max_size=6))
    fields: list[tuple[str, Any]] = [("id", int)]
    strategies: list[st.SearchStrategy[Any]] = []
    for place, kind in enumerate(chosen):
        annotation, values = KINDS[kind]
        if draw(st.booleans()):
            annotation, values = annotation | None, st.none() | values
        fields.append((f"f{place}", annotation))
        strategies.append(values)
    model = dataclasses.make_dataclass(
        "Random", fields, slots=draw(st.booleans()), frozen=draw(st.booleans())
    )
    count = draw(st.integers(1, 4))
    rows = [model(at, *(draw(one) for one in strategies)) for at in range(count)]
    return model, rows


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(made=models())
async def test_random_models_survive_every_way_of_writing(pool, made):
    """Alone, in a batch, by upsert, by COPY: what went in comes out."""
    model, rows = made
    # A name of its own: the driver remembers the columns of the last example's.
    table = f"random_{next(_tables)}"
    repository: Repository[Any] = Repository(pool, model, table=table)

    with pytest.raises(_Rollback):
        await _write_every_way(pool, repository, rows)


async def _write_every_way(
    pool: Pool, repository: Repository[Any], rows: list[Any]
) -> None:
    columns = ", ".join(
        f"{item.quoted} "
        + ("jsonb" if isinstance(item.type, JsonValue) else item.type.sql)
        for item in repository.entity.stored
    )
    async with pool.transaction() as transaction:
        table = repository.entity.table
        await transaction.execute(f"CREATE TABLE {table} ({columns}, PRIMARY KEY (id))")
        bound = repository.bind(transaction)
        for row in rows:
            await bound.create(row)
        assert await bound.find_many(order_by="id") == rows
        assert await bound.delete_many([row.id for row in rows]) == len(rows)
        await bound.create_many(rows)
        assert await bound.find_many(order_by="id") == rows
        assert await bound.upsert_many(rows) == [(row, False) for row in rows]
        assert await bound.find_many(order_by="id") == rows
        await transaction.execute(f"TRUNCATE {table}")
        written = await transaction.copy_records(
            table,
            columns=[item.column for item in bound.entity.inserted],
            records=bound.entity.outgoing(bound.entity.insert_columns(rows, copy=True)),
        )
        assert written == len(rows)
        assert await bound.find_many(order_by="id") == rows
        raise _Rollback
