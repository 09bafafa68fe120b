"""Where the texts of points come from, and whose fault it is when they do not come."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import OutboxConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.vectors import LexicalVectorizer, QdrantStore
from tests.support.waiting import until

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

QUICK = OutboxConfig(drain=False, max_backoff=0.02)


async def right(_: Executor, ids: list[str]) -> Mapping[str, str]:
    """Give each id a text."""
    return {i: f"text {i}" for i in ids}


def broken(fault: Callable[[list[str]], Any]) -> Any:
    """Give an async text_of that does what *fault* does."""

    async def text_of(_: Executor, ids: list[str]) -> Any:
        return fault(ids)

    return text_of


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda ids: {i: "text " + int(i) for i in ids}, "TypeError"),
        (lambda ids: {i: ids[len(ids)] for i in ids}, "IndexError"),
        (lambda _: None, "it returned NoneType, not {id: text}"),
        (lambda ids: {int(i): "text" for i in ids}, "ids that were not asked for"),
        (lambda ids: dict.fromkeys(ids, 7), "is int"),
    ],
)
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.lengthy
async def test_function_with_a_bug_sets_no_point_aside(
    pool: Pool, qdrant: QdrantStore, fault: Any, named: str, count: int
):
    """The points wait, the failure is shown, and the corrected function is enough."""
    outbox = Outbox(pool, qdrant, QUICK)
    outbox.register_vectorizer("notes", LexicalVectorizer(), broken(fault))
    await outbox.upsert("notes", [Unembedded(n) for n in range(count)])
    report = await outbox.drain(timeout=0.5)
    assert (report.delivered, report.quarantined, report.remaining) == (0, 0, count)
    assert "text_of of 'notes' failed" in (report.problem or "")
    assert named in (report.problem or "")
    status = await outbox.status()
    (backlog,) = status.collections
    assert (backlog.failing, backlog.quarantined) == (count, 0)
    assert named in (backlog.error or "")
    outbox.register_vectorizer("notes", LexicalVectorizer(), right)
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.remaining) == (count, 0)


@pytest.mark.lengthy
async def test_bug_is_logged_once_and_points_with_vectors_go_on(
    pool: Pool, qdrant: QdrantStore, caplog: pytest.LogCaptureFixture
):
    """A drainer names it one time, and is woken out of it by nothing but the remedy."""
    caplog.set_level(logging.WARNING, "fm_storage.outbox")
    calls = 0

    def fault(ids: list[str]) -> Any:
        nonlocal calls
        calls += 1
        raise KeyError(ids[0])

    async with Outbox(pool, qdrant, OutboxConfig(max_backoff=0.05)) as outbox:
        outbox.register_vectorizer("notes", LexicalVectorizer(), broken(fault))
        await outbox.upsert("notes", [Unembedded(n) for n in range(20)])
        await until(lambda: calls > 40)
        embedding = (await LexicalVectorizer().embed(["text"]))[0]
        vectors = {"dense": embedding.dense}
        known = set(outbox.shapes.get("notes").dense)  # registered
        vectors = {next(iter(known)): embedding.dense}
        from fm_storage.vectors import Point

        await outbox.upsert("notes", [Point(100, vectors, {})])
        await outbox.wait_synced(100, timeout=15)
        assert await outbox.pending() == 20
        outbox.register_vectorizer("notes", LexicalVectorizer(), right)
        await outbox.wait_synced(7, timeout=15)
    named = [r for r in caplog.records if "text_of of 'notes'" in r.getMessage()]
    assert len(named) == 1


async def test_payload_form_embeds_what_the_point_carries(
    pool: Pool, qdrant: QdrantStore
):
    """No function is needed; a point that lacks its text is set aside by itself."""
    outbox = Outbox(pool, qdrant, QUICK)
    outbox.register_vectorizer("notes", LexicalVectorizer(), "payload:body")
    await outbox.upsert(
        "notes",
        [Unembedded(n, {"body": f"text {n}"}) for n in range(5)]
        + [Unembedded(5, {"title": "none"}), Unembedded(6, {"body": 7})],
    )
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.quarantined, report.remaining) == (5, 2, 0)
    held = {one.id: one.error for one in await outbox.quarantine_list()}
    assert held.keys() == {5, 6}
    assert all("payload.body" in error for error in held.values())


async def test_wrong_key_of_the_payload_sets_no_point_aside(
    pool: Pool, qdrant: QdrantStore
):
    """No point has it, so it is the key that is wrong; a path into objects is one."""
    outbox = Outbox(pool, qdrant, QUICK)
    outbox.register_vectorizer("notes", LexicalVectorizer(), "payload:text")
    nested = [Unembedded(n, {"doc": {"body": f"text {n}"}}) for n in range(20)]
    await outbox.upsert("notes", nested)
    report = await outbox.drain(timeout=0.5)
    assert (report.delivered, report.quarantined, report.remaining) == (0, 0, 20)
    assert "no point of 20 has payload.text" in (report.problem or "")
    outbox.register_vectorizer("notes", LexicalVectorizer(), "payload:doc.body")
    await outbox.upsert("notes", [Unembedded(20, {"doc.body": "as it stands"})])
    report = await outbox.drain(timeout=15)
    assert (report.delivered, report.quarantined, report.remaining) == (21, 0, 0)


async def test_function_that_raises_a_cancellation_ends_no_drainer(
    pool: Pool, qdrant: QdrantStore
):
    """As where a task that it awaits was cancelled; the points wait, as for any bug."""
    calls = 0

    async def text_of(_: Executor, ids: list[str]) -> Mapping[str, str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return dict.fromkeys(ids, "text")

    async with Outbox(pool, qdrant, OutboxConfig(max_backoff=0.02)) as outbox:
        outbox.register_vectorizer("notes", LexicalVectorizer(), text_of)
        await outbox.upsert("notes", [Unembedded(1)])
        await outbox.wait_synced(1, timeout=20)
    assert calls == 2


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("BIGINT", [1, 2, 3]),
        ("UUID", [f"00000000-0000-0000-0000-00000000000{n}" for n in "123"]),
        ("TEXT", ["a b", "00000000-0000-0000-0000-0000000000AF", "x"]),
    ],
)
async def test_column_form_reads_the_table(
    pool: Pool, qdrant: QdrantStore, kind: str, keys: list[Any]
):
    """Found by key whatever its type; a row that has gone, or NULL, has no point."""
    await pool.execute(f'CREATE TABLE "My Notes" ("Key" {kind} PRIMARY KEY, body TEXT)')
    sql = f'INSERT INTO "My Notes" VALUES ($1::text::{kind}, $2)'
    for key, body in zip(keys, ["one", "two", None], strict=True):
        await pool.execute(sql, str(key), body)
    outbox = Outbox(pool, qdrant, QUICK)
    outbox.register_vectorizer(
        "notes", LexicalVectorizer(), "column:body", table="public.My Notes", key="Key"
    )
    gone = "00000000-0000-0000-0000-00000000000f" if kind == "UUID" else 99
    await outbox.upsert("notes", [Unembedded(key) for key in [*keys, gone]])
    report = await outbox.drain(timeout=15)
    assert (report.quarantined, report.remaining) == (0, 0)
    found = {str(point.id) async for point in qdrant.iter_points("notes")}
    assert found == {str(key).lower() for key in keys[:2]}


def plain(_: Executor, ids: list[str]) -> Mapping[str, str]:
    """Answer at once, without a coroutine."""
    return dict.fromkeys(ids, "text")


async def one_argument(ids: list[str]) -> Mapping[str, str]:
    """Take no executor."""
    return dict.fromkeys(ids, "text")


class Reader:
    """An object that is called like a function."""

    async def __call__(self, _: Executor, ids: list[str]) -> Mapping[str, str]:
        """Give each id a text."""
        return dict.fromkeys(ids, "text")


@pytest.mark.parametrize(
    "text_of",
    [plain, one_argument, "body", "column:body", "payload:", "table:x", 7, None],
)
async def test_other_forms_are_refused_when_registered(
    pool: Pool, qdrant: QdrantStore, text_of: Any
):
    """Not when the first point is delivered; what was registered stays."""
    outbox = Outbox(pool, qdrant, QUICK)
    with pytest.raises(ConfigurationInvalid, match="text_of"):
        outbox.register_vectorizer("notes", LexicalVectorizer(), text_of)
    none: Any = text_of
    with pytest.raises(ConfigurationInvalid, match=r"vectorizer\.embed: is a"):
        outbox.register_vectorizer("notes", none, "payload:text")
    assert outbox.shapes.get("notes") is None


async def test_objects_and_partial_functions_are_taken(pool: Pool, qdrant: QdrantStore):
    """Whatever gives a coroutine when it is called."""
    outbox = Outbox(pool, qdrant, QUICK)
    for text_of in (Reader(), Reader().__call__, functools.partial(right)):
        outbox.register_vectorizer("notes", LexicalVectorizer(), text_of)
