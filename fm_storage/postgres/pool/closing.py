"""How a pool ends, and what it says about itself.

Apart because an end has rules of its own: nobody is waited for without bound,
and whoever still holds a connection is named.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from fm_storage.errors import PoolClosed
from fm_storage.postgres.pool.core import Life
from fm_storage.postgres.pool.maintenance import drop
from fm_storage.postgres.statistics import PoolStatistics

if TYPE_CHECKING:
    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["close", "snapshot", "wait_for"]

_log = logging.getLogger("fm_storage.postgres")
_LAST_MOMENT = 0.3


async def wait_for(closed: asyncio.Future[None]) -> None:
    """Wait for *closed* without ever cancelling it."""
    await asyncio.shield(closed)


async def close(lender: PoolCore, limit: float) -> None:
    """End all lending within *limit* seconds."""
    deadline = monotonic() + limit
    lender.life = Life.CLOSING
    lender.loop = None
    lender.refuse_waiters(PoolClosed(lender.name, state=Life.CLOSING.value))
    while lender.idle:
        lender.retire(lender.idle.pop())
    if not await lender.wait_emptied(max(0.0, deadline - monotonic())):
        for link in [*lender.lent]:
            _log.warning(
                "%s: closed although a connection was still borrowed by %s; its "
                "connection was cut",
                lender.owner,
                link.lease or "a statement that had not ended",
            )
            link.raw.terminate()
            lender.lent.discard(link)
            lender.size -= 1
    last = monotonic() + _LAST_MOMENT
    while lender.tasks and (left := last - monotonic()) > 0:
        for task in lender.tasks:  # one that ends may have begun another
            task.cancel()
        await asyncio.wait(lender.tasks, timeout=left)
    for link in [*lender.mending]:
        drop(lender, link)  # cancelled before its first step, nothing else did
    lender.life = Life.CLOSED


def snapshot(lender: PoolCore) -> PoolStatistics:
    """Return the pool's numbers of this moment."""
    counters = lender.counters
    return PoolStatistics(
        name=lender.name,
        size=lender.size,
        idle=len(lender.idle),
        busy=len(lender.lent),
        mending=len(lender.mending),
        connecting=lender.growth.connecting,
        waiting=lender.waiting,
        acquired=counters.at_once + counters.waited,
        acquire_p50=counters.percentile(0.5),
        acquire_p99=counters.percentile(0.99),
        acquire_max=counters.longest,
        timeouts=counters.timeouts,
        cancels=counters.cancels,
        checks_failed=counters.checks_failed,
        resets=counters.resets,
        connects=counters.connects,
        connect_failures=counters.connect_failures,
        reconnects=counters.reconnects,
        lifetimes=counters.lifetimes,
        shrinks=counters.shrinks,
        repeats=counters.repeats,
        leaks=counters.leaks,
        generation=lender.generation,
    )
