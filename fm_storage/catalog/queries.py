"""What may be asked of the catalogue, and what is done to it as a whole.

Apart from recording, which must go on when nothing of this does.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fm_storage.catalog.logs.ingest import Log, ingest_log
from fm_storage.catalog.query.analyzer import Analyzer
from fm_storage.catalog.query.arguments import refuse_unclear, span_of
from fm_storage.catalog.query.groups import ErrorGroup, Order, fetch_groups
from fm_storage.catalog.query.retention import purge_older
from fm_storage.catalog.query.similarity import (
    SimilarEntry,
    SimilarGroup,
    payload_filter,
    question_of,
    similar_groups,
)
from fm_storage.catalog.query.tail import tail_errors
from fm_storage.catalog.record.drafts import severity_from
from fm_storage.catalog.record.recorded import Recorded
from fm_storage.catalog.record.recorder import Recorder
from fm_storage.catalog.record.store import CatalogStore
from fm_storage.catalog.report.report import Report, make_report
from fm_storage.errors import CollectionNotFound, StorageError
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from fm_storage._typing import Progress
    from fm_storage.catalog.logs.ingest_report import IngestReport
    from fm_storage.catalog.ports import Storage

__all__ = ["Answers"]

logger = logging.getLogger("fm_storage.catalog")


class Answers(ABC):
    """The half of an ``ErrorManager`` that reads, and that takes in whole logs."""

    def __init__(self, storage: Storage, recorder: Recorder) -> None:
        self.storage = storage
        self._recorder = recorder
        self._analyzer = Analyzer(storage)

    @abstractmethod
    def _opened_store(self) -> CatalogStore:
        """Return the statements, opened for this loop."""

    async def ingest(
        self,
        log: Log,
        *,
        source: str | None = None,
        module: str | None = None,
        severity: Severity | str | None = None,
        zone: tzinfo = UTC,
        batch_size: int = 1000,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Read a log into the catalogue, of any size and in any common format.

        Ids are made of source, offset and content: the same log again adds
        nothing, and one that has grown adds only what is new. Batches are
        committed one by one; if cancelled, those before stay. A file of more than
        4 MB is read by a process of its own, which ends with this call: both
        cores work, and the loop is free.

        Args:
            log: Path of a file (gz, bz2 and xz too), or lines, also from an
                asynchronous iterable.
            source: Name of the log; by default the file's name without what
                rotation adds.
            module: Module of entries that name none; by default the source.
            severity: Leave out entries that are less bad.
            zone: Time zone of timestamps that name none.
            batch_size: Entries stored in one statement.
            progress: Called with bytes read and bytes in all, if known.

        Raises:
            InvalidRecord: The file is empty, or it is not text.
            OSError: The file cannot be read.
            StorageError: PostgreSQL did not take a batch; those before stay.
        """
        store = self._opened_store()

        async def write(columns: list[list[Any]]) -> int:
            return await store.write_columns(
                self.storage.pool, columns, timeout=self._recorder.timeout * 12
            )

        try:
            return await ingest_log(
                log,
                write,
                source=source,
                module=module,
                least=severity_from(severity),
                zone=zone,
                batch_size=batch_size,
                progress=progress,
            )
        finally:
            # Once, at the end: vectors made meanwhile would take the processor
            # from the reading.
            self._recorder.written()

    async def groups(
        self,
        *,
        limit: int = 20,
        module: str | None = None,
        severity: Severity | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        order: Order = "count",
    ) -> list[ErrorGroup]:
        """Return groups of equal errors, by default the commonest first.

        Args:
            limit: Groups at most.
            module: Only groups of this module.
            severity: Only errors at least so bad.
            since: Only errors from then on.
            until: Only errors before then.
            order: ``count``, ``last_seen`` or ``first_seen`` (newest first).
        """
        self._opened_store()
        refuse_unclear(limit, since=since, until=until)
        return await fetch_groups(
            self.storage.pool,
            limit=limit,
            module=module,
            severity=severity_from(severity),
            since=since,
            until=until,
            order=order,
        )

    async def find_similar(
        self,
        error: ErrorEntry | Recorded | BaseException | str,
        limit: int = 5,
        *,
        module: str | None = None,
        severity: Severity | str | None = None,
        since: datetime | None = None,
    ) -> list[SimilarEntry]:
        """Return stored errors like this one, the most similar first.

        Words and identifiers (BM25) and the dense vector are both asked, and the
        two answers fused by rank. The error itself is left out. What this
        manager recorded before is found: the call waits (at most *freshness*
        seconds) until the outbox has delivered it; entries of other processes
        are found once their drainer has delivered them.

        Args:
            error: A stored entry, an exception, or any text.
            limit: Hits at most.
            module: Only errors of this module.
            severity: Only errors at least so bad.
            since: Only errors from then on.

        Raises:
            InvalidRecord: *limit* is below one, or *since* has no zone.
            ConfigurationInvalid: Vectors are switched off (``qdrant=None``).
            VectorStoreUnavailable: The vector store does not answer.
        """
        catalogue = self._opened_store()
        refuse_unclear(limit, since=since)
        vectorizer, collection = self._recorder.vectors()
        await self._recorder.wait_fresh()
        text, own = question_of(error.entry if isinstance(error, Recorded) else error)
        [embedding] = await vectorizer.embed([text])
        wanted = payload_filter(
            module=module, severity=severity_from(severity), since=since
        )
        store = self.storage.qdrant
        try:
            hits = await store.search_hybrid(
                collection, embedding, limit + 1, filter=wanted, with_payload=False
            )
        except CollectionNotFound:
            return []  # nothing was ever delivered
        ids = [UUID(str(hit.id)) for hit in hits]
        found = await catalogue.entries(self.storage.pool, ids)
        similar = [
            SimilarEntry(found[key], hit.score)
            for key, hit in zip(ids, hits, strict=True)
            if key in found and key != own
        ]
        return similar[:limit]

    @property
    def analyzer(self) -> Analyzer:
        """What the catalogue says as a whole: patterns, timelines, a report."""
        return self._analyzer

    async def report(
        self,
        *,
        title: str = "Errors",
        since: datetime | None = None,
        until: datetime | None = None,
        window: timedelta | float | None = None,
        severity: Severity | str | None = None,
        limit: int = 12,
    ) -> Report:
        """Return what is new, what grows, when, with what, and for example.

        ``report.to_html()`` is one self-contained page, ``report.to_json()`` the
        same as data. Without vectors the similar groups are left out.

        Args:
            title: Title of the page.
            since: Only errors from then on.
            until: Only errors before then.
            window: What counts as lately, a span or seconds; by default a tenth
                of the period.
            severity: Only errors at least so bad.
            limit: Groups in each part.
        """
        self._opened_store()
        refuse_unclear(limit, since=since, until=until)
        with_vectors = self.storage.config.qdrant is not None
        return await make_report(
            self._analyzer,
            self._similar_groups if with_vectors else None,
            title=title,
            since=since,
            until=until,
            window=None if window is None else span_of(window, "window"),
            severity=severity_from(severity),
            limit=limit,
        )

    async def _similar_groups(
        self, groups: list[ErrorGroup]
    ) -> dict[str, list[SimilarGroup]]:
        vectorizer, collection = self._recorder.vectors()
        await self._recorder.wait_fresh()
        try:
            return await similar_groups(
                self.storage.pool, self.storage.qdrant, vectorizer, collection, groups
            )
        except StorageError as exc:
            logger.warning("the report goes without similar groups (%s)", exc)
            return {}

    def tail(
        self,
        *,
        module: str | None = None,
        severity: Severity | str | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[ErrorEntry]]:
        """Follow new errors of every process, as they are committed.

        ``async with errors.tail() as entries: async for entry in entries: …``.
        Woken by LISTEN; errors that were recorded while the connection was lost
        are not missed.
        """
        self._opened_store()
        return tail_errors(
            self.storage.pool, module=module, severity=severity_from(severity)
        )

    async def purge(
        self,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 1000,
        progress: Progress | None = None,
    ) -> int:
        """Delete errors from before *older_than*, with their vectors; return how many.

        In batches, each a statement of its own: no lock is held for long, and
        what was deleted before a cancellation stays deleted.

        Args:
            older_than: A time with its zone, or an age.
            batch_size: Errors of one statement.
            progress: Called with the number deleted, after each batch.

        Raises:
            InvalidRecord: *older_than* is neither; nothing was deleted.
        """
        store = self._opened_store()
        return await purge_older(
            self.storage.pool,
            older_than,
            collection=store.collection,
            batch_size=batch_size,
            progress=progress,
            delivered=self._recorder.written,
        )
