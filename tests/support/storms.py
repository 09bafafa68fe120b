"""Writers that know nothing of us, and what ends them, a drainer or the server.

For tests which compare both stores after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from tests.fix_cluster import TestCluster

__all__ = ["Once", "kill_storm"]

Once = Callable[[asyncpg.Connection, random.Random], Awaitable[None]]
"""Writes something over a connection."""

_LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


async def kill_storm(
    cluster: TestCluster,
    folder: Path,
    once: Once,
    program: str,
    *,
    seed: int,
    turns: int,
    life: tuple[float, float],
    restart_after: int,
    kill_after: int,
    pause: float = 0.0,
) -> int:
    """Have three writers, whose connections are cut, write beside *program*.

    Args:
        cluster: The server; stopped at once after a turn, and killed after another.
        folder: Second argument of *program*; the first is the server's DSN.
        once: What a writer does again and again.
        program: Python, run in a process that is killed, once a turn.
        seed: Of every choice.
        turns: How many processes are killed.
        life: Seconds until one is killed, at least and at most.
        restart_after: The turn, from 0, after which the server stops at once.
        kill_after: The turn after which it is killed.
        pause: Seconds between two writes of a writer.

    Returns:
        How often something was written.
    """
    dice = random.Random(seed)
    stop = asyncio.Event()
    writers = [
        asyncio.create_task(
            _write(cluster.dsn, once, random.Random(seed + nr), stop, pause)
        )
        for nr in range(3)
    ]
    for turn in range(turns):
        killed = asyncio.create_task(
            _killed(program, cluster.dsn, str(folder), dice.uniform(*life))
        )
        while not killed.done():
            await asyncio.sleep(dice.uniform(0.2, 0.8))
            await _cut(cluster.dsn, dice)
        if turn == restart_after:
            await cluster.restart("immediate")
        if turn == kill_after:
            await cluster.kill()
            await cluster.start()
    stop.set()
    return sum(await asyncio.gather(*writers))


async def _write(
    dsn: str, once: Once, dice: random.Random, stop: asyncio.Event, pause: float
) -> int:
    """Write over connections that are lost."""
    done = 0
    while not stop.is_set():
        # The last: a COPY on a connection that ended.
        with contextlib.suppress(*_LOST, asyncpg.InternalClientError):
            connection = await asyncpg.connect(dsn, timeout=5)
            try:
                while not stop.is_set():
                    await once(connection, dice)
                    done += 1
                    await asyncio.sleep(pause)
            finally:
                connection.terminate()
        await asyncio.sleep(0.05)
    return done


async def _cut(dsn: str, dice: random.Random) -> None:
    """End some of the writers' connections in the middle of what they do."""
    with contextlib.suppress(*_LOST):
        connection = await asyncpg.connect(dsn, timeout=5)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database() "
            "AND application_name = '' AND random() < $1",
            dice.uniform(0.3, 1.0),
        )
        await connection.close()


async def _killed(program: str, dsn: str, folder: str, life: float) -> None:
    """Run *program* in a process that is killed after *life* seconds."""
    arguments = (sys.executable, "-c", program, dsn, folder)
    process = await asyncio.create_subprocess_exec(*arguments)
    await asyncio.sleep(life)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
