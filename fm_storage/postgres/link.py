"""One server connection with the pool's notes about it.

Apart because pool, connection, transaction and stream all hold a link, and only
its fields say who may touch the connection underneath.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Link"]


class Link:
    """A server connection and what is known about it.

    Attributes:
        raw: The driver's connection.
        generation: Generation of the pool in which it was made.
        expires: Monotonic time at which it is too old to be lent again.
        idle_since: Monotonic time of the last release.
        dirty: Whether a statement may have left something behind; set by the
            verbs, cleared by the reset.
        doubtful: Whether the connection itself is suspect; never lent again.
        task: The task whose statement is running, None between statements.
        lease: The borrowed ``Connection``, None while idle.
    """

    __slots__ = (
        "dirty",
        "doubtful",
        "expires",
        "generation",
        "idle_since",
        "lease",
        "raw",
        "task",
    )

    def __init__(
        self, raw: asyncpg.Connection[Any], *, generation: int, expires: float
    ) -> None:
        self.raw = raw
        self.generation = generation
        self.expires = expires
        self.idle_since = monotonic()
        self.dirty = False
        self.doubtful = False
        self.task: asyncio.Task[Any] | None = None
        self.lease: object | None = None
