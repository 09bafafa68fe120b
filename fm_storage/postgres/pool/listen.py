"""LISTEN as an async iterator that outlives its connection.

Notifications need a connection of their own, which nobody resets. What was sent
while there was none is lost: the iterator then yields ``missed``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import ConnectionFailed, StorageError
from fm_storage.postgres.connect.internals import set_listener
from fm_storage.postgres.pool.schema import CHANNEL
from fm_storage.postgres.sql import Sql, quote_ident

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from fm_storage.postgres.connection.connection import Connection

_log = logging.getLogger("fm_storage.postgres")
_ALIVE_EVERY, _ALIVE_WITHIN = 10.0, 5.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 2.0
_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Notification:
    """What arrived on a channel.

    Attributes:
        channel: Name of the channel.
        payload: What the sender gave; empty when *missed*.
        pid: Process number of the sender's backend; 0 when *missed*.
        missed: Notifications may have been lost before this point: look at the
            data itself.
    """

    channel: str
    payload: str
    pid: int
    missed: bool = False


class Subscription:
    """One reader of one channel.

    ``async with`` it to be sure that it listens before the first iteration, and
    that it stops at the end; ``async for`` alone does both by itself. It may be
    entered again, also inside its block: it listens until the outermost block ends.
    """

    def __init__(self, listener: Listener, channel: str) -> None:
        self.channel = channel
        self.ready = asyncio.Event()
        self.error: StorageError | None = None
        self._listener = listener
        self._arrived: deque[Notification] = deque()
        self._some = asyncio.Event()
        self._blocks = 0

    async def __aenter__(self) -> Self:
        if not self._blocks:
            self.error = None
            self.ready.clear()
            self._arrived.clear()
        self._blocks += 1
        try:
            await self._listener.enter(self)
        except BaseException:  # stop listening, then pass it on
            self._leave()
            raise
        return self

    def _leave(self) -> None:
        self._blocks -= 1
        if not self._blocks:
            self._listener.leave(self)

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def __aiter__(self) -> AsyncIterator[Notification]:
        if self._blocks:
            while True:
                yield await self._next()
        async with self:
            while True:
                yield await self._next()

    async def _next(self) -> Notification:
        while not self._arrived:
            if self.error is not None:
                raise self.error
            self._some.clear()
            await self._some.wait()
        return self._arrived.popleft()

    def push(self, notification: Notification) -> None:
        """Add *notification*; a reader far behind gets ``missed``."""
        if len(self._arrived) >= _KEPT:
            self._arrived.clear()
            notification = Notification(self.channel, "", 0, missed=True)
        self._arrived.append(notification)
        self._some.set()

    def fail(self, error: StorageError) -> None:
        """End the iteration with *error*."""
        self.error = error
        self.ready.set()
        self._some.set()


class Listener:
    """All subscriptions of a pool, and the one connection that serves them."""

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[str], Awaitable[Connection]],
        require_open: Callable[[], None],
        on_schema: Callable[[], None],
        limit: float,
    ) -> None:
        self._owner = f"pool {name!r}"
        self._connect = connect
        self._require_open = require_open
        self._on_schema = on_schema
        self._limit = limit
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str) -> Subscription:
        """Return a subscription; nothing happens before it is entered."""
        quote_ident(channel)
        return Subscription(self, channel)

    async def enter(self, subscription: Subscription) -> None:
        """Begin to listen; returns when the server does."""
        self._require_open()
        if subscription not in self._subscriptions:
            self._subscriptions.append(subscription)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._keep(), name=f"fm_storage {self._owner} listen"
            )
        try:
            async with asyncio.timeout(self._limit):
                await subscription.ready.wait()
        except TimeoutError:
            raise ConnectionFailed(
                f"{self._owner}: no connection to listen on within {self._limit:.1f} s"
            ) from None
        if subscription.error is not None:
            raise subscription.error

    def leave(self, subscription: Subscription) -> None:
        """Stop listening; with the last subscription the connection goes."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._changed.set()

    async def aclose(self, error: StorageError) -> None:
        """End every iteration with *error* and close the connection."""
        for subscription in self._subscriptions:
            subscription.fail(error)
        self._subscriptions.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)

    async def _keep(self) -> None:
        """Hold a listening connection while anybody wants one.

        Whatever ends it, also a server that refuses for a while, it is made again:
        only those who have not begun to listen yet are given the error.
        """
        pauses, lost = Backoff(_SHORTEST_PAUSE, _LONGEST_PAUSE), False
        while self._subscriptions:
            try:
                connection = await self._connect("listen")
                try:
                    await self._serve(connection, lost=lost, heard=pauses.reset)
                finally:
                    await connection.aclose()
            except (StorageError, TimeoutError) as exc:
                if isinstance(exc, StorageError) and not exc.retryable:
                    for each in [*self._subscriptions]:
                        if not each.ready.is_set():
                            each.fail(exc)
                            self._subscriptions.remove(each)
                _log.info("%s: listening again soon: %s", self._owner, exc)
                lost = True
                await pauses.sleep()

    async def _serve(
        self, connection: Connection, *, lost: bool, heard: Callable[[], None]
    ) -> None:
        """Listen on what is wanted until nobody wants anything."""
        raw = connection.raw
        connection.add_termination_listener(self._changed.set)
        channels: set[str] = set()
        while True:
            self._changed.clear()
            wanted = {each.channel for each in self._subscriptions}
            if not wanted:
                return
            wanted.add(CHANNEL)
            for channel in wanted - channels:
                await connection.execute(
                    Sql(f"LISTEN {quote_ident(channel)}"), timeout=_ALIVE_WITHIN
                )
                set_listener(raw, channel, self._deliver)
                channels.add(channel)
            for channel in channels - wanted:
                set_listener(raw, channel, None)
                await connection.execute(
                    Sql(f"UNLISTEN {quote_ident(channel)}"), timeout=_ALIVE_WITHIN
                )
            channels &= wanted
            self._begun(channels, lost=lost)
            lost = False
            heard()
            try:
                async with asyncio.timeout(_ALIVE_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await connection.execute(Sql("SELECT 1"), timeout=_ALIVE_WITHIN)
            if connection.is_closed:
                raise ConnectionFailed(f"{self._owner}: the listening connection ended")

    def _begun(self, channels: set[str], *, lost: bool) -> None:
        """Let those go on whose channel is heard now, or again after it was *lost*."""
        for each in self._subscriptions:
            if each.channel in channels and not each.ready.is_set():
                each.ready.set()
            elif lost:
                each.push(Notification(each.channel, "", 0, missed=True))
        if lost:
            self._on_schema()

    def _deliver(self, _raw: object, pid: int, channel: str, payload: str) -> None:
        if channel == CHANNEL:
            self._on_schema()
        for each in self._subscriptions:
            if each.channel == channel:
                each.push(Notification(channel, payload, pid))
