"""The two scenarios of the plan: an error's whole way, and both stores failing in turn.

Unlike in the tests of single failures, everything happens to one running manager,
under load, and what counts is the end: nothing lost, nothing
doubled, everything in both stores.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.errors import StorageError
from fm_storage.manager import StorageManager
from fm_storage.testing import QdrantTestServer
from tests.support.waiting import until

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(240)


async def points(storage, ids):
    """Return the points of the catalogue with these ids."""
    [collection] = await storage.qdrant.list_collections()
    wanted = list(ids)
    found: dict[str, Any] = {}
    for at in range(0, len(wanted), 200):
        part = await storage.qdrant.retrieve(collection, wanted[at : at + 200])
        found.update((str(point.id), point) for point in part)
    return found


async def test_an_error_is_received_catalogued_and_kept_in_both_stores(storage):
    """Scenario 4.3: exception → entry → PostgreSQL and Qdrant → found by likeness."""
    async with ErrorManager(storage) as errors:
        with pytest.raises(StorageError) as caught:
            await storage.pool.fetchval("SELECT 1 / 0")
        recorded = await errors.record(
            caught.value, module="billing", context={"order": 7}
        )
        other = await errors.record("disk quota exceeded", module="disk")
        # In PostgreSQL: what was returned is what is stored.
        assert recorded.durable
        row = await storage.pool.fetchrow(
            "SELECT message, module, severity, manager_context, stack_trace "
            "FROM project_errors WHERE id = $1",
            recorded.id,
        )
        assert "division by zero" in row["message"]
        assert (row["module"], row["severity"]) == ("billing", "ERROR")
        assert row["manager_context"]["order"] == 7
        assert "ZeroDivision" not in row["message"]
        assert "Traceback" in row["stack_trace"]
        # In Qdrant: a point of the same id, with the fields of the filters.
        await storage.outbox.wait_synced(recorded.id)
        await storage.outbox.wait_synced(other.id)
        found = await points(storage, [recorded.id, other.id])
        assert set(found) == {str(recorded.id), str(other.id)}
        point = found[str(recorded.id)]
        assert point.payload["module"] == "billing"
        # Found by likeness, and by nothing else first.
        [hit] = await errors.find_similar("division by zero in billing", limit=1)
        assert hit.entry == recorded.entry
        [group] = await errors.groups(module="billing")
        assert group.example == recorded.entry


async def test_both_stores_fail_in_turn_and_together_while_it_runs(
    dsn, tcp_proxy, tmp_path
):
    """Scenario 4.4: recording never fails; at the end both stores hold everything.

    Six workers record all the time while PostgreSQL is cut off, comes back, Qdrant
    is cut off, comes back, both are cut off, and both come back.
    """
    async with QdrantTestServer() as server:
        rows, vectors = tcp_proxy(dsn), tcp_proxy(server.url)
        config = StorageConfig(
            postgres={"dsn": rows.dsn(dsn), "connect_timeout": 2},
            qdrant={"url": f"http://127.0.0.1:{vectors.port}", "timeout": 10},
            outbox={"max_backoff": 0.5},
            data_dir=tmp_path / "data",
        )
        async with (
            StorageManager(config) as storage,
            ErrorManager(storage, timeout=0.5, freshness=0.1) as errors,
        ):
            given: dict[UUID, bool] = {}
            stop = asyncio.Event()
            turn = asyncio.Event()

            async def work(worker: int):
                n = 0
                while not stop.is_set():
                    n += 1
                    recorded = await errors.record(f"w{worker} n{n}", module="m")
                    given[recorded.id] = recorded.durable
                    turn.set()
                    await asyncio.sleep(0.03)

            async def some(number: int):
                """Wait until so many more were recorded."""
                target = len(given) + number
                while len(given) < target:
                    turn.clear()
                    await turn.wait()

            workers = [asyncio.create_task(work(n)) for n in range(6)]
            await some(20)
            for proxies in ((rows,), (vectors,), (rows, vectors)):
                for proxy in proxies:
                    proxy.refuse()
                await some(30)
                if vectors in proxies:
                    with pytest.raises(StorageError):
                        await errors.find_similar("w1", limit=1)
                for proxy in proxies:
                    proxy.accept()
                assert await errors.flush(60)
                await some(20)
            stop.set()
            await asyncio.gather(*workers)
            assert await errors.flush(60)
            assert not all(given.values())
            stored = [
                r[0] for r in await storage.pool.fetch("SELECT id FROM project_errors")
            ]
            assert sorted(stored) == sorted(given)

            async def delivered():
                """Drain; what the background has in hand, or put off, comes later."""
                await storage.outbox.drain(timeout=10)
                return not await storage.outbox.pending()

            await until(delivered, within=120)
            found = await points(storage, given)
            assert set(found) == {str(one) for one in given}
            assert (await errors.analyzer.totals()).errors == len(given)
            assert await errors.find_similar("w1 n1", limit=1)
