"""Pool scheduling: wait queue, hand-off and return of connections.

The core decides, and only it writes its state; two callables that the pool gives it
carry out what needs the server: *grow* makes connections, *act* resets or closes
one. A returned connection goes straight to the first waiter and never through
``idle``, so a newcomer cannot barge in. The hand-off is acknowledged: a waiter that
was cancelled after it had been given a connection gives it back.
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

from fm_storage.concurrency.awaiting import awaited_by
from fm_storage.concurrency.lifecycle import Life
from fm_storage.errors import (
    ConnectionFailed,
    ForkedProcess,
    PoolClosed,
    PoolTimeout,
    QueryFailed,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres.connect.internals import (
    forget_statements,
    forget_types,
    is_changed,
)
from fm_storage.postgres.connection.classifier import Classifier
from fm_storage.postgres.connection.driver import is_settled
from fm_storage.postgres.errors import OUTDATED
from fm_storage.postgres.pool.schema import SchemaVersion
from fm_storage.postgres.statistics import Counters, PoolStatistics
from fm_storage.postgres.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connection.entry import PoolEntry

_log = logging.getLogger("fm_storage.postgres")
_ENDED_AT_ONCE = frozenset({"57P02", "57P03"})
_ENDED_TWICE = 2
_ENDED_WINDOW = 10.0
_FRAMES = 6


class Verdict(Enum):
    """What becomes of a connection that nobody uses."""

    KEEP = "use it again"
    RESET = "reset it first"
    CLOSE = "close it"


class PoolCore:
    """Decides who gets which connection. Methods without ``async`` do no I/O.

    Attributes:
        life: Where the pool is in its life.
        loop: The loop on which connections may be acquired: None unless open.
        home: The loop on which it was opened, as long as it lives.
        forked: Whether this is a copy in a forked child.
        size: Connections that exist or are being made.
        connecting: Those that are being made.
        generation: How often all connections were replaced.
        named_generation: The one for which *classifier* knows the users' names.
        classifier: Says which statements leave nothing behind.
        idle: Connections nobody uses, the most recently used last.
        in_use: Connections that are acquired.
        resetting: Connections being reset or closed.
        dedicated: Connections outside the pool, as long as somebody has them.
        counters: What has happened so far.
        suspended: Why nobody may wait for a connection now; None usually.
        takes_writes: Whether a server that refuses writes is the wrong one.
        on_failure: Called with why an attempt to connect failed.
    """

    def __init__(
        self,
        name: str,
        config: PostgresConfig,
        *,
        grow: Callable[[], None],
        act: Callable[[PoolEntry, Verdict], None],
    ) -> None:
        self.name = name
        self.owner = f"pool {name!r}"
        self.life = Life.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.home: asyncio.AbstractEventLoop | None = None
        self.forked = False
        self.size = 0
        self.connecting = 0
        self.generation = 0
        self.named_generation: int | None = None
        self.classifier = Classifier()
        self.idle: deque[PoolEntry] = deque()
        self.in_use: set[PoolEntry] = set()
        self.resetting: set[PoolEntry] = set()
        self.dedicated: weakref.WeakSet[PoolEntry] = weakref.WeakSet()
        self.counters = Counters()
        self.suspended: str | None = None
        self.takes_writes = True
        self.on_failure: Callable[[StorageError], None] | None = None
        self.always_reset = config.reset == "always"
        self._config = config
        self._grow = grow
        self._act = act
        self._check_after = config.check_after
        self._borrowers: dict[PoolEntry, Borrower] = {}
        """Who holds a connection for a block; single statements are not listed."""
        self._queue: deque[asyncio.Future[PoolEntry]] = deque()
        self._waiting: dict[asyncio.Future[PoolEntry], asyncio.Task[Any] | None] = {}
        self._failing_since: float | None = None
        self._last_failure: StorageError | None = None
        self._ended: deque[float] = deque(maxlen=_ENDED_TWICE)
        """When connections broke lately."""
        self._emptied: asyncio.Event | None = None
        self._schema = SchemaVersion(self.forget_prepared)
        _cores.add(self)

    # -- life ------------------------------------------------------------

    def open(self) -> None:
        """Begin: connections may be acquired on the running loop."""
        self.home = self.loop = get_running_loop()
        self.life = Life.OPEN

    def begin_closing(self) -> None:
        """End all acquiring; idle connections are closed."""
        self.life = Life.CLOSING
        self.loop = None
        self.refuse_waiters(PoolClosed(self.name, state=self.life.value))
        while self.idle:
            self._retire(self.idle.pop())

    def cut_borrowers(self) -> None:
        """Close what is still in use, naming who uses it."""
        while self.in_use:
            entry = self.in_use.pop()
            _log.warning(
                "%s: closed although a connection was still borrowed by %s; its "
                "connection was cut",
                self.owner,
                self._borrowers.pop(entry, "a statement that had not ended"),
            )
            entry.raw.terminate()
            self.size -= 1

    def end(self) -> None:
        """Finish closing: what is still being reset or closed is dropped."""
        for entry in [*self.resetting]:
            entry.raw.terminate()
            self.forget(entry)
        self.life = Life.CLOSED

    def require_open(self) -> None:
        """Refuse a use from the wrong process or loop, or outside its life."""
        if get_running_loop() is not self.loop:
            raise self.refusal()

    def refusal(self) -> StorageError:
        """Return the error for a use in the wrong state, process or loop."""
        if self.forked:
            return ForkedProcess(self.owner)
        if self.life is not Life.OPEN:
            return PoolClosed(self.name, state=self.life.value)
        return WrongLoop(self.owner)

    def disown(self) -> None:
        """Become unusable, in a forked child."""
        self.loop = None
        self.forked = True

    # -- taking ----------------------------------------------------------

    def take_now(self) -> PoolEntry | None:
        """Take an idle connection that needs no check, or return None.

        This is the whole hot path of a checkout.
        """
        if get_running_loop() is not self.loop:
            raise self.refusal()
        idle = self.idle
        if idle:
            entry = idle.pop()
            now = monotonic()
            if now < entry.fresh_until and not entry.raw.is_closed():
                entry.taken_at = now
                self.in_use.add(entry)
                self.counters.at_once += 1
                return entry
            idle.append(entry)
        return None

    async def take(self, limit: float) -> PoolEntry:
        """Take a connection within *limit* seconds, checked if it was idle long.

        If cancelled, a connection already handed over goes back.

        Raises:
            PoolTimeout: None became free in time.
            ConnectionFailed: None could be made in time.
        """
        entry = self.take_now()
        if entry is not None:
            return entry
        started = monotonic()
        deadline = started + limit
        again = False
        while True:
            entry = self._pop() or await self._wait(started, deadline, first=again)
            if await self._is_sound(entry, deadline):
                break
            again = True
        entry.taken_at = monotonic()
        waited = entry.taken_at - started
        self.counters.add_wait(waited)
        metrics.waited(self.name, waited)
        if waited > self._config.slow_acquire:
            _log.warning(
                "%s: waited %.2f s for a connection (%d of %d in use, %d waiting)",
                self.owner,
                waited,
                len(self.in_use),
                self._config.max_size,
                len(self._queue),
            )
        return entry

    def note_borrower(self, entry: PoolEntry, frame: FrameType | None) -> None:
        """Note that the running task holds *entry* for a block in *frame*."""
        self._borrowers[entry] = Borrower(asyncio.current_task(), frame)
        if self.always_reset:
            entry.dirty = True

    def _pop(self) -> PoolEntry | None:
        now = monotonic()
        while self.idle:
            entry = self.idle.pop()
            if entry.raw.is_closed():
                self.forget(entry)
            elif now >= entry.expires:
                self.counters.lifetimes += 1
                self._retire(entry)
            else:
                self.in_use.add(entry)
                return entry
        return None

    async def _wait(self, started: float, deadline: float, *, first: bool) -> PoolEntry:
        loop = get_running_loop()
        if loop is not self.loop:  # closed while a check was under way
            raise self.refusal()
        if self.suspended is not None:
            raise ConnectionFailed(f"{self.owner}: {self.suspended}")
        waiter: asyncio.Future[PoolEntry] = loop.create_future()
        task = asyncio.current_task()
        self._refuse_deadlock(task)
        if first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._waiting[waiter] = task
        timer = loop.call_later(
            max(0.0, deadline - monotonic()), self._expire, waiter, started
        )
        self._grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            self.counters.cancels += 1
            # The cancellation and a hand-off can arrive in the same turn of the
            # loop: then the future has its result, and nobody else has the entry.
            if not waiter.done() or waiter.cancelled():
                self._leave(waiter)
            elif waiter.exception() is None:
                self.give(waiter.result())
            raise
        finally:
            timer.cancel()

    def _refuse_deadlock(self, task: asyncio.Task[Any] | None) -> None:
        """Refuse to let *task* wait if that can only end at the deadline.

        So it is when every connection is in use, and each borrower is a task that
        waits here itself, the caller among them, or that waits for one that does: a
        child that it has started. Then nobody can give one back.
        """
        holders = [borrower.task for borrower in self._borrowers.values()]
        if not len(holders) == len(self.in_use) == self._config.max_size:
            return
        stuck = {task, *self._waiting.values()}
        waited_for = [{each, *awaited_by(each)} for each in holders]
        if any(map(stuck.isdisjoint, waited_for)):
            return
        if task in holders:
            why = f"this task already holds {holders.count(task)} of them"
        elif any(task in tasks for tasks in waited_for):
            why = "a task that holds one of them waits for this task"
        else:
            return
        raise self._timeout(
            0.0,
            f"{why} and everyone else waits too, so waiting cannot succeed: hand the "
            "connection or transaction on instead of acquiring again",
        )

    def _timeout(self, waited: float, detail: str = "") -> PoolTimeout:
        return PoolTimeout(
            self.name,
            waited=waited,
            in_use=len(self.in_use),
            size=self._config.max_size,
            waiting=len(self._queue),
            detail=detail,
        )

    def _expire(self, waiter: asyncio.Future[PoolEntry], started: float) -> None:
        if waiter.done():
            return
        self._leave(waiter)
        self.counters.timeouts += 1
        now = monotonic()
        if self._failing_since is None:
            waiter.set_exception(self._timeout(now - started))
            return
        waiter.set_exception(
            ConnectionFailed(
                f"{self.owner}: no connection within {now - started:.2f} s; for "
                f"{now - self._failing_since:.1f} s no connection could be made, "
                f"last: {self._last_failure}"
            )
        )

    def _leave(self, waiter: asyncio.Future[PoolEntry]) -> None:
        """Take *waiter* out of the queue, if it is still there."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._queue.remove(waiter)

    async def _is_sound(self, entry: PoolEntry, deadline: float) -> bool:
        """Check a connection that was idle for longer than a moment.

        The check is bounded by what is left of the caller's time. A failure
        condemns the other idle connections too: checking each in turn would cost
        a caller their sum.
        """
        now = monotonic()
        if now < entry.fresh_until:
            return True
        limit = min(self._config.check_timeout, max(0.001, deadline - now))
        try:
            await self._schema.check(entry.raw, limit)
        except asyncio.CancelledError:
            entry.unsynced = True
            self.give(entry)
            raise
        except Exception as exc:  # whatever is wrong, it is not handed out
            self.counters.checks_failed += 1
            self.in_use.discard(entry)
            entry.raw.terminate()
            self.forget(entry)
            self.renew(f"a check failed ({type(exc).__name__})")
            return False
        return True

    # -- giving back -----------------------------------------------------

    def give_clean(self, entry: PoolEntry) -> None:
        """Take back a connection whose statement succeeded: the hot path's end."""
        entry.task = None
        if entry.dirty or entry.doubtful or self._queue or self.loop is None:
            self.give(entry)
            return
        self.in_use.discard(entry)
        entry.idle_since = now = monotonic()
        if now >= entry.expires:
            self.counters.lifetimes += 1
            self._retire(entry)
            return
        entry.fresh_until = now + self._check_after
        self.idle.append(entry)

    def give(self, entry: PoolEntry) -> None:
        """Take back a connection in whatever state; never fails, never waits."""
        if entry not in self.in_use:  # cut while it was in use, and counted out then
            return
        self.in_use.discard(entry)
        self._borrowers.pop(entry, None)
        entry.task = None
        entry.overdue = False
        if not entry.forked:
            self._place(entry)

    def give_reset(self, entry: PoolEntry) -> None:
        """Take back a connection that was reset."""
        self.resetting.discard(entry)
        self._place(entry)

    def _place(self, entry: PoolEntry) -> None:
        verdict = self._settle(entry)
        if verdict is Verdict.KEEP:
            self._hand(entry)
        elif entry.raw.is_closed():
            self.counters.reconnects += 1
            self.forget(entry)
        else:
            self.resetting.add(entry)
            self._act(entry, verdict)
        self._note_emptied()

    def _settle(self, entry: PoolEntry) -> Verdict:
        """Decide what becomes of a connection that nobody uses."""
        if (
            self.life is not Life.OPEN
            or entry.doubtful
            or entry.raw.is_closed()
            or is_changed(entry.raw)
            or entry.generation != self.generation
        ):
            return Verdict.CLOSE
        if monotonic() >= entry.expires:
            self.counters.lifetimes += 1
            return Verdict.CLOSE
        if (
            entry.dirty
            or entry.unsynced
            or entry.refused_write
            or not is_settled(entry.raw)
        ):
            return Verdict.RESET
        return Verdict.KEEP

    def _hand(self, entry: PoolEntry) -> None:
        """Give a sound connection to the first waiter, or put it with the idle."""
        entry.idle_since = now = monotonic()
        entry.fresh_until = now + max(self._check_after, 0.001)
        while self._queue:
            waiter = self._queue.popleft()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                self.in_use.add(entry)
                waiter.set_result(entry)
                return
        entry.fresh_until = now + self._check_after
        self.idle.append(entry)

    def _retire(self, entry: PoolEntry) -> None:
        """Close a connection that must not be used again, off the caller's path."""
        self.resetting.add(entry)
        self._act(entry, Verdict.CLOSE)

    def forget(self, entry: PoolEntry) -> None:
        """Free the slot of a connection that no longer exists."""
        self.size -= 1
        self.resetting.discard(entry)
        self._note_emptied()
        self._grow()

    def on_end(self, entry: PoolEntry) -> None:
        """Note, on the loop, that the driver saw an idle connection end."""
        if entry in self.idle:
            self.idle.remove(entry)
            self.counters.reconnects += 1
            self.forget(entry)

    def suspend(self, why: str, *, cut: bool = False) -> None:
        """Let nobody wait for a connection until ``resume()``.

        Args:
            why: The reason that they get.
            cut: End the statements that run, too.
        """
        self.suspended = why
        self.refuse_waiters(ConnectionFailed(f"{self.owner}: {why}"))
        if cut:
            for entry in self.in_use:
                entry.raw.terminate()

    def resume(self) -> None:
        """Make connections again for those who want one."""
        self.suspended = None
        self._grow()

    def holds_transaction(self) -> bool:
        """Whether the running task is inside a transaction of this pool."""
        task = asyncio.current_task()
        return any(
            entry.blocks and borrower.task is task
            for entry, borrower in self._borrowers.items()
        )

    def refuse_waiters(self, error: StorageError) -> None:
        """Fail everyone in the queue: no connection will ever come."""
        while self._queue:
            waiter = self._queue.popleft()
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_exception(error)

    # -- new connections -------------------------------------------------

    @property
    def missing(self) -> int:
        """How many connections should be begun now."""
        if self.loop is None or self.suspended is not None:
            return 0
        wanted = max(
            len(self._queue) - self.connecting, self._config.min_size - self.size
        )
        return min(self._config.max_size - self.size, wanted)

    @property
    def is_waiting(self) -> bool:
        """Whether a connection that is being made is still wanted."""
        return (
            self.loop is not None
            and self.suspended is None
            and (len(self._queue) > 0 or self.size <= self._config.min_size)
        )

    @property
    def failing_for(self) -> float | None:
        """Seconds since connecting began to fail; None while it works."""
        since = self._failing_since
        return None if since is None else monotonic() - since

    def reserve(self) -> None:
        """Take a slot for a connection that is about to be made."""
        self.size += 1
        self.connecting += 1

    def cancel_reservation(self) -> None:
        """Free the slot again: the connection was not made."""
        self.size -= 1
        self.connecting -= 1

    def note_failure(self, error: StorageError, started: float) -> None:
        """Note that an attempt to connect failed."""
        self.counters.connect_failures += 1
        self._last_failure = error
        if self._failing_since is None:
            self._failing_since = started
            _log.warning("%s: cannot connect: %s", self.owner, error)
        if self.on_failure is not None:
            self.on_failure(error)

    def note_success(self, seconds: float) -> None:
        """Note that an attempt to connect succeeded."""
        if self.failing_for is not None:
            _log.info("%s: connected again after %.1f s", self.owner, self.failing_for)
        self._failing_since = self._last_failure = None
        self.counters.connects += 1
        metrics.connected(self.name, seconds)

    def admit(self, entry: PoolEntry) -> None:
        """Take a new connection into the slot that was reserved for it."""
        self.connecting -= 1
        if self.loop is None:  # closed meanwhile
            self._retire(entry)
        else:
            self._hand(entry)
            self._grow()

    # -- generations -----------------------------------------------------

    def renew(self, reason: str) -> None:
        """Begin a new generation: no present connection is used again."""
        if self.life is not Life.OPEN:
            return
        self.generation += 1
        self.forget_prepared()
        for entry in self.in_use:
            entry.doubtful = True
        stale = [*self.idle]
        self.idle.clear()
        _log.info(
            "%s: connections are replaced: %s (%d idle, %d in use)",
            self.owner,
            reason,
            len(stale),
            len(self.in_use),
        )
        for entry in stale:
            self._retire(entry)

    def note(self, entry: PoolEntry, error: BaseException) -> None:
        """Learn from an error on *entry* what it says about all connections."""
        state = getattr(error, "sqlstate", None)
        if isinstance(error, QueryFailed) and state in OUTDATED and error.retryable:
            self.forget_prepared()
        elif state == "25006" and self.takes_writes:
            # A write was refused: perhaps the server was demoted. Looked up when
            # the connection comes back, off everyone's path.
            entry.refused_write = True
        elif isinstance(error, ConnectionFailed) and (
            entry.generation == self.generation
        ):
            now = monotonic()
            self._ended.append(now)
            repeated = (
                len(self._ended) == _ENDED_TWICE
                and now - self._ended[0] < _ENDED_WINDOW
            )
            if state in _ENDED_AT_ONCE or repeated:
                self._ended.clear()
                self.renew(f"connections ended ({state or type(error).__name__})")

    def forget_prepared(self) -> None:
        """Prepare everything anew from now on: the schema was changed."""
        for entry in (*self.idle, *self.in_use, *self.resetting, *self.dedicated):
            forget_types(entry.raw)
            forget_statements(entry.raw)

    # -- now and then ----------------------------------------------------

    def sweep(self) -> None:
        """Close idle connections that are old or unused, report leaks, refill."""
        if self.loop is None:
            return
        now = monotonic()
        config = self._config
        for entry in [*self.idle]:
            if now >= entry.expires:
                self.counters.lifetimes += 1
            elif (
                now - entry.idle_since > config.max_idle
                and self.size - len(self.resetting) > config.min_size
            ):
                self.counters.shrinks += 1
            else:
                continue
            self.idle.remove(entry)
            self._retire(entry)
        if config.leak_after is not None:
            self._report_leaks(now, config.leak_after)
        self._grow()

    def _report_leaks(self, now: float, after: float) -> None:
        for entry, borrower in self._borrowers.items():
            held = now - entry.taken_at
            if borrower.reported or held < after:
                continue
            borrower.reported = True
            self.counters.leaks += 1
            _log.warning(
                "%s: a connection has been borrowed for %.1f s by %s; leave the "
                "block sooner, or raise leak_after",
                self.owner,
                held,
                borrower,
            )

    def cancel_overdue(self) -> None:
        """Cancel the statements whose deadline has passed."""
        now = monotonic()
        for entry in self.in_use:
            entry.cancel_overdue(now)

    # -- numbers, and the end --------------------------------------------

    def statistics(self) -> PoolStatistics:
        """Return the numbers of this moment."""
        counters = self.counters
        return PoolStatistics(
            name=self.name,
            size=self.size,
            idle=len(self.idle),
            busy=len(self.in_use),
            resetting=len(self.resetting),
            connecting=self.connecting,
            waiting=len(self._queue),
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
            generation=self.generation,
        )

    def _note_emptied(self) -> None:
        if self._emptied is not None and not self.in_use and not self.resetting:
            self._emptied.set()

    async def wait_emptied(self, limit: float) -> bool:
        """Wait until nothing is in use or being reset; False after *limit*."""
        self._emptied = asyncio.Event()
        self._note_emptied()
        try:
            async with asyncio.timeout(limit):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True


class Borrower:
    """Who borrowed a connection, for reports: the task, and where in the code."""

    __slots__ = ("_frames", "reported", "task")

    def __init__(self, task: asyncio.Task[Any] | None, frame: FrameType | None) -> None:
        self.task = task
        self.reported = False
        # Bare frames: traceback.extract_stack() costs more than the checkout.
        self._frames: list[tuple[str, int, str]] = []
        while frame is not None and len(self._frames) < _FRAMES:
            code = frame.f_code
            if code.co_filename.endswith("asyncio/events.py"):
                break
            if "fm_storage/postgres/" not in code.co_filename and not (
                code.co_filename.endswith("/contextlib.py")
            ):
                self._frames.append(
                    (code.co_filename, frame.f_lineno, code.co_qualname)
                )
            frame = frame.f_back

    def __str__(self) -> str:
        name = self.task.get_name() if self.task else "?"
        where = " < ".join(
            f"{file}:{line} in {what}" for file, line, what in self._frames
        )
        return f"task {name!r} at {where or 'an unknown place'}"


_cores: weakref.WeakSet[PoolCore] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Make every inherited pool unusable in a forked child."""
    for core in _cores:
        core.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
