"""Foreign writers, backfills, drainers and the server killed: rows and points agree."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import asyncpg
import pytest

from fm_storage.config import MigrationsConfig, OutboxConfig, PostgresConfig
from fm_storage.migrate import Migrator
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import LexicalVectorizer, QdrantStore
from tests.fix_cluster import TestCluster
from tests.support.storms import kill_storm

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

VICTIM = """
import asyncio, sys
from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import LexicalVectorizer, QdrantStore

async def main():
    dsn, folder = sys.argv[1:]
    async with (
        Pool(PostgresConfig(dsn=dsn, connect_timeout=2)) as pool,
        QdrantStore(QdrantConfig(durability="process"), folder=folder) as store,
        Outbox(pool, store, OutboxConfig(max_backoff=0.2, batch_size=50)) as outbox,
    ):
        await outbox.track("docs", "docs", text="body", payload=["rev"],
                           vectorizer=LexicalVectorizer())
        await outbox.backfill("docs", batch_size=100)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def write(connection: asyncpg.Connection, dice: random.Random) -> None:
    """Write rows as a program that knows nothing of us."""
    at, rev = dice.randrange(1, 900), dice.randrange(10**9)
    kind = dice.random()
    if kind < 0.5:
        await connection.execute(
            "INSERT INTO docs VALUES ($1, $2, $3) ON CONFLICT (id) "
            "DO UPDATE SET body = EXCLUDED.body, rev = EXCLUDED.rev",
            *(at, f"text {rev}", rev),
        )
    elif kind < 0.7:
        await connection.execute("DELETE FROM docs WHERE id = $1", at)
    elif kind < 0.8:
        await connection.execute(
            "UPDATE docs SET rev = rev + 1, body = NULLIF(body, 'text') "
            "WHERE id BETWEEN $1 AND $1 + 20",
            at,
        )
    elif kind < 0.9:
        rows = [(n, f"copied {rev}", rev) for n in range(1000 + at, 1020 + at)]
        with contextlib.suppress(asyncpg.UniqueViolationError):
            await connection.copy_records_to_table("docs", records=rows)
    else:
        async with connection.transaction():
            await connection.execute("DELETE FROM docs WHERE id % 10 = $1", at % 10)
            await connection.execute(
                "UPDATE docs SET id = id + 5000 WHERE id % 10 = $1 AND id < 900",
                (at + 1) % 10,
            )


async def test_rows_and_points_agree_after_any_kill(
    cluster: TestCluster, qdrant: QdrantStore, vector_folder: Path
):
    """0 missing, 0 orphan, 0 stale, by comparing each row with its point."""
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    setup = await asyncpg.connect(cluster.dsn)
    await setup.execute(
        "CREATE TABLE docs (id BIGINT PRIMARY KEY, body TEXT, rev BIGINT)"
    )
    await setup.execute(
        "INSERT INTO docs SELECT n, 'old', n FROM generate_series(1, 3000) n"
    )
    await setup.close()
    done = await kill_storm(
        cluster,
        vector_folder,
        write,
        VICTIM,
        seed=11,
        turns=4,
        life=(2.0, 5.0),
        restart_after=1,
        kill_after=2,
    )
    assert done > 50
    async with Pool(PostgresConfig(dsn=cluster.dsn)) as pool:
        outbox = Outbox(pool, qdrant, OutboxConfig(drain=False, max_backoff=0.2))
        await outbox.track(
            *("docs", "docs"),
            text="body",
            payload=["rev"],
            vectorizer=LexicalVectorizer(),
        )
        await outbox.backfill("docs")
        report = await outbox.drain(timeout=120)
        assert (report.quarantined, report.remaining) == (0, 0), report
        found = await outbox.verify()
        assert found.agrees, found
        rows = await pool.fetch("SELECT id, rev FROM docs WHERE body IS NOT NULL")
        points = {
            one.id: one.payload["rev"] async for one in qdrant.iter_points("docs")
        }
        assert points == {row["id"]: row["rev"] for row in rows}
