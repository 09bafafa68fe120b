"""A rebuild that was killed is named; one whose name means nothing ends by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fm_storage.config import CollectionConfig, OutboxConfig, QdrantConfig
from fm_storage.errors import CollectionNotFound
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.testing import QdrantTestServer
from fm_storage.vectors import Point, QdrantStore
from fm_storage.vectors.vectorizers.lexical import Embedding
from tests.adversity.test_outbox_rebuild_kills import STABLE, rebuilder, stable
from tests.support.waiting import until

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

QUIET = OutboxConfig(drain=False, lease=5, max_backoff=0.2)
LIVE = OutboxConfig(lease=5, max_backoff=0.2)
BETWEEN = "exchange:1:between"
FILLING = "upsert_points:2:after"


@pytest.fixture
async def store() -> AsyncIterator[QdrantStore]:
    """Give a store on a server without collections."""
    async with (
        QdrantTestServer() as server,
        QdrantStore(QdrantConfig(url=server.url)) as store,
    ):
        yield store


async def killed(
    dsn: str, pool: Pool, store: QdrantStore, folder: Path, point: str
) -> None:
    """Fill a plain collection, and SIGKILL a rebuild of it at *point*."""
    await store.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, store, QUIET)
    await outbox.upsert("things", stable())
    await outbox.drain(timeout=60)
    end, _ = await rebuilder(dsn, store.config.url, folder, point)
    assert end == -signal.SIGKILL, "the point was never reached"


async def whole(outbox: Outbox, store: QdrantStore) -> None:
    """Check that the name means a complete collection, and nothing is left over."""
    found = await outbox.verify()
    assert found.agrees, found.samples
    assert await store.count("things", {"stable": True}) == STABLE
    aliases = await store.list_aliases()
    assert await store.list_collections() == [aliases["things"]]
    assert (await outbox.status()).rebuilds == ()


async def test_next_start_ends_an_exchange_that_was_killed_in_the_middle(
    dsn: str, pool: Pool, store: QdrantStore, tmp_path: Path
):
    """The plain collection is deleted, the alias not yet made: no user is needed."""
    await killed(dsn, pool, store, tmp_path, BETWEEN)
    with pytest.raises(CollectionNotFound):
        await store.count("things")
    (left,) = (await Outbox(pool, store, QUIET).status()).rebuilds
    assert (left.collection, left.copied, left.total) == ("things", STABLE, STABLE)
    assert (left.under_way, left.exchanging) == (False, True)
    async with Outbox(pool, store, LIVE) as outbox:

        async def ended() -> bool:
            return not (await outbox.status()).rebuilds

        await until(ended, within=90)
        await whole(outbox, store)


async def test_next_start_ends_it_also_where_the_name_was_configured(
    dsn: str, pool: Pool, store: QdrantStore, tmp_path: Path
):
    """Opening the store makes an empty collection of that name first."""
    await killed(dsn, pool, store, tmp_path, BETWEEN)
    config = QdrantConfig(
        url=store.config.url, collections={"things": CollectionConfig(size=2)}
    )
    async with QdrantStore(config) as configured:
        assert await configured.count("things") == 0
        outbox = Outbox(pool, configured, QUIET)
        await outbox.drain(timeout=60)
        await whole(outbox, configured)


async def test_drainer_that_finds_the_name_gone_ends_the_exchange(
    dsn: str, pool: Pool, store: QdrantStore, tmp_path: Path
):
    """It ran all the while; the first point that it cannot deliver tells it."""
    async with Outbox(pool, store, LIVE) as outbox:
        await killed(dsn, pool, store, tmp_path, BETWEEN)
        await outbox.upsert("things", [Point(5001, [1.0, 2.0], {"late": True})])
        await outbox.wait_synced(5001, timeout=90)
        assert await store.count("things", {"late": True}) == 1
        await whole(outbox, store)


async def test_drain_on_demand_ends_the_exchange_and_delivers(
    dsn: str, pool: Pool, store: QdrantStore, tmp_path: Path
):
    """It began before the kill, and does not report the collection as missing."""
    outbox = Outbox(pool, store, QUIET)
    await killed(dsn, pool, store, tmp_path, FILLING)
    await outbox.drain(timeout=60)
    end, _ = await rebuilder(dsn, store.config.url, tmp_path, BETWEEN)
    assert end == -signal.SIGKILL
    await outbox.upsert("things", [Point(5001, [1.0, 2.0], {"late": True})])
    report = await outbox.drain(timeout=60)
    assert (report.remaining, dict(report.blocked)) == (0, {})
    await whole(outbox, store)


async def test_exchange_that_cannot_be_ended_is_named_and_holds_up_nobody(
    dsn: str,
    pool: Pool,
    store: QdrantStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Somebody deleted the target too, and nobody knows a definition."""
    await killed(dsn, pool, store, tmp_path, BETWEEN)
    (target,) = await store.list_collections()
    await store.delete_collection(target)
    await store.ensure_collection_exists("others", 2)
    outbox = Outbox(pool, store, QUIET)
    await outbox.upsert("others", [Point(1, [1.0, 2.0], {})])
    await outbox.upsert("things", [Point(5001, [1.0, 2.0], {})])
    with caplog.at_level(logging.WARNING, "fm_storage.outbox"):
        report = await outbox.drain(timeout=60)
    assert (report.delivered, report.remaining) == (1, 1)
    assert "'things' does not exist in the vector store" in report.blocked["things"]
    assert caplog.text.count("things is not rebuilt: collection 'things'") == 1
    spec = CollectionConfig(size=2)
    assert (await outbox.rebuild("things", spec=spec)).resumed
    assert (await outbox.drain(timeout=60)).remaining == 0
    assert await store.count("things") == STABLE + 1


class Zeros:
    """Embeds every text alike."""

    name = "zeros"
    spec = CollectionConfig(size=2)

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Give one vector for each text."""
        return [Embedding([1.0, 0.0], None) for _ in texts]


async def texts(_: Executor, ids: list[str]) -> dict[str, str]:
    """Give each point its id as text."""
    return {one: one for one in ids}


async def test_drainer_that_makes_the_missing_collection_ends_the_exchange(
    dsn: str, pool: Pool, store: QdrantStore, tmp_path: Path
):
    """Where a vectorizer defines it, nothing is refused: the name means too little."""
    await killed(dsn, pool, store, tmp_path, FILLING)
    outbox = Outbox(pool, store, QUIET)
    outbox.register_vectorizer("things", Zeros(), texts)
    await outbox.drain(timeout=60)
    end, _ = await rebuilder(dsn, store.config.url, tmp_path, BETWEEN)
    assert end == -signal.SIGKILL
    await outbox.upsert("things", [Unembedded(5001, {"late": True})])
    assert (await outbox.drain(timeout=60)).remaining == 0
    assert await store.count("things", {"late": True}) == 1
    await whole(outbox, store)


async def test_interrupted_filling_is_named_and_waits_for_somebody(
    dsn: str,
    pool: Pool,
    store: QdrantStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Status, health and the log say what, how far and how to go on."""
    await killed(dsn, pool, store, tmp_path, FILLING)
    goes_on = "'fm-storage outbox rebuild things' goes on with it"
    outbox = Outbox(pool, store, QUIET)
    with caplog.at_level(logging.WARNING, "fm_storage.outbox"):
        await outbox.drain(timeout=60)
    assert f"interrupted after 500 points; {goes_on}" in caplog.text
    (left,) = (await outbox.status()).rebuilds
    assert (left.copied, left.total, left.under_way) == (500, STABLE, False)
    assert not left.exchanging
    health, detail = await outbox.health()
    assert health == "ok"
    assert goes_on in detail
    environment = {
        "FM_STORAGE_POSTGRES__DSN": dsn,
        "FM_STORAGE_QDRANT__URL": store.config.url,
    }
    shown = await run("status", **environment)
    assert f"the rebuild of things was interrupted: 500 of {STABLE:,} points" in shown
    assert goes_on in shown
    assert '"copied": 500' in await run("status", "--json", **environment)
    shown = await run("rebuild", "things", **environment)
    assert f"things: resumed, {STABLE:,} points" in shown
    await whole(outbox, store)


class Held(QdrantStore):
    """The real store; a write to it waits until it is let go."""

    def __init__(self, config: QdrantConfig) -> None:
        super().__init__(config)
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def upsert_points(self, *arguments: Any, **options: Any) -> int:
        """Write when it is let go."""
        self.reached.set()
        await self.go.wait()
        written: int = await super().upsert_points(*arguments, **options)
        return written


async def test_rebuild_under_way_is_distinguished_from_an_interrupted_one(
    pool: Pool, store: QdrantStore
):
    """The lock that it holds says so; no drainer lays hands on it."""
    await store.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, store, QUIET)
    await outbox.upsert("things", stable())
    await outbox.drain(timeout=60)
    async with Held(store.config) as held, asyncio.TaskGroup() as tasks:
        tasks.create_task(Outbox(pool, held, QUIET).rebuild("things"))
        await held.reached.wait()
        (now,) = (await outbox.status()).rebuilds
        assert (now.under_way, now.copied) == (True, 0)
        assert "interrupted" not in (await outbox.health())[1]
        assert "things is being rebuilt: 0 of" in await run(
            "status",
            FM_STORAGE_POSTGRES__DSN=pool.config.dsn,
            FM_STORAGE_QDRANT__URL=store.config.url,
        )
        held.go.set()
    await whole(outbox, store)


async def run(*arguments: str, **environment: str) -> str:
    """Run ``fm-storage outbox ARGUMENTS`` and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage", "outbox", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment, "COLUMNS": "200"},
    )
    said, _ = await process.communicate()
    return said.decode()
