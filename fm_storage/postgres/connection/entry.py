"""One server connection with the pool's notes about it.

Pool, connection, transaction and stream share an entry; only its fields say who
may use the connection underneath. A forked child forgets all entries without any
I/O: a goodbye from the child would end the parent's sessions.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ForkedProcess, WrongLoop
from fm_storage.postgres.connect.internals import abandon
from fm_storage.postgres.connection.driver import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from fm_storage.errors import StorageError

GRACE = 0.1
"""Seconds after the driver's own timer until the pool's timer steps in."""


class PoolEntry:
    """A server connection and what is known about it.

    Attributes:
        raw: The driver's connection.
        pooled: Whether a pool's timer enforces ``deadline``.
        on_error: Called with every error that a statement ended with.
        loop: The event loop it belongs to; None after a fork.
        forked: Whether this is a copy in a forked child.
        generation: Generation of the pool in which it was made.
        expires: Monotonic time after which it is not used again.
        fresh_until: Monotonic time until which it is used without a check.
        idle_since: Monotonic time of the last release.
        taken_at: Monotonic time of the last checkout.
        dirty: Whether a statement may have left something behind; set by the
            verbs, cleared by the reset.
        refused_write: Whether the server reported that it is read-only (25006).
        doubtful: Whether the connection itself is suspect; never used again.
        unsynced: Whether a call may have left the server in an implicit transaction.
        settling: The task that ends that, on a connection that is held.
        blocks: How many of our transactions and savepoints are open on it.
        ended: How many texts sent in them may have ended the transaction.
        failure: The last error that a statement of ours ended with.
        nothing_sent: Whether not a byte of that statement was sent.
        foreign: Whether it is the caller's own connection, which is never closed.
        task: The task whose statement is running, None between statements.
        deadline: Monotonic time at which the pool's timer cancels that statement.
        overdue: Whether the timer did so.
        cancelling: How often the task was being cancelled before that.
    """

    __slots__ = (
        "__weakref__",
        "blocks",
        "cancelling",
        "deadline",
        "dirty",
        "doubtful",
        "ended",
        "expires",
        "failure",
        "foreign",
        "forked",
        "fresh_until",
        "generation",
        "idle_since",
        "loop",
        "nothing_sent",
        "on_error",
        "overdue",
        "pooled",
        "raw",
        "refused_write",
        "settling",
        "taken_at",
        "task",
        "unsynced",
    )

    def __init__(
        self,
        raw: asyncpg.Connection[Any],
        *,
        on_error: Callable[[PoolEntry, BaseException], None] | None = None,
        generation: int = 0,
        expires: float = float("inf"),
        foreign: bool = False,
    ) -> None:
        self.raw = raw
        self.pooled = on_error is not None
        self.on_error = on_error
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.generation = generation
        self.expires = expires
        self.idle_since = self.taken_at = self.fresh_until = monotonic()
        self.dirty = False
        self.refused_write = False
        self.doubtful = False
        self.unsynced = False
        self.settling: asyncio.Task[None] | None = None
        self.blocks = 0
        self.ended = 0
        self.failure: BaseException | None = None
        self.nothing_sent = False
        self.foreign = foreign
        self.forked = False
        self.task: asyncio.Task[Any] | None = None
        self.deadline = float("inf")
        self.overdue = False
        self.cancelling = 0
        if not foreign:
            _entries.add(self)

    @property
    def in_transaction(self) -> bool:
        """Whether the server sees an open transaction."""
        return not self.raw.is_closed() and self.raw.is_in_transaction()

    def cancel_overdue(self, now: float) -> None:
        """Cancel the running statement if its deadline has passed."""
        if now >= self.deadline and self.task is not None and not self.overdue:
            self.overdue = True
            self.cancelling = self.task.cancelling()
            self.task.cancel()

    def was_overdue(self) -> bool:
        """Whether the cancellation just caught was that of ``cancel_overdue()``."""
        task = asyncio.current_task()
        if not self.overdue or task is None:
            return False
        self.overdue = False
        return task.uncancel() <= self.cancelling

    def give_up(self) -> None:
        """Close the connection at once; it is never used again."""
        self.doubtful = True
        if not self.foreign:
            self.raw.terminate()

    async def settle(self, timeout: float) -> None:
        """End an implicit transaction that a call may have left open.

        If that fails, the connection is not used again.
        """
        try:
            await synchronise(self.raw, timeout)
        except Exception:  # the connection is in doubt, then passed on
            self.doubtful = True
        else:
            self.unsynced = False

    def refusal(self, owner: str) -> StorageError:
        """Return the error for a use from the wrong process or loop."""
        return ForkedProcess(owner) if self.forked else WrongLoop(owner)


_entries: weakref.WeakSet[PoolEntry] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Cut every entry off in a forked child, without a byte on the wire."""
    for entry in _entries:
        entry.loop = None
        entry.forked = True
        abandon(entry.raw)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
