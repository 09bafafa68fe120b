"""The bars of dual write at full size: kills, stops, zombies, hot points."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import MigrationsConfig, OutboxConfig
from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.torture.outbox_crash import Ledger, Victim, compare, prepared
from tests.torture.outbox_recipes import Ours

if TYPE_CHECKING:
    from tests.fix_cluster import TestCluster

pytestmark = pytest.mark.timeout(900)

KILLS = 50
STOPS = 5
ENGINE_KILLS = 5


async def test_fifty_kills_and_five_immediate_stops_lose_nothing(
    cluster: TestCluster, vector_folder: Path, tmp_path: Path
):
    """Writers, drainers, PostgreSQL and the engine are killed: 0 lost, 0 apart.

    Asynchronous commit is the server's default here, so that what protects an
    acknowledged write is what the statement itself pins.
    """
    await cluster.restart(synchronous_commit="off")
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    dice = random.Random(8)
    ledger = tmp_path / "ledger"
    blows = ["kill"] * KILLS + ["stop"] * STOPS + ["engine"] * ENGINE_KILLS
    dice.shuffle(blows)
    async with prepared(cluster.dsn, vector_folder) as (pool, store):
        victims = [
            Victim("ours", *where, FM_TORTURE_FIRST=first)
            for where, first in (
                (("write", cluster.dsn, vector_folder, ledger), "1"),
                (("write+drain", cluster.dsn, vector_folder, ledger), "100001"),
                (("drain", cluster.dsn, vector_folder, ledger), "0"),
            )
        ]
        for victim in victims:
            await victim.start(dice.random())
        for blow in blows:
            await asyncio.sleep(dice.uniform(0.1, 0.8))
            if blow == "kill":
                victim = dice.choice(victims)
                await victim.kill()
                await victim.start(dice.random())
            elif blow == "stop":
                await cluster.restart("immediate", synchronous_commit="off")
            else:
                await store.ready()
                pid = store.statistics().engine_pid
                if pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for victim in victims:
            await victim.kill()
        after = Ours(pool, store)
        assert await after.finish() == 0
        found = await compare(pool, store, Ledger(ledger))
        assert not found.diverged, found
        assert found.acknowledged > 1000
        verified = await after.outbox.verify()
        assert verified.agrees, verified.samples


@pytest.mark.parametrize("seed", range(20))
async def test_zombies_leave_no_divergence(
    dsn: str, vector_folder: Path, tmp_path: Path, seed: int
):
    """Four drainers whose calls outlive their leases, one of them stopped at times."""
    dice = random.Random(seed)
    ledger = tmp_path / "ledger"
    environment = {
        "FM_TORTURE_LEASE": "0.05",
        "FM_TORTURE_DELAY": "0.1",
        "FM_TORTURE_NOTES": "10",
    }
    async with prepared(dsn, vector_folder) as (pool, store):
        drainers = [
            Victim("ours", "drain", dsn, vector_folder, ledger, **environment)
            for _ in range(4)
        ]
        writer = Victim("ours", "write", dsn, vector_folder, ledger, **environment)
        await asyncio.gather(*(one.start(dice.random()) for one in [*drainers, writer]))
        for _ in range(5):
            zombie = dice.choice(drainers)
            zombie.signal(signal.SIGSTOP)
            await asyncio.sleep(dice.uniform(0.1, 0.5))
            zombie.signal(signal.SIGCONT)
            await asyncio.sleep(dice.uniform(0.05, 0.2))
        await writer.kill()
        async with asyncio.timeout(60):
            await _emptied(pool)
        for drainer in drainers:
            await drainer.kill()
        found = await compare(pool, store, Ledger(ledger))
        assert not found.diverged, found
        outbox = Outbox(pool, store, OutboxConfig(drain=False))
        verified = await outbox.verify()
        assert verified.agrees, verified.samples


async def test_three_thousand_updates_of_hot_points_never_run_backwards(
    pool: Pool, qdrant: QdrantStore
):
    """Versions follow the order of commits: the last committed state is delivered."""
    await qdrant.ensure_collection_exists("hot", 2)
    await pool.execute(_WITNESS)
    async with Outbox(pool, qdrant, OutboxConfig(lease=5)) as outbox:

        async def update(worker: int) -> None:
            for turn in range(188):
                point = Point(turn % 3, [1.0, worker], {"by": worker, "turn": turn})
                await outbox.upsert("hot", [point])

        async with asyncio.TaskGroup() as tasks:
            for worker in range(16):
                tasks.create_task(update(worker))
        await outbox.drain(timeout=30)
        seen, backwards = await pool.fetchrow(
            "SELECT count(*), count(*) FILTER (WHERE new <= old) FROM witness"
        )
        assert seen == 16 * 188 - 3
        assert backwards == 0
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


async def _emptied(pool: Pool) -> None:
    """Return when no row is queued, tombstones included."""
    while await pool.fetchval("SELECT count(*) FROM fm_storage.vector_queue"):
        await asyncio.sleep(0.1)
