"""SIGKILL at the boundaries of a migration: a plain re-run always converges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.fix_migrations import MigrationFolder, ask
from tests.fix_process import Child

# Dies by SIGKILL before or after the n-th time that a method is called.
_DIE = """
import asyncio, os, signal, sys
from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator
from fm_storage.migrate.backend import FmStorageBackend

dsn, folder, method, when, nth = sys.argv[1:]
plain, calls = getattr(FmStorageBackend, method), 0

def deadly(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = plain(self, *args, **kwargs)
    if calls == int(nth) and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(FmStorageBackend, method, deadly)
asyncio.run(Migrator(dsn, MigrationsConfig(sources=(folder,))).apply())
print("alive")
"""

_BOUNDARIES = [
    *(
        (method, when, nth)
        for method in ("commit", "mark_one")
        for when in ("before", "after")
        for nth in (1, 2, 3)
    ),
    ("log_migration", "before", 1),
    ("log_migration", "after", 1),
    ("reset", "after", 1),
    ("reset", "after", 2),
    ("release_lock", "before", 1),
    ("release_lock", "after", 1),
]


@pytest.mark.parametrize("boundary", _BOUNDARIES, ids=lambda b: "-".join(map(str, b)))
async def test_a_kill_at_a_boundary_is_harmless(
    dsn: str,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
    boundary: tuple[str, str, int],
):
    """Before or after each commit, mark and unlock."""
    migrations.table("0001_a", "t_a")
    migrations.write(
        "0002_b",
        "-- transactional: false\nINSERT INTO t_a VALUES (1);\n"
        "CREATE INDEX CONCURRENTLY t_i ON t_a (id);\n",
    )
    migrations.table("0003_c", "t_c")
    victim = await child(_DIE, dsn, migrations.path, *boundary)
    assert await victim.wait() == -9
    migrator = migrations.migrator(dsn)
    await migrator.apply()
    await migrator.check()
    assert ask(dsn, "SELECT count(*) FROM t_a") == [(1,)]
    assert ask(dsn, "SELECT to_regclass('t_c') IS NOT NULL") == [(True,)]
    assert ask(
        dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_i'::regclass"
    ) == [(True,)]
    assert ask(dsn, "SELECT * FROM fm_storage.migration_steps") == []
