"""Delivering on demand, and waiting for it: ``drain()``, ``wait_synced()``.

Apart from the drainer, which runs for ever: this ends, and says what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    NotSynced,
    StorageError,
)
from fm_storage.outbox.deliver import (
    Courier,
    Outcome,
    backoff,
    lease_clock,
    said,
    unserved,
)
from fm_storage.outbox.queue import Queue
from fm_storage.outbox.results import DrainReport
from fm_storage.vector_state import encode_id

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.config import OutboxConfig
    from fm_storage.outbox.attach import Attachment

__all__ = ["drain_now", "wait_synced", "within"]

_LONGEST_PAUSE = 1.0
_SLOWEST_LOOK = 0.25


async def drain_now(
    queue: Queue,
    courier: Courier,
    attachment: Attachment,
    config: OutboxConfig,
    *,
    timeout: float,
    progress: Progress | None,
) -> DrainReport:
    """Deliver until nothing is left that can be, or *timeout* is over.

    A collection found missing is left alone for the rest of the call: nobody
    waits for what only somebody else can mend.

    Raises:
        ConfigurationInvalid: The vector store is not this database's.
    """
    deadline = lease_clock() + timeout
    delivered = quarantined = failures = 0
    problem: str | None = None
    blocked: dict[str, str] = {}
    hopeless: set[str] = set()
    await queue.retry_now()
    total = await queue.pending()
    while True:
        any_taken = False
        away = True
        try:
            outcome = await _one_batch(
                queue, courier, attachment, config, sorted(hopeless)
            )
            any_taken = outcome is not None
            outcome = outcome or Outcome()
            away = outcome.outage is not None
            failure = outcome.outage or next(iter(outcome.blocked.values()), None)
            delivered += outcome.delivered
            quarantined += outcome.quarantined
            for name, exc in outcome.blocked.items():
                if isinstance(exc, CollectionNotFound | CollectionMismatch):
                    hopeless.add(name)
                    blocked[name] = said(exc)
            blocked |= {name: unserved(name) for name in outcome.unserved}
        except ConfigurationInvalid:
            raise
        except StorageError as exc:
            failure = exc
        if failure is not None:
            problem = said(failure)
        failures = failures + 1 if failure is not None else 0
        if progress is not None:
            progress(delivered, total)
        left = deadline - lease_clock()
        if any_taken and failure is None and left > 0:
            continue
        delivered += await courier.settle()
        if left <= 0 or not await queue.pending(without=() if away else list(blocked)):
            remaining = await queue.pending()
            still = {n: why for n, why in blocked.items() if await queue.pending(n)}
            return DrainReport(delivered, quarantined, remaining, problem, still)
        pause = backoff(failures, min(_LONGEST_PAUSE, config.max_backoff))
        await asyncio.sleep(min(left, pause))


async def _one_batch(
    queue: Queue,
    courier: Courier,
    attachment: Attachment,
    config: OutboxConfig,
    without: list[str],
) -> Outcome | None:
    await attachment.begin()
    taken = lease_clock()
    rows = await queue.claim(config.batch_size, without=without)
    outcome = await courier.deliver(rows, taken=taken) if rows else None
    await attachment.settled(outcome)
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
    """Look until a point is no longer queued; *progress* is the drainer's, if any.

    Raises:
        NotSynced: Not within *timeout* seconds, or the point was set aside.
    """
    key = encode_id(point_id)
    deadline = lease_clock() + timeout
    pause = 0.005
    while (found := await queue.waiting(key, collection)) is not None:
        quarantined, error = found
        left = deadline - lease_clock()
        if quarantined or left <= 0:
            raise NotSynced(
                point_id, waited=timeout - left, problem=error, final=quarantined
            )
        wake()
        wait = min(pause, left)
        pause = min(pause * 2, _SLOWEST_LOOK)
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
