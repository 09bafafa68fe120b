"""Delivering on demand, and waiting for it: ``drain()``, ``wait_synced()``.

Unlike the drainer, which runs for ever, both end and report what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    NotSynced,
    StorageError,
)
from fm_storage.outbox.delivery.delivery import (
    Delivery,
    Outcome,
    describe,
    lease_clock,
    pauses,
    unserved,
)
from fm_storage.outbox.delivery.queue import Leases, Queue
from fm_storage.outbox.results import DrainReport
from fm_storage.vector_state import encode_id

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.config import OutboxConfig
    from fm_storage.outbox.agreement.store_check import StoreCheck

__all__ = ["drain_now", "wait_synced", "within"]

_LONGEST_PAUSE = 1.0
_STILL = 5.0
"""Seconds without a sign of life after which leases are taken for a killed drainer's;
a live one gives a batch back in less."""
_FIRST_LOOK = 0.005
_SLOWEST_LOOK = 0.25


async def drain_now(
    queue: Queue,
    delivery: Delivery,
    store_check: StoreCheck,
    config: OutboxConfig,
    *,
    timeout: float,
    progress: Progress | None,
) -> DrainReport:
    """Deliver until nothing is left that can be, or *timeout* is over.

    A collection found missing is left out for the rest of the call: only its owner
    can create it. Leases of other drainers are waited for only while they change,
    which shows that their drainer is alive.

    Raises:
        ConfigurationInvalid: The vector store is not this database's.
    """
    deadline = lease_clock() + timeout
    delivered = quarantined = 0
    problem: str | None = None
    blocked: dict[str, str] = {}
    absent: set[str] = set()
    watch = _Watch(queue)
    pause = pauses(min(_LONGEST_PAUSE, config.max_backoff))
    await queue.retry_now()
    total = await queue.pending()
    while True:
        any_taken = False
        away = True
        try:
            outcome = await _one_batch(
                queue, delivery, store_check, config, sorted(absent)
            )
            any_taken = outcome is not None
            outcome = outcome or Outcome()
            away = outcome.outage is not None
            failure = outcome.outage or next(iter(outcome.blocked.values()), None)
            delivered += outcome.delivered
            quarantined += outcome.quarantined
            for name, exc in outcome.blocked.items():
                if isinstance(exc, CollectionNotFound | CollectionMismatch):
                    absent.add(name)
                    blocked[name] = describe(exc)
            blocked |= {name: unserved(name) for name in outcome.unserved}
        except ConfigurationInvalid:
            raise
        except StorageError as exc:
            failure = exc
        if failure is not None:
            problem = describe(failure)
        else:
            pause.reset()
        if progress is not None:
            progress(delivered, total)
        left = deadline - lease_clock()
        if any_taken and failure is None and left > 0:
            continue
        delivered += await delivery.settle()
        due = await queue.pending(without=() if away else list(blocked))
        if await watch.over(due, left):
            remaining = await queue.pending()
            still = {n: why for n, why in blocked.items() if await queue.pending(n)}
            held = (watch.seen.count, watch.seen.until)
            return DrainReport(delivered, quarantined, remaining, problem, still, *held)
        await asyncio.sleep(min(left, pause.next()))


class _Watch:
    """Whether there is anything left to wait for."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.seen = Leases()
        self._since = lease_clock()

    async def over(self, due: int, left: float) -> bool:
        """Decide it, with *due* points to deliver and *left* seconds to do it in."""
        now = await self._queue.leases()
        if (now.count, now.until) != (self.seen.count, self.seen.until):
            self.seen, self._since = now, lease_clock()
        if left <= 0 or not due:
            return True
        taken = now.count >= due and (now.earliest or 0.0) > left
        return taken and lease_clock() - self._since >= _STILL


async def _one_batch(
    queue: Queue,
    delivery: Delivery,
    store_check: StoreCheck,
    config: OutboxConfig,
    without: list[str],
) -> Outcome | None:
    await store_check.begin()
    taken = lease_clock()
    rows = await queue.claim(config.batch_size, without=without)
    outcome = await delivery.deliver(rows, taken=taken) if rows else None
    await store_check.settled(outcome)
    return outcome


async def wait_synced(
    queue: Queue,
    point_id: object,
    collection: str | None,
    *,
    timeout: float,
    wake: Callable[[], None],
    progress: asyncio.Event | None,
) -> None:
    """Wait until a point is no longer queued; *progress* is the drainer's, if any.

    Raises:
        NotSynced: Not within *timeout* seconds, or the point was set aside.
    """
    key = encode_id(point_id)
    deadline = lease_clock() + timeout
    pause = Backoff(_FIRST_LOOK, _SLOWEST_LOOK, jitter=0.0)
    while (found := await queue.waiting(key, collection)) is not None:
        quarantined, error = found
        left = deadline - lease_clock()
        if quarantined or left <= 0:
            raise NotSynced(
                point_id, waited=timeout - left, problem=error, final=quarantined
            )
        wake()
        wait = min(pause.next(), left)
        if progress is not None:
            await within(progress.wait(), wait)
        else:
            await asyncio.sleep(wait)


async def within(waiting: Awaitable[object], seconds: float) -> bool:
    """Wait for something for at most *seconds*; return whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True
