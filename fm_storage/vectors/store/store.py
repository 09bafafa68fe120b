"""``QdrantStore``: one interface to vectors, whichever engine holds them.

Everything that must be the same on every engine happens here and in the calls
beside, once: the life of the store, checking before writing, splitting,
deadlines, retries, counting. What differs sits behind it, in ``embedded.py`` and
``server.py``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Self

from fm_storage._typing import JsonObject, Progress
from fm_storage.config import CollectionConfig
from fm_storage.errors import VectorStoreUnavailable
from fm_storage.vectors.backend import backend_for
from fm_storage.vectors.points import VectorStatistics
from fm_storage.vectors.store.call import Life
from fm_storage.vectors.store.collections import CollectionCalls
from fm_storage.vectors.store.reading import ReadingCalls
from fm_storage.vectors.store.reindex import Embed, ReindexReport, reindex
from fm_storage.vectors.store.writing import WritingCalls

__all__ = ["QdrantStore"]


class QdrantStore(CollectionCalls, WritingCalls, ReadingCalls):
    """Collections of points, in an embedded engine or on a server.

    Opening is cheap: an embedded engine is started by the first call. Every
    call has one deadline, ``qdrant.timeout``, retries included. A call that is
    cancelled, or that fails with a retryable error, may or may not have been
    carried out; ids make a repeat harmless.

    Args:
        config: Where the vectors are, and the bounds of a call.
        folder: Data folder of an embedded engine, which lives in ``qdrant``
            below it; not needed for a server.

    Raises:
        StorageClosed: Any method, before ``open()`` or after ``aclose()``.
        WrongLoop: Any method, from another event loop.
        ForkedProcess: Any method, in a forked child.
        VectorStoreUnavailable: Any method: the engine or server did not answer.
        EmbeddedFailed: Any method: the embedded engine cannot be started.
    """

    # Life

    async def open(self) -> None:
        """Make the store usable; ensures the configured collections, if any.

        Raises:
            CollectionMismatch: A configured collection exists and differs.
        """
        if self._life is Life.OPEN:
            return
        self._backend = backend_for(self.config, self.folder)
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        await self._backend.open()
        self._life = Life.OPEN
        try:
            for name, definition in self.config.collections.items():
                await self.ensure_collection_exists(name, definition)
        except BaseException:  # close what was opened, then pass it on
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Let go of the engine; harmless when repeated, or in a forked child."""
        if self._life is not Life.OPEN:
            return
        self._life = Life.CLOSED
        if self._pid == os.getpid():
            await self._backend.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def native(self) -> Any:
        """The ``AsyncQdrantClient`` below, or None for the embedded engine."""
        self._check()
        return self._backend.native

    async def ready(self, *, timeout: float | None = None) -> str:
        """Wait for an answer; return a line that says what answered.

        Args:
            timeout: Seconds to wait at most; by default ``qdrant.timeout``.

        Raises:
            VectorStoreUnavailable: Nothing answers, or a server too old for
                conditional updates (before 1.16).
        """
        ask = self._backend_().ready
        try:
            return await self._call("ready", None, ask, timeout=timeout)
        except VectorStoreUnavailable as exc:
            if not exc.retryable or self.config.embedded:
                raise
            raise VectorStoreUnavailable(
                f"{str(exc).removesuffix('; try again later')}; is a Qdrant server "
                f"running at {self.config.url}, and is the address right?",
                operation="ready",
            ) from exc

    def statistics(self) -> VectorStatistics:
        """Return what this store has done since it opened; no I/O."""
        self._check()
        return VectorStatistics(
            calls=dict(self._calls),
            errors=dict(self._errors),
            retries=self._retry.count,
            restarts=self._backend.restarts,
            engine=self._backend.kind,
            engine_pid=self._backend.pid,
        )

    async def identity(self) -> str:
        """Return the stable id of this vector store."""
        return await self._call("identity", None, self._backend_().identity)

    async def get_marker(self) -> JsonObject:
        """Return what ``set_marker()`` noted last; empty at first."""
        return await self._call("get_marker", None, self._backend_().get_marker)

    async def set_marker(self, marker: Mapping[str, object]) -> None:
        """Note a small JSON object in the vector store itself, durably."""
        await self._call(
            "set_marker", None, lambda: self._backend.set_marker(dict(marker))
        )

    async def reindex(
        self,
        collection: str,
        definition: CollectionConfig,
        embed: Embed | None = None,
        *,
        version: str = "",
        progress: Progress | None = None,
    ) -> ReindexReport:
        """Move a collection to a new definition while it is read and written.

        The points are copied into a new collection, then what changed meanwhile,
        until a pass finds nothing new; then the name is exchanged and the
        stragglers follow. If cancelled or killed, the next call with the same
        arguments goes on where this one was. Points written again and again all
        the time must be written through ``newer_by`` to be sure of the last one.

        Args:
            collection: Name that the application uses: an alias, or a
                collection's own name (which is an alias from then on).
            definition: The new definition.
            embed: Returns the new vectors of points; without it they are copied.
            version: Tells apart two reindexes to the same definition (another
                model of the same size).
            progress: Called as ``progress(copied, total)``.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: *embed* returns what does not fit; nothing is exchanged.
        """
        return await reindex(
            self,
            collection,
            definition,
            embed,
            version=version,
            progress=progress,
            exchanged=lambda: self._defined(collection, definition),
        )
