"""The connection budget: what a process needs is what it takes, at most."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from click.testing import CliRunner

from fm_storage import (
    Point,
    Pool,
    PostgresConfig,
    StorageConfig,
    StorageManager,
)
from fm_storage.cli import cli
from fm_storage.manager.budget import connection_budget

_TAKEN = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, 'budget')"""


async def test_a_process_takes_what_its_budget_says(
    storage_config: StorageConfig, pool: Pool
):
    """With a session, a listener, a drainer and every connection in use."""
    postgres = storage_config.postgres.model_copy(
        update={"application_name": "budget", "max_size": 4}
    )
    config = storage_config.model_copy(update={"postgres": postgres})
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(StorageManager(config))
        budget = await connection_budget(config, storage.pool, storage.reads, 1)
        session = await stack.enter_async_context(storage.session())
        await session.create_view("SELECT 1 AS n")
        await stack.enter_async_context(storage.pool.listen("news"))
        await storage.qdrant.ensure_collection_exists("notes", 2)
        await storage.outbox.upsert("notes", [Point(1, [0.1, 0.2])])
        async with asyncio.timeout(20):  # the drainer takes its own in its time
            while await pool.fetchval(f"{_TAKEN} AND application_name ~ '/'") < 3:
                await asyncio.sleep(0.05)
        for _ in range(4):
            await stack.enter_async_context(storage.pool.acquire())
        purposes = {need.purpose: need.connections for need in budget.needs}
        assert purposes.pop("migrations") == 1  # it has ended
        assert purposes == {
            "pool": 4,
            "session lease": 1,
            "listener": 1,
            "drainer's lock": 1,
        }
        assert await pool.fetchval(_TAKEN) == 7
    assert (budget.fits, budget.servers[0].needed) == (True, 8)


async def test_a_replica_has_a_budget_of_its_own(cluster, tmp_path):
    """Unless it is the primary itself; a limit of the role counts as well."""
    standby = await cluster.standby()

    async def budget(read_dsn: str, processes: int = 1):
        config = StorageConfig(
            postgres=PostgresConfig(dsn=cluster.tcp_dsn, read_dsn=read_dsn, max_size=5),
            qdrant=None,
            data_dir=tmp_path,
        )
        async with StorageManager(config) as storage:
            found = await connection_budget(
                config, storage.pool, storage.reads, processes
            )
        return found, {one.name: one for one in found.servers}

    found, servers = await budget(standby.tcp_dsn)
    assert {name: one.needed for name, one in servers.items()} == {
        "primary": 8,
        "replica": 6,
    }
    assert found.fits
    found, servers = await budget(cluster.tcp_dsn, processes=10)
    assert servers["primary"].needed == 140
    assert not found.fits
    assert "lower postgres.max_size to 2" in servers["primary"].remedy
    assert "run 6 process(es)" in servers["primary"].remedy
    async with Pool(PostgresConfig(dsn=cluster.tcp_dsn)) as pool:
        await pool.execute("ALTER ROLE postgres CONNECTION LIMIT 7")
    found, servers = await budget(standby.tcp_dsn)
    assert servers["primary"].allowed == 7
    assert "CONNECTION LIMIT to 8" in servers["primary"].remedy


@pytest.mark.parametrize("processes", [1, 5000])
def test_the_command_prints_it(
    storage_config: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
):
    """A table and a line for each server; a warning and exit code 1 if it is tight."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", storage_config.postgres.dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", "embedded:")
    words = ["health", "--budget", "--processes", str(processes)]

    def run(*words: str):
        return CliRunner().invoke(cli, words)

    shown = run(*words)
    assert shown.exit_code == (processes > 1)
    assert f"{processes} process(es) need {14 * processes}" in shown.output
    assert ("do not fit" in shown.stderr) == (processes > 1)
    found = json.loads(run(*words, "--json").stdout)
    assert found["fits"] == (processes == 1)
    assert found["servers"][0]["needed"] == 14 * processes
    alone = run("health", "--processes", "2")
    assert (alone.exit_code, "goes with --budget" in alone.stderr) == (2, True)
