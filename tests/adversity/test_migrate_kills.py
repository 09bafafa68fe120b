"""SIGKILL at the boundaries of a migration: a plain re-run always converges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.fix_migrations import MigrationFolder, ask
from tests.fix_process import Child

# For each line read, a forked process that dies by SIGKILL before or after the
# n-th time that a method is called; the imports are paid for once.
_DIE = """
import asyncio, os, signal, sys
from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator, plan
from fm_storage.migrate.backend import FmStorageBackend

def die(dsn, folder, method, when, nth):
    plain, calls = getattr(FmStorageBackend, method), 0

    def deadly(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == int(nth) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(self, *args, **kwargs)
        if calls == int(nth) and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(FmStorageBackend, method, deadly)
    asyncio.run(Migrator(dsn, MigrationsConfig(sources=(folder,))).apply())

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        die(*line.split())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

_BOTH = ("before", "after")
_BOUNDARIES = {
    "commit": [(when, nth) for nth in (1, 2, 3) for when in _BOTH],
    "mark_one": [(when, nth) for nth in (1, 2, 3) for when in _BOTH],
    "log_migration": [(when, 1) for when in _BOTH],
    "reset": [("after", 1), ("after", 2)],
    "release_lock": [(when, 1) for when in _BOTH],
}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", _BOUNDARIES)
async def test_a_kill_at_a_boundary_is_harmless(
    fm_storage_server: Any,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
    method: str,
):
    """Before or after each commit, mark, log entry and unlock."""
    migrations.table("0001_a", "t_a")
    migrations.in_pieces(
        "0002_b",
        "INSERT INTO t_a VALUES (1);\nCREATE INDEX CONCURRENTLY t_i ON t_a (id);\n",
    )
    migrations.table("0003_c", "t_c")
    killer = await child(_DIE)
    for when, nth in _BOUNDARIES[method]:
        name, dsn = fm_storage_server.create()
        await killer.say(f"{dsn} {migrations.path} {method} {when} {nth}")
        assert await killer.line(timeout=60) == "-9"
        migrator = migrations.migrator(dsn)
        await migrator.apply()
        await migrator.check()
        assert ask(dsn, "SELECT count(*) FROM t_a") == [(1,)], (when, nth)
        assert ask(dsn, "SELECT to_regclass('t_c') IS NOT NULL") == [(True,)]
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_i'::regclass"
        assert ask(dsn, valid) == [(True,)]
        assert ask(dsn, "SELECT * FROM fm_storage.migration_steps") == []
        fm_storage_server.drop(name)
