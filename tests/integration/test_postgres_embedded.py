"""An embedded server: private, durable, shared, and gone with its last user."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import psycopg
import pytest

from fm_storage.config import PostgresConfig, StorageConfig
from fm_storage.errors import ConnectionFailed, EmbeddedFailed
from fm_storage.manager import StorageManager
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded.cluster import Postmaster
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.postgres.embedded.programs import _server_in, installed_server
from tests.fix_process import Child
from tests.support.waiting import LONG

pytestmark = pytest.mark.timeout(120)

USE = """
import asyncio, sys
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(sys.argv[1]) as dsn:
        print(dsn)
        await asyncio.to_thread(sys.stdin.readline)
    print("left")

asyncio.run(main())
"""


def running(folder: Path) -> int | None:
    """Return the pid of the server that runs on *folder*."""
    found = Postmaster.read(folder / "data")
    return None if found is None else found.pid


async def until(holds: Callable[[], bool], within: float) -> None:
    """Wait for what another process does: it can only be polled."""
    deadline = asyncio.get_running_loop().time() + within
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_both_clients_reach_it_and_it_is_durable_and_private(
    tmp_path: Path,
) -> None:
    """One DSN serves asyncpg and libpq; fsync is on; nothing listens on TCP."""
    folder = tmp_path / "a b'c" / "pg"
    async with EmbeddedPostgres(folder) as dsn:
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch(
            "SELECT name, setting FROM pg_settings WHERE name = ANY($1)",
            ["fsync", "listen_addresses", "unix_socket_permissions"],
        )
        assert {row["name"]: row["setting"] for row in rows} == {
            "fsync": "on",
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
        }
        await connection.close()
        with psycopg.connect(dsn) as other:
            assert other.execute("SELECT current_database()").fetchone() == (
                "fm_storage",
            )
        for name in ("data", "run"):
            found = (folder / name).lstat()
            assert stat.S_IMODE(found.st_mode) == 0o700
    assert running(folder) is None


@pytest.mark.slow
async def test_data_stays_from_one_life_to_the_next(tmp_path: Path) -> None:
    """What was committed is there when the server is started again."""
    async with EmbeddedPostgres(tmp_path / "pg") as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE t AS SELECT 7 AS i")
        await connection.close()
    async with EmbeddedPostgres(tmp_path / "pg") as dsn:
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT i FROM t") == 7
        await connection.close()


async def test_managers_of_one_process_share_it(embedded_folder: Path) -> None:
    """Three at once get one server; it stops when the last of them leaves."""
    users = [EmbeddedPostgres(embedded_folder) for _ in range(3)]
    dsns = await asyncio.gather(*(user.open() for user in users))
    assert len(set(dsns)) == 1
    first = running(embedded_folder)
    await users[0].aclose()
    await users[0].aclose()
    await users[1].aclose()
    assert running(embedded_folder) == first
    assert await users[2].open() == dsns[2]
    await users[2].aclose()
    assert running(embedded_folder) is None


@pytest.mark.slow
async def test_first_starts_of_two_processes_at_once_both_work(
    tmp_path: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """One makes the cluster, the other waits for it; the last one stops it."""
    folder = tmp_path / "pg"
    one, two = [await child(USE, folder) for _ in range(2)]
    assert await one.line() == await two.line() != ""
    await one.say()
    assert await one.line() == "left"
    assert running(folder) is not None
    await two.say()
    assert await two.line() == "left"
    assert running(folder) is None


async def test_killed_user_does_not_keep_the_server(
    embedded_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """The kernel drops a killed user's lock: the next to leave is the last."""
    folder = embedded_folder
    other = await child(USE, folder)
    assert await other.line()
    async with EmbeddedPostgres(folder):
        await other.kill()
    assert running(folder) is None


@pytest.mark.slow
async def test_server_goes_some_seconds_after_its_last_user_was_killed(
    embedded_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """Nobody is left to stop it, so its keeper does."""
    folder = embedded_folder
    other = await child(USE, folder)
    assert await other.line()
    await other.kill()
    assert running(folder) is not None
    await until(lambda: running(folder) is None, within=20)
    async with EmbeddedPostgres(folder) as dsn:
        await (await asyncpg.connect(dsn)).close()


@pytest.mark.slow
async def test_server_stays_for_a_user_who_comes_back_in_time(
    embedded_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """A restarted application finds the server that its killed self had."""
    folder = embedded_folder
    other = await child(USE, folder)
    assert await other.line()
    pid = running(folder)
    await other.kill()
    async with EmbeddedPostgres(folder):
        await asyncio.sleep(2.5)
        assert running(folder) == pid
    assert running(folder) is None


async def test_a_server_that_ends_under_a_pool_is_named_and_started_by_the_next(
    embedded_folder: Path,
) -> None:
    """Somebody stopped it: the message says what starts it; the pool goes on then."""
    own = PostgresConfig(dsn=f"embedded:{embedded_folder}", acquire_timeout=0.5)
    async with EmbeddedPostgres(embedded_folder) as dsn, Pool(own, dsn=dsn) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        server = running(embedded_folder)
        assert server is not None
        os.kill(server, signal.SIGINT)
        await until(lambda: running(embedded_folder) is None, LONG)
        text = ""
        while "no connection" not in text:  # the first meets a line that breaks
            with pytest.raises(ConnectionFailed) as caught:
                await pool.fetchval("SELECT 1")
            text = str(caught.value)
        assert "has ended; the next manager that opens on its folder starts" in text
        async with EmbeddedPostgres(embedded_folder):
            assert await pool.fetchval("SELECT 1", timeout=LONG) == 1


@pytest.mark.parametrize("left", ["killed", "pid of another process"])
async def test_pid_file_left_behind_is_no_obstacle(
    embedded_folder: Path, left: str
) -> None:
    """After SIGKILL of the server, or a reboot that gave its pid away, it starts."""
    folder = embedded_folder
    first = EmbeddedPostgres(folder)
    dsn = await first.open()
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE t AS SELECT 7 AS i")
    pid = running(folder)
    assert pid is not None
    words = (folder / "data" / "postmaster.pid").read_text().splitlines()
    os.kill(pid, signal.SIGKILL)
    connection.terminate()
    if left != "killed":
        words[0] = str(os.getpid())
        (folder / "data" / "postmaster.pid").write_text("\n".join(words))
    async with EmbeddedPostgres(folder) as again:
        connection = await asyncpg.connect(again)
        assert await connection.fetchval("SELECT i FROM t") == 7
        await connection.close()
        await first.aclose()
        assert running(folder) is not None
    assert running(folder) is None


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 0.7, 0.9, 1.0])
async def test_cancelled_opening_leaves_nothing_behind(
    tmp_path: Path, after: float
) -> None:
    """Whatever the instant: no server, no half-made cluster, and open() works."""
    folder = tmp_path / "pg"
    opening = asyncio.create_task(EmbeddedPostgres(folder).open())
    await asyncio.wait({opening}, timeout=after)
    opening.cancel()
    opening.cancel()
    result = (await asyncio.gather(opening, return_exceptions=True))[0]
    if isinstance(result, asyncio.CancelledError):
        assert running(folder) is None
    assert not list(folder.glob("data.new-*"))
    async with EmbeddedPostgres(folder) as dsn:
        await (await asyncpg.connect(dsn)).close()


@pytest.mark.slow
async def test_opening_leaves_the_event_loop_free(tmp_path: Path) -> None:
    """Others run on while a cluster is made and started."""
    stalled = 0.0
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        nonlocal stalled
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            if (gap := loop.time() - before) > 0.1:
                stalled += gap

    watching = asyncio.create_task(watch())
    began = loop.time()
    async with EmbeddedPostgres(tmp_path / "pg"):
        took = loop.time() - began
    watching.cancel()
    # Making and starting it is nearly all of the time. A share, not an instant: on a
    # busy machine the loop waits for the processor now and then.
    assert stalled < took / 2


@pytest.mark.slow
async def test_interrupt_while_starting_ends_in_order(
    tmp_path: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """Ctrl-C during the first start: the process ends, and nothing runs on."""
    folder = tmp_path / "pg"
    other = await child(USE, folder)
    await until(lambda: bool(list(folder.glob("data.new-*"))), within=20)
    other.signal(signal.SIGINT)
    await other.wait()
    assert "KeyboardInterrupt" in await other.errors()
    assert running(folder) is None
    async with EmbeddedPostgres(folder):
        pass


async def test_forked_child_does_not_hold_the_server(embedded_folder: Path) -> None:
    """The server stops with its user, although a forked child lives on."""
    folder = embedded_folder
    user = EmbeddedPostgres(folder)
    await user.open()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    await user.aclose()
    assert running(folder) is None
    os.close(writing)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0


@pytest.mark.slow
async def test_long_path_gets_its_socket_in_a_short_folder(tmp_path: Path) -> None:
    """A path too long for a socket is no obstacle."""
    folder = tmp_path / ("long" * 30)
    async with EmbeddedPostgres(folder) as dsn:
        await (await asyncpg.connect(dsn)).close()
        sockets = Postmaster.read(folder / "data")
        assert sockets is not None
        found = os.lstat(sockets.socket_folder)
        assert stat.S_IMODE(found.st_mode) == 0o700
    with pytest.raises(FileNotFoundError):
        os.lstat(sockets.socket_folder)


async def test_path_too_long_for_the_server_is_said(tmp_path: Path) -> None:
    """The message names the length and the remedy."""
    folder = tmp_path.joinpath(*["deep" * 25] * 10)
    with pytest.raises(EmbeddedFailed, match=r"too long .*shorter folder"):
        await EmbeddedPostgres(folder).open()


async def test_data_of_another_major_version_is_refused(embedded_folder: Path) -> None:
    """It names both versions and the way out, and changes nothing."""
    folder = embedded_folder
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedFailed, match=r"version 17.*18\..*pg_dump"):
        await EmbeddedPostgres(folder).open()
    (folder / "data" / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(folder):
        pass


async def test_server_that_cannot_start_gives_its_own_reason(
    embedded_folder: Path,
) -> None:
    """A broken setting is quoted from the server's log."""
    folder = embedded_folder
    with (folder / "data" / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = 'nonsense'\n")
    with pytest.raises(EmbeddedFailed, match="shared_buffers"):
        await EmbeddedPostgres(folder).open()


async def test_open_socket_folder_is_refused(embedded_folder: Path) -> None:
    """A folder that others may enter is not used for the socket."""
    folder = embedded_folder
    (folder / "run").mkdir(mode=0o755)
    with pytest.raises(EmbeddedFailed, match="closed to others"):
        await EmbeddedPostgres(folder).open()


async def test_folder_held_by_another_process_is_named(
    tmp_path: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """Waiting for the folder's lock ends in time, with its path."""
    folder = tmp_path / "pg"
    folder.mkdir()
    holder = await child(
        "import fcntl, sys; f = open(sys.argv[1], 'w');"
        "fcntl.flock(f, fcntl.LOCK_EX); print('held'); sys.stdin.readline()",
        folder / "lock",
    )
    assert await holder.line() == "held"
    with pytest.raises(EmbeddedFailed, match=r"has held .*lock"):
        await EmbeddedPostgres(folder, timeout=0.3).open()


FOLDERS = [
    installed_server().prefix / "bin",
    *(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
]


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=str)
@pytest.mark.parametrize("named", [True, False], ids=["bin_dir", "without the wheel"])
async def test_an_installed_postgresql_serves_as_the_embedded_one(
    folder: Path, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Named, or found where there is no wheel; data is opened by its own version."""
    if not named:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    config = StorageConfig(
        data_dir=tmp_path,
        qdrant=None,
        embedded={"bin_dir": folder} if named else "auto",
    )
    async with StorageManager(config) as storage:
        version = await storage.pool.fetchval("SHOW server_version")
    assert _server_in(folder).version == version.split()[0]
    monkeypatch.undo()
    # Whichever comes first by itself, the one of the data is found.
    async with StorageManager(config.model_copy(update={"embedded": "auto"})) as again:
        assert await again.pool.fetchval("SHOW server_version") == version


def test_a_folder_without_a_server_is_refused(tmp_path: Path):
    """By name, with what to name instead."""
    with pytest.raises(EmbeddedFailed, match=re.escape(f"{tmp_path} does not run")):
        installed_server(tmp_path)
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.1'\n")
    program.chmod(0o755)
    with pytest.raises(EmbeddedFailed, match="PostgreSQL 14 or newer"):
        installed_server(tmp_path)
