"""Other Python processes, started, spoken to and killed by a test.

Apart, because a process that a failing test left behind would disturb all the
tests after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

__all__ = ["Child", "child"]

_ROOT = Path(__file__).parent.parent


class Child:
    """A Python process with a line-wise conversation."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    async def line(self, timeout: float = 60.0) -> str:
        """Return the next line it prints, without its end; "" at the end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def say(self, line: str = "") -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end and return the exit code (−9 after kill())."""
        async with asyncio.timeout(timeout):
            return await self.process.wait()

    async def errors(self) -> str:
        """Return what it wrote to standard error; call after its end."""
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait()


@pytest.fixture
async def child() -> AsyncIterator[Callable[..., Awaitable[Child]]]:
    """Give a starter of Python processes that run a given text.

    ``process = await child(code, *arguments, **environment)``; the arguments
    arrive in ``sys.argv[1:]``. It is killed at the end of the test.
    """
    started: list[Child] = []

    async def start(code: str, *arguments: object, **environment: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-c", code, *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
        )
        started.append(Child(process))
        return started[-1]

    yield start
    for each in started:
        each.signal(signal.SIGCONT)
        await each.kill()
        # The pipes' transports close when their ends have been read.
        await each.process.communicate()
