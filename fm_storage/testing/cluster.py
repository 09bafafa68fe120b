"""A PostgreSQL cluster of a test's own: to stop, kill and freeze."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from fm_storage.postgres.embedded.cluster import Cluster
from fm_storage.postgres.embedded.programs import (
    ServiceUser,
    installed_server,
    service_account,
)
from fm_storage.testing.proxy import free_port

_SETTINGS = {"max_connections": "100", "shared_buffers": "32MB"}


class PostgresCluster:
    """A server that a test may mistreat: ``async with PostgresCluster() as cluster``.

    Durable as in production. What waits is a coroutine and leaves the loop free.

    Attributes:
        port: On 127.0.0.1, the same after each start.
        dsn: Of a superuser, over TCP, on the database ``postgres``.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._base = Path(tempfile.mkdtemp(prefix="fm-cl-"))
        self._cluster: Cluster | None = None
        self._frozen: list[int] = []

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._initialise)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.thaw()
        with suppress(ProcessLookupError):
            await self.stop("immediate")
        await asyncio.to_thread(shutil.rmtree, self._base, ignore_errors=True)

    def _initialise(self) -> None:
        user = ServiceUser.current() or service_account()
        user.owns(self._base)
        server = installed_server().copy_for(user, self._base)
        log = self._base / "postgres.log"
        self._cluster = Cluster(server, self._base / "data", log=log, user=user)
        self._cluster.initialise(_SETTINGS, database=None, sync=False)

    @property
    def _made(self) -> Cluster:
        assert self._cluster is not None
        return self._cluster

    @property
    def is_running(self) -> bool:
        """Whether the server runs."""
        return self._made.running() is not None

    async def start(self) -> None:
        """Start the server at the same address as before; return when it answers."""
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port)}
        await asyncio.to_thread(self._made.start, self._base, options)

    async def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``smart``, ``fast`` or ``immediate``."""
        await asyncio.to_thread(self._made.stop, mode)

    async def kill(self) -> None:
        """SIGKILL every process of the server, as the OOM killer does."""
        self._signal(signal.SIGKILL)
        self._frozen.clear()
        await asyncio.to_thread(self._made.wait_gone)

    def freeze(self) -> None:
        """SIGSTOP every process: sockets stay open, nothing answers."""
        self._frozen = self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def _signal(self, number: signal.Signals) -> list[int]:
        pids = self._made.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids
