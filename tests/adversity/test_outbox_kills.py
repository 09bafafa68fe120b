"""Short forms of the sweeps in tests/torture: killed processes, durable commits."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import OutboxConfig, PostgresConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool, Sql
from fm_storage.repositories import Repository, where
from fm_storage.vector_state import state_row, upsert_ctes
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import queue_of
from tests.torture.outbox_crash import trial

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

PINNED = Sql(
    "WITH rec AS (INSERT INTO notes (id) VALUES ($1) RETURNING id), "
    + upsert_ctes(
        collection="'notes'",
        point_id="rec.id::text",
        payload="$2",
        source="rec",
        durable=True,
    )
    + " SELECT 1"
)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_killed_process_loses_nothing_and_leaves_both_stores_equal(
    dsn: str, vector_folder: Path, tmp_path: Path
):
    """Writers and drainer in one process, SIGKILLed; a new one goes on."""
    dice = random.Random(3)
    for _ in range(2):
        found = await trial("ours", dsn, vector_folder, tmp_path / "ledger", dice)
        assert not found.diverged, found
        assert found.stuck == 0
        assert found.acknowledged > 0


async def test_killed_engine_is_delivered_to_again(pool: Pool, qdrant: QdrantStore):
    """The vector engine dies under the drainer; the next start gets what is left."""
    await qdrant.ensure_collection_exists("things", 2)
    async with Outbox(pool, qdrant, OutboxConfig(max_backoff=0.2)) as outbox:
        for turn in range(4):
            numbers = range(turn * 50, turn * 50 + 50)
            await outbox.upsert("things", [Point(n, [1.0, n], {}) for n in numbers])
            pid = qdrant.statistics().engine_pid
            if pid is not None and turn % 2:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await outbox.wait_synced(199, timeout=15)
        await outbox.drain(timeout=15)
        assert (await outbox.verify()).agrees
        assert await qdrant.count("things") == 200


async def setting(executor: Executor, number: int) -> str:
    """Record note *number* durably and say what its commit will wait for."""
    row = state_row(number, [1.0], {})
    await executor.execute(PINNED, number, row.payload)
    found: str = await executor.fetchval("SHOW synchronous_commit")
    return found


async def test_durable_statement_pins_its_own_commit(pool: Pool):
    """Whatever the server's default, and only until the transaction ends."""
    await pool.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY)")
    async with pool.acquire() as connection:
        await connection.execute("SET synchronous_commit = off")
        async with connection.transaction() as tx:
            assert await setting(tx, 1) == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "off"
        assert await setting(connection, 2) == "off"  # it was on for its own commit


async def test_durable_statement_pins_its_commit_behind_a_pooler(
    dsn: str, pgbouncer: Callable[..., str], qdrant: QdrantStore
):
    """Behind a transaction pooler no session setting would survive; this does."""
    async with Pool(PostgresConfig(dsn=pgbouncer(dsn))) as pool:
        await pool.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY)")
        async with pool.transaction() as tx:
            await tx.execute("SET LOCAL synchronous_commit = off")
            assert await setting(tx, 1) == "on"
        await qdrant.ensure_collection_exists("things", 2)
        async with Outbox(pool, qdrant, OutboxConfig()) as outbox:
            await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
            await outbox.wait_synced(1, collection="things", timeout=15)
            assert await qdrant.count("things") == 1


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
async def test_acknowledged_writes_are_pinned_unless_asked_not_to(
    dsn: str, pool: Pool, pgbouncer: Callable[..., str], pooled: bool
):
    """What the setting is while vector_state is written, by every way of writing."""
    await pool.execute("CREATE TABLE seen (point TEXT, setting TEXT)")
    await pool.execute("""CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO seen VALUES (NEW.point_id,
          current_setting('synchronous_commit')); RETURN NEW; END $$""")
    await pool.execute(
        "CREATE TRIGGER note AFTER INSERT OR UPDATE ON fm_storage.vector_state "
        "FOR EACH ROW EXECUTE FUNCTION note()"
    )
    database = await pool.fetchval("SELECT current_database()")
    await pool.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    where = PostgresConfig(dsn=pgbouncer(dsn) if pooled else dsn)
    point = Point(1, [1.0, 2.0], {})
    async with Pool(where) as fresh:
        outbox = Outbox(fresh, None, OutboxConfig(drain=False))
        await outbox.upsert("things", [point])
        await outbox.delete("things", [1])
        async with fresh.transaction() as tx:
            await outbox.bind(tx).upsert("things", [point])
        assert {r[0] for r in await fresh.fetch("SELECT setting FROM seen")} == {"on"}
        await fresh.execute("TRUNCATE seen")
        await outbox.upsert("things", [point], durable=False)
        await outbox.delete("things", [1], durable=False)
        assert {r[0] for r in await fresh.fetch("SELECT setting FROM seen")} == {"off"}
        await outbox.aclose()


@dataclass(slots=True)
class Note:
    """A record with a point, which may be deleted softly."""

    id: int
    text: str
    gone: datetime | None = None


@pytest.mark.parametrize("durable", [True, False])
async def test_repository_pins_writes_of_points_unless_asked_not_to(
    dsn: str, pool: Pool, *, durable: bool
):
    """Every verb that writes a point, one record or many."""
    await pool.execute("CREATE TABLE seen (setting TEXT)")
    await pool.execute(
        "CREATE TABLE note (id INT PRIMARY KEY, text TEXT, gone TIMESTAMPTZ)"
    )
    await pool.execute("""CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit'));
        RETURN NEW; END $$""")
    await pool.execute(
        "CREATE TRIGGER watch AFTER INSERT OR UPDATE ON fm_storage.vector_state "
        "FOR EACH ROW EXECUTE FUNCTION watch()"
    )
    database = await pool.fetchval("SELECT current_database()")
    await pool.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    async with Pool(PostgresConfig(dsn=dsn)) as fresh:
        notes = Repository(
            fresh, Note, collection="notes", deleted="gone", durable=durable
        )
        first = Note(1, "one")
        await notes.create(first, vector=[1.0, 2.0])
        many = [Note(n, "some") for n in (2, 3)]
        await notes.create_many(many, vectors=[[1.0, 2.0]] * 2)
        await notes.upsert(first, vector=[2.0, 1.0])
        await notes.update(first, vector=[2.0, 1.0])
        await notes.delete(1)
        await notes.restore(1)
        await notes.erase(1)
        await notes.delete_where(where("text") == "some")
        found = [r[0] for r in await fresh.fetch("SELECT setting FROM seen")]
        assert found == ["on" if durable else "off"] * 10


async def test_claiming_makes_what_it_delivers_durable(pool: Pool, qdrant: QdrantStore):
    """The drainer's own commit waits for the disk, and with it the writers' before."""
    await qdrant.ensure_collection_exists("things", 2)
    outbox = Outbox(pool, qdrant, OutboxConfig(drain=False))
    await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
    async with pool.transaction() as tx:
        await tx.execute("SET LOCAL synchronous_commit = off")
        bound = Outbox(pool, qdrant, OutboxConfig(drain=False))
        queue_of(bound)._executor = tx
        assert len(await queue_of(bound).claim(10)) == 1
        assert await tx.fetchval("SHOW synchronous_commit") == "on"


async def test_cancelled_close_still_ends(pool: Pool, qdrant: QdrantStore):
    """Closing is bounded by flush_timeout, and what is left stays queued."""
    store = qdrant
    config = OutboxConfig(flush_timeout=0.2)
    outbox = Outbox(pool, store, config)
    await outbox.open()
    await outbox.upsert("nowhere", [Point(1, [1.0, 2.0], {})])
    async with asyncio.timeout(15):
        await outbox.aclose()
        await outbox.aclose()
    assert await outbox.pending() == 1
