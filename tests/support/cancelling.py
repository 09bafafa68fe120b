"""Calls of the pool cancelled at random instants, and a look for leaks.

Separate because the short form is in the normal suite, the long one in the torture
sweeps and in the benchmark's bars.
"""

from __future__ import annotations

import asyncio
import random

from fm_storage.config import PostgresConfig
from fm_storage.postgres import Pool, Sql

__all__ = ["cancel_at_random"]


async def cancel_at_random(dsn, count):
    """Cancel *count* calls of every kind at random instants and look for leaks."""
    rng = random.Random(20260203)
    config = PostgresConfig(dsn=dsn, max_size=4, check_after=0.01)
    async with Pool(config) as pool:
        watcher = await pool.connect("watch")

        async def transaction():
            async with pool.transaction() as tx:
                await tx.execute("SELECT pg_sleep(0.002)")
                async with tx.savepoint() as inner:
                    await inner.execute(Sql("SELECT 1"))

        async def stream():
            async with pool.stream("SELECT generate_series(1, 50)", prefetch=5) as rows:
                async for _ in rows:
                    pass

        async def dirty():
            async with pool.acquire() as connection:
                await connection.execute("CREATE TEMP TABLE x (a int)")

        async def plain():
            await pool.fetchval("SELECT pg_sleep(0.002)")

        async def prepared_anew():
            await pool.fetch(f"SELECT {rng.random()} FROM pg_class LIMIT 1")

        kinds = (transaction, stream, dirty, plain, prepared_anew)
        most = 0
        for start in range(0, count, 10):
            tasks = [asyncio.create_task(rng.choice(kinds)()) for _ in range(10)]
            for task in tasks:
                await asyncio.sleep(rng.random() * 0.004)
                task.cancel()
            await asyncio.wait(tasks)
            if start % 50 == 0:
                most = max(most, await watcher.fetchval(_BACKENDS))
        await _all_idle(pool)
        assert await watcher.fetchval(_STILL_OPEN) == 0
        assert most <= 4
        held = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(8)))
        assert held == [1] * 8
        assert await watcher.fetchval(_IN_TRANSACTION) == 0
        await watcher.aclose()


async def _all_idle(pool):
    async with asyncio.timeout(20):
        while pool.statistics().busy or pool.statistics().resetting:
            await asyncio.sleep(0.01)
    numbers = pool.statistics()
    assert numbers.size == numbers.idle <= 4


_BACKENDS = Sql(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND application_name = 'fm_storage'"
)
_STILL_OPEN = Sql(
    # Without Sync, a transaction is open in a backend that says it is active.
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND xact_start IS NOT NULL "
    "AND pid <> pg_backend_pid()"
)
_IN_TRANSACTION = Sql(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND state LIKE 'idle in transaction%'"
)
