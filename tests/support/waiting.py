"""Waiting for what tells nobody: another process, the server, a number.

Apart because every test that looks at such things needs it, and none may depend
on how fast the machine is: it looks again until the thing holds, and gives up
only after a time in which even a busy machine would have done it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from fm_storage.postgres import Pool

__all__ = ["LONG", "locks_held", "until"]

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
