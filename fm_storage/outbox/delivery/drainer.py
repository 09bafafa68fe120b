"""The drainer: a task that empties the queue and otherwise costs nothing.

It wakes by an event in its own process, by a coalesced NOTIFY from others, and
by polling as a backstop. ``wake()`` may come before the commit it announces, so
the queue is looked at again in growing steps for a while. After an outage it
pauses longer and longer; being woken does not shorten that, or busy writers
would hammer a store that is down.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import ConfigurationInvalid, StorageError
from fm_storage.outbox.delivery.delivery import (
    Delivery,
    Outcome,
    describe,
    lease_clock,
    pauses,
)
from fm_storage.outbox.delivery.queue import Leased, Queue

if TYPE_CHECKING:
    from fm_storage.config import OutboxConfig

__all__ = ["Drainer", "DrainerState"]

_log = logging.getLogger("fm_storage.outbox")

_GATHER = 0.005
"""Seconds that a burst of writes may gather before it is taken as one batch."""

_FIRST_LOOK = 0.02
_BATCHES_AT_ONCE = 2


class DrainerState(enum.Enum):
    """Life of a drainer."""

    OFF = "off"
    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    REFUSED = "refused"
    CLOSED = "closed"


class Drainer:
    """Empties the queue until it is closed; several may do so at once.

    Nothing that the vector store or PostgreSQL answers ends it, except that the
    store is not this database's: then it is ``REFUSED`` and says why.
    """

    def __init__(
        self,
        queue: Queue,
        delivery: Delivery,
        config: OutboxConfig,
        *,
        begin: Callable[[], Awaitable[bool]],
        settled: Callable[[Outcome | None], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._config = config
        self._start = begin  # False: nothing was ever written, look again later
        self._settled = settled  # after each batch, and with None when idle
        self.state = DrainerState.OFF
        self.problem: str | None = None
        self._woken = asyncio.Event()
        self._looks = Backoff(_FIRST_LOOK, config.poll_interval, jitter=0.0)
        self._pauses = pauses(config.max_backoff)
        self._blocked: dict[str, tuple[float, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._delivering: set[asyncio.Task[Outcome]] = set()
        self.progress = asyncio.Event()

    def open(self) -> None:
        """Begin to drain, in a task that ``aclose()`` ends."""
        self.state = DrainerState.IDLE
        self._task = asyncio.create_task(self._run(), name="fm_storage outbox")

    def wake(self) -> None:
        """Look at the queue soon."""
        self._looks.reset()
        self._woken.set()

    @property
    def alive(self) -> bool:
        """Whether rows written now will be delivered by this drainer."""
        return self.state in {DrainerState.IDLE, DrainerState.RUNNING}

    async def aclose(self, timeout: float) -> None:
        """Let deliveries under way end within *timeout*, then stop."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self._delivering:
            await asyncio.wait(self._delivering, timeout=timeout)
        for delivery in self._delivering:
            delivery.cancel()
        if self._delivering:
            await asyncio.wait(self._delivering)
        if self.state is not DrainerState.REFUSED:
            self.state = DrainerState.CLOSED

    async def _run(self) -> None:
        begun = False
        while True:
            try:
                if not begun:
                    begun = await self._start()
                if begun:
                    await self._work()
                self.state, self.problem = DrainerState.IDLE, None
                self._pauses.reset()
                await self._pause()
            except ConfigurationInvalid as exc:
                self.state, self.problem = DrainerState.REFUSED, str(exc)
                _log.error("the outbox does not drain: %s", exc)
                self.progress.set()
                return
            except Exception as exc:
                self.state = DrainerState.WAITING
                self.problem = describe(exc)
                level = logging.DEBUG if self._pauses.failures else logging.WARNING
                # Our errors name the remedy; of others the origin must be shown.
                trace = None if isinstance(exc, StorageError) else exc
                _log.log(level, "the outbox waits: %s", self.problem, exc_info=trace)
                await self._pauses.sleep()

    async def _work(self) -> None:
        """Deliver until nothing is due.

        Raises:
            Exception: The failure of the vector store or of PostgreSQL.
        """
        while True:
            now = lease_clock()
            without = [
                name for name, (until, _) in self._blocked.items() if until > now
            ]
            rows = await self._queue.claim(self._config.batch_size, without=without)
            if not rows:
                if not self._delivering:
                    await self._delivery.settle()
                    await self._settled(None)
                    return
            else:
                self.state = DrainerState.RUNNING
                self._looks.reset()
                self._begin(rows, taken=now)
            full = len(rows) == self._config.batch_size
            if len(self._delivering) >= (_BATCHES_AT_ONCE if full else 1):
                await self._gather()

    def _begin(self, rows: list[Leased], *, taken: float) -> None:
        task = asyncio.create_task(
            self._delivery.deliver(rows, taken=taken), name="fm_storage delivery"
        )
        self._delivering.add(task)

    async def _gather(self) -> None:
        """Wait for one delivery and act on what it met."""
        done, _ = await asyncio.wait(
            self._delivering, return_when=asyncio.FIRST_COMPLETED
        )
        self._delivering -= done
        failure: BaseException | None = None
        for task in done:
            outcome = task.result()
            failure = failure or outcome.outage
            await self._settled(outcome)  # may find that a collection is back
            self._block(outcome)
        self.progress.set()
        self.progress.clear()
        if failure is not None:
            if self._delivering:
                await asyncio.wait(self._delivering)
                self._delivering.clear()
            raise failure

    def _block(self, outcome: Outcome) -> None:
        """Leave out collections that cannot be written for now."""
        for name, exc in outcome.blocked.items():
            failures = self._blocked.get(name, (0.0, 0))[1]
            pause = self._pauses.after(failures)
            self._blocked[name] = (lease_clock() + pause, failures + 1)
            level = logging.DEBUG if failures else logging.WARNING
            _log.log(level, "points of %s wait %.1f s: %s", name, pause, describe(exc))
        if outcome.delivered and not outcome.blocked:
            self._blocked.clear()

    async def _pause(self) -> None:
        """Wait until woken, or until the queue should be looked at anyway."""
        try:
            async with asyncio.timeout(self._looks.next()):
                await self._woken.wait()
            self._woken.clear()
            await asyncio.sleep(_GATHER)
        except TimeoutError:
            pass
