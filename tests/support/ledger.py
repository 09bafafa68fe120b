"""Writes of every kind under a storm, and a ledger of what was acknowledged.

Separate because the short form is in the normal suite, the long one in the torture
sweeps.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random

import asyncpg

from fm_storage.config import PostgresConfig
from fm_storage.errors import StorageError
from fm_storage.postgres import Pool

__all__ = ["write_in_a_storm"]

MAKE = """
CREATE TABLE ledger (id int, what text);
CREATE FUNCTION note(int) RETURNS int LANGUAGE sql AS
  'INSERT INTO ledger VALUES ($1, ''function'') RETURNING id';
CREATE FUNCTION abs(int, text) RETURNS int LANGUAGE sql AS
  'INSERT INTO ledger VALUES ($1, $2) RETURNING id';
CREATE PROCEDURE pay(int) LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO ledger VALUES ($1, 'call'); COMMIT; END $$
"""
KILL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'fm_storage'
 ORDER BY random() LIMIT 1
"""


async def _insert(pool, number):
    await pool.execute("INSERT INTO ledger VALUES ($1, 'insert')", number)


async def _function(pool, number):
    await pool.fetchval("SELECT note($1)", number)


async def _overload(pool, number):
    await pool.fetch("SELECT abs($1, 'overload')", number)


async def _call(pool, number):
    await pool.execute("CALL pay($1)", number)


async def _many(pool, number):
    await pool.executemany("INSERT INTO ledger VALUES ($1, 'many')", [(number,)])


async def _copy(pool, number):
    await pool.copy_records(
        "ledger", columns=["id", "what"], records=[(number, "copy")]
    )


async def _transaction(pool, number):
    async with pool.transaction() as tx, tx.savepoint() as inner:
        await inner.execute("INSERT INTO ledger VALUES ($1, 'transaction')", number)


async def _repeated(pool, number):
    async def body(tx):
        await tx.execute("INSERT INTO ledger VALUES ($1, 'repeated')", number)

    await pool.run_in_transaction(body)


KINDS = (_insert, _function, _overload, _call, _many, _copy, _transaction, _repeated)


async def write_in_a_storm(dsn, proxy, count, *, every=0.02, seed=1):
    """Write *count* rows while backends are terminated and answers get lost.

    Returns:
        How many were acknowledged.
    """
    rng = random.Random(seed)
    outside = await asyncpg.connect(dsn, server_settings={"application_name": "storm"})
    await outside.execute(MAKE)
    acknowledged = set()
    config = PostgresConfig(dsn=proxy.dsn(dsn), pooler="none", max_size=4)
    async with Pool(config) as pool:

        async def storm():
            while True:
                await asyncio.sleep(every)
                await outside.execute(KILL)
                if rng.random() < 0.2:
                    proxy.lose_next_answer()

        async def worker(numbers):
            for number in numbers:
                with contextlib.suppress(StorageError):
                    await rng.choice(KINDS)(pool, number)
                    acknowledged.add(number)

        weather = asyncio.create_task(storm())
        numbers = iter(range(count))
        await asyncio.gather(*(worker(numbers) for _ in range(6)))
        weather.cancel()
        await asyncio.wait([weather])
        rows = await outside.fetch("SELECT id, what FROM ledger")
        await outside.close()
        assert (await pool.fetchval("SELECT count(*) FROM ledger")) == len(rows)
    times = collections.Counter(row["id"] for row in rows)
    assert not [row for row in rows if times[row["id"]] > 1]
    assert acknowledged <= times.keys()
    return len(acknowledged)
