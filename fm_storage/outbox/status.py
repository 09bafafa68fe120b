"""How far the vector store is behind: status and health.

Read from the view ``vector_health``, which is the same for all processes, and from
this process's drainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fm_storage.errors import StorageError
from fm_storage.outbox.agreement.interrupted import unfinished
from fm_storage.outbox.results import (
    CollectionBacklog,
    OutboxStatistics,
    OutboxStatus,
)
from fm_storage.postgres import Executor, Sql

if TYPE_CHECKING:
    from fm_storage.outbox.delivery.drainer import Drainer

_BACKLOG = Sql("""
SELECT h.collection, h.pending, h.quarantined, h.tombstones, h.failing, h.oldest_age,
  CASE WHEN h.failing > 0 THEN (
    SELECT q.last_error FROM fm_storage.vector_queue AS q
    WHERE q.collection = h.collection AND q.quarantined_at IS NULL
      AND q.attempts > 0 LIMIT 1) END AS error
FROM fm_storage.vector_health AS h ORDER BY h.collection""")


async def read_status(
    executor: Executor,
    drainer: Drainer | None,
    statistics: OutboxStatistics,
    *,
    count: bool = True,
) -> OutboxStatus:
    """Return the state of the queue, of rebuilds and of the drainer.

    With *count*, the points that an unfinished rebuild has to copy are counted.

    Raises:
        StorageError: PostgreSQL did not answer.
    """
    records = await executor.fetch(_BACKLOG)
    backlogs = tuple(CollectionBacklog(*record) for record in records)
    ages = [one.oldest_age for one in backlogs if one.oldest_age is not None]
    return OutboxStatus(
        pending=sum(one.pending for one in backlogs),
        quarantined=sum(one.quarantined for one in backlogs),
        tombstones=sum(one.tombstones for one in backlogs),
        oldest_age=max(ages, default=None),
        collections=backlogs,
        drainer="off" if drainer is None else drainer.state.value,
        problem=None if drainer is None else drainer.problem,
        statistics=statistics,
        rebuilds=await unfinished(executor, count=count),
    )


async def read_health(
    executor: Executor, drainer: Drainer | None, statistics: OutboxStatistics
) -> tuple[str, str]:
    """Return ``ok``, ``degraded`` or ``down`` and one sentence of detail."""
    try:
        status = await read_status(executor, drainer, statistics, count=False)
    except StorageError as exc:
        return "down", f"the queue cannot be read: {exc}"
    detail = f"{status.pending} pending"
    if status.oldest_age is not None:
        detail += f", oldest {status.oldest_age.total_seconds():.1f} s"
    if status.quarantined:
        detail += f", {status.quarantined} quarantined"
    failing = [one for one in status.collections if one.failing]
    problem = status.problem or next((one.error for one in failing if one.error), None)
    if problem:
        detail += f"; {problem}"
    for one in status.rebuilds:
        if not one.under_way:
            detail += (
                f"; the rebuild of {one.collection} was interrupted, 'fm-storage "
                f"outbox rebuild {one.collection}' goes on with it"
            )
    sound = not (status.problem or status.quarantined or failing)
    return ("ok" if sound else "degraded"), detail
