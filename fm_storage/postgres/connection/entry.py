"""One server connection with the pool's notes about it.

Apart because lender, connection, transaction and stream all hold a link, and
only its fields say who may touch the connection underneath. Every link is
known here, so that a forked child can forget them all without any I/O: a
goodbye from the child would end the parent's sessions.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ForkedProcess, WrongLoop

if TYPE_CHECKING:
    import asyncpg

    from fm_storage.errors import StorageError
    from fm_storage.postgres.pool.core import PoolCore

__all__ = ["PoolEntry"]


class PoolEntry:
    """A server connection and what is known about it.

    Attributes:
        raw: The driver's connection.
        lender: The pool's lender, None for a dedicated connection.
        loop: The event loop it belongs to; None after a fork.
        generation: Generation of the pool in which it was made.
        expires: Monotonic time at which it is too old to be lent again.
        fresh_until: Monotonic time until which it is lent without a check.
        idle_since: Monotonic time of the last release.
        taken_at: Monotonic time at which it was last lent.
        dirty: Whether a statement may have left something behind; set by the
            verbs, cleared by the reset.
        refused_write: Whether the server said that it is read-only (25006).
        doubtful: Whether the connection itself is suspect; never lent again.
        task: The task whose statement is running, None between statements.
        deadline: Monotonic time at which the watch cancels that statement.
        overdue: Whether the watch did so.
        cancelling: How often the task was being cancelled before that.
        lease: Note about the borrower, None while idle or used by one verb.
    """

    __slots__ = (
        "__weakref__",
        "cancelling",
        "deadline",
        "dirty",
        "doubtful",
        "expires",
        "forked",
        "fresh_until",
        "generation",
        "idle_since",
        "lease",
        "lender",
        "loop",
        "overdue",
        "raw",
        "refused_write",
        "taken_at",
        "task",
    )

    def __init__(
        self,
        raw: asyncpg.Connection[Any],
        *,
        lender: PoolCore | None = None,
        generation: int = 0,
        expires: float = float("inf"),
        foreign: bool = False,
    ) -> None:
        self.raw = raw
        self.lender = lender
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.generation = generation
        self.expires = expires
        self.idle_since = self.taken_at = self.fresh_until = monotonic()
        self.dirty = False
        self.refused_write = False
        self.doubtful = False
        self.forked = False
        self.task: asyncio.Task[Any] | None = None
        self.deadline = float("inf")
        self.overdue = False
        self.cancelling = 0
        self.lease: Borrower | None = None
        if not foreign:
            _links.add(self)

    def was_overdue(self) -> bool:
        """Whether the cancellation just caught was the watch's and nobody else's."""
        task = asyncio.current_task()
        if not self.overdue or task is None:
            return False
        self.overdue = False
        return task.uncancel() <= self.cancelling

    def is_settled(self) -> bool:
        """Whether no transaction is open and no cancellation is under way."""
        protocol: Any = self.raw._protocol  # type: ignore[attr-defined]  # noqa: SLF001 - the driver tells nobody else
        return not (protocol.is_in_transaction() or protocol._is_cancelling())  # noqa: SLF001 - as above

    def forget_statements(self) -> None:
        """Drop the driver's prepared statements; they are made again at need."""
        raw: Any = self.raw
        if not raw.is_closed():
            raw._drop_local_statement_cache()  # noqa: SLF001 - what the driver's pool does

    def refusal(self, owner: str) -> StorageError:
        """Return the error for a use from the wrong process or loop."""
        return ForkedProcess(owner) if self.forked else WrongLoop(owner)


class Borrower:
    """Who borrowed a link, for reports: the task, and where in the code."""

    __slots__ = ("frames", "reported", "task")

    def __init__(
        self, task: asyncio.Task[Any] | None, frames: list[tuple[str, int, str]]
    ) -> None:
        self.task = task
        self.frames = frames
        self.reported = False

    def __str__(self) -> str:
        name = self.task.get_name() if self.task else "?"
        where = " < ".join(
            f"{file}:{line} in {what}" for file, line, what in self.frames
        )
        return f"task {name!r} at {where or 'an unknown place'}"


_links: weakref.WeakSet[PoolEntry] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Cut every link off in a forked child, without a byte on the wire."""
    for link in _links:
        link.loop = None
        link.forked = True
        raw: Any = link.raw
        raw._aborted = True  # noqa: SLF001 - or its finaliser would say goodbye


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
