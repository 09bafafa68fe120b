"""Several processes, locked tables, cancellation: the schema always converges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from fm_storage.errors import ConnectionFailed, MigrationFailed
from fm_storage.migrate import Migrator, Progress
from fm_storage.migrate.ledger import LOCK_KEY
from tests.fix_migrations import MigrationFolder, ask
from tests.fix_process import Child
from tests.support.waiting import LONG

_APPLY = """
import asyncio, sys
from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator
migrator = Migrator(sys.argv[1], MigrationsConfig(sources=tuple(sys.argv[2:])))
print("ready")
sys.stdin.readline()
print(len(asyncio.run(migrator.ensure())))
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_many_that_start_at_once_wait_for_one(
    empty_dsn: str,
    migrations: MigrationFolder,
    child: Callable[..., Awaitable[Child]],
):
    """One applies, the others wait and find nothing to do; none fails.

    Eight processes, one of them killed: tests/torture.
    """
    migrations.table("0001_a", "t_a")
    migrations.in_pieces("0002_index", "CREATE INDEX CONCURRENTLY t_i ON t_a (id)")
    migrations.write("0003_slow", "SELECT pg_sleep(0.5)")
    process = await child(_APPLY, empty_dsn, migrations.path)
    assert await process.line(timeout=60) == "ready"
    await process.say()
    done = await asyncio.gather(
        *(migrations.migrator(empty_dsn).ensure() for _ in range(7))
    )
    counts = [*map(len, done), int(await process.line(timeout=60))]
    assert await process.wait() == 0
    assert sorted(counts)[:7] == [0] * 7
    assert max(counts) > 3
    invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    assert ask(empty_dsn, invalid) == [(0,)]


async def test_readers_pass_while_an_alter_waits(dsn: str, migrations: MigrationFolder):
    """A transaction that holds the table delays the ALTER, never the readers.

    The server itself would refuse a reader that waits for 2 s.
    """
    migrations.write("0001_alter", "ALTER TABLE project_errors ADD COLUMN t_x int")
    seen: list[Progress] = []
    migrator = migrations.migrator(dsn, seen.append, lock_timeout=0.2)
    reads = 0
    with psycopg.connect(dsn) as idle, psycopg.connect(dsn, autocommit=True) as reader:
        idle.execute("SELECT count(*) FROM project_errors")
        reader.execute("SET lock_timeout = '2s'")
        work = asyncio.create_task(migrator.apply())
        while not any(p.what == "blocked" for p in seen) or reads < 20:
            assert not work.done()
            await asyncio.to_thread(reader.execute, "SELECT 1 FROM project_errors")
            reads += 1
            await asyncio.sleep(0.01)
        idle.rollback()
        await work
    assert ask(dsn, "SELECT t_x FROM project_errors") == []


async def test_a_lock_that_never_comes_is_reported(
    dsn: str, migrations: MigrationFolder
):
    """After wait_timeout the error names the migration; nothing was changed."""
    migrations.write("0001_alter", "ALTER TABLE project_errors ADD COLUMN t_x int")
    migrator = migrations.migrator(dsn, lock_timeout=0.05, wait_timeout=0.3)
    with psycopg.connect(dsn) as idle:
        idle.execute("SELECT count(*) FROM project_errors")
        with pytest.raises(MigrationFailed, match=r"no table lock within 0\.3 s") as no:
            await migrator.apply()
    assert no.value.sqlstate == "55P03"
    assert no.value.migration == "0001_alter"
    await migrator.apply()


async def test_a_process_that_migrates_for_ever_is_named(
    dsn: str, migrations: MigrationFolder
):
    """The wait for the lock is bounded, and says who holds it."""
    migrations.table("0001_a", "t_a")
    seen: list[Progress] = []
    migrator = migrations.migrator(dsn, seen.append, wait_timeout=0.2)
    with psycopg.connect(dsn, autocommit=True, application_name="other") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        with pytest.raises(MigrationFailed, match=r"backend \d+ \(other\) has been"):
            await migrator.apply()
        assert seen[0].what == "waiting"
        # Looking needs no lock.
        assert (await migrator.status())[-1].id == "0001_a"
    await migrator.apply()


@pytest.mark.parametrize("wait", ["lock", "table", "statement"])
async def test_a_cancelled_call_rolls_back_and_lets_go(
    dsn: str,
    migrations: MigrationFolder,
    monkeypatch: pytest.MonkeyPatch,
    wait: str,
):
    """Wherever it waits: cancelled at once, nothing left, the next call converges."""
    monkeypatch.setattr("fm_storage.migrate.runner._PATIENCE", 25)
    migrations.write(
        "0001_a",
        "CREATE TABLE t_a (id int);"
        + ("SELECT pg_sleep(60);" if wait == "statement" else "")
        + "ALTER TABLE project_errors ADD COLUMN t_x int;",
    )
    waiting = asyncio.Event()

    def look(progress: Progress) -> None:
        if progress.what in {"waiting", "blocked"} or progress.step == 2:
            waiting.set()

    migrator = migrations.migrator(dsn, look, lock_timeout=0.1)
    with psycopg.connect(dsn) as other:
        if wait == "lock":
            other.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        if wait == "table":
            other.execute("LOCK TABLE project_errors IN ACCESS SHARE MODE")
        task = asyncio.create_task(migrator.apply())
        await waiting.wait()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Sooner than it would have been abandoned.
        assert time.monotonic() - started < LONG
        assert ask(dsn, "SELECT to_regclass('t_a')") == [(None,)]
        # The server notices the closed connection a moment later.
        ours = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'fm_storage migrate'"
        )
        while await asyncio.to_thread(ask, dsn, ours):
            pass
    migrations.write("0001_a", "CREATE TABLE t_a (id int)")
    assert await migrations.migrator(dsn).apply()


async def test_a_cancelled_index_build_is_resumed(
    dsn: str, migrations: MigrationFolder
):
    """Cancelled in the middle, the index is INVALID; the next call replaces it."""
    ask(dsn, "CREATE TABLE t_a (id int)")
    migrations.write(
        "0001_a",
        "-- transactional: false\nCREATE INDEX CONCURRENTLY t_i ON t_a (id);",
    )
    with psycopg.connect(dsn) as idle:
        idle.execute("LOCK TABLE t_a IN ROW EXCLUSIVE MODE")
        task = asyncio.create_task(migrations.migrator(dsn).apply())
        while not await asyncio.to_thread(
            ask, dsn, "SELECT 1 WHERE to_regclass('t_i') IS NOT NULL"
        ):
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ask(
        dsn, "SELECT indisvalid FROM pg_index i WHERE indexrelid = 't_i'::regclass"
    ) == [(False,)]
    await migrations.migrator(dsn).apply()
    assert ask(
        dsn, "SELECT indisvalid FROM pg_index i WHERE indexrelid = 't_i'::regclass"
    ) == [(True,)]


async def test_the_event_loop_is_never_blocked(dsn: str, migrations: MigrationFolder):
    """While a statement runs, the loop turns."""
    migrations.write("0001_slow", "SELECT pg_sleep(1)")
    began = asyncio.Event()
    migrator = migrations.migrator(dsn, lambda _: began.set())
    task = asyncio.create_task(migrator.apply())
    await began.wait()
    turns = 0
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    await task
    assert turns > 5


async def test_a_frozen_server_does_not_hold_the_cancelled_caller(
    cluster, monkeypatch: pytest.MonkeyPatch
):
    """The thread is abandoned after a while; the caller goes on."""
    monkeypatch.setattr("fm_storage.migrate.runner._PATIENCE", 0.3)
    seen = asyncio.Event()
    migrator = Migrator(cluster.dsn, progress=lambda _: seen.set())
    task = asyncio.create_task(migrator.apply())
    await seen.wait()
    cluster.freeze()
    try:
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < LONG
    finally:
        cluster.thaw()


async def test_a_server_that_goes_away_is_a_failed_connection(
    cluster, migrations: MigrationFolder
):
    """An immediate stop in the middle: retryable, and the re-run converges."""
    migrations.write("0001_slow", "CREATE TABLE t_a (id int); SELECT pg_sleep(60)")
    running = asyncio.Event()

    def look(progress: Progress) -> None:
        if (progress.name, progress.step) == ("0001_slow", 2):
            running.set()

    task = asyncio.create_task(migrations.migrator(cluster.dsn, look).apply())
    await running.wait()
    await cluster.stop("immediate")
    with pytest.raises(ConnectionFailed, match="run it again"):
        await task
    await cluster.start()
    migrations.table("0001_slow", "t_a")
    assert [m.id for m in await migrations.migrator(cluster.dsn).apply()] == [
        "0001_slow"
    ]


async def test_a_pooler_is_refused(dsn: str, migrations: MigrationFolder, pgbouncer):
    """It would hand the session's lock to strangers; looking through it is fine."""
    migrations.table("0001_a", "t_a")
    through = migrations.migrator(pgbouncer(dsn))
    assert (await through.status())[-1].state == "pending"
    with pytest.raises(MigrationFailed, match=r"connection pooler.*migrations\.dsn"):
        await through.apply()
    await migrations.migrator(dsn).apply()
    assert await through.ensure() == []


async def test_a_call_that_is_cancelled_while_connecting_does_nothing_later(
    dsn: str, migrations: MigrationFolder, tcp_proxy
):
    """Its thread connects when the network is back, and stops there."""
    migrations.table("0001_a", "t_a")
    proxy = tcp_proxy(dsn)
    proxy.delay(0.5)
    task = asyncio.create_task(migrations.migrator(proxy.dsn(dsn)).apply())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ask(dsn, "SELECT to_regclass('t_a')") == [(None,)]
