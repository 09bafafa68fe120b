"""The sequence of versions: moving it past what was given out before a restore.

It concerns all collections at once, and writers in the middle of a transaction.
"""

from __future__ import annotations

import asyncio
import logging

from fm_storage.postgres import Executor, Pool, Sql

_log = logging.getLogger("fm_storage.outbox")

_BETWEEN_LOOKS = 0.05
_GAP = 1_000_000
"""Versions left out when the sequence is moved, so that none is given twice."""

_END = 2**53 - 1
"""The last version that the sequence can give; the migration says the same."""

_NEXT_TRANSACTION = Sql("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
_OLDEST_TRANSACTION = Sql(
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
)
_LOCK = Sql("SELECT pg_advisory_xact_lock(hashtext('fm_storage.vector_version'), 8)")
LAST = Sql("SELECT last_value FROM fm_storage.vector_version")
_SET = Sql("SELECT setval('fm_storage.vector_version', $1)")


def furthest(last: int, marked: int) -> int:
    """Return the greatest version that this database can have given out.

    Its sequence stands at *last*. Before a restore it may have stood at *marked*,
    which the marker says, and beyond by what was given out in the second or so
    since the marker was written; the gap is far more than that. What is greater
    was written by another program: moving the sequence there could bring it to its
    end, and with it every write.
    """
    return min(max(last, marked) + _GAP, _END)


async def raise_sequence(pool: Pool, seen: int) -> bool:
    """Move the version sequence past *seen*; return whether that was needed.

    A gap is left, because others may take versions at this very moment and
    ``setval()`` must never give one of them out again. *seen* must be no more
    than ``furthest()``.
    """
    async with pool.transaction() as tx:
        await tx.execute(_LOCK)
        last: int = await tx.fetchval(LAST)
        if seen <= last:
            return False
        await tx.execute(_SET, min(seen + _GAP, _END))
    _log.warning("versions went back from %d to %d; moved past it", seen, last)
    return True


async def wait_for_writers(executor: Executor, timeout: float) -> None:
    """Wait until transactions that run now have ended, for at most *timeout*.

    They may have taken a version before the sequence was moved.
    """
    before: int = await executor.fetchval(_NEXT_TRANSACTION)
    try:
        async with asyncio.timeout(timeout):
            while await executor.fetchval(_OLDEST_TRANSACTION) < before:
                await asyncio.sleep(_BETWEEN_LOOKS)
    except TimeoutError:
        _log.warning("a transaction from before the comparison goes on; verify later")
