"""Delivering on demand, and waiting for it: ``drain()``, ``wait_synced()``.

Unlike the drainer, which runs for ever, both end and report what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import (
    CollectionDamaged,
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
from fm_storage.outbox.delivery.lanes import Lanes
from fm_storage.outbox.delivery.presence import Presence
from fm_storage.outbox.delivery.queue import Leases, Queue
from fm_storage.outbox.results import DrainReport
from fm_storage.postgres.arguments import seconds
from fm_storage.vector_state import encode_id

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.config import OutboxConfig
    from fm_storage.outbox.agreement.store_check import StoreCheck

_LONGEST_PAUSE = 1.0
STILL = 5.0
"""Seconds without a sign of life after which leases are taken for a killed drainer's;
a live one gives a batch back in less."""
_FIRST_LOOK = 0.005
_SLOWEST_LOOK = 0.25


async def drain_now(
    queue: Queue,
    delivery: Delivery,
    store_check: StoreCheck,
    presence: Presence,
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
    lanes = Lanes(queue, delivery, config.batch_size, store_check)
    run = _Run(queue, delivery, lanes, store_check, presence)
    pause = pauses(min(_LONGEST_PAUSE, config.max_backoff))
    deadline = lease_clock() + seconds(timeout)
    await queue.retry_now()
    total = await queue.pending()
    try:
        while True:
            advanced = await run.step(deadline)
            if progress is not None:
                progress(run.delivered, total)
            if not run.failed:
                pause.reset()
            left = deadline - lease_clock()
            if lanes.under_way or (advanced and not run.failed and left > 0):
                continue
            report = await run.report(left)
            if report is not None:
                return report
            await asyncio.sleep(min(left, pause.next()))
    finally:
        await lanes.aclose(0.0)


class _Run:
    """What one call has met so far."""

    def __init__(
        self,
        queue: Queue,
        delivery: Delivery,
        lanes: Lanes,
        check: StoreCheck,
        presence: Presence,
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._lanes = lanes
        self._check = check
        self._presence = presence
        self._watch = _Watch(queue)
        self._quarantined = 0
        self._problem: str | None = None
        self._blocked: dict[str, str] = {}
        self._absent: set[str] = set()  # not tried again
        self._away = False  # the store or PostgreSQL did not answer the last step
        self._tried = False
        self.delivered = 0
        self.failed = False  # the last step

    async def step(self, deadline: float) -> bool:
        """Take what is due, or wait for a batch; return whether one was done."""
        self.failed = self._away = False
        try:
            await self._lanes.ready()
            self._blocked.update(self._check.refused)
            await self._presence.hold()
            await self._presence.take_over()
            # Once at least: the check of a store that starts may take all the time.
            going = not self._tried or lease_clock() < deadline
            more = going and await self._lanes.claim(self._absent)
            self._tried = True
            if not more and not self._lanes.under_way:
                await self._check.settled(None)
            if more or not self._lanes.under_way:
                return False
            outcomes = await self._lanes.wait(_SLOWEST_LOOK)
        except ConfigurationInvalid:
            raise
        except StorageError as exc:
            self.failed = self._away = True
            self._problem = describe(exc)
            return False
        for outcome in outcomes:
            self._note(outcome)
        return bool(outcomes)

    def _note(self, outcome: Outcome) -> None:
        self.delivered += outcome.delivered
        self._quarantined += outcome.quarantined
        if outcome.failure is not None:
            self.failed, self._problem = True, describe(outcome.failure)
        self._away = self._away or outcome.outage is not None
        name = outcome.collection
        if isinstance(
            outcome.blocked, CollectionNotFound | CollectionMismatch | CollectionDamaged
        ):
            self._absent.add(name)
            self._blocked[name] = describe(outcome.blocked)
        elif outcome.unserved:
            self._blocked[name] = unserved(name)

    async def report(self, left: float) -> DrainReport | None:
        """Return the report if there is nothing left to wait for."""
        self.delivered += await self._delivery.settle()
        without = [] if self._away else list(self._blocked)
        due = await self._queue.pending(without=without)
        if not await self._watch.over(due, left):
            return None
        pending = self._queue.pending
        return DrainReport(
            self.delivered,
            self._quarantined,
            await pending(),
            self._problem,
            {name: why for name, why in self._blocked.items() if await pending(name)},
            self._watch.seen.count,
            self._watch.seen.until,
        )


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
        return taken and lease_clock() - self._since >= STILL


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
    deadline = lease_clock() + seconds(timeout)
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
