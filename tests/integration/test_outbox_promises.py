"""What the outbox promises beside delivering: whom it calls, how often, how much."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import CollectionConfig, OutboxConfig, QdrantConfig
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.postgres import Pool
from fm_storage.testing import QdrantTestServer, app
from fm_storage.vectors import Point, QdrantStore
from fm_storage.vectors.vectorizers.lexical import Embedding
from tests.support.inside import drainer_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong


class Counting:
    """Embeds every text alike, and counts."""

    name = "counting"
    spec = CollectionConfig(size=2)
    calls = 0

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Give one vector for each text."""
        self.calls += 1
        return [Embedding([1.0, 0.5], None) for _ in texts]


async def texts(_: Executor, ids: list[str]) -> dict[str, str]:
    """Give each point its id as text."""
    return {one: one for one in ids}


async def test_rebuild_calls_no_embedder(pool: Pool, qdrant: QdrantStore):
    """The vectors that the drainer made once are in PostgreSQL."""
    vectorizer = Counting()
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    outbox.register_vectorizer("notes", vectorizer, texts)
    await outbox.upsert("notes", [Unembedded(n, {"n": n}) for n in range(1, 101)])
    await outbox.drain(timeout=30)
    made = vectorizer.calls
    await qdrant.delete_collection("notes")
    report = await outbox.rebuild("notes")
    assert report.copied == 100
    assert vectorizer.calls == made
    assert (await outbox.verify()).agrees
    assert await qdrant.count("notes") == 100


async def test_server_too_old_for_conditions_is_refused_by_name_until_it_is_upgraded(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
):
    """It would take every write, also one that is older than what it replaces."""
    async with (
        QdrantTestServer() as server,
        QdrantStore(QdrantConfig(url=server.url)) as store,
    ):
        await store.ensure_collection_exists("things", 2)
        monkeypatch.setattr(app, "VERSION", "1.15.4")
        config = OutboxConfig(max_backoff=0.1, flush_timeout=0)
        async with Outbox(pool, store, config) as outbox:
            await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])

            async def refused() -> bool:
                return "1.15.4 is older than 1.16" in (await outbox.health())[1]

            await until(refused)
            assert (await outbox.health())[0] == "degraded"
            assert await store.count("things") == 0
            monkeypatch.undo()
            await outbox.wait_synced(1)


async def test_notifications_are_few_however_many_commits(
    pool: Pool,
):
    """One NOTIFY speaks for all that was written since the last."""
    interval = 0.2
    heard = 0
    listening = asyncio.Event()

    async def listen() -> None:
        nonlocal heard
        async for _ in pool.listen("fm_storage_outbox"):
            heard += 1
            listening.set()

    ears = asyncio.create_task(listen())
    async with Pool(pool.config) as elsewhere:
        while not listening.is_set():
            await elsewhere.execute("SELECT pg_notify('fm_storage_outbox', '')")
            await asyncio.sleep(0.01)
        writer = Outbox(
            elsewhere, None, OutboxConfig(drain=False, notify_interval=interval)
        )
        before, begun = heard, time.monotonic()
        for n in range(200):
            await writer.upsert("things", [Point(n, [1.0, 2.0], {})])
        await writer.aclose()
        spent = time.monotonic() - begun
        await until(lambda: heard > before)
    ears.cancel()
    await asyncio.wait([ears])
    assert heard - before <= spent / interval + 2


async def test_poll_finds_what_nobody_announced(pool: Pool, qdrant: QdrantStore):
    """The writer died between its commit and its notification."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, OutboxConfig(poll_interval=0.2)) as outbox:
        await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
        await outbox.wait_synced(1)
        drainer_of(outbox).looks.failures = 30  # it has been idle for long
        silent = Outbox(pool, None, OutboxConfig(drain=False))
        silent.wake = lambda: None
        await silent.upsert("things", [Point(2, [1.0, 2.0], {})])

        async def delivered() -> bool:
            return await outbox.pending() == 0

        await until(delivered)
        assert await qdrant.count("things") == 2


async def test_hot_points_never_run_backwards(pool: Pool, qdrant: QdrantStore):
    """Sixteen writers of three points: versions follow the order of commits."""
    await qdrant.ensure_collection_exists("hot", 2)
    await pool.execute(_WITNESS)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))

    async def update(worker: int) -> None:
        for turn in range(12):
            point = Point(turn % 3, [1.0, worker], {"by": worker, "turn": turn})
            await outbox.upsert("hot", [point])

    async with asyncio.TaskGroup() as tasks:
        for worker in range(16):
            tasks.create_task(update(worker))
    assert await pool.fetchval("SELECT count(*) FROM witness") == 16 * 12 - 3
    assert await pool.fetchval("SELECT count(*) FROM witness WHERE new <= old") == 0
    await outbox.drain(timeout=30)
    assert (await outbox.verify()).agrees


_WITNESS = """
CREATE TABLE witness (old BIGINT, new BIGINT);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO witness VALUES (OLD.ver, NEW.ver);
  RETURN NULL;
END $$;
CREATE TRIGGER witness AFTER UPDATE OF ver ON fm_storage.vector_state
FOR EACH ROW EXECUTE FUNCTION witness()"""


@pytest.mark.slow
async def test_verify_holds_a_page_and_not_the_collection(
    pool: Pool, qdrant: QdrantStore
):
    """Four times as many points, 16 MB of payloads instead of 4: no more memory."""
    await qdrant.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    peaks = []
    for first in (1, 2001):
        for start in range(first, 2001 if first == 1 else 8001, 1000):
            await outbox.upsert(
                "things",
                [
                    Point(n, [1.0, 2.0], {"n": n, "text": f"{n}" + "x" * 2000})
                    for n in range(start, start + 1000)
                ],
            )
        await outbox.drain(timeout=60)
        tracemalloc.start()
        found = await outbox.verify()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.agrees
    assert peaks[1] < peaks[0] * 1.25
