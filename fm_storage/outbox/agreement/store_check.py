"""Attaching a drainer to its vector store, once, before the first delivery.

Apart from the marker, which only compares: here is what follows from the
comparison. A restored PostgreSQL has its versions moved past the greatest ever
given out and is compared with the store; an emptied store is filled again; a
collection that has visibly lost points is mended.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from typing import TYPE_CHECKING

from fm_storage.errors import CollectionNotFound, StorageError
from fm_storage.outbox.agreement.interrupted import Interrupted
from fm_storage.outbox.agreement.marker import Marker, Position, Standing
from fm_storage.outbox.agreement.reconcile import Reconciler, collections_of
from fm_storage.outbox.agreement.sequence import outlast_writers, raise_sequence
from fm_storage.outbox.delivery.delivery import Outcome
from fm_storage.postgres import Pool, Sql

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

__all__ = ["Attachment"]

_log = logging.getLogger("fm_storage.outbox")

_OUTLAST = 5.0
"""Seconds that transactions older than a restore's discovery are waited for."""

_EVER_USED = Sql("SELECT EXISTS (SELECT FROM fm_storage.vector_state)")


class Attachment:
    """Whether this process may deliver into its vector store; made sure of once."""

    def __init__(
        self,
        pool: Pool,
        store: QdrantStore,
        reconciler: Reconciler,
        interrupted: Interrupted,
    ) -> None:
        self._pool = pool
        self._reconciler = reconciler
        self._interrupted = interrupted
        self._marker = Marker(pool, store, _location(store))
        self._lock = asyncio.Lock()
        self.done = False  # by ensure() and adopt(), once
        self._began = False  # by begin(), once

    async def ensure(self) -> bool:
        """Attach, unless nothing was ever written; return whether attached.

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
                await self._attach()
                self.done = True
        return True

    async def begin(self) -> bool:
        """Attach as one who delivers: ends what an interrupted rebuild left open.

        Raises:
            ConfigurationInvalid: The store is not this database's.
        """
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
            for name, exc in list(outcome.blocked.items()):
                missing = isinstance(exc, CollectionNotFound)
                if missing and await self._interrupted.missing(name):
                    del outcome.blocked[name]
            for name in outcome.created:
                await self._interrupted.missing(name)
        await self._marker.save_if_due(idle=outcome is None)

    async def aclose(self) -> None:
        """Write the marker a last time; a failure is not one of the application."""
        if not self.done:
            return
        try:
            await self._marker.save_if_due(idle=True)
        except StorageError as exc:
            _log.debug("the marker was not written at closing: %s", exc)

    async def _attach(self) -> None:
        standing, found = await self._marker.compare()
        if standing is Standing.RESTORED:
            await self._heal(found)
        elif standing is Standing.EMPTIED:
            count = await self._reconciler.enqueue_all()
            if count:
                _log.warning("the vector store was emptied; %d points again", count)
        elif standing is Standing.KNOWN:
            left = await self._interrupted.exchanges()  # mended when they end
            for name in await collections_of(self._pool):
                if name not in left and await self._reconciler.short(name):
                    report = await self._reconciler.repair(name)
                    mended = dict(report.verification.counts) or "nothing"
                    _log.warning("%s held too few points; mended %s", name, mended)
        await self._marker.save()

    async def _heal(self, found: Position | None) -> None:
        if found is not None:
            await raise_sequence(self._pool, found.version)
            await outlast_writers(self._pool, _OUTLAST)
        report = await self._reconciler.repair()
        _log.warning(
            "PostgreSQL was restored or replaced; compared %d points, mended %s",
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
