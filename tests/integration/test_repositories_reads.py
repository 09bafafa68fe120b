"""Filters by name, pages and cursors, streams: what the oracle leaves out."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.errors import InvalidCursor, InvalidName, InvalidRecord
from fm_storage.repositories import (
    ErrorEntry,
    ErrorEntryRepository,
    Order,
    Repository,
    asc,
    desc,
    where,
)
from tests.support.repository_models import Everything, Note, Product

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def errors(pool):
    """Give the error catalogue's repository."""
    return ErrorEntryRepository(pool)


def entry(message: str, module: str = "m", minute: int = 0) -> ErrorEntry:
    """Return an entry."""
    return ErrorEntry(message, module, "E", timestamp=NOON + timedelta(minutes=minute))


async def test_full_text_search_finds_words(errors):
    """In the syntax of web search: words, phrases, exclusions."""
    await errors.create_many(
        [entry("card refused by bank"), entry("card expired"), entry("bank holiday")]
    )

    async def found(query: str, **options) -> set[str]:
        return {
            item.message
            for item in await errors.find_many(
                where("message").matches(query, **options)
            )
        }

    assert await found("card -expired") == {"card refused by bank"}
    assert await found('"bank holiday"') == {"bank holiday"}
    assert len(await found("cards or bank", language="english")) == 3
    assert await found("'); DROP TABLE project_errors; --") == set()


async def test_json_paths_compare_and_match(tables):
    """Values, text, containment and null inside JSON, of both JSON types."""
    repository = Repository(tables, Everything)
    await repository.create_many(
        [
            Everything(1, mapping={"user": {"id": 7, "name": "Ann"}}, plain={"a": 1}),
            Everything(2, mapping={"user": {"id": 70, "tags": ["x", "y"]}}),
            Everything(3, anything=[1, 2], items=[{"k": "v"}]),
        ]
    )

    async def ids(*filters) -> list[int]:
        found = await repository.find_many(*filters, order_by="id")
        return [item.id for item in found]

    user = where("mapping").at("user")
    assert await ids(user.at("id") == 7) == [1]
    assert await ids(user.at("id") > 7) == [2]
    assert await ids(user.at("name").starts_with("A")) == [1]
    assert await ids(user.at("name").ilike("a%")) == [1]
    assert await ids(user.at("tags", 1) == "y") == [2]
    assert await ids(user.at("tags").contains(["y"])) == [2]
    assert await ids(where("mapping").contains({"user": {"id": 70}})) == [2]
    assert await ids(where("items").contains([{"k": "v"}])) == [3]
    assert await ids(user.at("id").is_null()) == [3]
    assert await ids(where("plain").at("a") == 1) == [1]
    assert await ids(where("anything") == [1, 2]) == [3]


async def test_filters_name_only_the_models_fields(errors):
    """Whatever a name tries, it never becomes SQL."""
    for name in ("nope", "id; DROP TABLE x", '"id"', "", "ID"):
        with pytest.raises(InvalidName):
            await errors.find_many(where(name) == 1)
        with pytest.raises(InvalidName):
            await errors.find_many(order_by=name)
    for wrong in (
        where("message").at("x") == 1,
        where("timestamp").contains("x"),
        where("manager_context").overlaps(["x"]),
    ):
        with pytest.raises(InvalidName):
            await errors.find_many(wrong)
    with pytest.raises(InvalidName, match="text search"):
        where("message").matches("x", language="x'; --")
    with pytest.raises(InvalidName, match="nulls"):
        await errors.find_many(order_by=Order("id", nulls="maybe"))


async def test_values_that_do_not_compare_are_refused_by_name(errors):
    """Before anything is sent."""
    for wrong in (
        where("timestamp") > "yesterday",
        where("timestamp") > None,
        where("message") == 7,
        where("message").like("\0"),
        where("id").in_(["x"]),
        where("severity") == "LOUD",
    ):
        with pytest.raises(InvalidRecord, match="compared") as caught:
            await errors.count(wrong)
        assert caught.value.field is not None
    with pytest.raises(TypeError, match="combine filters"):
        assert where("message") == "a"


async def test_conditions_on_what_is_no_text_look_at_its_text(tables):
    """LIKE on a number or array compares what PostgreSQL shows."""
    notes = Repository(tables, Note)
    await notes.create_many([Note(17), Note(70), Note(3, "x")])

    assert [n.id for n in await notes.find_many(where("id").like("7%"))] == [70]
    assert await notes.count(where("body").in_([None, "x"])) == 3
    assert await notes.count(where("body").is_not_null()) == 1


async def test_a_thousand_rows_of_one_moment_are_paged_without_loss(errors):
    """The key breaks the tie; pages of any size, in both directions."""
    batch = [entry(str(n)) for n in range(1000)]
    await errors.create_many(batch)
    for order_by in ("-timestamp", "timestamp", ("module", desc("timestamp"))):
        seen = []
        cursor = None
        while True:
            page = await errors.page(order_by=order_by, size=170, cursor=cursor)
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen) == sorted(item.id for item in batch)
        assert len(set(seen)) == 1000


async def test_cursor_is_opaque_and_validated(errors, tables):
    """Changed, foreign, of another order or set of filters: refused by name."""
    await errors.create_many([entry(str(n), minute=n) for n in range(5)])
    first = await errors.page(order_by="timestamp", size=2)
    cursor = first.next_cursor
    assert cursor is not None
    data = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    data[-3] ^= 1
    changed = base64.urlsafe_b64encode(bytes(data)).decode().rstrip("=")

    for wrong in (changed, cursor[:-4], "x", "é", "", "!" * 20, 7, b"x"):
        with pytest.raises(InvalidCursor) as caught:
            await errors.page(order_by="timestamp", size=2, cursor=wrong)
        assert caught.value.field == "cursor"
    for filters, order_by in (
        ((), "-timestamp"),
        ((where("module") == "m",), "timestamp"),
    ):
        with pytest.raises(InvalidCursor, match="another"):
            await errors.page(*filters, order_by=order_by, size=2, cursor=cursor)
    products = Repository(tables, Product, key="sku")
    with pytest.raises(InvalidCursor, match="another"):
        await products.page(cursor=cursor)
    with pytest.raises(InvalidName, match="cannot order pages"):
        await errors.page(order_by="manager_context")
    with pytest.raises(InvalidRecord, match="size 0 holds nothing"):
        await errors.page(size=0)


async def test_cursor_keeps_working_with_another_size_and_total(errors):
    """Only what decides the order belongs to a cursor."""
    await errors.create_many([entry(str(n), minute=n) for n in range(5)])
    first = await errors.page(where("message") != "x", order_by="timestamp", size=2)

    rest = await errors.page(
        where("message") != "y",
        order_by="timestamp",
        size=9,
        cursor=first.next_cursor,
        total=True,
    )

    assert [item.message for item in rest.items] == ["2", "3", "4"]
    assert (rest.total, rest.has_more) == (5, False)


async def test_every_kind_of_value_can_order_pages(tables):
    """Numbers, texts, times, bytes, enums: each survives the cursor."""
    repository = Repository(tables, Everything)
    rows = [
        Everything(
            n,
            small=n % 2,
            flag=n % 3 == 0,
            real_number=[float("-inf"), float("nan"), 0.1, None][n % 4],
            data=bytes([n % 2]),
            moment=NOON + timedelta(microseconds=n % 2),
            day=NOON.date(),
            hour=NOON.time(),
            span=timedelta(days=-n),
        )
        for n in range(8)
    ]
    await repository.create_many(rows)
    for name in (
        "small",
        "flag",
        "real_number",
        "amount",
        "data",
        "moment",
        "naive",
        "day",
        "hour",
        "span",
        "colour",
        "level",
        "choice",
    ):
        seen = []
        cursor = None
        while True:
            page = await repository.page(
                order_by=asc(name, nulls="first"), size=3, cursor=cursor
            )
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen) == list(range(8)), name


async def test_stream_gives_every_row_and_leaves_nothing_open(errors, pool):
    """To the end, left early, and left by an error."""
    await errors.create_many([entry(str(n), minute=n) for n in range(2500)])

    async with errors.stream(order_by="timestamp", prefetch=100) as rows:
        messages = [item.message async for item in rows]
    async with errors.stream(where("message") == "7") as rows:
        only = [item async for item in rows]
    async with errors.stream(order_by="timestamp", prefetch=10) as rows:
        async for item in rows:
            assert item.message == "0"
            break

    assert messages == [str(n) for n in range(2500)]
    assert [item.message for item in only] == ["7"]
    assert await pool.fetchval("SELECT count(*) FROM pg_cursors WHERE name <> ''") == 0
    assert await errors.count() == 2500
