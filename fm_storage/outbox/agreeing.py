"""The calls that make both stores agree, and those that decide on refused points.

Apart from the rest of the outbox because a person or a program asks for them now
and then; writing and draining go on without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fm_storage.errors import ConfigurationInvalid
from fm_storage.outbox.delivery.drainer import DrainerState
from fm_storage.outbox.results import (
    DrainReport,
    Quarantined,
    RebuildReport,
    RepairReport,
    Verification,
)

if TYPE_CHECKING:
    from uuid import UUID

    from fm_storage._typing import Progress
    from fm_storage.config import CollectionConfig
    from fm_storage.outbox.agreement.rebuild import Rebuilder
    from fm_storage.outbox.agreement.reconcile import Reconciler
    from fm_storage.outbox.agreement.store_check import Attachment
    from fm_storage.outbox.delivery.drainer import Drainer
    from fm_storage.outbox.delivery.embed import Embedder
    from fm_storage.outbox.delivery.quarantine import Quarantine
    from fm_storage.vector_state import Shapes
    from fm_storage.vectors import QdrantStore

__all__ = ["AgreeingCalls"]


class AgreeingCalls(ABC):
    """Calls of ``Outbox``, which puts the parts in their places."""

    shapes: Shapes
    _store: QdrantStore | None
    _drainer: Drainer | None
    _attachment: Attachment
    _embedder: Embedder
    _quarantine: Quarantine
    _rebuilder: Rebuilder
    _reconciler: Reconciler

    @abstractmethod
    def wake(self) -> None:
        """Say that something was written."""

    @abstractmethod
    async def drain(
        self, *, timeout: float = 60.0, progress: Progress | None = None
    ) -> DrainReport:
        """Deliver until nothing is left that can be."""

    async def verify(
        self, collection: str | None = None, *, progress: Progress | None = None
    ) -> Verification:
        """Compare both stores: ids, versions, payloads; change nothing.

        Exact also while writers and drainers go on: what is on its way counts as
        pending. Memory holds one page of each store.

        Raises:
            ConfigurationInvalid: The vector store is not this database's.
        """
        self._require_store()
        await self._attachment.check()
        return await self._reconciler.verify(collection, progress=progress)

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
        self._require_store()
        await self._attachment.check()
        report = await self._reconciler.repair(collection, progress=progress)
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
        self._require_store()
        await self._attachment.ensure()
        known = spec or self._embedder.spec(collection)
        report = await self._rebuilder.rebuild(collection, known, progress=progress)
        if spec is not None:
            self.shapes.learn(collection, spec)
        self.wake()
        return report

    async def adopt(self) -> None:
        """Make the configured vector store this database's, and drain into it.

        For a move to another store on purpose: everything is delivered anew.
        Points of another database that it may hold stay, and are not repaired.
        """
        self._require_store()
        await self._attachment.adopt()
        if self._drainer is not None and self._drainer.state is DrainerState.REFUSED:
            await self._drainer.aclose(0.0)
            self._drainer.open()

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

    def _require_store(self) -> QdrantStore:
        if self._store is None:
            raise ConfigurationInvalid(
                "qdrant", "is switched off (None); configure a vector store"
            )
        return self._store
