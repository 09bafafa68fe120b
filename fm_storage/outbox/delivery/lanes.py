"""Batches under way, each of one collection, so that a slow one delays no other."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol

from fm_storage.outbox.delivery.delivery import Delivery, Outcome, lease_clock
from fm_storage.outbox.delivery.queue import Leased, Queue

_AT_ONCE = 2
"""Batches of one collection under way, as long as its batches are full."""

_LANES = 64
"""Batches under way in all."""


class Check(Protocol):
    """Whether this process may deliver into its vector store."""

    @property
    def done(self) -> bool:
        """Whether both stores were compared, and nothing came up since."""
        ...

    @property
    def refused(self) -> dict[str, str]:
        """By collection, why the rows of its tracked table are not followed."""
        ...

    async def begin(self) -> bool:
        """Follow tracked rows, and compare both stores if need be.

        Returns False if nothing was ever written.
        """
        ...

    async def settled(self, outcome: Outcome | None) -> None:
        """Note what became of a batch; None when the queue is empty."""
        ...

    def is_current(self, timeline: int) -> bool:
        """Whether the comparison holds for rows that a server on *timeline* gave."""
        ...

    def distrust(self) -> None:
        """Have the stores compared again."""
        ...


class Lanes:
    """Takes batches and delivers them in tasks; ``aclose()`` ends those."""

    def __init__(
        self, queue: Queue, delivery: Delivery, batch_size: int, check: Check
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._batch_size = batch_size
        self._check = check
        self._under_way: dict[asyncio.Task[Outcome], str] = {}
        self._full: set[str] = set()  # collections whose last batch was full

    @property
    def under_way(self) -> bool:
        """Whether a batch is being delivered."""
        return bool(self._under_way)

    async def ready(self) -> bool:
        """Have both stores compared, if need be; return False if never written to.

        What is under way ends first: it may reach the vector store after it was
        compared.

        Raises:
            ConfigurationInvalid: The vector store is not this database's.
            StorageError: A store did not answer.
        """
        if self._under_way and not self._check.done:
            await asyncio.wait(self._under_way)
        return await self._check.begin()

    async def claim(self, without: Iterable[str] = ()) -> bool:
        """Take a batch of each collection that has room; return whether to ask again.

        Raises:
            StorageError: PostgreSQL did not answer; nothing was taken, or it comes
                back when its lease ends.
        """
        counts = Counter(self._under_way.values())
        busy = [
            name
            for name, count in counts.items()
            if count >= (_AT_ONCE if name in self._full else 1)
        ]
        if len(self._under_way) >= _LANES:
            return False
        taken = lease_clock()
        rows = await self._queue.claim(self._batch_size, without=[*without, *busy])
        if rows and not self._check.is_current(rows[0].timeline):
            # A standby was promoted. It may lack what was delivered last, and the
            # vector store would then refuse its states as older ones.
            self._check.distrust()
            await self._queue.postpone(rows, delay=0.0, error=None)
            return True
        groups: dict[str, list[Leased]] = defaultdict(list)
        for row in rows:
            groups[row.collection].append(row)
        for collection, group in groups.items():
            if len(group) == self._batch_size:
                self._full.add(collection)
            else:
                self._full.discard(collection)
            task = asyncio.create_task(
                self._deliver(collection, group, taken),
                name=f"fm_storage delivery {collection}",
            )
            self._under_way[task] = collection
        return any(
            name in self._full and counts[name] + 1 < _AT_ONCE for name in groups
        )

    async def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Wait until a batch is done, for at most *timeout*; return what became of it.

        Raises:
            StorageError: PostgreSQL could not record an outcome.
        """
        done, _ = await asyncio.wait(
            self._under_way, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self._under_way[task]
        for failure in [task.exception() for task in done]:
            if failure is not None:
                raise failure
        return [task.result() for task in done]

    async def aclose(self, timeout: float) -> None:
        """Let batches under way end within *timeout*, then cancel them."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout)
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._under_way.clear()

    async def _deliver(
        self, collection: str, rows: list[Leased], taken: float
    ) -> Outcome:
        outcome = await self._delivery.deliver(collection, rows, taken=taken)
        await self._check.settled(outcome)  # may find that a collection is back
        return outcome
