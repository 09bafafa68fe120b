"""A rebuild is SIGKILLed at every step, writers go on, and a new process ends it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import OutboxConfig, QdrantConfig
from fm_storage.outbox import Outbox
from fm_storage.testing import QdrantTestServer
from fm_storage.vectors import Point, QdrantStore

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
STABLE = 1200  # three pages
EMBEDDED = [
    "ensure_collection_exists:1:before",
    "ensure_collection_exists:1:after",
    "upsert_points:1:before",
    "upsert_points:2:after",
    "exchange:1:before",
    "exchange:1:after",
    "delete_collection:1:before",
    "delete_collection:1:after",
    "scroll:2:after",
]
SERVER = ["upsert_points:2:after", "exchange:1:before", "exchange:1:after"]


def stable() -> list[Point]:
    """Give points that nobody touches while the rebuild goes on."""
    return [Point(n, [1.0, n], {"stable": True}) for n in range(1, STABLE + 1)]


async def rebuilder(
    dsn: str, url: str, folder: Path, point: str
) -> tuple[int | None, str]:
    """Run a rebuild in a process of its own; return its end and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.torture.outbox_rebuilder"),
        *(dsn, url, str(folder), "things", point),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


@asynccontextmanager
async def busy(outbox: Outbox, store: QdrantStore) -> AsyncIterator[None]:
    """Write, delete, deliver and search through the name all the time.

    Raises:
        AssertionError: The name meant a collection that was not complete.
    """
    over = asyncio.Event()

    async def write() -> None:
        for n in itertools.count():
            number = 5000 + n % 90
            if n % 4:
                await outbox.upsert("things", [Point(number, [1.0, n], {"turn": n})])
            else:
                await outbox.delete("things", [number])
            if over.is_set():
                return
            await asyncio.sleep(0.002)

    async def search() -> None:
        while not over.is_set():
            assert await store.count("things", {"stable": True}) == STABLE
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        tasks.create_task(search())
        yield
        over.set()


async def killed_and_resumed(
    dsn: str, pool: Pool, store: QdrantStore, folder: Path, point: str
) -> None:
    """Kill a rebuild at *point*, end it with another, compare everything."""
    async with Outbox(pool, store, OutboxConfig(lease=5, max_backoff=0.2)) as outbox:
        await outbox.upsert("things", stable())
        async with asyncio.timeout(60):
            while await outbox.pending():
                await asyncio.sleep(0.02)
        async with busy(outbox, store):
            end, _ = await rebuilder(dsn, store.config.url, folder, point)
            assert end == -signal.SIGKILL, "the point was never reached"
            end, said = await rebuilder(dsn, store.config.url, folder, "none")
            assert end == 0
        await outbox.drain(timeout=30)
        found = await outbox.verify()
        assert found.agrees, found.samples
        assert found.pending == 0
        assert said.split()[1] == "True"
        # Nothing is left behind: the name is an alias of the only collection.
        aliases = await store.list_aliases()
        assert await store.list_collections() == [aliases["things"]]


@pytest.mark.parametrize("point", EMBEDDED)
async def test_killed_rebuild_is_ended_by_another_process(
    dsn: str, pool: Pool, qdrant: QdrantStore, vector_folder: Path, point: str
):
    """Whatever instant: searches see every point, nothing is lost or left behind."""
    await qdrant.ensure_collection_exists("things", 2)
    await killed_and_resumed(dsn, pool, qdrant, vector_folder, point)


@pytest.mark.parametrize("point", SERVER)
async def test_killed_rebuild_of_an_alias_on_a_server_is_ended_by_another_process(
    dsn: str, pool: Pool, tmp_path: Path, point: str
):
    """A server's alias changes at one stroke, so the same holds there."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(QdrantTestServer())
        store = QdrantStore(QdrantConfig(url=server.url))
        await stack.enter_async_context(store)
        await store.ensure_collection_exists("things__0", 2)
        await store.set_aliases({"things": "things__0"})
        await killed_and_resumed(dsn, pool, store, tmp_path, point)


async def test_target_that_vanished_is_filled_from_the_beginning(
    dsn: str, pool: Pool, qdrant: QdrantStore, vector_folder: Path
):
    """What had been copied is gone with it; the name never means the rest alone."""
    await qdrant.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await outbox.upsert("things", stable())
    await outbox.drain(timeout=30)
    point = "upsert_points:2:after"
    end, _ = await rebuilder(dsn, qdrant.config.url, vector_folder, point)
    assert end == -signal.SIGKILL
    (target,) = set(await qdrant.list_collections()) - {"things"}
    await qdrant.delete_collection(target)
    report = await outbox.rebuild("things")
    assert (report.copied, report.resumed) == (STABLE, True)
    assert report.repair.enqueued == 0
    assert await qdrant.count("things") == STABLE
