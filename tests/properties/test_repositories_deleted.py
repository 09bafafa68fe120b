"""Any sequence of writes with soft deletion, against a dictionary of rows."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_storage.errors import DuplicateRecord, RecordNotFound
from fm_storage.repositories import Repository


@dataclass(slots=True)
class Item:
    """A row that may come back."""

    id: int
    text: str
    gone: dt.datetime | None = None


keys = st.integers(0, 3)
words = st.sampled_from("abc")
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["delete", "restore", "erase"]), keys, st.none()),
        st.tuples(
            st.sampled_from(["create", "get_or_create", "upsert", "update"]),
            keys,
            words,
        ),
        st.tuples(st.just("delete_many"), st.lists(keys, unique=True), st.none()),
        st.tuples(st.just("upsert_many"), st.lists(keys, unique=True), words),
    ),
    max_size=14,
)


class Model:
    """What should be stored: text and whether the row is deleted, by key."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[str, bool]] = {}

    def live(self, key: int) -> str | None:
        """Return the text of a row that is not deleted."""
        text, gone = self.rows.get(key, ("", True))
        return None if gone else text


async def do(
    items: Repository[Item], model: Model, name: str, key: int, text: str
) -> None:
    """Do one step to both, and compare what it says."""
    live = model.live(key)
    if name == "delete":
        assert await items.delete(key) == (live is not None)
        if live is not None:
            model.rows[key] = (live, True)
    elif name == "erase":
        assert await items.erase(key) == (model.rows.pop(key, None) is not None)
    elif name == "restore":
        if key not in model.rows:
            with pytest.raises(RecordNotFound):
                await items.restore(key)
            return
        model.rows[key] = (model.rows[key][0], False)
        assert await items.restore(key) == Item(key, model.rows[key][0])
    else:
        await write(items, model, name, key, text)


async def write(
    items: Repository[Item], model: Model, name: str, key: int, text: str
) -> None:
    """Do one step that says what the row shall be."""
    live = model.live(key)
    if name == "create":
        if key in model.rows:
            with pytest.raises(DuplicateRecord):
                await items.create(Item(key, text))
            return
        await items.create(Item(key, text))
        model.rows[key] = (text, False)
    elif name == "update":
        if live is None:
            with pytest.raises(RecordNotFound):
                await items.update(key, {"text": text})
            return
        await items.update(key, {"text": text})
        model.rows[key] = (text, False)
    elif name == "get_or_create":
        expected = (Item(key, live or text), live is None)
        assert await items.get_or_create(Item(key, text)) == expected
        model.rows[key] = (live or text, False)
    else:
        expected = (Item(key, text), key not in model.rows)
        assert await items.upsert(Item(key, text)) == expected
        model.rows[key] = (text, False)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(wanted=steps)
async def test_deleted_rows_are_gone_until_they_are_restored(pool, wanted):
    """Each call answers as the dictionary says, and all reads agree with it."""
    await pool.execute(
        "CREATE TABLE IF NOT EXISTS item "
        "(id bigint PRIMARY KEY, text text NOT NULL, gone timestamptz)"
    )
    await pool.execute("TRUNCATE item")
    items: Repository[Item] = Repository(pool, Item, deleted="gone")
    model = Model()

    for name, key, text in wanted:
        if name == "delete_many":
            lost = [one for one in key if model.live(one) is not None]
            assert await items.delete_many(key) == len(lost)
            model.rows.update({one: (model.rows[one][0], True) for one in lost})
        elif name == "upsert_many":
            found = await items.upsert_many([Item(one, text) for one in key])
            assert [created for _, created in found] == [
                one not in model.rows for one in key
            ]
            model.rows.update(dict.fromkeys(key, (text, False)))
        else:
            await do(items, model, name, key, text or "")

        alive = [
            Item(one, text)
            for one, (text, gone) in sorted(model.rows.items())
            if not gone
        ]
        assert await items.find_many(order_by="id") == alive
        assert (await items.page(size=9, total=True)).items == alive
        assert await items.count() == len(alive)
        every = await items.with_deleted().find_many(order_by="id")
        assert {one.id: (one.text, one.gone is not None) for one in every} == model.rows
