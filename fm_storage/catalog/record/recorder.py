"""Where prepared errors go: PostgreSQL when it answers, the spool when not.

``record()``, the log handler, the replay and decorated functions all end here, and
only here is decided what *durable* means.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from fm_storage.catalog.record.embedding import (
    CatalogVectorizer,
    collection_name,
    text_of_entries,
)
from fm_storage.catalog.record.replay import Replayer
from fm_storage.catalog.record.row import Prepared
from fm_storage.catalog.record.spool import Spool, spool_folder
from fm_storage.catalog.record.store import CHANNEL, CatalogStore
from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.batcher import Batcher, refuses_values
from fm_storage.concurrency.shield import shielded
from fm_storage.errors import (
    ConfigurationInvalid,
    ForkedProcess,
    StorageClosed,
    StorageError,
    WrongLoop,
)
from fm_storage.postgres import Sql

if TYPE_CHECKING:
    from fm_storage.catalog.ports import Storage
    from fm_storage.config import StorageConfig
    from fm_storage.postgres import Pool
    from fm_storage.vectors import Vectorizer

logger = logging.getLogger("fm_storage.catalog")

# Mistakes of the caller: spooling would hide them.
_MISUSE = (StorageClosed, WrongLoop, ForkedProcess, ConfigurationInvalid)
_BULK = 6  # times the timeout of one record
_NOTIFY_INTERVAL = 0.1
# There is nothing to be kept here, so nobody waits for the disk.
_NOTIFY = Sql(
    f"SELECT pg_notify('{CHANNEL}', ''), "
    "pg_catalog.set_config('synchronous_commit', 'off', TRUE)"
)


def spool_of(config: StorageConfig) -> Spool:
    """Return the spool of the database that *config* names."""
    address = config.postgres.safe_dsn if config.postgres is not None else ""
    return Spool(spool_folder(config.data_dir, address))


class Recorder:
    """Stores rows of the catalogue, durably or in the spool.

    Opened at its first use inside the loop; every method is for that loop, but
    for ``spool``, whose methods block and are for threads.

    Args:
        storage: A storage manager, open at the latest at first use.
        vectorizer: Makes vectors of texts; None is the lexical one.
        timeout: Seconds after which a record goes to the spool instead.
        freshness: Seconds that ``wait_fresh()`` waits at most.
    """

    def __init__(
        self,
        storage: Storage,
        vectorizer: Vectorizer | None,
        *,
        timeout: float,
        freshness: float,
    ) -> None:
        self.storage = storage
        self.timeout = timeout
        self.spool = spool_of(storage.config)
        self._given = vectorizer
        self._freshness = freshness
        self._replayer = Replayer(self.spool, self._write_replayed)
        self._batcher = Batcher(self._kept, owner="error manager")
        # Set once by open(), at the first call inside the loop.
        self._vectorizer: CatalogVectorizer | None = None
        self._store: CatalogStore | None = None
        self._pool: Pool | None = None
        self._closed = False
        self._writes = 0
        self._announced = 0  # of the writes
        self._announcing: asyncio.Task[None] | None = None
        self._fresh = True  # whether all our entries are known to be delivered

    @property
    def closed(self) -> bool:
        """Whether nothing more can be recorded."""
        return self._closed

    @property
    def away(self) -> bool:
        """Whether PostgreSQL did not take the latest error it was given."""
        return self._replayer.away

    @property
    def behind(self) -> bool:
        """Whether PostgreSQL has not taken all that is spooled."""
        return self._replayer.pending

    def open(self) -> CatalogStore:
        """Make the parts on first use; begin to replay what the spool holds."""
        if self._closed:
            raise StorageClosed(
                "error manager: it is closed; make a new ErrorManager(storage)"
            )
        if self._store is not None:
            return self._store
        self._pool = self.storage.pool  # raises when the storage is not open
        collection: str | None = None
        if self.storage.config.qdrant is not None:
            self._vectorizer = CatalogVectorizer(self._given or _default_vectorizer())
            collection = collection_name(self._vectorizer)
            self.storage.outbox.register_vectorizer(
                collection, self._vectorizer, text_of=text_of_entries
            )
        self._store = CatalogStore(collection)
        if self.spool.has_any():
            self._replayer.wake()
        return self._store

    def vectors(self) -> tuple[CatalogVectorizer, str]:
        """Return the vectorizer and its collection.

        Raises:
            ConfigurationInvalid: Vectors are switched off.
        """
        store = self.open()
        if self._vectorizer is None or store.collection is None:
            raise ConfigurationInvalid(
                "qdrant",
                "is switched off; leave out qdrant=None to search by similarity",
            )
        return self._vectorizer, store.collection

    async def store(self, *rows: Prepared) -> bool:
        """Store rows in one round trip, or spool them; return whether durable.

        They travel with what other tasks store at the same moment.

        Raises:
            StorageError: Misuse, or neither place could take them.
        """
        self.open()
        # Numbers: a UUID's hash is computed in Python.
        return await self._batcher.add(rows, [row.id.int for row in rows])

    async def _kept(self, calls: Sequence[Sequence[Prepared]]) -> bool:
        """Store the rows of several calls, all of them in the same place.

        Raises:
            StorageError: Misuse, or neither place could take them, or a row of one
                of several calls is refused.
        """
        store = self._store  # None when closing took too long
        rows = calls[0] if len(calls) == 1 else list(chain.from_iterable(calls))
        failure: Exception | None = None
        # While the server is away, new errors join those in the spool: no caller
        # waits out a timeout to learn again what is known.
        if store is not None and not self._replayer.away:
            assert self._pool is not None
            try:
                if len(rows) == 1:
                    await store.write(self._pool, rows[0], timeout=self.timeout)
                else:
                    bulk = all(len(call) > 1 for call in calls)
                    timeout = self.timeout * (_BULK if bulk else 1)
                    await store.write_many(self._pool, rows, timeout=timeout)
            except _MISUSE:
                raise
            except (StorageError, OSError) as exc:
                if len(calls) > 1 and refuses_values(exc):
                    raise
                failure = exc
            else:
                self.written()
                return True
        await self._spooled(rows, failure)
        return False

    async def _spooled(self, rows: Sequence[Prepared], cause: Exception | None) -> None:
        """Keep rows on disk and begin to replay."""
        if cause is not None:
            logger.warning(
                "PostgreSQL did not take %d error(s); spooled (%s)", len(rows), cause
            )
        spool = self.spool
        try:
            await shielded(lambda: asyncio.to_thread(spool.append, rows))
        except (OSError, StorageError) as exc:
            if cause is None:
                raise
            raise cause from exc
        refused = cause is not None and not refuses_values(cause)
        self._replayer.wake(refused=refused)

    def wake_replay(self) -> None:
        """Replay what a thread has spooled."""
        if not self._closed:
            self._replayer.wake()

    def written(self) -> None:
        """Note that rows were committed; drainer and followers are notified soon."""
        self._writes += 1
        self._fresh = False
        if self._announcing is None or self._announcing.done():
            self._announcing = asyncio.create_task(
                self._announce(), name="fm_storage announce errors"
            )

    async def _announce(self) -> None:
        """Wake the drainer and notify followers, at most a few times a second.

        NOTIFY takes a lock of the whole cluster at commit, so it never goes with
        an error: one statement of its own speaks for all of the last moment.
        """
        while self._announced != self._writes:
            await asyncio.sleep(_NOTIFY_INTERVAL)
            # What is written from here on is announced by the next turn.
            self._announced = self._writes
            self._wake_drainer()
            try:
                await self.storage.pool.execute(_NOTIFY)
            except (StorageError, OSError) as exc:
                logger.debug("followers were not notified (%s)", exc)

    def _wake_drainer(self) -> None:
        if self._vectorizer is not None:
            with contextlib.suppress(StorageClosed):
                self.storage.outbox.wake()

    async def _write_replayed(self, rows: Sequence[Prepared]) -> int:
        added = await self.open().write_many(
            self.storage.pool, rows, fresh=False, timeout=self.timeout * _BULK
        )
        self.written()
        return added

    async def wait_fresh(self) -> None:
        """Wait, for a bounded time, until our own entries are in the vector store."""
        if self._fresh or self._store is None:
            return
        written = self._writes
        deadline = time.monotonic() + self._freshness
        pool = self.storage.pool
        mark = await self._store.watermark(pool)
        backoff = Backoff(0.005, 0.1)
        while not await self._store.delivered(pool, mark):
            if time.monotonic() > deadline:
                logger.info("find_similar: the newest entries are still on their way")
                return
            self.storage.outbox.wake()
            await backoff.sleep()
        self._fresh = self._writes == written

    async def flush(self, timeout: float) -> None:
        """Wait for the replay, for at most *timeout* seconds."""
        if self._replayer.pending:
            await self._replayer.wait_empty(timeout)

    async def aclose(self) -> None:
        """End the replay; what is left stays on disk for the next start."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                await self._batcher.wait_empty()
        self._store = self._pool = None
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
            self._wake_drainer()
        await self._replayer.aclose()
        await asyncio.to_thread(self.spool.close)


def _default_vectorizer() -> Vectorizer:
    from fm_storage.vectors import LexicalVectorizer

    return LexicalVectorizer()
