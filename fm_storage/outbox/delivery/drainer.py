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
from collections.abc import Callable
from typing import TYPE_CHECKING

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import ConfigurationInvalid, ConnectionFailed, StorageError
from fm_storage.outbox.delivery.delivery import (
    Delivery,
    Outcome,
    describe,
    lease_clock,
    pauses,
)
from fm_storage.outbox.delivery.lanes import Check, Lanes
from fm_storage.outbox.delivery.presence import EVERY, Presence
from fm_storage.outbox.delivery.queue import Queue

if TYPE_CHECKING:
    from fm_storage.config import OutboxConfig

_log = logging.getLogger("fm_storage.outbox")

_GATHER = 0.005
"""Seconds that a burst of writes may gather before it is taken as one batch."""

_FIRST_LOOK = 0.02
_SLOW = 0.05
"""Seconds after which a delivery is slow: others that are due do not wait for it."""
_LONG = 3600.0


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
        presence: Presence,
        config: OutboxConfig,
        *,
        check: Check,
        begun: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._presence = presence
        self._check = check
        self._begun = begun  # called when the check has passed; harmless to repeat
        self._lanes = Lanes(queue, delivery, config.batch_size, check)
        self.state = DrainerState.OFF
        self.problem: str | None = None
        self.woken = asyncio.Event()
        self.looks = Backoff(_FIRST_LOOK, config.poll_interval, jitter=0.0)
        self._pauses = pauses(config.max_backoff)
        # By collection: when to try it again, and how often it failed.
        self._blocked: dict[str, tuple[float, int]] = {}
        self._failing: dict[str, str] = {}  # problems, by collection
        # Collections whose texts fail: logged once, though points that have vectors
        # are delivered in between.
        self._textless: set[str] = set()
        self._announced = True  # whether writers of tracked tables notify
        self._streak = 0  # deliveries that followed one another
        self._task: asyncio.Task[None] | None = None
        self.progress = asyncio.Event()

    def open(self) -> None:
        """Begin to drain, in a task that ``aclose()`` ends."""
        self.state = DrainerState.IDLE
        self._task = asyncio.create_task(self._run(), name="fm_storage outbox")

    def wake(self) -> None:
        """Look at the queue soon."""
        self.looks.reset()
        self.woken.set()

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
        await self._lanes.aclose(timeout)
        await self._presence.aclose()
        if self.state is not DrainerState.REFUSED:
            self.state = DrainerState.CLOSED

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
                self._pauses.reset()
                problems = [*self._failing.values(), *self._check.refused.values()]
                self.problem = next(iter(problems), None)
                waits = DrainerState.WAITING if self.problem else DrainerState.IDLE
                self.state = waits
                await self._pause()
            except ConfigurationInvalid as exc:
                self.state, self.problem = DrainerState.REFUSED, str(exc)
                _log.error("the outbox does not drain: %s", exc)
                self.progress.set()
                return
            except Exception as exc:  # a drainer outlives any failure
                self.state = DrainerState.WAITING
                self.problem = describe(exc)
                if isinstance(exc, ConnectionFailed):
                    self._check.distrust()  # another server may answer next
                level = logging.DEBUG if self._pauses.failures else logging.WARNING
                # Our errors name the remedy; of others the origin must be shown.
                trace = None if isinstance(exc, StorageError) else exc
                _log.log(level, "the outbox waits: %s", self.problem, exc_info=trace)
                await self._pauses.sleep()

    async def _work(self) -> None:
        """Deliver until nothing is due.

        Raises:
            Exception: The failure of PostgreSQL.
        """
        while True:
            if not await self._lanes.ready():
                return  # nothing was ever written, look again later
            self._begun()
            await self._presence.hold()
            await self._presence.take_over()
            more = await self._lanes.claim(self._waiting())
            if not self._lanes.under_way:
                await self._delivery.settle()
                await self._check.settled(None)
                return
            self.state = DrainerState.RUNNING
            self.looks.reset()
            if not more:
                await self._gather()

    def _waiting(self) -> list[str]:
        """Return the collections that are left out for now."""
        now = lease_clock()
        return [name for name, (until, _) in self._blocked.items() if until > now]

    async def _gather(self) -> None:
        """Wait for a delivery and act on what it met; not long if others may be due."""
        outcomes = await self._lanes.wait(_SLOW)
        # While one delivery follows the other, nobody need notify.
        self._streak = self._streak + 1 if outcomes else 0
        if self._announced is (self._streak > 1):
            self._announced = not self._announced
            await self._queue.announce(waiting=self._announced)
            if self._announced:
                return  # who wrote before that did not notify
        end = lease_clock() + EVERY
        while not (outcomes or self.woken.is_set() or self._due()):
            outcomes = await self._lanes.wait(_SLOW)
            if lease_clock() > end:
                break  # who wrote before, and committed after the last look
        if not outcomes:
            self.woken.clear()
        for outcome in outcomes:
            self._note(outcome)
        self.progress.set()
        self.progress.clear()

    def _due(self) -> bool:
        """Whether a collection that was left out may be tried again."""
        return len(self._waiting()) < len(self._blocked)

    def _note(self, outcome: Outcome) -> None:
        """Leave out a collection that cannot be written for now."""
        name = outcome.collection
        exc = outcome.failure
        if outcome.embedded:
            self._textless.discard(name)
        if exc is None:
            self._blocked.pop(name, None)
            self._failing.pop(name, None)
            return
        failures = self._blocked.get(name, (0.0, 0))[1]
        pause = self._pauses.after(failures)
        # Where only the texts fail, points that have vectors are delivered.
        until = 0.0 if exc is outcome.failing else lease_clock() + pause
        self._blocked[name] = (until, failures + 1)
        again = failures or name in self._textless
        level = logging.DEBUG if again else logging.WARNING
        if exc is outcome.failing:
            self._textless.add(name)
        _log.log(level, "points of %s wait %.1f s: %s", name, pause, describe(exc))
        if outcome.outage is not None:
            self._failing[name] = describe(exc)

    async def _pause(self) -> None:
        """Wait until woken, or until the queue should be looked at anyway."""
        # Who wrote before this and commits after it is found by one of the looks.
        await self._queue.announce(waiting=True)
        self._announced, self._streak = True, 0
        now = lease_clock()
        soon = [until - now for until, _ in self._blocked.values() if until > now]
        end = now + min(self.looks.next(), *soon, _LONG)
        while (left := end - lease_clock()) > 0:
            try:
                async with asyncio.timeout(min(left, EVERY)):
                    await self.woken.wait()
            except TimeoutError:
                if await self._presence.take_over():
                    return
            else:
                self.woken.clear()
                await asyncio.sleep(_GATHER)
                return
