"""A TCP proxy that misbehaves on command.

In a thread with a loop of its own: a test that blocks its event loop
must not block the network as well. One call changes the weather for all
connections at once; every call returns when the change is in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

_BLOCK = 64 * 1024


def _own_ports() -> Iterator[int]:
    """Give the ports that are this process's to use, again and again.

    Below those that the kernel gives to outgoing connections, of which another
    process could get one while a server of ours is being restarted; and apart from
    those of the workers that run other tests at the same time.
    """
    bounds = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(bounds.read_text().split()[0]) if bounds.exists() else 32_768
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    each = (first - 10_000) // 8
    start = 10_000 + int(worker) % 8 * each
    # Two runs on one machine begin at different places.
    while True:
        yield from range(start + os.getpid() * 31 % each, start + each)
        yield from range(start, start + os.getpid() * 31 % each)


_ports = _own_ports()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses, nor will by chance."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError  # there is always a next one


class TcpProxy:
    """Passes bytes between clients and one target, as long as it likes.

    Attributes:
        port: Where it listens on 127.0.0.1; the same after refuse() and deaf().
        accepted: Connections accepted so far.
        forwarded: Bytes passed on so far, both ways.
        lost: Answers lost by lose_next_answer() so far.
        rewrite: Applied to every block that passes, either way.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self.accepted = 0
        self.forwarded = 0
        self.rewrite: Callable[[bytes], bytes] = bytes
        self.lost = 0
        self._losing = False
        self._delay = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._plug: socket.socket | None = None
        self._fillers: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self._call(self._listen)

    @property
    def connections(self) -> int:
        """Number of connections through the proxy now."""
        return len(self._tasks)

    def dsn(self, dsn: str) -> str:
        """Return *dsn* with the proxy in the place of its host and port."""
        parts = urlsplit(dsn)
        user = parts.netloc.rpartition("@")[0]
        kept = [
            f"{name}={value}"
            for name, values in parse_qs(parts.query).items()
            if name not in {"host", "port"}
            for value in values
        ]
        netloc = f"{user}@127.0.0.1:{self.port}" if user else f"127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=netloc, query="&".join(kept)))

    def cut(self) -> int:
        """Reset every connection now, as a router does; return how many."""
        cut: int = self._call(self._cut)
        return cut

    def refuse(self) -> None:
        """Cut all, and refuse new connections until accept()."""
        self._call(self._refuse)

    def deaf(self) -> None:
        """Cut all, and listen without ever accepting until accept().

        The backlog is full, so connecting hangs as it does behind a firewall
        that drops packets.
        """
        self._call(self._deaf)

    def accept(self) -> None:
        """Take connections again after refuse() or deaf()."""
        self._call(self._listen)

    def black_hole(self) -> None:
        """Swallow all bytes from now on; connections stay up. Ends by heal()."""
        self._call(self._set_flow, flow=False)

    def heal(self) -> None:
        """Let bytes pass again, those held back first; no delay any more."""
        self._call(self._set_flow, flow=True)

    def delay(self, seconds: float) -> None:
        """Hold back every block of bytes for so long, each way."""
        self._delay = seconds

    def lose_next_answer(self) -> None:
        """Drop the next answer of the server, and its connection."""
        self._losing = True

    def close(self) -> None:
        """Close everything and end the thread."""
        self._call(self._refuse)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, job: Callable[..., Awaitable[Any]], **how: bool) -> Any:
        async def work() -> Any:
            return await job(**how)

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._flow = asyncio.Event()
        self._flow.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._unplug()
        if self._server is None:
            self.port = self.port or free_port()
            self._server = await asyncio.start_server(
                self._accepted, "127.0.0.1", self.port
            )

    async def _refuse(self) -> None:
        self._unplug()
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _deaf(self) -> None:
        await self._refuse()
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plug.bind(("127.0.0.1", self.port))
        plug.listen(0)
        self._plug = plug
        for _ in range(4):
            filler = socket.socket()
            filler.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def _unplug(self) -> None:
        for opened in (*self._fillers, *([self._plug] if self._plug else [])):
            opened.close()
        self._fillers.clear()
        self._plug = None

    async def _cut(self) -> int:
        cut = len(self._tasks)
        for writer in list(self._open):
            with contextlib.suppress(OSError):
                # Linger of zero: a reset instead of an orderly end.
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        return cut

    async def _set_flow(self, *, flow: bool) -> None:
        if flow:
            self._delay = 0.0
            self._flow.set()
        else:
            self._flow.clear()

    async def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the weather: an end of the connection either way
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._flow.wait()
        if isinstance(self._target, str):
            there = await asyncio.open_unix_connection(self._target)
        else:
            there = await asyncio.open_connection(*self._target)
        self._open.add(there[1])
        ways = [
            asyncio.ensure_future(self._pass_on(reader, there[1])),
            asyncio.ensure_future(self._pass_on(there[0], writer, answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(there[1])
            there[1].transport.abort() if there[1].is_closing() else there[1].close()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool = False,
    ) -> None:
        while block := await reader.read(_BLOCK):
            if answers and self._losing:
                self._losing = False
                self.lost += 1
                writer.transport.abort()
                return
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flow.wait()
            writer.write(self.rewrite(block))
            await writer.drain()
            self.forwarded += len(block)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def target_of(dsn: str) -> tuple[str, int] | str:
    """Return where a DSN leads: ``(host, port)``, or the path of a socket."""
    parts = urlsplit(dsn)
    given = parse_qs(parts.query)
    host = given.get("host", [parts.hostname or "127.0.0.1"])[0]
    port = int(given.get("port", [parts.port or 5432])[0])
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
