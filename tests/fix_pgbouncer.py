"""PgBouncer in front of the server under test.

Apart, because the program may be missing: the tests that use it are then
deselected, and pytest's header says so.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.fix_postgres import TestServer, database_of, make_base, test_account
from tests.fix_proxy import free_port, target_of
from tests.support import servers

__all__ = ["pgbouncer"]


@pytest.fixture
def pgbouncer(server: TestServer) -> Iterator[Callable[..., str]]:
    """Give ``pgbouncer(dsn, mode="transaction", **settings) -> dsn`` through it."""
    program = servers.find_pgbouncer()
    assert program is not None
    running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(dsn: str, *, mode: str = "transaction", **settings: str) -> str:
        base, port = make_base("fm-pb-"), free_port()
        target = target_of(dsn)
        if isinstance(target, str):
            folder, _, number = target.rpartition("/.s.PGSQL.")
            where = f"host={folder} port={number}"
        else:
            where = f"host={target[0]} port={target[1]}"
        parts = urlsplit(server.dsn)
        secret = f" password={parts.password}" if parts.password else ""
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": str(base),
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": "5",
            "logfile": str(base / "pgbouncer.log"),
            "admin_users": "postgres",
        } | settings
        config = base / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = {where} user={parts.username}{secret}\n\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items()),
            encoding="utf-8",
        )
        user = test_account()
        user.owns(config)
        process = subprocess.Popen(
            [program, "-q", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=None if user.is_us else user.uid,
            group=None if user.is_us else user.gid,
            extra_groups=None if user.is_us else [],
        )
        running.append((process, base))
        through = f"postgresql://postgres@127.0.0.1:{port}/{database_of(dsn)}"
        _wait_until_up(process, through, base / "pgbouncer.log")
        return through

    yield start
    for process, base in running:
        process.terminate()
        process.wait()
        shutil.rmtree(base, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], dsn: str, log: Path) -> None:
    deadline = time.monotonic() + 25
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8") if log.exists() else ""
                raise RuntimeError(f"pgbouncer: {exc}; {said}") from exc
            time.sleep(0.02)
        else:
            return
