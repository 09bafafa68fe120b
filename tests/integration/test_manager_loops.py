"""Every part on each kind of event loop, in a process that shows what is left open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec

import pytest

from fm_storage import StorageConfig, StorageManager
from tests.fix_process import Child

Start = Callable[..., Awaitable[Child]]
LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]  # not everywhere

_ALL_PARTS = """
import asyncio, logging, sys
from fm_storage import ErrorManager, Point, StorageManager

async def main():
    async with (
        StorageManager() as storage,
        ErrorManager(storage, freshness=30) as errors,
    ):
        await storage.qdrant.ensure_collection_exists("docs", 2)
        await storage.outbox.upsert("docs", [Point(1, [1.0, 0.0])])
        await storage.outbox.wait_synced(1, collection="docs", timeout=30)
        print([hit.id for hit in await storage.qdrant.search("docs", [1.0, 0.1], 3)])
        for number in range(2):
            recorded = await errors.record(f"order {number} refused", module="shop")
        hits = await errors.find_similar(recorded.entry, limit=5)
        print([hit.entry.message for hit in hits])
        async with storage.session() as session:
            view = await session.create_view("SELECT 7 AS n", materialized=True)
            async with storage.pool.stream(f"SELECT n FROM {view}") as rows:
                print([row["n"] async for row in rows])
        log = logging.getLogger("shop")
        log.addHandler(errors.handler("ERROR"))
        log.error("from the log")

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
async def test_every_part_works_and_leaves_nothing_open(
    child: Start, storage_config: StorageConfig, storage: StorageManager, loop: str
):
    """Warnings are errors there: no socket, task or coroutine is left behind."""
    assert storage_config.postgres is not None
    assert storage_config.qdrant is not None
    process = await child(
        _ALL_PARTS,
        loop,
        PYTHONDEVMODE="1",
        PYTHONWARNINGS="error",
        FM_STORAGE_POSTGRES__DSN=storage_config.postgres.dsn,
        FM_STORAGE_QDRANT__URL=storage_config.qdrant.url,
        FM_STORAGE_DATA_DIR=str(storage_config.data_dir),
    )

    lines = [await process.line() for _ in range(3)]
    ended = await process.wait()
    said = await process.errors()

    assert (lines, ended) == (["[1]", "['order 0 refused']", "[7]"], 0), said
    assert "Warning" not in said
    assert "Traceback" not in said
    assert await storage.error_entries.count() == 3
