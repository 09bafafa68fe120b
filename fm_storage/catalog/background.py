"""Errors handed in from anywhere, without waiting: a bounded queue and a thread.

Apart because a log handler, a decorated plain function and the storage's own
parts may neither await nor block. Nothing is dropped: what the queue or the
database cannot take goes to the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial

from fm_storage.catalog.drafts import Draft
from fm_storage.catalog.recorder import Recorder

__all__ = ["Background"]

logger = logging.getLogger("fm_storage.catalog")

_CAPACITY = 10_000
_BATCH = 250
_IN_FLIGHT = 4
_GATHER = 0.02
MakeDraft = Callable[[], Draft]
StoreDrafts = Callable[[Sequence[Draft]], Awaitable[object]]


class Background:
    """Takes errors from any thread and stores them in batches.

    Rendering, masking and fingerprints are made in the thread, the statement
    runs on the loop. At most a few batches are under way at once; while they
    are, or while PostgreSQL is away, the next ones go to the spool.

    Args:
        recorder: Stores and spools.
        store: Stores drafts on the loop (and calls the manager's hooks).
        loop: The loop of the manager.
    """

    def __init__(
        self,
        recorder: Recorder,
        store: StoreDrafts,
        loop: asyncio.AbstractEventLoop,
        *,
        capacity: int = _CAPACITY,
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._loop = loop
        self._capacity = capacity
        # Appended to under _lock, so that *idle* is never said too early.
        self._queue: deque[MakeDraft] = deque()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._flying = 0  # batches on the loop; under _lock
        self._unsettled = 0  # taken, neither stored nor spooled yet; under _lock
        self._closed = False
        self._pid = os.getpid()  # a forked child has no thread
        self.taken = 0
        self.spilled = 0
        self._thread = threading.Thread(
            target=self._run, name="fm_storage error queue", daemon=True
        )
        self._thread.start()

    def put(self, make: MakeDraft) -> None:
        """Take an error; returns at once and never raises.

        *make* is called in the thread. If the queue is full or closed, the error
        is written to the spool here and now (without waiting for the disk).
        """
        full = len(self._queue) >= self._capacity
        if full or self._closed or os.getpid() != self._pid:
            self._spill([make], sync=False)
            return
        with self._lock:
            self._idle.clear()
            self._unsettled += 1
            self._queue.append(make)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout: float) -> bool:
        """Wait in a thread until everything taken is stored or spooled."""
        self._wake.set()
        return self._idle.wait(timeout)

    def close(self, timeout: float) -> None:
        """Store what was taken, for *timeout* seconds; spool what is left."""
        self.flush(timeout)
        self._closed = True
        self._wake.set()
        self._thread.join(timeout)
        left = self._collect(len(self._queue))
        if left:
            self._spill(left, sync=True)
            self._settle(len(left))

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if len(self._queue) < _BATCH and not self._closed:
                # A burst arrives one by one: wait a moment and take it together.
                threading.Event().wait(_GATHER)
            while batch := self._collect(_BATCH):
                self._pass_on(batch)
            if self._closed:
                return

    def _collect(self, most: int) -> list[MakeDraft]:
        found: list[MakeDraft] = []
        while len(found) < most:
            try:
                found.append(self._queue.popleft())
            except IndexError:
                break
        return found

    def _pass_on(self, batch: list[MakeDraft]) -> None:
        self.taken += len(batch)
        drafts = self._drafts(batch)
        with self._lock:
            busy = self._flying >= _IN_FLIGHT
        if busy or self._closed or self._recorder.away or self._loop.is_closed():
            self._spool(drafts, sync=True)
            self._settle(len(batch))
            return
        for draft in drafts:
            draft.prepared()  # here, not on the loop
        with self._lock:
            self._flying += 1
        future = asyncio.run_coroutine_threadsafe(self._stored(drafts), self._loop)
        future.add_done_callback(partial(self._landed, len(batch)))

    async def _stored(self, drafts: Sequence[Draft]) -> None:
        try:
            await self._store(drafts)
        except BaseException:  # kept on disk, then passed on
            # Closing, or cancelled at the loop's end: the disk is still there.
            await asyncio.to_thread(self._spool, drafts, sync=True)
            raise

    def _settle(self, count: int) -> None:
        with self._lock:
            self._unsettled -= count
            if not self._unsettled:
                self._idle.set()

    def _landed(self, count: int, future: Future[None]) -> None:
        with self._lock:
            self._flying -= 1
        self._settle(count)
        if not future.cancelled() and (exc := future.exception()) is not None:
            logger.warning("errors could not be stored at once; spooled (%s)", exc)

    def _spill(self, batch: Sequence[MakeDraft], *, sync: bool) -> None:
        self._spool(self._drafts(batch), sync=sync)

    def _spool(self, drafts: Sequence[Draft], *, sync: bool) -> None:
        rows = [draft.prepared() for draft in drafts]
        if not rows:
            return
        self.spilled += len(rows)
        try:
            self._recorder.spool.append(rows, sync=sync)
        except Exception:  # told below, with what is lost
            # Neither database nor disk: the log is the last place that is left.
            for row in rows:
                logger.critical(
                    "an error could not be kept: %s: %s", row.module, row.message
                )
            logger.exception("the spool could not be written")
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._recorder.wake_replay)

    @staticmethod
    def _drafts(batch: Sequence[MakeDraft]) -> list[Draft]:
        found: list[Draft] = []
        for make in batch:
            try:
                found.append(make())
            except Exception:  # one that cannot be rendered must not lose the rest
                logger.exception("an error could not be rendered")
        return found
