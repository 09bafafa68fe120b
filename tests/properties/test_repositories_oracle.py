"""Random rows, filters, orders, pages and writes, against an oracle in plain Python.

On a table of every kind, for a role that is neither its owner nor a superuser.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_storage.config import PostgresConfig
from fm_storage.errors import DuplicateRecord, RecordNotFound
from fm_storage.postgres import Pool
from fm_storage.repositories import Filter, Order, Repository, where

MORE = int(os.environ.get("FM_STORAGE_TEST_EXAMPLES", "1"))
"""How many times as many examples as usual."""
# The database is made once per test and emptied for each example.
SETTINGS = settings(
    max_examples=12 * MORE,
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


COLUMNS = """
    id bigint PRIMARY KEY, text text COLLATE "C" NOT NULL, number bigint,
    weight float8, flag boolean, moment timestamptz, tags text[], extra jsonb
"""
TABLES = {
    "plain": f"CREATE TABLE sample ({COLUMNS})",
    "partitioned": f"CREATE TABLE sample ({COLUMNS}) PARTITION BY RANGE (id); "
    "CREATE TABLE low PARTITION OF sample FOR VALUES FROM (MINVALUE) TO (300); "
    "CREATE TABLE high PARTITION OF sample DEFAULT",
    "view": f"CREATE TABLE base (own int DEFAULT 1, {COLUMNS}); CREATE VIEW sample AS "
    "SELECT extra, id, text, number, weight, flag, moment, tags FROM base",
    "row_security": f"CREATE TABLE sample ({COLUMNS}); "
    "ALTER TABLE sample ENABLE ROW LEVEL SECURITY; "
    "CREATE POLICY mine ON sample USING (id >= 0); "
    # Rows that the role never sees, and that match what it asks for.
    "INSERT INTO sample SELECT -n, 'a', 0 FROM generate_series(1, 5) AS n",
    "trigger": f"CREATE TABLE sample ({COLUMNS}); "
    "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN NEW.text := NEW.text || ''; RETURN NEW; END $$; "
    "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON sample "
    "FOR EACH ROW EXECUTE FUNCTION touch()",
    "parent": f"CREATE TABLE sample ({COLUMNS}); "
    "CREATE TABLE child (more int) INHERITS (sample)",
    "more_columns": f"CREATE TABLE sample (gone int, {COLUMNS}, "
    "number_too bigint GENERATED ALWAYS AS (number) STORED, made timestamptz "
    "DEFAULT now(), n int GENERATED ALWAYS AS IDENTITY); ALTER TABLE sample DROP gone",
}

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


@pytest.fixture(params=TABLES)
async def repository(request, pool, dsn):
    """Give the samples' repository on an empty table of each kind."""
    role = f"oracle_{uuid.uuid4().hex[:8]}"
    await pool.execute(TABLES[request.param])
    await pool.execute(f"CREATE ROLE {role}; GRANT ALL ON sample TO {role}")
    config = PostgresConfig(dsn=dsn, max_size=2, server_settings={"role": role})
    try:
        async with Pool(config) as as_role:
            yield Repository(as_role, Sample)
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def filled(repository: Repository[Sample], rows: list[Sample]) -> None:
    """Put exactly *rows* into the table."""
    await repository.delete_where([], everything=True)
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


changes = st.fixed_dictionaries(
    {"number": st.none() | numbers},
    optional={name: VALUES[name] for name in ("text", "moment", "tags")},
)
keys = st.integers(0, 40)
few = st.lists(
    st.builds(Sample, keys, words, st.none() | numbers, tags=st.none() | tag_lists),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row.id,
)
ONE = ("create", "upsert", "get_or_create", "update", "delete")
MANY = ("create_many", "upsert_many", "delete_many", "update_where", "delete_where")


@st.composite
def writes(draw: st.DrawFn) -> list[tuple[str, Any, Any, Any]]:
    """Return some verbs and what each is given."""
    verbs = draw(st.lists(st.sampled_from(ONE + MANY), max_size=8))
    return [(verb, draw(few), draw(conditions), draw(changes)) for verb in verbs]


Rows = list[Sample]
Condition = tuple[Filter, Predicate]
Values = dict[str, Any]


class Oracle:
    """What a table should hold: each verb runs on both, and the answers agree."""

    def __init__(self, repository: Repository[Sample]) -> None:
        self.repository = repository
        self.rows: dict[int, Sample] = {}

    async def create(self, rows: Rows, *_: Any) -> None:
        """Write the first row."""
        await self._created("create", rows[0], rows[:1])

    async def create_many(self, rows: Rows, *_: Any) -> None:
        """Write all rows or none."""
        await self._created("create_many", rows, rows)

    async def _created(self, verb: str, given: Any, rows: Rows) -> None:
        if self.rows.keys() & {row.id for row in rows}:
            with pytest.raises(DuplicateRecord):
                async with self.repository.executor.transaction() as inner:
                    await getattr(self.repository.bind(inner), verb)(given)
        else:
            assert await getattr(self.repository, verb)(given) == given
            self.rows |= {row.id: row for row in rows}

    async def upsert(self, rows: Rows, *_: Any) -> None:
        """Write or change the first row."""
        wanted = (rows[0], rows[0].id not in self.rows)
        assert await self.repository.upsert(rows[0]) == wanted
        self.rows[rows[0].id] = rows[0]

    async def upsert_many(self, rows: Rows, *_: Any) -> None:
        """Write or change all rows."""
        wanted = [(row, row.id not in self.rows) for row in rows]
        assert await self.repository.upsert_many(rows) == wanted
        self.rows |= {row.id: row for row in rows}

    async def get_or_create(self, rows: Rows, *_: Any) -> None:
        """Write the first row unless it is there."""
        created = rows[0].id not in self.rows
        wanted = (self.rows.setdefault(rows[0].id, rows[0]), created)
        assert await self.repository.get_or_create(rows[0]) == wanted

    async def update(self, rows: Rows, _: Condition, values: Values) -> None:
        """Change the row with the first one's key."""
        key = rows[0].id
        if key not in self.rows:
            with pytest.raises(RecordNotFound):
                await self.repository.update(key, values)
            return
        self.rows[key] = replace(self.rows[key], **values)
        assert await self.repository.update(key, values) == self.rows[key]

    async def delete(self, rows: Rows, *_: Any) -> None:
        """Delete the row with the first one's key."""
        there = self.rows.pop(rows[0].id, None) is not None
        assert await self.repository.delete(rows[0].id) == there

    async def delete_many(self, rows: Rows, *_: Any) -> None:
        """Delete the rows with these keys."""
        keys = [row.id for row in rows]
        there = [self.rows.pop(key, None) is not None for key in keys]
        assert await self.repository.delete_many(keys) == sum(there)

    async def update_where(self, _: Rows, condition: Condition, values: Values) -> None:
        """Change the rows that match."""
        chosen = self._matching(condition)
        number = await self.repository.update_where(condition[0], values)
        assert number == len(chosen)
        self.rows |= {key: replace(row, **values) for key, row in chosen.items()}

    async def delete_where(self, _: Rows, condition: Condition, *__: Any) -> None:
        """Delete the rows that match."""
        chosen = self._matching(condition)
        assert await self.repository.delete_where(condition[0]) == len(chosen)
        self.rows = {k: row for k, row in self.rows.items() if k not in chosen}

    def _matching(self, condition: Condition) -> dict[int, Sample]:
        return {key: row for key, row in self.rows.items() if condition[1](row)}


@settings(SETTINGS, max_examples=40 * MORE)
@given(steps=writes(), together=st.booleans())
async def test_any_sequence_of_writes_agrees_with_a_dictionary(
    repository, steps, together
):
    """Every verb, each alone or all in one transaction."""
    await filled(repository, [])
    oracle = Oracle(repository)
    async with contextlib.AsyncExitStack() as stack:
        if together:
            opened = repository.executor.transaction()
            oracle.repository = repository.bind(await stack.enter_async_context(opened))
        for verb, *step in steps:
            await getattr(oracle, verb)(*step)
    stored = await repository.find_many(order_by="id")
    assert stored == [row for _, row in sorted(oracle.rows.items())]
