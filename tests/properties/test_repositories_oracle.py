"""Random rows, filters, orders and pages, against an oracle in plain Python."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_storage.repositories import Filter, Order, Repository, where

# The database is made once per test and emptied for each example.
SETTINGS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@dataclass(slots=True)
class Sample:
    """A row with ties, NULLs and every kind that has an order."""

    id: int
    text: str
    number: int | None = None
    weight: float | None = None
    flag: bool | None = None
    moment: dt.datetime | None = None
    tags: list[str] | None = None
    extra: dict[str, Any] | None = None


TABLE = """
CREATE TABLE sample (
    id bigint PRIMARY KEY, text text COLLATE "C" NOT NULL, number bigint,
    weight float8, flag boolean, moment timestamptz, tags text[], extra jsonb
)
"""

words = st.text(alphabet="ab%_\\A", max_size=3)
numbers = st.integers(-2, 2)
weights = st.sampled_from([-math.inf, -1.5, 0.0, 0.1, math.inf])
moments = st.integers(0, 2).map(lambda n: dt.datetime(2026, 1, 1, n, tzinfo=dt.UTC))
tag_lists = st.lists(st.sampled_from("xyz"), max_size=3)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": words,
    "number": numbers,
    "weight": weights,
    "flag": st.booleans(),
    "moment": moments,
    "tags": tag_lists,
}


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """Return some rows with unique ids."""
    ids = draw(st.lists(st.integers(0, 999), unique=True, max_size=14))
    rows = []
    for key in ids:
        row = Sample(key, draw(words))
        for name in ("number", "weight", "flag", "moment", "tags"):
            setattr(row, name, draw(st.none() | VALUES[name]))
        if draw(st.booleans()):
            row.extra = {"n": row.number, "in": {"t": row.text}}
        rows.append(row)
    return rows


Predicate = Callable[[Sample], bool]


def compared(name: str, word: str, value: Any) -> tuple[Filter, Predicate]:
    """Return a comparison and what it means."""
    field = where(name)
    meanings: dict[str, tuple[Filter, Callable[[Any], bool]]] = {
        "==": (field == value, lambda own: own == value),
        "!=": (field != value, lambda own: own != value),
        "<": (field < value, lambda own: own is not None and own < value),
        "<=": (field <= value, lambda own: own is not None and own <= value),
        ">": (field > value, lambda own: own is not None and own > value),
        ">=": (field >= value, lambda own: own is not None and own >= value),
    }
    made, meant = meanings[word]
    return made, lambda row: meant(getattr(row, name))


def matched(word: str, text: str, *, fold: bool) -> tuple[Filter, Predicate]:
    """Return a text condition and what it means."""
    made = getattr(where("text"), word)(text, ignore_case=fold)
    sought = text.lower() if fold else text
    test = {
        "starts_with": str.startswith,
        "ends_with": str.endswith,
        "contains": str.__contains__,
    }[word]
    return made, lambda row: test(row.text.lower() if fold else row.text, sought)


def liked(pattern: str) -> tuple[Filter, Predicate]:
    """Return an SQL pattern and its meaning."""
    translated = "".join(
        {"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in pattern
    )
    test = re.compile(translated, re.DOTALL)
    return where("text").like(pattern), lambda row: bool(test.fullmatch(row.text))


leaves = st.one_of(
    st.sampled_from(["text", "number", "weight", "moment"]).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
            VALUES[name],
        ).map(lambda parts: compared(*parts))
    ),
    st.tuples(
        st.sampled_from(["starts_with", "ends_with", "contains"]), words, st.booleans()
    ).map(lambda parts: matched(parts[0], parts[1], fold=parts[2])),
    st.text(alphabet="ab%_", max_size=3).map(liked),
    st.sampled_from(["number", "flag", "moment", "tags"]).map(
        lambda name: (
            where(name).is_null(),
            lambda row: getattr(row, name) is None,
        )
    ),
    st.lists(st.none() | numbers, max_size=3).map(
        lambda given: (where("number").in_(given), lambda row: row.number in given)
    ),
    st.tuples(numbers, numbers).map(
        lambda ends: (
            where("number").between(*ends),
            lambda row: row.number is not None and ends[0] <= row.number <= ends[1],
        )
    ),
    tag_lists.map(
        lambda tags: (
            where("tags").contains(tags),
            lambda row: row.tags is not None and set(tags) <= set(row.tags),
        )
    ),
    tag_lists.map(
        lambda tags: (
            where("tags").overlaps(tags),
            lambda row: row.tags is not None and bool(set(tags) & set(row.tags)),
        )
    ),
    numbers.map(
        lambda number: (
            where("extra").at("n") == number,
            lambda row: row.extra is not None and row.extra["n"] == number,
        )
    ),
    words.map(
        lambda text: (
            where("extra").at("in", "t").in_([text]),
            lambda row: row.extra is not None and row.extra["in"]["t"] == text,
        )
    ),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(
            lambda two: (two[0][0] & two[1][0], lambda r: two[0][1](r) and two[1][1](r))
        ),
        st.tuples(inner, inner).map(
            lambda two: (two[0][0] | two[1][0], lambda r: two[0][1](r) or two[1][1](r))
        ),
        inner.map(lambda one: (~one[0], lambda row: not one[1](row))),
    ),
    max_leaves=5,
)
orders = st.lists(
    st.builds(
        Order,
        st.sampled_from(["text", "number", "weight", "flag", "moment"]),
        st.booleans(),
        st.sampled_from([None, "first", "last"]),
    ),
    max_size=3,
    unique_by=lambda order: order.field,
)


def sorted_as(rows: Sequence[Sample], steps: Sequence[Order]) -> list[Sample]:
    """Return *rows* in the order of *steps*, then by key as pages do."""
    down = steps[-1].descending if steps else False
    found = sorted(rows, key=lambda row: row.id, reverse=down)
    for step in reversed(steps):
        nulls = [row for row in found if getattr(row, step.field) is None]
        rest = [row for row in found if getattr(row, step.field) is not None]
        rest.sort(key=lambda row: getattr(row, step.field), reverse=step.descending)
        found = nulls + rest if step.nulls_first else rest + nulls
    return found


@pytest.fixture
async def repository(pool):
    """Give the samples' repository on an empty table."""
    await pool.execute(TABLE)
    return Repository(pool, Sample)


async def filled(repository: Repository[Sample], rows: list[Sample]) -> None:
    """Put exactly *rows* into the table."""
    await repository.executor.execute("TRUNCATE sample")
    await repository.create_many(rows)


@SETTINGS
@given(rows=samples(), chosen=st.lists(conditions, max_size=2), steps=orders)
async def test_filters_and_orders_agree_with_python(repository, rows, chosen, steps):
    """find_many(), count() and exists() give what the oracle gives."""
    await filled(repository, rows)
    filters = [one for one, _ in chosen]
    expected = [row for row in rows if all(meant(row) for _, meant in chosen)]

    found = await repository.find_many(
        *filters, order_by=(*steps, Order("id", bool(steps) and steps[-1].descending))
    )

    assert found == sorted_as(expected, steps)
    assert await repository.count(*filters) == len(expected)
    assert await repository.exists(*filters) == bool(expected)


@SETTINGS
@given(rows=samples(), chosen=conditions, steps=orders, size=st.integers(1, 5))
async def test_pages_put_together_are_the_whole_order(
    repository, rows, chosen, steps, size
):
    """Whatever the order, the ties and the NULLs: each row once, in order."""
    await filled(repository, rows)
    condition, meant = chosen
    seen: list[Sample] = []
    cursor = None
    while True:
        page = await repository.page(
            condition, order_by=steps, size=size, cursor=cursor, total=True
        )
        assert len(page.items) <= size
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break

    expected = sorted_as([row for row in rows if meant(row)], steps)
    assert seen == expected
    assert page.total == len(expected)
    assert not page.has_more


@SETTINGS
@given(rows=samples(), steps=orders, size=st.integers(1, 4), data=st.data())
async def test_pages_stay_right_while_rows_come_and_go(
    repository, rows, steps, size, data
):
    """A row that stays throughout appears exactly once; none appears twice."""
    await filled(repository, rows)
    staying = {row.id for row in rows}
    seen: list[int] = []
    cursor = None
    fresh = 1000
    for _ in range(40):
        page = await repository.page(order_by=steps, size=size, cursor=cursor)
        seen += [row.id for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        if staying and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(staying)))
            staying.discard(gone)
            await repository.delete(gone)
        if data.draw(st.booleans()) and fresh < 1010:
            await repository.create(
                Sample(fresh, data.draw(words), data.draw(st.none() | numbers))
            )
            fresh += 1

    assert len(seen) == len(set(seen))
    assert staying <= set(seen)
