"""The long sweeps: random kills, and eight processes with one of them killed."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.fix_migrations import MigrationFolder, ask, catalogue
from tests.fix_process import Child

_APPLY = """
import asyncio, sys
from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator
import fm_storage.migrate.plan
migrator = Migrator(sys.argv[1], MigrationsConfig(sources=(sys.argv[2],)))
print("ready")
sys.stdin.readline()
print(len(asyncio.run(migrator.apply())))
"""

_INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


def _write(migrations: MigrationFolder) -> None:
    migrations.table("0001_a", "t_a")
    migrations.write(
        "0002_fill", "INSERT INTO t_a SELECT g FROM generate_series(1, 20000) g"
    )
    migrations.in_pieces(
        "0003_index",
        "CREATE INDEX CONCURRENTLY t_i ON t_a (id);\n"
        "INSERT INTO t_a VALUES (-1);\n"
        "CREATE INDEX CONCURRENTLY t_j ON t_a ((id % 7));\n",
        "DROP INDEX CONCURRENTLY t_i;\nDROP INDEX CONCURRENTLY t_j;\n"
        "DELETE FROM t_a WHERE id < 0;",
    )
    migrations.table("0004_b", "t_b")


@pytest.mark.timeout(600)
async def test_twenty_kills_at_random_instants_converge(
    server,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
):
    """After each kill a plain re-run ends at the same schema, rows counted once."""
    _write(migrations)
    whole = server.create_database()
    started = time.monotonic()
    await migrations.migrator(whole).apply()
    length = time.monotonic() - started
    expected = catalogue(whole)
    server.drop_database(whole)
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    done = []
    for _ in range(20):
        dsn = server.create_database()
        victim = await child(_APPLY, dsn, migrations.path)
        assert await victim.line() == "ready"
        await victim.say()
        await asyncio.sleep(chance.uniform(0, 1.2 * length))
        await victim.kill()
        done.append(len(await migrations.migrator(dsn).apply()))
        said = f"seed {seed}, kill {len(done)}"
        assert catalogue(dsn) == expected, said
        assert ask(dsn, "SELECT count(*) FROM t_a") == [(20001,)], said
        assert ask(dsn, "SELECT * FROM fm_storage.migration_steps") == [], said
        server.drop_database(dsn)
    # The sweep hit the middle, not only the ends.
    assert len(set(done)) > 1, f"seed {seed}: {done}"


@pytest.mark.timeout(600)
async def test_eight_processes_one_killed_one_slow_one_concurrent_index(
    server,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
):
    """The rest finish with no manual step, no deadlock, no INVALID index."""
    dsn = server.create_database()
    migrations.table("0001_a", "t_a")
    migrations.write("0002_slow", "CREATE TABLE t_slow (id int); SELECT pg_sleep(12)")
    migrations.in_pieces("0003_index", "CREATE INDEX CONCURRENTLY t_i ON t_a (id)")
    children = [
        await child(_APPLY, f"{dsn}&application_name={n}", migrations.path)
        for n in range(8)
    ]
    for each in children:
        assert await each.line(timeout=60) == "ready"
    for each in children:
        await each.say()
    victim = children[await _worker(dsn)]
    await victim.kill()
    counts = []
    for each in children:
        if each is not victim:
            counts.append(int(await each.line(timeout=120)))
            assert await each.wait() == 0
    # The victim's finished migrations stay; one process does all of the rest.
    assert sorted(counts)[:6] == [0] * 6
    assert ask(dsn, _INVALID) == []
    assert ask(dsn, "SELECT to_regclass('t_i') IS NOT NULL") == [(True,)]
    assert ask(
        dsn,
        "SELECT count(*) FROM fm_storage.migrations WHERE source = 'app/migrations'",
    ) == [(3,)]
    server.drop_database(dsn)


async def _worker(dsn: str) -> int:
    """Wait until a process is in the slow migration; return which of them."""
    while True:
        rows = await asyncio.to_thread(
            ask,
            dsn,
            "SELECT application_name FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event = 'PgSleep'",
        )
        if rows:
            return int(rows[0][0])
        await asyncio.sleep(0.02)
