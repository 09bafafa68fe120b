"""A PostgreSQL cluster of the test's own: to stop, kill, freeze and promote.

Apart from the shared server, which no test may touch. Durable as in production
(fsync on); made by copying a cluster that was initialised once in the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from fm_storage.postgres.embedded.cluster import Cluster
from tests.fix_postgres import make_base, server_programs, test_account
from tests.fix_proxy import free_port

__all__ = ["TestCluster", "cluster", "cluster_template", "embedded_folder"]

_SETTINGS = {
    "autovacuum": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "wal_level": "replica",
    "wal_log_hints": "on",  # for pg_rewind, as the next one
    "wal_keep_size": "128MB",
    # The first segment is most of a fresh cluster's size.
    "min_wal_size": "32MB",
}


class TestCluster:
    """A server that a test may mistreat.

    Everything that waits is a coroutine and leaves the event loop free.
    """

    __test__ = False

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.data = base / "data"
        self._standbys: list[TestCluster] = []
        self._frozen: list[int] = []
        self._cluster = Cluster(
            server_programs(),
            self.data,
            log=base / "postgres.log",
            user=test_account(),
        )

    @property
    def dsn(self) -> str:
        """DSN over the Unix socket, superuser, database ``postgres``."""
        host = quote(str(self.base))
        return f"postgresql://postgres@/postgres?host={host}&port={self.port}"

    @property
    def tcp_dsn(self) -> str:
        """DSN over TCP (trusted: only tests run here)."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def is_running(self) -> bool:
        """Whether the server runs."""
        return self._cluster.running() is not None

    @property
    def log(self) -> str:
        """What the server wrote into its log."""
        return (self.base / "postgres.log").read_text(encoding="utf-8")

    async def start(self, **settings: str) -> None:
        """Start the server on the same address as before."""
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port)} | settings
        await asyncio.to_thread(self._cluster.start, self.base, options)

    async def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``smart``, ``fast`` or ``immediate``."""
        await asyncio.to_thread(self._cluster.stop, mode)

    async def restart(self, mode: str = "fast", **settings: str) -> None:
        """Stop and start again."""
        await self.stop(mode)
        await self.start(**settings)

    async def kill(self) -> None:
        """SIGKILL every process of the server, as the OOM killer or a power cut."""
        self._signal(signal.SIGKILL)
        self._frozen.clear()
        await asyncio.to_thread(self._cluster.wait_gone)

    def freeze(self) -> None:
        """SIGSTOP every process of the server: sockets stay up, nothing answers."""
        self._frozen = self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    async def promote(self) -> None:
        """Make a standby the primary; return when it accepts writes."""
        await self._program("pg_ctl", "promote", "--wait", "--pgdata", str(self.data))

    async def standby(self) -> TestCluster:
        """Give a running streaming standby of this server."""
        base = make_base("fm-sb-")
        copy = TestCluster(base)
        self._standbys.append(copy)
        await self._program(
            *("pg_basebackup", "--pgdata", str(copy.data), "--write-recovery-conf"),
            *("--checkpoint", "fast", "--dbname", self.dsn),
        )
        await copy.start()
        return copy

    async def rewind(self, source: TestCluster) -> None:
        """Make this server, killed or stopped, a standby of *source*."""
        # Crash recovery first, at a port where nobody looks for it.
        await self.start(port=str(free_port()))
        await self.stop()
        await self._program(
            *("pg_rewind", "--target-pgdata", str(self.data)),
            *("--source-server", source.dsn, "--write-recovery-conf"),
        )

    async def backup(self, folder: Path) -> None:
        """Take a base backup of the running server into *folder* (must not exist)."""
        await self._program(
            *("pg_basebackup", "--pgdata", str(folder), "--checkpoint", "fast"),
            *("--dbname", self.dsn),
        )

    async def restore(self, folder: Path) -> None:
        """Put a backup in the place of the data; the server must be stopped."""
        shutil.rmtree(self.data)
        await asyncio.to_thread(shutil.copytree, folder, self.data, symlinks=True)
        _give(self.data)

    async def aclose(self) -> None:
        """Stop it and everything made from it, and remove the folders."""
        for standby in self._standbys:
            await standby.aclose()
        self.thaw()
        await self.stop("immediate")
        await asyncio.to_thread(self._cluster.wait_gone)
        shutil.rmtree(self.base, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> list[int]:
        running = self._cluster.running()
        # The postmaster first: it would replace, or report, a lost child.
        first = [] if running is None else [running.pid]
        pids = first + [p for p in self._cluster.processes() if p not in first]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    async def _program(self, name: str, *arguments: str) -> None:
        user = test_account()
        ended = await asyncio.to_thread(
            subprocess.run,
            [server_programs().program(name), *arguments],
            check=False,
            capture_output=True,
            cwd=self.base,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
            user=None if user.is_us else user.uid,
            group=None if user.is_us else user.gid,
            extra_groups=None if user.is_us else [],
        )
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")


def _give(folder: Path) -> None:
    user = test_account()
    user.owns(folder)
    for path in folder.rglob("*"):
        user.owns(path)


@pytest.fixture(scope="session")
def cluster_template() -> Iterator[Path]:
    """Give the data folder of a cluster that was initialised and never started."""
    base = make_base("fm-ct-")
    Cluster(
        server_programs(), base / "data", log=base / "log", user=test_account()
    ).initialise(_SETTINGS, sync=False)
    yield base / "data"
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def embedded_folder(cluster_template: Path, tmp_path: Path) -> Path:
    """Give a folder for EmbeddedPostgres in which initdb has been run already."""
    folder = tmp_path / "pg"
    folder.mkdir()
    shutil.copytree(cluster_template, folder / "data", symlinks=True)
    _give(folder / "data")
    return folder


@pytest.fixture
async def cluster(cluster_template: Path) -> AsyncIterator[TestCluster]:
    """Give a running cluster of the test's own, durable, with streaming allowed."""
    base = make_base("fm-cl-")
    await asyncio.to_thread(
        shutil.copytree, cluster_template, base / "data", symlinks=True
    )
    _give(base / "data")
    made = TestCluster(base)
    await made.start()
    yield made
    await made.aclose()
