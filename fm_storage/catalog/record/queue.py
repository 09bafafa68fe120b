"""Errors handed in without waiting: a bounded queue and a thread.

A log handler, a decorated plain function and the storage's own parts may neither
await nor block. Nothing is dropped: what the queue or the database cannot take
goes to the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from fm_storage.catalog.record.drafts import Draft
from fm_storage.catalog.record.row import Prepared
from fm_storage.catalog.record.spool import Spool
from fm_storage.concurrency.lifecycle import Home
from fm_storage.concurrency.pacing import yielding_gil

logger = logging.getLogger("fm_storage.catalog")

_CAPACITY = 10_000
BATCH = 250
IN_FLIGHT = 2
_GATHER = 0.02
PATIENCE = 1.0
MakeDraft = Callable[[], Draft]
StoreErrors = Callable[[Sequence[Draft | Prepared]], Awaitable[object]]


class Keeper(Protocol):
    """What the queue needs of a recorder: the spool, and what it knows."""

    spool: Spool

    @property
    def away(self) -> bool:
        """Whether PostgreSQL did not take the latest error it was given."""
        ...

    def wake_replay(self) -> None:
        """Replay what a thread has spooled; called on the loop."""
        ...


class Background:
    """Takes errors from any thread and stores them in batches.

    Rendering, masking and fingerprints are made in the thread, the statement
    runs on the loop. At most a few batches are under way at once. The queue waits
    for them, but not long: what they do not make room for within a second, what
    would fill more than half of the queue, and all that comes while PostgreSQL
    is away goes to the spool.

    Args:
        recorder: Has the spool, and knows whether PostgreSQL is away.
        store: Stores errors on the loop (and calls the manager's hooks).
        loop: The loop of the manager.
        hooked: Returns whether *store* needs the errors as they were given, for a
            hook that changes them; if not, it is given rows.
        capacity: Errors that may be queued.
    """

    def __init__(
        self,
        recorder: Keeper,
        store: StoreErrors,
        loop: asyncio.AbstractEventLoop,
        *,
        hooked: Callable[[], bool] = bool,
        capacity: int = _CAPACITY,
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._loop = loop
        self._hooked = hooked
        self.capacity = capacity
        # Appended to under _lock, so that *idle* is never set too early.
        self.waiting: deque[MakeDraft] = deque()
        self._wake = threading.Event()
        self.idle = threading.Event()
        self.idle.set()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # notified when a batch completes
        self.in_flight = 0  # batches on the loop; under _lock
        self._unsettled = 0  # taken, neither stored nor spooled yet; under _lock
        self._closed = False
        self._home = Home("error queue")  # a forked child has no thread
        self.taken = 0
        self.spilled = 0
        self._thread = threading.Thread(
            target=self._run, name="fm_storage error queue", daemon=True
        )
        self._thread.start()
        # Many records bring on full garbage collections, which stop the loop for as
        # long as the program is large: what it has loaded stays out of them.
        self._froze = not gc.get_freeze_count()
        if self._froze:
            gc.freeze()

    def put(self, make: MakeDraft) -> None:
        """Take an error; returns at once and never raises.

        *make* is called in the thread. If the queue is full or closed, the error
        is written to the spool here and now (without waiting for the disk).
        """
        full = len(self.waiting) >= self.capacity
        if full or self._closed or self._home.forked:
            self._spool(self._made(deque([make])), sync=False)
            return
        with self._lock:
            self.idle.clear()
            self._unsettled += 1
            self.waiting.append(make)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout: float) -> bool:
        """Wait in a thread until everything taken is stored or spooled."""
        self._wake.set()
        return self.idle.wait(timeout)

    def close(self, timeout: float) -> None:
        """Store what was taken, for *timeout* seconds; spool what is left."""
        self.flush(timeout)
        if self._froze:
            gc.unfreeze()
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._wake.set()
        self._thread.join(timeout)
        left = self._collect(len(self.waiting))
        if left:
            count = len(left)
            self._spool(self._made(left), sync=True)
            self._settle(count)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if len(self.waiting) < BATCH and not self._closed:
                # A burst arrives one by one: wait a moment and take it together.
                threading.Event().wait(_GATHER)
            while self.waiting:
                self._pass_on(room=self._has_room())
            if self._closed:
                return

    def _has_room(self) -> bool:
        """Wait for a place on the loop; False if the spool should take the next."""
        deadline = time.monotonic() + PATIENCE
        with self._room:
            while self._storable() and self.in_flight >= IN_FLIGHT:
                left = deadline - time.monotonic()
                if left <= 0 or len(self.waiting) > self.capacity // 2:
                    return False
                # Not only when notified: meanwhile a server may go away, or the queue
                # grow.
                self._room.wait(min(left, _GATHER))
            return self._storable()

    def _storable(self) -> bool:
        return not (self._closed or self._recorder.away or self._loop.is_closed())

    def _collect(self, most: int) -> deque[MakeDraft]:
        found: deque[MakeDraft] = deque()
        while len(found) < most:
            try:
                found.append(self.waiting.popleft())
            except IndexError:
                break
        return found

    def _pass_on(self, *, room: bool) -> None:
        batch = self._collect(BATCH)
        count = len(batch)
        self.taken += count
        errors = self._made(batch)
        if room and self._storable():  # rendering may take its time
            stored = self._stored(errors)
            with contextlib.suppress(RuntimeError):  # the loop closes at this moment
                future = asyncio.run_coroutine_threadsafe(stored, self._loop)
                with self._lock:
                    self.in_flight += 1
                future.add_done_callback(partial(self._landed, count))
                return
            stored.close()
        self._spool(errors, sync=True)
        self._settle(count)

    async def _stored(self, errors: Sequence[Draft | Prepared]) -> None:
        try:
            await self._store(errors)
        except BaseException:  # kept on disk, then passed on
            # Closing, or cancelled at the loop's end: the disk is still there.
            await asyncio.to_thread(self._spool, errors, sync=True)
            raise

    def _settle(self, count: int) -> None:
        with self._lock:
            self._unsettled -= count
            if not self._unsettled:
                self.idle.set()

    def _landed(self, count: int, future: Future[None]) -> None:
        with self._room:
            self.in_flight -= 1
            self._room.notify()
        self._settle(count)
        if not future.cancelled() and (exc := future.exception()) is not None:
            logger.warning("errors could not be stored at once; spooled (%s)", exc)

    def _spool(self, errors: Sequence[Draft | Prepared], *, sync: bool) -> None:
        rows = [
            error.prepared() if isinstance(error, Draft) else error for error in errors
        ]
        if not rows:
            return
        self.spilled += len(rows)
        try:
            self._recorder.spool.append(rows, sync=sync)
        except Exception:  # whatever keeps it from the disk
            # Neither database nor disk: the log is the last place that is left.
            for row in rows:
                logger.critical(
                    "an error could not be kept: %s: %s", row.module, row.message
                )
            logger.exception("the spool could not be written")
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._recorder.wake_replay)

    def _made(self, batch: deque[MakeDraft]) -> list[Draft | Prepared]:
        """Render, and mask unless a hook is to see the error first.

        Empties *batch* one by one, so that what an error was made of is gone before
        the next: objects that live on make the interpreter collect garbage.
        """
        hooked = self._hooked()
        found: list[Draft | Prepared] = []
        for _ in yielding_gil(range(len(batch))):
            try:
                draft = batch.popleft()()
                found.append(draft if hooked else draft.prepared())
            except Exception:  # what an application logs may do anything
                logger.exception("an error could not be rendered")
        return found
