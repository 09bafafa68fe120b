"""What is done to a connection between two borrowers, off everyone's path.

Apart because it is the only part of lending that talks to the server: roll
back, reset, or say goodbye. Each is bounded; a connection that does not answer
in time is dropped without ceremony and its slot freed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fm_storage.postgres.connection.classifier import RESET_SQL

if TYPE_CHECKING:
    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["drop", "mend", "say_goodbye"]

_GOODBYE = 1.0


async def mend(lender: PoolCore, link: PoolEntry) -> None:
    """Make *link* as good as new and lend it on, or drop it."""
    try:
        await _clean(link, lender)
    except asyncio.CancelledError:
        drop(lender, link)
        raise
    except Exception:
        drop(lender, link)
        return
    lender.mending.discard(link)
    lender.settle(link)


async def _clean(link: PoolEntry, lender: PoolCore) -> None:
    limit = lender.config.check_timeout
    raw: Any = link.raw
    # A cancelled statement is over only when the server has said so; before
    # that the transaction status is yesterday's.
    await raw._protocol._wait_for_cancellation(limit)  # noqa: SLF001 - the driver's own bounded wait
    words = []
    if raw.is_in_transaction():
        words.append("ROLLBACK")
    # Behind a transaction pooler the reset would hit somebody else's session.
    if link.dirty and not lender.connector.transaction_pooler:
        words.append(RESET_SQL)
        lender.counters.resets += 1
    raw._top_xact = None  # noqa: SLF001 - its transaction is over
    raw._listeners.clear()  # noqa: SLF001 - and nobody listens any more
    raw._log_listeners.clear()  # noqa: SLF001 - as above
    for sql in words:
        await raw.execute(sql, timeout=limit)
    link.dirty = False
    if link.refused_write:
        link.refused_write = False
        if await raw.fetchval("SELECT pg_is_in_recovery()", timeout=limit):
            lender.renew("the server accepts no more writes")


def drop(lender: PoolCore, link: PoolEntry) -> None:
    """End *link* now and free its slot, once."""
    link.raw.terminate()
    if link in lender.mending:
        lender.forget(link)


async def say_goodbye(lender: PoolCore, link: PoolEntry) -> None:
    """Close *link* yielding_gil within a second, then rudely, and free its slot."""
    try:
        async with asyncio.timeout(_GOODBYE):
            await link.raw.close()
    except TimeoutError:
        pass
    except Exception:  # noqa: S110 - it is being thrown away
        pass
    finally:
        drop(lender, link)
