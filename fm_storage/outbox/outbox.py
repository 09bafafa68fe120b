"""The outbox as the application sees it: write in PostgreSQL, arrive in Qdrant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from fm_storage._typing import Relation
from fm_storage.concurrency.batcher import Batcher
from fm_storage.config import CollectionConfig
from fm_storage.errors import ConfigurationInvalid, StorageError
from fm_storage.outbox.agreement.interrupted import Interrupted
from fm_storage.outbox.agreement.rebuild import Rebuilder
from fm_storage.outbox.agreement.reconcile import Reconciler, collections_of
from fm_storage.outbox.agreement.store_check import StoreCheck
from fm_storage.outbox.agreement.tracking import Tracker
from fm_storage.outbox.delivery.counters import Counters
from fm_storage.outbox.delivery.delivery import Delivery, lease_clock
from fm_storage.outbox.delivery.drainer import Drainer, DrainerState
from fm_storage.outbox.delivery.embed import Embedder
from fm_storage.outbox.delivery.presence import Presence
from fm_storage.outbox.delivery.quarantine import Quarantine
from fm_storage.outbox.delivery.queue import Queue
from fm_storage.outbox.delivery.texts import ColumnTexts, TextOf, texts_from
from fm_storage.outbox.drain_now import drain_now, wait_synced, within
from fm_storage.outbox.notify import Notifier
from fm_storage.outbox.results import (
    DrainReport,
    OutboxStatistics,
    OutboxStatus,
    Quarantined,
    RebuildReport,
    RepairReport,
    Verification,
)
from fm_storage.outbox.status import read_health, read_status
from fm_storage.outbox.writer import BoundOutbox, PointLike, write_together
from fm_storage.postgres import Executor, Pool
from fm_storage.postgres.arguments import function, of_kind, seconds
from fm_storage.vector_state import Shapes

if TYPE_CHECKING:
    from uuid import UUID

    from fm_storage._typing import Progress
    from fm_storage.config import OutboxConfig
    from fm_storage.hooks import ShutdownHooks
    from fm_storage.vectors import QdrantStore, Vectorizer

_log = logging.getLogger("fm_storage.outbox")

_GRACE = 5.0
"""Seconds after the last lease before a deletion is sent once more, at most."""


class StoreSide:
    """The parts that need a vector store."""

    def __init__(
        self,
        pool: Pool,
        store: QdrantStore,
        delivery: Delivery,
        embedder: Embedder,
        tracker: Tracker,
    ) -> None:
        self.store = store
        self.delivery = delivery
        self.reconciler = Reconciler(pool, store, tracker)
        self.rebuilder = Rebuilder(pool, store, self.reconciler)
        interrupted = Interrupted(pool, self.rebuilder, embedder.spec)
        self.check = StoreCheck(pool, store, self.reconciler, interrupted, tracker)


class Outbox:
    """Desired state of the vector store, kept in PostgreSQL and delivered from it.

    Writing needs PostgreSQL only. Whatever commits is delivered, by this process
    or another, after any crash of either, exactly once in effect: a point in the
    vector store is never replaced by an older version of itself.

    Args:
        pool: Where desired state is kept.
        store: Where it is delivered; None to write only.
        config: Whether this process delivers, and how.
        hooks: Where ``aclose()`` is registered when this process delivers.
        direct_dsn: Address of the server past a transaction pooler, so that the
            batches of a killed drainer are taken over at once and not after the
            lease.

    Attributes:
        shapes: The vectors of the collections that are configured, or have a
            vectorizer; what cannot fit is refused before it is written. They
            follow the store's ``reindex()`` in this process.
    """

    def __init__(
        self,
        pool: Pool,
        store: QdrantStore | None,
        config: OutboxConfig,
        *,
        hooks: ShutdownHooks | None = None,
        direct_dsn: str | None = None,
    ) -> None:
        self._pool = pool
        self._config = config
        self._hooks = hooks
        grace = min(_GRACE, config.lease)
        self._queue = Queue(pool, lease=config.lease, grace=grace)
        self._counters = Counters()
        self._embedder = Embedder(pool, self._queue)
        self._quarantine = Quarantine(pool)
        self._tracker = Tracker(pool)
        self._presence = Presence(pool, self._queue, direct_dsn)
        self._notifier = Notifier(pool, interval=config.notify_interval)
        self._drainer: Drainer | None = None  # by open() and aclose()
        self.shapes = Shapes(store.config.collections if store is not None else None)
        self._alone = BoundOutbox(
            pool,
            wake=self.wake,
            shapes=self.shapes,
            batcher=Batcher(partial(write_together, pool), owner="outbox"),
        )
        self._side: StoreSide | None = None
        if store is not None:
            store.when_defined(self.shapes.relearn)
            delivery = Delivery(
                self._queue,
                store,
                self._embedder,
                self._counters,
                lease=config.lease,
                max_backoff=config.max_backoff,
            )
            self._side = StoreSide(pool, store, delivery, self._embedder, self._tracker)

    # Life

    async def open(self) -> None:
        """Begin to drain, if the configuration says so; touches no store yet."""
        side = self._side
        if self._drainer is not None or side is None or not self._config.drain:
            return
        if self._config.lease <= side.store.config.timeout:
            _log.warning(
                "outbox.lease (%g s) should be longer than qdrant.timeout (%g s): "
                "slow calls are made twice",
                self._config.lease,
                side.store.config.timeout,
            )
        self._drainer = Drainer(
            self._queue,
            side.delivery,
            self._presence,
            self._config,
            check=side.check,
            begun=partial(self._notifier.listen, self.wake),
        )
        self._drainer.open()
        if self._hooks is not None:
            self._hooks.register(self.aclose)

    async def aclose(self) -> None:
        """Deliver for at most ``flush_timeout`` more seconds, then stop.

        What is left stays in PostgreSQL and is delivered by another process, or
        after the next start. Closing twice is fine.
        """
        drainer, self._drainer = self._drainer, None
        await self._notifier.stop()
        if drainer is not None:
            deadline = lease_clock() + self._config.flush_timeout
            try:
                await self._flush(drainer, self._config.flush_timeout)
            finally:
                await drainer.aclose(max(0.1, deadline - lease_clock()))
            await self._require_store().check.aclose()
        await self._notifier.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _flush(self, drainer: Drainer, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while drainer.alive and await self._queue.flushable():
                    drainer.wake()
                    await within(drainer.progress.wait(), 0.05)
        except TimeoutError:
            _log.info("closing with points still to deliver; they stay queued")
        except StorageError as exc:
            _log.debug("could not flush: %s", exc)

    def _require_store(self) -> StoreSide:
        if self._side is None:
            raise ConfigurationInvalid(
                "qdrant", "is switched off (None); configure a vector store"
            )
        return self._side

    # Writing

    def bind(self, executor: Executor) -> BoundOutbox:
        """Return the writing half on *executor*, such as a transaction of yours."""
        return BoundOutbox(executor, wake=self.wake, shapes=self.shapes)

    async def upsert(
        self, collection: str, points: Iterable[PointLike], *, durable: bool = True
    ) -> int:
        """Make points desired in a transaction of their own; return how many.

        Calls that wait at the same moment share a transaction, which changes
        nothing of what each is answered. See ``BoundOutbox.upsert()``.
        """
        return await self._alone.upsert(collection, points, durable=durable)

    async def delete(
        self,
        collection: str,
        ids: Iterable[int | str | UUID],
        *,
        durable: bool = True,
    ) -> int:
        """Make points undesired in a transaction of their own; return how many.

        See ``BoundOutbox.delete()``.
        """
        return await self._alone.delete(collection, ids, durable=durable)

    def wake(self) -> None:
        """Announce that something was written; cheap, and may precede the commit."""
        drainer = self._drainer
        if drainer is not None:
            drainer.wake()
        if drainer is None or not drainer.alive:
            self._notifier.notify()

    def register_vectorizer(
        self,
        collection: str,
        vectorizer: Vectorizer,
        text_of: TextOf | str,
        *,
        table: str | Relation | None = None,
        key: str = "id",
    ) -> None:
        """Have points that are written without vectors embedded while draining.

        A failure of *text_of* or of the vectorizer is no fault of the points: they
        wait, the failure is in ``status()``, and they are delivered once it is
        corrected. Only a point that fails while others of its batch do not, or that
        lacks its text in the payload where others have it, is set aside.

        Args:
            collection: The collection whose points these are; it is created from
                ``vectorizer.spec`` before the first delivery.
            vectorizer: Turns texts into vectors.
            text_of: ``"payload:KEY"``, the text under that key of the payload, which
                may be a path into objects (``"payload:doc.body"``);
                ``"column:NAME"``, that column of *table* in the row whose *key* is
                the point's id; or ``async def text_of(executor, ids)`` that
                returns ``{id: text}`` with each id as the text it came as. A
                missing id, or NULL in the column, means that the record was
                deleted, and so will the point be.
            table: Table of ``"column:NAME"``, with its schema if not on the path.
            key: Its key column.

        Raises:
            ConfigurationInvalid: *text_of* is none of these; nothing was changed.
        """
        texts = texts_from(text_of, collection=collection, table=table, key=key)
        self._embedder.register(collection, vectorizer, texts)
        self.shapes.learn(collection, vectorizer.spec)

    # Tables that anyone writes

    async def track(
        self,
        table: str,
        collection: str,
        *,
        text: str | Sequence[str],
        payload: str | Sequence[str] = (),
        key: str = "id",
        vectorizer: Vectorizer | None = None,
    ) -> bool:
        """Have the rows of a table be points of a collection, for every writer.

        Triggers note every INSERT, UPDATE, DELETE, TRUNCATE and COPY in the writer's
        own transaction, and drainers make desired state of the rows, which takes the
        right to read them; a point that the store refuses never fails the writer.
        A row whose texts are all NULL has no point. Rows from before
        are brought by ``backfill()``. The triggers notify the drainers, unless
        ``max_prepared_transactions`` is set; then ``outbox.poll_interval`` counts.

        Repeated with the same definition it changes nothing, so it can be called at
        each start; with another one it replaces that, and the backfill begins anew.
        It locks the table for the moment in which triggers are made.

        Args:
            table: Name of the table, with its schema if not on the path.
            collection: Collection of its points; one table for each.
            text: Column, or columns, to embed.
            payload: Columns that become the payload.
            key: Its primary key, or a unique NOT NULL column: UUID, integer or text.
            vectorizer: Embeds the texts in this process, as ``register_vectorizer()``
                with the columns; None if another process does.

        Returns:
            Whether anything was changed.

        Raises:
            ConfigurationInvalid: The table, a column or the key cannot be used.
            PermissionDenied: The role does not own the table; have the owner run
                what ``fm-storage outbox track --sql`` prints.
            LockTimeout: The table was in use for too long; nothing was changed.
        """
        texts = _columns(text, "text")
        tracked = await self._tracker.define(
            table,
            collection,
            key=key,
            texts=texts,
            payload=_columns(payload, "payload"),
        )
        changed = await self._tracker.track(tracked)
        if vectorizer is not None:
            named = f"{tracked.schema}.{tracked.name}"
            source = ColumnTexts(named, key, texts)
            self._embedder.register(collection, vectorizer, source)
            self.shapes.learn(collection, vectorizer.spec)
        self.wake()
        return changed

    async def track_script(
        self,
        table: str,
        collection: str,
        *,
        text: str | Sequence[str],
        payload: str | Sequence[str] = (),
        key: str = "id",
    ) -> tuple[str, str]:
        """Return ``track()`` as SQL for a migration, and the SQL that undoes it.

        Nothing is changed. The arguments and errors are those of ``track()``.
        """
        tracked = await self._tracker.define(
            table,
            collection,
            key=key,
            texts=_columns(text, "text"),
            payload=_columns(payload, "payload"),
        )
        return self._tracker.script(tracked)

    async def untrack(self, collection: str) -> bool:
        """Stop following a collection's table; return whether one was followed.

        Its points stay as they are.
        """
        return await self._tracker.untrack(collection)

    async def backfill(
        self,
        collection: str,
        *,
        batch_size: int = 2000,
        progress: Progress | None = None,
    ) -> int:
        """Make points of the rows that a tracked table had before; return their number.

        Each batch is a transaction of its own that locks no row of the table.
        Killed or cancelled, the next call goes on where this one was; rows that are
        written meanwhile are the triggers', and newer.

        Raises:
            ConfigurationInvalid: The collection has no tracked table.
        """
        read = await self._tracker.backfill(
            collection, batch=batch_size, progress=progress
        )
        self.wake()
        return read

    # Delivering

    async def drain(
        self, *, timeout: float = 60.0, progress: Progress | None = None
    ) -> DrainReport:
        """Deliver until nothing is left that can be, or *timeout* is over.

        Points that wait after a failure are tried at once; other processes may
        deliver meanwhile, and what they hold on lease is waited for.

        Raises:
            ConfigurationInvalid: The vector store is not this database's.
        """
        side = self._require_store()
        timeout = seconds(timeout)
        if progress is not None:
            function(progress, "progress")
        try:
            return await drain_now(
                self._queue,
                side.delivery,
                side.check,
                self._presence,
                self._config,
                timeout=timeout,
                progress=progress,
            )
        finally:
            if self._drainer is None:
                await self._presence.aclose()

    async def collections(self) -> list[str]:
        """Return the names of the collections that were ever written to."""
        return await collections_of(self._pool)

    async def pending(self, collection: str | None = None) -> int:
        """Count the points that have not been delivered yet."""
        return await self._queue.pending(collection)

    async def wait_synced(
        self,
        point_id: int | str | UUID,
        *,
        collection: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Wait until the vector store has the committed state of a point.

        Without a collection, of the points with this id in every collection.

        Raises:
            NotSynced: Not within *timeout* seconds, or the point was set aside;
                it stays queued and is delivered as soon as it can be.
        """
        drainer = self._drainer
        await wait_synced(
            self._queue,
            point_id,
            collection,
            timeout=timeout,
            wake=self.wake,
            progress=None if drainer is None else drainer.progress,
        )

    # Agreement of both stores

    async def verify(
        self, collection: str | None = None, *, progress: Progress | None = None
    ) -> Verification:
        """Compare both stores: ids, versions, payloads; change nothing.

        Exact also while writers and drainers go on: what is on its way counts as
        pending. Memory holds one page of each store.

        Raises:
            ConfigurationInvalid: The vector store is not this database's.
        """
        side = self._require_store()
        await side.check.check()
        return await side.reconciler.verify(collection, progress=progress)

    async def repair(
        self,
        collection: str | None = None,
        *,
        drain: float | None = None,
        progress: Progress | None = None,
    ) -> RepairReport:
        """Queue anew what ``verify()`` would find, and nothing else.

        Args:
            collection: One collection; all by default.
            drain: Seconds to spend on delivering it at once.
            progress: Called as the comparison advances.

        Raises:
            ConfigurationInvalid: The vector store is not this database's.
        """
        side = self._require_store()
        await side.check.check()
        report = await side.reconciler.repair(collection, progress=progress)
        self.wake()
        if drain is None:
            return report
        drained = await self.drain(timeout=drain)
        return RepairReport(report.verification, report.enqueued, drained)

    async def rebuild(
        self,
        collection: str,
        *,
        spec: CollectionConfig | None = None,
        progress: Progress | None = None,
    ) -> RebuildReport:
        """Recreate a collection from PostgreSQL while writes and searches go on.

        No embedder is called, except for points that never had vectors. The name
        keeps its meaning until the new collection is full and is then exchanged
        at once; a plain collection becomes an alias the first time, which on a
        server leaves a gap of milliseconds. Killed or cancelled, the next call
        goes on where this one was.

        Args:
            collection: Name of a collection or alias that the outbox writes to.
            spec: Its new definition; by default that of its vectorizer, of the
                configuration, or the present one. Vectors must still fit: a
                change of the vectorizer is ``QdrantStore.reindex()``.
            progress: Called as points are copied.

        Raises:
            CollectionNotFound: It does not exist and no definition is known.
            CollectionMismatch: An interrupted rebuild had another definition, or
                the configured one has not the present sizes; give *spec*.
            InvalidVector: A point that was delivered does not fit the definition;
                the name means what it meant, and the next call begins anew.
            LockTimeout: Another process is rebuilding it.
        """
        side = self._require_store()
        of_kind(collection, str, "collection", "give its name")
        if spec is not None:
            of_kind(spec, CollectionConfig, "spec", "give a CollectionConfig")
        await side.check.ensure()
        known = spec or self._embedder.spec(collection)
        report = await side.rebuilder.rebuild(collection, known, progress=progress)
        if spec is not None:
            self.shapes.learn(collection, spec)
        self.wake()
        return report

    async def adopt(self) -> None:
        """Make the configured vector store this database's, and drain into it.

        For a move to another store on purpose: everything is delivered anew.
        Points of another database that it may hold stay, and are not repaired.
        """
        await self._require_store().check.adopt()
        if self._drainer is not None and self._drainer.state is DrainerState.REFUSED:
            await self._drainer.aclose(0.0)
            self._drainer.open()

    # Refused points

    async def quarantine_list(
        self, collection: str | None = None, *, limit: int = 100
    ) -> list[Quarantined]:
        """Return points that are set aside, longest first."""
        return await self._quarantine.list(collection, limit=limit)

    async def quarantine_retry(
        self,
        collection: str | None = None,
        ids: Sequence[int | str | UUID] | None = None,
    ) -> int:
        """Deliver set-aside points once more, all by default; return how many."""
        count = await self._quarantine.retry(collection, ids)
        self.wake()
        return count

    async def quarantine_discard(
        self,
        collection: str | None = None,
        ids: Sequence[int | str | UUID] | None = None,
    ) -> int:
        """Give set-aside points up: undesired in both stores. Return how many."""
        count = await self._quarantine.discard(collection, ids)
        self.wake()
        return count

    # State

    async def status(self) -> OutboxStatus:
        """Return the state of the queue and of this process's drainer."""
        return await read_status(self._pool, self._drainer, self.statistics())

    async def health(self) -> tuple[str, str]:
        """Return ``ok``, ``degraded`` or ``down`` and one sentence of detail."""
        return await read_health(self._pool, self._drainer, self.statistics())

    def statistics(self) -> OutboxStatistics:
        """Return what this process has delivered."""
        return self._counters.snapshot()


def _columns(named: str | Sequence[str], argument: str) -> list[str]:
    remedy = "give the name of a column, or a list of names"
    of_kind(named, Iterable, argument, remedy)
    columns = [named] if isinstance(named, (str, bytes)) else list(named)
    for column in columns:
        of_kind(column, str, argument, remedy)
    return list(dict.fromkeys(columns))
