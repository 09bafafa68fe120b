"""Soft deletion: gone for readers and for the vector store, until restored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from fm_storage.config import CollectionConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    DimensionMismatch,
    DuplicateRecord,
    InvalidName,
    InvalidRecord,
    RecordNotFound,
    StaleRecord,
)
from fm_storage.repositories import Change, Repository, uuid7, where
from fm_storage.vector_state import Shapes
from tests.support.vector_states import states


@dataclass(slots=True)
class Article:
    """A row that may come back."""

    slug: str
    text: str = ""
    deleted_at: datetime | None = None
    version: int = 1
    id: UUID = field(default_factory=uuid7)


@dataclass(slots=True)
class Leaf:
    """The same without a version, with a key of two fields."""

    book: int
    page: int
    text: str = ""
    gone: datetime | None = None


@pytest.fixture
async def tables(pool):
    """Give a pool on a database with the models' tables."""
    await pool.execute(
        "CREATE TABLE article (id uuid PRIMARY KEY, slug text NOT NULL UNIQUE, "
        "text text NOT NULL, deleted_at timestamptz, version int NOT NULL)"
    )
    await pool.execute(
        "CREATE TABLE leaf (book bigint, page bigint, text text NOT NULL, "
        "gone timestamptz, PRIMARY KEY (book, page))"
    )
    return pool


@pytest.fixture
def articles(tables) -> Repository[Article]:
    """Give articles with soft deletion, an optimistic lock and points."""
    return Repository(
        tables,
        Article,
        version="version",
        deleted="deleted_at",
        collection="articles",
        shapes=Shapes({"articles": CollectionConfig(size=2)}),
    )


@pytest.fixture
def leaves(tables) -> Repository[Leaf]:
    """Give leaves with soft deletion and nothing else."""
    return Repository(tables, Leaf, key=("book", "page"), deleted="gone")


async def test_no_read_sees_a_deleted_row_unless_asked(articles):
    """By key, by filter, in pages, in streams, in numbers."""
    kept, gone = Article("kept"), Article("gone")
    await articles.create_many([kept, gone])

    assert await articles.delete(gone.id)
    assert not await articles.delete(gone.id)

    assert await articles.find_by_id(gone.id) is None
    with pytest.raises(RecordNotFound):
        await articles.get_by_id(gone.id)
    assert await articles.find_many() == [kept]
    assert await articles.find_many(where("slug") == "gone") == []
    page = await articles.page(size=1, total=True)
    assert (page.items, page.next_cursor, page.total) == ([kept], None, 1)
    async with articles.stream() as records:
        assert [one async for one in records] == [kept]
    assert await articles.count() == 1
    assert not await articles.exists(where("slug") == "gone")

    every = articles.with_deleted()
    found = await every.get_by_id(gone.id)
    assert found.deleted_at is not None
    assert abs(datetime.now(UTC) - found.deleted_at) < timedelta(hours=1)
    assert await every.count() == 2
    assert await every.find_many(~where("deleted_at").is_null()) == [found]
    page = await every.page(order_by="slug", size=1)
    assert page.items == [found]
    with pytest.raises(InvalidRecord, match="cursor"):
        await articles.page(order_by="slug", size=1, cursor=page.next_cursor)


async def test_restore_brings_the_row_back_as_it_was(articles):
    """All but its version; a second time changes nothing."""
    article = await articles.create(Article("a", "text"))
    await articles.delete(article.id)

    restored = await articles.restore(article.id)

    assert restored == Article("a", "text", version=3, id=article.id)
    assert await articles.get_by_id(article.id) == restored
    assert await articles.restore(article.id) == restored
    with pytest.raises(RecordNotFound):
        await articles.restore(uuid7())


async def test_the_optimistic_lock_holds_for_deletion_and_restoration(articles):
    """A record brings its version; somebody else's change is not deleted."""
    old = await articles.create(Article("a"))
    new = await articles.update(old.id, {"text": "changed"})

    with pytest.raises(StaleRecord):
        await articles.delete(old)
    assert await articles.delete(new)
    with pytest.raises(StaleRecord):
        await articles.delete(new)
    gone = await articles.with_deleted().get_by_id(new.id)
    with pytest.raises(StaleRecord):
        await articles.restore(new)
    assert (await articles.restore(gone)).version == gone.version + 1
    with pytest.raises(StaleRecord):
        await articles.restore(gone)


async def test_a_deleted_row_is_not_changed_by_mistake(articles):
    """It is as good as absent; the mark itself belongs to delete() and restore()."""
    article = await articles.create(Article("a"))
    with pytest.raises(InvalidName, match="deleted_at"):
        await articles.update(article.id, {"deleted_at": datetime.now(UTC)})
    await articles.delete(article.id)

    with pytest.raises(RecordNotFound):
        await articles.update(article.id, {"text": "late"})
    with pytest.raises(DuplicateRecord):
        await articles.create(Article("a"))
    assert (await articles.with_deleted().update(article.id, {"text": "x"})).text == "x"
    live = await articles.restore(article.id)
    live.text = "y"
    assert (await articles.update(live)).deleted_at is None


async def test_get_or_create_makes_a_deleted_row_new(articles):
    """It keeps its key; what it says is what the caller's record says."""
    first = await articles.create(Article("a", "old"))
    await articles.delete(first.id)

    second, created = await articles.get_or_create(Article("a", "new"), on="slug")

    assert created
    assert second == Article("a", "new", version=3, id=first.id)
    again, created = await articles.get_or_create(Article("a", "newer"), on="slug")
    assert (again, created) == (second, False)
    assert await articles.find_many() == [second]


async def test_one_of_many_creates_the_deleted_row(leaves):
    """Sixteen tasks, one key: exactly one of them learns that it created it."""
    await leaves.create(Leaf(1, 1, "old"))
    await leaves.delete((1, 1))

    found = await asyncio.gather(
        *(leaves.get_or_create(Leaf(1, 1, f"new {n}")) for n in range(16))
    )

    assert sum(created for _, created in found) == 1
    assert len({leaf.text for leaf, _ in found}) == 1


async def test_upsert_makes_a_deleted_row_live(articles):
    """It was there, so it was not created; one by one and in batches."""
    one, two = Article("a"), Article("b")
    await articles.create_many([one, two])
    assert await articles.delete_many([one.id, two.id, uuid7()]) == 2
    assert await articles.delete_many([one.id, two.id]) == 0

    stored, created = await articles.upsert(Article("a", "x", id=one.id))
    assert (stored.version, created) == (3, False)
    many = await articles.upsert_many([Article("b", "x", id=two.id), Article("c")])
    assert [created for _, created in many] == [False, True]
    assert await articles.count() == 3


async def test_the_point_goes_and_comes_back_with_its_record(tables, articles):
    """What was stored of it is kept, and written again."""
    article = await articles.create(
        Article("a"), vector=[1.0, 2.0], payload={"lang": "en"}
    )
    plain = await articles.create(Article("b"))
    point = str(article.id)

    await articles.delete(article.id)
    await articles.delete_many([plain.id])
    assert await states(tables) == {point: ("d", [1.0, 2.0], {"lang": "en"})}

    await articles.restore(article.id)
    await articles.restore(plain.id)
    assert await states(tables) == {point: ("u", [1.0, 2.0], {"lang": "en"})}

    await articles.delete_many([article.id])
    await articles.upsert(Article("a", id=article.id), vector=[3.0, 4.0])
    assert await states(tables) == {point: ("u", [3.0, 4.0], {})}


async def test_erased_rows_and_their_points_are_gone_for_good(tables, articles):
    """One by one, or all that were deleted before a moment."""
    live, erased, purged = [
        await articles.create(Article(slug), vector=[1.0, 2.0]) for slug in "abc"
    ]
    await articles.delete(erased.id)
    await articles.delete(purged.id)

    assert await articles.erase(erased.id)
    assert not await articles.erase(erased.id)
    assert await articles.purge(datetime(2020, 1, 1, tzinfo=UTC)) == 0
    assert await articles.purge(datetime.now(UTC) + timedelta(hours=1)) == 1

    assert await articles.with_deleted().find_many() == [live]
    kept = await states(tables)
    assert kept.pop(str(live.id))[0] == "u"
    assert set(kept.values()) == {("d", None, None)}
    with pytest.raises(RecordNotFound):
        await articles.restore(purged.id)
    with pytest.raises(InvalidRecord, match="time zone"):
        await articles.purge(datetime(2020, 1, 1))


async def test_without_points_all_goes_the_same_way(leaves):
    """A key of two fields, no version, no collection."""
    await leaves.create_many([Leaf(1, n) for n in range(4)])

    assert await leaves.delete((1, 0))
    assert await leaves.delete_many([(1, 1), (1, 2), (9, 9)]) == 2
    assert await leaves.restore((1, 1)) == Leaf(1, 1)
    assert await leaves.erase((1, 0))
    assert await leaves.purge(datetime.now(UTC) + timedelta(hours=1)) == 1

    assert await leaves.with_deleted().find_many(order_by="page") == [
        Leaf(1, 1),
        Leaf(1, 3),
    ]


async def test_hooks_run_around_restorations_too(leaves: Repository[Leaf]) -> None:
    """Each in the change's own transaction, by name or for every operation."""
    seen: list[tuple[str, Any]] = []

    @leaves.before("restore")
    async def before(_transaction: object, change: Change[Leaf]) -> None:
        seen.append(("before", change.keys))

    @leaves.after()
    async def after(_transaction: object, change: Change[Leaf]) -> None:
        seen.append((change.operation, change.records))

    await leaves.create(Leaf(1, 1))
    await leaves.delete((1, 1))
    await leaves.restore((1, 1))

    assert seen == [
        ("create", (Leaf(1, 1),)),
        ("delete", ()),
        ("before", ((1, 1),)),
        ("restore", (Leaf(1, 1),)),
    ]


async def test_a_transaction_takes_a_deletion_back(tables, articles):
    """Row, point and queue alike."""
    article = await articles.create(Article("a"), vector=[1.0, 2.0])
    before = await states(tables)

    async def changes_its_mind() -> None:
        async with tables.transaction() as transaction:
            await articles.bind(transaction).delete(article.id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await changes_its_mind()

    assert await articles.get_by_id(article.id) == article
    assert await states(tables) == before


async def test_a_vector_of_the_wrong_size_is_refused_at_once(tables, articles):
    """Collection and both sizes are named; record and point are not written."""
    article = Article("a")
    for attempt in (
        articles.create(article, vector=[1.0, 2.0, 3.0]),
        articles.upsert(article, vector=[1.0, 2.0, 3.0]),
        articles.update(article, vector=[1.0, 2.0, 3.0]),
        articles.create_many([article], vectors=[[1.0, 2.0, 3.0]]),
        articles.upsert_many([article], vectors=[[1.0, 2.0, 3.0]]),
    ):
        with pytest.raises(
            DimensionMismatch, match=r"'articles'.*2.*3|'articles'.*3.*2"
        ):
            await attempt
    with pytest.raises(InvalidRecord, match="_fm_id"):
        await articles.create(article, payload={"_fm_id": 1})

    assert await articles.count() == 0
    assert await states(tables) == {}


async def test_what_soft_deletion_needs_is_checked_at_declaration(tables, leaves):
    """A nullable, aware moment outside the key; where it is off, its calls say so."""
    for name in ("text", "book", "nothing"):
        with pytest.raises((ConfigurationInvalid, InvalidName), match=name):
            Repository(tables, Leaf, key=("book", "page"), deleted=name)
    plain: Repository[Leaf] = Repository(tables, Leaf, key=("book", "page"))
    with pytest.raises(ConfigurationInvalid, match="deleted="):
        plain.with_deleted()
    with pytest.raises(ConfigurationInvalid, match="deleted="):
        await plain.restore((1, 1))
    with pytest.raises(ConfigurationInvalid, match="deleted="):
        await plain.purge(datetime.now(UTC))
    await plain.create(Leaf(1, 1))
    assert await plain.erase((1, 1))
    assert await leaves.with_deleted().count() == 0
