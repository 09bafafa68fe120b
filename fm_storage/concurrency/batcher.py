"""Group commit: calls that wait at the same moment are written together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from fm_storage.concurrency.lifecycle import Home
from fm_storage.errors import InvalidRecord, QueryFailed

T = TypeVar("T")
R = TypeVar("R")

# Classes of SQLSTATE: data, constraints, limits, and RAISE in a trigger.
_REFUSALS = frozenset({"22", "23", "54", "P0"})


_FULL = 24
"""Keys of a batch that goes beside another; a smaller one waits for that to end."""

_WIDTH = 2
"""Batches under way at once."""

_PATIENCE = 0.02
"""Seconds after which what is under way is waited for no longer."""

_WIDEST = 8
"""Batches under way at once, some of them blocked."""

_MOST = 256
"""Keys in a batch; a call that has more goes alone."""


class _Waiting(Generic[T, R]):
    """A call that waits; its future is cancelled with it."""

    __slots__ = ("future", "group", "item", "keys")

    def __init__(
        self,
        item: T,
        keys: Collection[Hashable],
        group: Hashable,
        future: asyncio.Future[R],
    ) -> None:
        self.item = item
        self.keys = keys
        self.group = group
        self.future = future


def refuses_values(exc: Exception) -> bool:
    """Return whether values are refused, here, by the server or by a trigger."""
    if isinstance(exc, InvalidRecord):
        return True
    if not isinstance(exc, QueryFailed) or exc.retryable:
        return False
    return (exc.sqlstate or "")[:2] in _REFUSALS


class Batcher(Generic[T, R]):
    """Writes the items of concurrent calls in few statements, without a delay.

    A call that finds nothing under way is written at once, in its own task. The
    others wait for at most the writes under way, and travel in one batch, which a
    task of this object writes: a call that is cancelled leaves the batch if that is
    still waiting, and disturbs no other. Whatever is cancelled, the items of one call
    are written wholly or not at all.

    A batch never holds one key twice, nor one that is under way: of two calls with
    a common key the second is written after the first has ended, so a task's own
    calls keep their order even if the first was cancelled. Where values are refused,
    the batch is written in halves until only the call at fault is answered with that.

    Args:
        owner: Named at the start of an error, such as *error manager*.
        write: Writes items, all or none, and returns what each call is answered.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[R]],
        *,
        owner: str,
    ) -> None:
        self._write = write
        # In order of arrival; by add() and _take().
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._load = 0  # keys of what waits
        self._busy: set[Hashable] = set()  # keys under way
        self._under_way = 0
        self._due = False  # whether _start() is called in this turn of the loop
        self._timer: asyncio.TimerHandle | None = None  # of _hurry()
        self._flights: set[asyncio.Task[None]] = set()
        self._empty: asyncio.Future[None] | None = None  # by wait_empty()
        self._home = Home(owner)

    async def add(
        self, item: T, keys: Collection[Hashable], group: Hashable = None
    ) -> R:
        """Write *item*, and return what *write* returned for it.

        Args:
            item: What *write* is given.
            keys: What it changes.
            group: Only items of one group can be written together.

        Raises:
            WrongLoop: Called from another loop than before.
            ForkedProcess: Called in a forked child.
            Exception: Whatever *write* raised for this item.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._home.loop:
            self._home.check()
        if not (self._under_way or self._waiting or self._due):
            self._under_way = 1
            self._busy.update(keys)
            try:
                result = await self._write((item,))
            finally:
                self._landed(keys)
            self._home.loop = loop
            return result
        self._home.check()  # what a child inherited by fork never ends
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append(_Waiting(item, keys, group, future))
        self._load += len(keys)
        self._schedule()
        return await future

    async def wait_empty(self) -> None:
        """Wait until all that was added has been written, or has failed."""
        while self._under_way or self._waiting:
            self._empty = self._empty or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    def _schedule(self, *, returning: bool = False) -> None:
        """Have what waits written at the end of this turn of the loop.

        With *returning*, calls were answered in it: they come back with their next
        items, and travel together.
        """
        if not self._due and self._has_room() and (self._waiting or returning):
            self._due = True
            # Nothing of a caller's context (its span) belongs to the others.
            asyncio.get_running_loop().call_soon(self._start, context=Context())
        self._arm()

    def _arm(self) -> None:
        if self._waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_PATIENCE, self._hurry, context=Context())

    def _has_room(self) -> bool:
        if not self._under_way:
            return True
        return self._under_way < _WIDTH and self._load >= _FULL

    def _hurry(self) -> None:
        """Begin another batch: what is under way may wait for somebody's lock."""
        self._timer = None
        if self._under_way < _WIDEST:
            self._fly_with(len(self._waiting))
        self._arm()

    def _start(self) -> None:
        self._due = False
        while self._waiting and self._has_room():
            calls = len(self._waiting)
            if not self._under_way and calls >= _WIDTH * _FULL:
                calls //= _WIDTH  # the other half beside it: two of the server's cores
            if not self._fly_with(calls):
                break
        self._arm()
        self._rest()

    def _fly_with(self, calls: int) -> bool:
        batch = self._take(calls)
        if batch:
            self._under_way += 1
            flight = asyncio.create_task(self._fly(batch), name="fm_storage batch")
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        return bool(batch)

    def _take(self, calls: int) -> list[_Waiting[T, R]]:
        """Take the longest waiting call, and those that can travel with it."""
        batch: list[_Waiting[T, R]] = []
        passed: list[_Waiting[T, R]] = []
        held: set[Hashable] = set()  # keys of calls that are passed over
        size = 0
        while self._waiting and size < _MOST and len(batch) < calls:
            one = self._waiting.popleft()
            if one.future.done():  # cancelled
                self._load -= len(one.keys)
                continue
            fits = not batch or (
                one.group == batch[0].group and size + len(one.keys) <= _MOST
            )
            if fits and self._busy.isdisjoint(one.keys) and held.isdisjoint(one.keys):
                batch.append(one)
                self._busy.update(one.keys)
                size += len(one.keys)
            else:
                passed.append(one)
                held.update(one.keys)
        self._waiting.extendleft(reversed(passed))
        self._load -= size
        return batch

    async def _fly(self, batch: Sequence[_Waiting[T, R]]) -> None:
        try:
            await self._settle(batch)
        finally:
            for one in batch:
                one.future.cancel()  # nothing, but at the end of the loop
            self._landed({key for one in batch for key in one.keys}, returning=True)

    async def _settle(self, batch: Sequence[_Waiting[T, R]]) -> None:
        """Write a batch and answer its calls."""
        try:
            result = await self._write([one.item for one in batch])
        except Exception as exc:  # handed to the calls
            if len(batch) > 1 and refuses_values(exc):
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(exc)
        else:
            for one in batch:
                if not one.future.done():
                    one.future.set_result(result)

    def _landed(self, keys: Collection[Hashable], *, returning: bool = False) -> None:
        self._under_way -= 1
        self._busy.difference_update(keys)
        self._schedule(returning=returning)
        self._rest()

    def _rest(self) -> None:
        if self._empty is not None and not (self._under_way or self._waiting):
            self._empty.set_result(None)
            self._empty = None
