"""Whether this process may deliver into its vector store, checked before it does.

The marker compares; here is what follows from it. A restored PostgreSQL has its
versions moved past the greatest ever given out and is compared with the store; an
emptied store is filled again; a collection that has visibly lost points is
repaired.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from typing import TYPE_CHECKING

from fm_storage.errors import CollectionNotFound, StorageError
from fm_storage.outbox.agreement.interrupted import Interrupted
from fm_storage.outbox.agreement.marker import Marker, Position, Standing
from fm_storage.outbox.agreement.reconcile import Reconciler, collections_of
from fm_storage.outbox.agreement.sequence import raise_sequence, wait_for_writers
from fm_storage.outbox.agreement.tracking import Tracker
from fm_storage.outbox.delivery.delivery import Outcome
from fm_storage.postgres import Pool, Sql

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

_log = logging.getLogger("fm_storage.outbox")

_WRITERS_END = 5.0
"""Seconds that transactions older than a restore's discovery are waited for."""

_TICK = 2.0
"""Seconds between two looks at tracked tables."""

_EVER_USED = Sql("SELECT EXISTS (SELECT FROM fm_storage.vector_state)")


class StoreCheck:
    """Whether this process may deliver into its vector store; checked once."""

    def __init__(
        self,
        pool: Pool,
        store: QdrantStore,
        reconciler: Reconciler,
        interrupted: Interrupted,
        tracker: Tracker,
    ) -> None:
        self._pool = pool
        self._tracker = tracker
        self._next_tick = 0.0
        self._refused: dict[tuple[str, str], str] = {}  # by _warn()
        self._reconciler = reconciler
        self._interrupted = interrupted
        self._marker = Marker(pool, store, _location(store))
        self._lock = asyncio.Lock()
        self.done = False  # by ensure(), adopt() and distrust()
        self._first = True  # by ensure(), once
        self._began = False  # by begin(), once

    async def ensure(self) -> bool:
        """Check the store, unless nothing was ever written; return whether checked.

        The vector store is not touched before something is there to deliver.

        Raises:
            ConfigurationInvalid: The store is not this database's.
        """
        if self.done:
            return True
        if not await self._pool.fetchval(_EVER_USED):
            return False
        async with self._lock:
            if not self.done:
                while not await self._compare():
                    _log.info("PostgreSQL failed over meanwhile; comparing again")
                self.done, self._first = True, False
        return True

    def distrust(self) -> None:
        """Have the stores compared again before the next delivery."""
        self.done = False

    def is_current(self, timeline: int) -> bool:
        """Whether the comparison holds for rows that a server on *timeline* gave."""
        return self.done and timeline == self._marker.timeline

    async def begin(self) -> bool:
        """Do as ``ensure()``, and end what an interrupted rebuild left open.

        Raises:
            ConfigurationInvalid: The store is not this database's.
        """
        self._warn(await self._tracker.follow(), "followed")
        if not await self.ensure():
            return False
        if not self._began:
            async with self._lock:
                if not self._began:
                    await self._interrupted.at_start()
                    self._began = True
        return True

    async def check(self) -> None:
        """Refuse a store that is not this database's; change nothing.

        Raises:
            ConfigurationInvalid: The store is not this database's.
        """
        if not self.done:
            await self._marker.judge()

    async def adopt(self) -> None:
        """Make the store this database's, and have everything delivered anew."""
        async with self._lock:
            await self._marker.adopt()
            await self._reconciler.enqueue_all()
            self.done = True

    async def settled(self, outcome: Outcome | None) -> None:
        """Keep the marker fresh after a batch, and when the queue has emptied.

        A collection that was found missing may be one whose name was about to be
        exchanged; that is ended, and it no longer blocks.
        """
        if outcome is not None:
            if outcome.greatest:
                self._marker.note()
            missing = isinstance(outcome.blocked, CollectionNotFound)
            if missing and await self._interrupted.missing(outcome.collection):
                outcome.blocked = None
            for name in outcome.created:
                await self._interrupted.missing(name)
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            self._warn(await self._tracker.tick(), "compared")
        if self.done and not await self._marker.save_if_due(idle=outcome is None):
            # PostgreSQL failed over, or was restored, under this process.
            self.distrust()

    def _warn(self, refused: dict[str, str], what: str) -> None:
        """Name tracked tables that cannot be used, such as one without a column."""
        for name, why in refused.items():
            if self._refused.get((name, what)) != why:
                _log.warning("the tracked rows of %s are not %s: %s", name, what, why)
        kept = {key: why for key, why in self._refused.items() if key[1] != what}
        self._refused = kept | {(name, what): why for name, why in refused.items()}

    @property
    def refused(self) -> dict[str, str]:
        """By collection, why the rows of its tracked table are not followed."""
        return {name: why for (name, _), why in self._refused.items()}

    async def aclose(self) -> None:
        """Write the marker a last time; a failure is not one of the application."""
        if not self.done:
            return
        try:
            await self._marker.save_if_due(idle=True)
        except StorageError as exc:
            _log.debug("the marker was not written at closing: %s", exc)

    async def _compare(self) -> bool:
        """Compare both stores, and do what follows; return whether it still holds."""
        standing, found = await self._marker.compare()
        if standing is Standing.RESTORED:
            await self._recover(found)
        elif standing is Standing.EMPTIED:
            count = await self._reconciler.enqueue_all()
            if count:
                _log.warning("the vector store was emptied; %d points again", count)
        elif standing is Standing.KNOWN and self._first:
            left = await self._interrupted.exchanges()  # repaired when they end
            for name in await collections_of(self._pool):
                if name not in left and await self._reconciler.short(name):
                    report = await self._reconciler.repair(name)
                    repaired = dict(report.verification.counts) or "nothing"
                    _log.warning("%s held too few points; repaired %s", name, repaired)
        return await self._marker.save()

    async def _recover(self, found: Position | None) -> None:
        if found is not None:
            await raise_sequence(self._pool, found.version)
            await wait_for_writers(self._pool, _WRITERS_END)
        report = await self._reconciler.repair()
        _log.warning(
            "PostgreSQL was restored or replaced; compared %d points, repaired %s",
            report.verification.checked,
            dict(report.verification.counts) or "nothing",
        )


def _location(store: QdrantStore) -> str:
    """Name where a store is, so that an emptied one is known from another."""
    if not store.config.embedded:
        return store.config.url
    folder = store.folder
    where = "" if folder is None else str(folder.resolve())
    return f"embedded:{platform.node()}:{store.config.url}:{where}"
