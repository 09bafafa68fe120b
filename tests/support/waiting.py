"""Waiting for what sends no event: another process, the server, a counter.

No test depends on how fast the machine is: it looks again until the condition
holds, and gives up only after a time in which even a busy machine would have
reached it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import asyncpg

from fm_storage.postgres import Pool

__all__ = ["LONG", "locks_held", "sleeping_on_server", "until"]

LONG = 20.0
"""Seconds after which what has not happened never will: an order of magnitude more
than it takes, and less than the 30 s after which a test is ended."""

_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def until(
    holds: Callable[[], object] | Callable[[], Awaitable[object]],
    within: float = LONG,
) -> None:
    """Look again and again until *holds* gives something true.

    Args:
        holds: A function, or one that gives an awaitable.
        within: Seconds; then TimeoutError.
    """
    async with asyncio.timeout(within):
        while True:
            found = holds()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


async def locks_held(pool: Pool, number: int) -> None:
    """Wait until the server has *number* advisory locks in this database.

    A process that was killed still has its own for a moment: the server learns of
    the kill when it sees the socket closed.
    """

    async def as_many() -> bool:
        held: int = await pool.fetchval(_LOCKS)
        return held == number

    await until(as_many)


async def sleeping_on_server(pool: Pool | asyncpg.Connection, number: int = 1) -> None:
    """Wait until *number* statements of this database are inside ``pg_sleep()``."""

    async def as_many() -> bool:
        found: int = await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND datname = current_database()"
        )
        return found == number

    await until(as_many)
