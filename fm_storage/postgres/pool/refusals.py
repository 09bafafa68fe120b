"""What a caller is told who gets no connection, and what errors tell the pool.

Apart from the lender because these are judgements, not moves: they look at its
state and change nothing but what an error teaches.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConnectionFailed, PoolTimeout, StorageError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["deadlock", "learn", "too_late"]

_ENDED_AT_ONCE = frozenset({"57P02", "57P03"})
_ENDED_TWICE = 2
_ENDED_WINDOW = 10.0


def deadlock(
    lender: PoolCore,
    task: asyncio.Task[Any] | None,
    waiting: Iterable[asyncio.Task[Any] | None],
) -> PoolTimeout | None:
    """Return an error for *task* if its waiting can only end at the deadline.

    So it is when every connection is lent, and each borrower is a task that
    waits here itself, the caller among them: nobody can give one back.
    """
    if len(lender.lent) < lender.config.max_size:
        return None
    stuck = {task, *waiting}
    holders = [link.lease and link.lease.task for link in lender.lent]
    if task not in holders or not all(holder in stuck for holder in holders):
        return None
    return PoolTimeout(
        lender.name,
        waited=0.0,
        in_use=len(lender.lent),
        size=lender.config.max_size,
        waiting=lender.waiting,
        detail=f"this task already holds {holders.count(task)} of them and everyone "
        "else waits too, so waiting cannot succeed: hand the connection or "
        "transaction on instead of acquiring again",
    )


def too_late(lender: PoolCore, waited: float) -> StorageError:
    """Return the error for a caller whose time is over."""
    trouble = lender.growth.trouble()
    if trouble is not None:
        return ConnectionFailed(
            f"{lender.owner}: no connection within {waited:.2f} s; {trouble}"
        )
    return PoolTimeout(
        lender.name,
        waited=waited,
        in_use=len(lender.lent),
        size=lender.config.max_size,
        waiting=lender.waiting,
    )


def learn(lender: PoolCore, link: PoolEntry, error: BaseException) -> None:
    """Learn from an error on *link* what it says about all connections."""
    state = getattr(error, "sqlstate", None)
    if state == "0A000" and getattr(error, "retryable", False):
        # A cached plan's result changed: so it has on the other links.
        for other in (*lender.idle, *lender.lent):
            other.forget_statements()
    elif state == "25006":
        # A write was refused: perhaps the server was demoted. Looked up when
        # the link comes back, off everyone's path.
        link.refused_write = True
    elif isinstance(error, ConnectionFailed) and link.generation == lender.generation:
        now = monotonic()
        lender.ended.append(now)
        repeated = (
            len(lender.ended) >= _ENDED_TWICE
            and now - lender.ended[-_ENDED_TWICE] < _ENDED_WINDOW
        )
        if state in _ENDED_AT_ONCE or repeated:
            lender.ended.clear()
            lender.renew(f"connections ended ({state or type(error).__name__})")
