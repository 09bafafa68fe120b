"""The fixtures keep their word: every other test relies on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import psycopg
import pytest

from tests.fix_cluster import TestCluster
from tests.fix_postgres import TestServer, test_account
from tests.fix_process import Child
from tests.fix_proxy import TcpProxy


async def test_dsn_is_a_migrated_database_of_its_own(
    dsn: str, empty_dsn: str, server: TestServer
) -> None:
    """Asyncpg and libpq both reach it, and the template stays as it was."""
    connection = await asyncpg.connect(dsn)
    tables = await connection.fetchval(
        "SELECT count(*) FROM pg_tables WHERE tablename = 'project_errors'"
    )
    await connection.close()
    with psycopg.connect(empty_dsn) as other:
        empty = other.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
        ).fetchone()
    with psycopg.connect(server.over_tcp(empty_dsn)) as third:
        name = third.execute("SELECT current_database()").fetchone()
    assert tables == 1
    assert empty == (0,)
    assert name is not None
    assert name[0] in empty_dsn


async def test_cluster_survives_kill_freeze_and_restart(cluster: TestCluster) -> None:
    """What was committed is there after SIGKILL; a frozen server only waits."""
    connection = await asyncpg.connect(cluster.dsn)
    await connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    cluster.freeze()
    asked = asyncio.create_task(connection.fetchval("SELECT answer FROM t"))
    done, _ = await asyncio.wait({asked}, timeout=0.2)
    assert not done
    cluster.thaw()
    assert await asked == 42
    await cluster.kill()
    assert not cluster.is_running
    # The driver may hear of the end before the question, or in the middle of it.
    gone = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    with pytest.raises((OSError, *gone)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    await cluster.start()
    connection = await asyncpg.connect(cluster.tcp_dsn)
    assert await connection.fetchval("SELECT answer FROM t") == 42
    await connection.close()


async def test_standby_follows_and_is_promoted(cluster: TestCluster) -> None:
    """A promoted standby accepts writes after its primary was killed."""
    standby = await cluster.standby()
    connection = await asyncpg.connect(standby.dsn)
    assert await connection.fetchval("SELECT pg_is_in_recovery()")
    await cluster.kill()
    await standby.promote()
    await connection.execute("CREATE TABLE t (i int)")
    await connection.close()


async def test_restored_backup_forgets_what_came_later(
    cluster: TestCluster, tmp_path: Path
) -> None:
    """A base backup put back shows the state of its own time."""
    connection = await asyncpg.connect(cluster.dsn)
    await connection.execute("CREATE TABLE t AS SELECT 1 AS i")
    test_account().owns(tmp_path)
    await cluster.backup(tmp_path / "backup")
    await connection.execute("UPDATE t SET i = 2")
    await connection.close()
    await cluster.stop()
    await cluster.restore(tmp_path / "backup")
    await cluster.start()
    connection = await asyncpg.connect(cluster.dsn)
    assert await connection.fetchval("SELECT i FROM t") == 1
    await connection.close()


@pytest.mark.lengthy
async def test_proxy_cuts_swallows_delays_and_refuses(
    empty_dsn: str, tcp_proxy: Callable[[str], TcpProxy]
) -> None:
    """Every kind of weather does what its name says, and ends."""
    proxy = tcp_proxy(empty_dsn)
    through = proxy.dsn(empty_dsn)
    connection = await asyncpg.connect(through)
    assert await connection.fetchval("SELECT 1") == 1
    proxy.black_hole()
    asked = asyncio.create_task(connection.fetchval("SELECT 2"))
    done, _ = await asyncio.wait({asked}, timeout=0.1)
    assert not done
    proxy.heal()
    assert await asked == 2
    proxy.delay(0.1)
    started = asyncio.get_running_loop().time()
    await connection.fetchval("SELECT 3")
    assert asyncio.get_running_loop().time() - started >= 0.2
    proxy.heal()
    assert proxy.cut() == 1
    with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
        await connection.fetchval("SELECT 4")
    await connection.close()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(through)
    proxy.deaf()
    with pytest.raises(TimeoutError):
        await asyncpg.connect(through, timeout=0.2)
    proxy.accept()
    connection = await asyncpg.connect(through)
    assert await connection.fetchval("SELECT 5") == 5
    await connection.close()


async def test_child_talks_and_is_killed(
    child: Callable[..., Awaitable[Child]],
) -> None:
    """A child answers line by line and dies of SIGKILL."""
    process = await child("import sys; print(input() + sys.argv[1]); input()", "b")
    await process.say("a")
    assert await process.line() == "ab"
    await process.kill()
    assert await process.wait() == -9
