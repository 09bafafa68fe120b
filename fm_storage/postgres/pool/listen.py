"""LISTEN as an async iterator that outlives its connection.

Apart because notifications need a connection of their own, which nobody resets,
and because a lost connection loses what was sent meanwhile: the iterator says
so instead of pretending.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    PoolClosed,
    StorageError,
)
from fm_storage.postgres.sql import Sql, quote_ident

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from fm_storage.postgres.connection.connection import Connection
    from fm_storage.postgres.pool.pool import Pool

__all__ = ["Listener", "Notification", "Subscription"]

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
    that it stops at the end; ``async for`` alone does both by itself.
    """

    def __init__(self, listener: Listener, channel: str) -> None:
        self.channel = channel
        self.ready = asyncio.Event()
        self.error: StorageError | None = None
        self._listener = listener
        self._arrived: deque[Notification] = deque()
        self._some = asyncio.Event()
        self._entered = False

    async def __aenter__(self) -> Self:
        self._entered = True
        try:
            await self._listener.enter(self)
        except BaseException:  # stop listening, then pass it on
            self._listener.leave(self)
            self._entered = False
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        self._listener.leave(self)

    async def __aiter__(self) -> AsyncIterator[Notification]:
        if self._entered:
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
        """Add *notification*; a reader far behind loses the oldest and is told."""
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

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str) -> Subscription:
        """Return a subscription; nothing happens before it is entered."""
        quote_ident(channel)
        return Subscription(self, channel)

    async def enter(self, subscription: Subscription) -> None:
        """Begin to listen; returns when the server does."""
        pool = self._pool
        pool._lender.require_open()  # noqa: SLF001 - same room
        if pool.transaction_pooler:
            raise ConfigurationInvalid(
                "postgres.dsn",
                "names a transaction pooler, through which LISTEN hears nothing; "
                "poll instead, or use a direct address",
            )
        self._subscriptions.append(subscription)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._keep(), name=f"fm_storage {pool.name} listen"
            )
        limit = pool.config.acquire_timeout
        try:
            async with asyncio.timeout(limit):
                await subscription.ready.wait()
        except TimeoutError:
            raise ConnectionFailed(
                f"pool {pool.name!r}: no connection to listen on within {limit:.1f} s"
            ) from None
        if subscription.error is not None:
            raise subscription.error

    def leave(self, subscription: Subscription) -> None:
        """Stop listening; with the last subscription the connection goes."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._changed.set()

    async def aclose(self) -> None:
        """End every iteration with ``PoolClosed`` and close the connection."""
        for subscription in self._subscriptions:
            subscription.fail(PoolClosed(self._pool.name))
        self._subscriptions.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)

    async def _keep(self) -> None:
        """Hold a listening connection while anybody wants one."""
        pause, lost = _SHORTEST_PAUSE, False
        while self._subscriptions:
            try:
                connection = await self._pool.connect("listen")
                try:
                    pause = _SHORTEST_PAUSE
                    await self._serve(connection, lost=lost)
                finally:
                    await connection.aclose()
            except (StorageError, TimeoutError) as exc:
                if isinstance(exc, StorageError) and not exc.retryable:
                    for subscription in self._subscriptions:
                        subscription.fail(exc)
                    self._subscriptions.clear()
                    return
                _log.info("pool %r: listening again soon: %s", self._pool.name, exc)
                lost = True
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)

    async def _serve(self, connection: Connection, *, lost: bool) -> None:
        """Listen on what is wanted until nobody wants anything."""
        raw: Any = connection.raw
        connection.add_termination_listener(self._changed.set)
        heard: set[str] = set()
        while True:
            self._changed.clear()
            wanted = {each.channel for each in self._subscriptions}
            if not wanted:
                return
            for channel in wanted - heard:
                await connection.execute(
                    Sql(f"LISTEN {quote_ident(channel)}"), timeout=_ALIVE_WITHIN
                )
                raw._listeners[channel] = {_Callback(self._deliver)}  # noqa: SLF001 - add_listener() has no deadline
                heard.add(channel)
            for channel in heard - wanted:
                raw._listeners.pop(channel, None)  # noqa: SLF001 - as above
                await connection.execute(
                    Sql(f"UNLISTEN {quote_ident(channel)}"), timeout=_ALIVE_WITHIN
                )
            heard &= wanted
            for each in self._subscriptions:
                if each.channel in heard and not each.ready.is_set():
                    each.ready.set()
                elif lost:
                    each.push(Notification(each.channel, "", 0, missed=True))
            lost = False
            try:
                async with asyncio.timeout(_ALIVE_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await connection.execute(Sql("SELECT 1"), timeout=_ALIVE_WITHIN)
            if connection.is_closed:
                raise ConnectionFailed(
                    f"pool {self._pool.name!r}: the listening connection ended"
                )

    def _deliver(self, _raw: object, pid: int, channel: str, payload: str) -> None:
        for each in self._subscriptions:
            if each.channel == channel:
                each.push(Notification(channel, payload, pid))


@dataclass(frozen=True, slots=True, eq=False)
class _Callback:
    """A listener in the shape that the driver keeps them."""

    cb: Any
    is_async: bool = False
