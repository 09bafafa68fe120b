"""Who gets which connection next, and what happens to one that comes back.

Apart from the pool's verbs because fairness and bounds are decided here, mostly
without I/O. The state: ``idle`` holds links nobody uses, the most recently used
last; ``lent`` the links in use; ``_queue`` the futures of those who wait, first
come first served; ``size`` counts every link that exists or is being made.

A returning link is handed straight to the first waiter and never passes
through ``idle``, so a newcomer cannot barge in. The hand-off is acknowledged:
a waiter that was cancelled after it had been given a link gives it back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from asyncio import get_running_loop
from collections import deque
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import (
    ForkedProcess,
    PoolClosed,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres.pool import refusals
from fm_storage.postgres.pool.growth import Growth
from fm_storage.postgres.pool.maintenance import mend, say_goodbye
from fm_storage.postgres.statistics import Counters
from fm_storage.postgres.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connect.connector import Connector
    from fm_storage.postgres.connection.entry import PoolEntry

__all__ = ["Life", "PoolCore"]

_log = logging.getLogger("fm_storage.postgres")


class Life(Enum):
    """Where a pool is in its life."""

    NEW = "not open"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class PoolCore:
    """Lends links in turn. All methods without ``async`` decide without I/O."""

    def __init__(self, name: str, config: PostgresConfig, connector: Connector) -> None:
        self.name = name
        self.owner = f"pool {name!r}"
        self.config = config
        self.connector = connector
        self.counters = Counters()
        self.life = Life.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop on which lending is allowed: None unless open."""
        self.home: asyncio.AbstractEventLoop | None = None
        """The loop on which it was opened, for as long as it lives."""
        self.size = 0
        self.generation = 0
        self.idle: deque[PoolEntry] = deque()
        self.lent: set[PoolEntry] = set()
        self.mending: set[PoolEntry] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.growth = Growth(self)
        self._queue: deque[asyncio.Future[PoolEntry]] = deque()
        self._waiting: dict[asyncio.Future[PoolEntry], asyncio.Task[Any] | None] = {}
        self.ended: deque[float] = deque(maxlen=8)
        """When connections broke lately."""
        self._check_after = config.check_after
        self.always_reset = config.reset == "always"
        self._emptied: asyncio.Event | None = None
        self.forked = False
        _lenders.add(self)

    # -- taking ----------------------------------------------------------

    def take_now(self) -> PoolEntry | None:
        """Lend an idle link that needs no check, or return None.

        This is the whole hot path of a checkout.
        """
        if get_running_loop() is not self.loop:
            raise self.refusal()
        idle = self.idle
        if idle:
            link = idle.pop()
            now = monotonic()
            if now < link.fresh_until and not link.raw.is_closed():
                link.taken_at = now
                self.lent.add(link)
                self.counters.at_once += 1
                return link
            idle.append(link)
        return None

    def require_open(self) -> None:
        """Refuse a use from the wrong process or loop, or outside its life."""
        if get_running_loop() is not self.loop:
            raise self.refusal()

    async def take(self, limit: float) -> PoolEntry:
        """Lend a link within *limit* seconds, checked if it was idle for long.

        If cancelled, a link already handed over goes back.

        Raises:
            PoolTimeout: None became free in time.
            ConnectionFailed: None could be made in time.
        """
        link = self.take_now()
        if link is not None:
            return link
        started = monotonic()
        deadline = started + limit
        again = False
        while True:
            link = self._pop() or await self._wait(started, deadline, first=again)
            if await self._is_sound(link, deadline):
                break
            again = True
        link.taken_at = monotonic()
        waited = link.taken_at - started
        self.counters.add_wait(waited)
        metrics.waited(self.name, waited)
        if waited > self.config.slow_acquire:
            _log.warning(
                "%s: waited %.2f s for a connection (%d of %d in use, %d waiting)",
                self.owner,
                waited,
                len(self.lent),
                self.config.max_size,
                len(self._waiting),
            )
        return link

    def refusal(self) -> StorageError:
        """Return the error for a use in the wrong state, process or loop."""
        if self.forked:
            return ForkedProcess(self.owner)
        if self.life is not Life.OPEN:
            return PoolClosed(self.name, state=self.life.value)
        return WrongLoop(self.owner)

    def _pop(self) -> PoolEntry | None:
        now = monotonic()
        while self.idle:
            link = self.idle.pop()
            if link.raw.is_closed():
                self.forget(link)
            elif now >= link.expires:
                self.counters.lifetimes += 1
                self.retire(link)
            else:
                self.lent.add(link)
                return link
        return None

    async def _wait(self, started: float, deadline: float, *, first: bool) -> PoolEntry:
        loop = get_running_loop()
        if loop is not self.loop:  # closed, while a check was under way
            raise self.refusal()
        waiter: asyncio.Future[PoolEntry] = loop.create_future()
        task = asyncio.current_task()
        hopeless = refusals.deadlock(self, task, self._waiting.values())
        if hopeless is not None:
            raise hopeless
        if first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._waiting[waiter] = task
        timer = loop.call_later(
            max(0.0, deadline - monotonic()), self._expire, waiter, started
        )
        self.growth.wake()
        try:
            return await waiter
        except asyncio.CancelledError:
            self.counters.cancels += 1
            if not waiter.done() or waiter.cancelled():
                self._leave(waiter)
            elif waiter.exception() is None:
                self.give(waiter.result())
            raise
        finally:
            timer.cancel()

    def _expire(self, waiter: asyncio.Future[PoolEntry], started: float) -> None:
        if not waiter.done():
            self._leave(waiter)
            self.counters.timeouts += 1
            waiter.set_exception(refusals.too_late(self, monotonic() - started))

    def _leave(self, waiter: asyncio.Future[PoolEntry]) -> None:
        """Take *waiter* out of the queue, if it is still there."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._queue.remove(waiter)

    @property
    def waiting(self) -> int:
        """How many callers are in the queue."""
        return len(self._queue)

    async def _is_sound(self, link: PoolEntry, deadline: float) -> bool:
        """Check a link that was idle for longer than a moment.

        The check is bounded by what is left of the caller's time. A failure
        condemns the other idle links too: checking each in turn would cost a
        caller their sum.
        """
        now = monotonic()
        if now < link.fresh_until:
            return True
        limit = min(self.config.check_timeout, max(0.001, deadline - now))
        try:
            await link.raw.execute("SELECT 1", timeout=limit)
        except asyncio.CancelledError:
            self.give(link)
            raise
        except Exception as exc:
            self.counters.checks_failed += 1
            self.lent.discard(link)
            link.raw.terminate()
            self.forget(link)
            self.renew(f"a check failed ({type(exc).__name__})")
            return False
        return True

    # -- giving back -----------------------------------------------------

    def give_clean(self, link: PoolEntry) -> None:
        """Take back a link whose statement succeeded: the hot path's end."""
        link.task = None
        if link.dirty or link.doubtful or self._queue or self.loop is None:
            self.give(link)
            return
        self.lent.discard(link)
        link.idle_since = now = monotonic()
        if now >= link.expires:
            self.counters.lifetimes += 1
            self.retire(link)
            return
        link.fresh_until = now + self._check_after
        self.idle.append(link)

    def give(self, link: PoolEntry) -> None:
        """Take back a link, whatever state it is in; never fails, never waits."""
        if link not in self.lent:  # cut while it was lent, and counted out then
            return
        self.lent.discard(link)
        link.lease = None
        link.task = None
        link.overdue = False
        if not link.forked:
            self.settle(link)

    def settle(self, link: PoolEntry) -> None:
        """Decide what becomes of a link that nobody uses."""
        if link.raw.is_closed():
            self.counters.reconnects += 1
            self.forget(link)
        elif (
            self.life is not Life.OPEN
            or link.doubtful
            or link.generation != self.generation
        ):
            self.retire(link)
        elif monotonic() >= link.expires:
            self.counters.lifetimes += 1
            self.retire(link)
        elif link.dirty or link.refused_write or not link.is_settled():
            self.mending.add(link)
            self.spawn(mend(self, link))
        else:
            self.hand(link)
        self._note_emptied()

    def _is_stale(self, link: PoolEntry) -> bool:
        return link.doubtful or link.generation != self.generation

    def hand(self, link: PoolEntry) -> None:
        """Give a sound link to the first waiter, or put it with the idle ones."""
        link.idle_since = now = monotonic()
        link.fresh_until = now + max(self._check_after, 0.001)
        while self._queue:
            waiter = self._queue.popleft()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                self.lent.add(link)
                waiter.set_result(link)
                return
        link.fresh_until = now + self._check_after
        self.idle.append(link)

    def retire(self, link: PoolEntry) -> None:
        """Close a link that must not be lent again, off the caller's path."""
        self.mending.add(link)
        self.spawn(say_goodbye(self, link))

    def forget(self, link: PoolEntry) -> None:
        """Free the slot of a link that no longer exists."""
        self.size -= 1
        self.mending.discard(link)
        self._note_emptied()
        self.growth.wake()

    def on_end(self, link: PoolEntry) -> None:
        """Note, on the loop, that the driver saw an idle connection end."""
        if link in self.idle:
            self.idle.remove(link)
            self.counters.reconnects += 1
            self.forget(link)

    def refuse_waiters(self, error: StorageError) -> None:
        """Fail everyone in the queue: no connection will ever come."""
        while self._queue:
            waiter = self._queue.popleft()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_exception(error)

    # -- generations -----------------------------------------------------

    def renew(self, reason: str) -> None:
        """Begin a new generation: no present connection is lent again."""
        if self.life is not Life.OPEN:
            return
        self.generation += 1
        for link in self.lent:
            link.doubtful = True
        stale = [*self.idle]
        self.idle.clear()
        _log.info(
            "%s: connections are replaced: %s (%d idle, %d lent)",
            self.owner,
            reason,
            len(stale),
            len(self.lent),
        )
        for link in stale:
            self.retire(link)

    def note(self, link: PoolEntry, error: BaseException) -> None:
        """Learn from an error what it says about all connections."""
        refusals.learn(self, link, error)

    # -- the rest --------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* in a task that ``aclose()`` waits for."""
        loop = self.home or get_running_loop()
        task = loop.create_task(work, name=f"fm_storage {self.name}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _note_emptied(self) -> None:
        if self._emptied is not None and not self.lent and not self.mending:
            self._emptied.set()

    async def wait_emptied(self, limit: float) -> bool:
        """Wait until nothing is lent or mending; False when *limit* is over."""
        self._emptied = asyncio.Event()
        self._note_emptied()
        try:
            async with asyncio.timeout(limit):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True


_lenders: weakref.WeakSet[PoolCore] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Make every inherited pool unusable in a forked child."""
    for lender in _lenders:
        lender.loop = None
        lender.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
