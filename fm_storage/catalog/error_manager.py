"""The error manager: from a raised exception to an answer.

Here stands what a caller may ask for and in which order things happen; how an
exception is rendered, masked, stored, spooled or compared is told in the files
beside this one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from fm_storage.catalog.analyzer import Analyzer
from fm_storage.catalog.background import Background
from fm_storage.catalog.capture import Capture
from fm_storage.catalog.drafts import Draft, draft_of, severity_from
from fm_storage.catalog.groups import ErrorGroup, Order, fetch_groups
from fm_storage.catalog.handler import CatalogHandler
from fm_storage.catalog.ingest import Log, ingest_log
from fm_storage.catalog.internal import InternalFailures
from fm_storage.catalog.prepared import Prepared
from fm_storage.catalog.recorder import Recorder
from fm_storage.catalog.report import Report, make_report
from fm_storage.catalog.retention import purge_older
from fm_storage.catalog.similarity import (
    SimilarEntry,
    SimilarGroup,
    payload_filter,
    question_of,
    similar_groups,
)
from fm_storage.catalog.store import CatalogStore
from fm_storage.catalog.tail import tail_errors
from fm_storage.errors import CollectionNotFound, StorageError
from fm_storage.hooks import outlast
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from fm_storage._typing import Progress
    from fm_storage.catalog.ingest_report import IngestReport
    from fm_storage.catalog.needs import Storage
    from fm_storage.vectors import Vectorizer

__all__ = ["ErrorManager", "Recorded"]

logger = logging.getLogger("fm_storage.catalog")

PreHook = Callable[[ErrorEntry], "ErrorEntry | Awaitable[ErrorEntry | None] | None"]
PostHook = Callable[["Recorded"], "Awaitable[object] | object"]
Pre = TypeVar("Pre", bound=PreHook)
Post = TypeVar("Post", bound=PostHook)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an error.

    Attributes:
        entry: The error as it is stored: masked, repaired, with its id.
        durable: True only if PostgreSQL has committed it. False means that it
            lies in the spool on this machine and will be replayed by id.
        repairs: What had to be changed so that it could be stored.
    """

    entry: ErrorEntry
    durable: bool
    repairs: tuple[str, ...] = ()

    @property
    def id(self) -> UUID:
        """Identity of the entry."""
        return self.entry.id


class ErrorManager:
    """Records errors in PostgreSQL and Qdrant, and answers questions about them.

    Usable as soon as *storage* is open; ``await ErrorManager(storage)`` and
    ``async with`` also bring in what an earlier process left in the spool, and
    ``aclose()`` ends what runs in the background. *storage* is never closed here.

    Recording goes on when a part is away: without Qdrant the vectors wait in the
    outbox, without PostgreSQL the entries wait in the spool.

    Args:
        storage: A ``StorageManager``; may be opened later.
        vectorizer: Makes vectors of texts; None is the lexical one.
        timeout: Seconds after which a record goes to the spool instead.
        freshness: Seconds for which ``find_similar()`` waits at most until this
            manager's latest entries have reached the vector store.
    """

    def __init__(
        self,
        storage: Storage,
        vectorizer: Vectorizer | None = None,
        *,
        timeout: float = 5.0,
        freshness: float = 5.0,
    ) -> None:
        self.storage = storage
        self._recorder = Recorder(
            storage, vectorizer, timeout=timeout, freshness=freshness
        )
        self._pre: list[PreHook] = []
        self._post: list[PostHook] = []
        # Set at the first call inside the loop, and at first use (under _lock).
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._handlers: list[CatalogHandler] = []
        self._internal = InternalFailures(self._in_background)
        self._analyzer = Analyzer(storage)

    # -- life ------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Self:
        self._opened_store()
        return self

    def _opened_store(self) -> CatalogStore:
        store = self._recorder.open()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self.storage.hooks.register(self._before_closing)
        return store

    async def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything handed in is stored or spooled; say whether it is.

        Covers log handlers, decorated plain functions, and the replay of the
        spool as far as it gets within *timeout* seconds.
        """
        done = True
        if self._background is not None:
            done = await asyncio.to_thread(self._background.flush, timeout)
        await self._recorder.flush(timeout)
        return done and not self._recorder.away

    async def aclose(self) -> None:
        """Store what was handed in, and end what runs in the background.

        What PostgreSQL does not take now stays in the spool for the next start.
        Twice is fine; runs to its end even if cancelled.
        """
        if self._recorder.closed:
            return
        if self._loop is not None:
            self.storage.hooks.unregister(self._before_closing)
        await outlast(self._end, timeout=self._recorder.timeout * 3)

    async def _before_closing(self) -> None:
        """Run as a shutdown hook, while the parts still work."""
        await outlast(self._end, timeout=self._recorder.timeout * 3)

    async def _end(self) -> None:
        for handler in self._handlers:
            handler.detach()
        self._internal.unwatch()
        patience = min(2.0, self._recorder.timeout)
        if self._background is not None:
            await asyncio.to_thread(self._background.close, patience)
        await self._recorder.flush(patience)
        await self._recorder.aclose()

    # -- hooks -----------------------------------------------------------

    def before_record(self, hook: Pre) -> Pre:
        """Call *hook* with every entry before it is masked and stored.

        It may change the entry, or return another one; sync or async. One that
        fails is logged and passed over: a hook must not lose an error.
        """
        self._pre.append(hook)
        return hook

    def after_record(self, hook: Post) -> Post:
        """Call *hook* with every ``Recorded``; sync or async, failures are logged."""
        self._post.append(hook)
        return hook

    # -- recording -------------------------------------------------------

    async def record(
        self,
        error: BaseException | str | ErrorEntry,
        *,
        module: str | None = None,
        error_code: str | None = None,
        severity: Severity | str | None = None,
        context: Mapping[str, Any] | None = None,
        timestamp: datetime | None = None,
    ) -> Recorded:
        """Store an error in one round trip, together with the vector it should have.

        Never fails because of what the error holds: secrets are masked, what
        PostgreSQL cannot store is repaired (``Recorded.repairs``). If PostgreSQL
        is away or slower than the manager's timeout, the entry goes to the spool
        and ``durable`` is False. If cancelled, the entry is stored wholly or not
        at all.

        Args:
            error: An exception (causes, groups and notes are kept), a message,
                or an entry.
            module: Part of the application; for an exception without one, the
                module that raised it.
            error_code: Stable code of the kind; by default the exception's type,
                or a code made of the normalised message.
            severity: How bad; ``ERROR`` by default.
            context: Whatever helps to understand it; values of any type.
            timestamp: When it happened; now by default.

        Raises:
            StorageClosed: The manager is not open, or closed.
            WrongLoop: Called from another loop than the manager's.
            StorageError: Neither PostgreSQL nor the spool could take it.
        """
        self._opened_store()
        draft = draft_of(
            error,
            module=module,
            error_code=error_code,
            severity=severity,
            context=context,
            timestamp=timestamp,
        )
        if self._pre:
            draft = await self._hooked_draft(draft)
        row = draft.prepared()
        recorded = _recorded(row, durable=await self._recorder.store(row))
        if self._post:
            await self._notify(recorded)
        return recorded

    async def catalog(self, entry: ErrorEntry) -> Recorded:
        """Store an entry that the application made; as ``record()``."""
        return await self.record(entry)

    def capture(
        self,
        *,
        module: str | None = None,
        error_code: str | None = None,
        severity: Severity | str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Capture:
        """Record what a block or a function raises, and let it through.

        ``async with errors.capture(module="billing"):`` around a block, or
        ``@errors.capture(module="billing")`` above a function, sync or async. An
        exception is recorded once, however many captures it passes; cancellation
        and the end of the process are no errors. If recording fails, that is
        logged, and the exception goes on as it was. A plain function does not
        wait: its exception is stored in the background.
        """
        options: dict[str, Any] = {
            "module": module,
            "error_code": error_code,
            "severity": severity,
            "context": context,
        }
        return Capture(
            partial(self.record, **options),
            lambda exc: self._in_background(partial(draft_of, exc, **options)),
        )

    def handler(
        self, level: int | str = logging.ERROR, *, module: str | None = None
    ) -> logging.Handler:
        """Return a ``logging.Handler`` that stores records from *level* on.

        ``emit()`` only queues: it never waits, for the loop, PostgreSQL or the
        disk (but when 10,000 records are queued: then it writes to the spool).
        Records of ``fm_storage`` itself are left out; see ``watch_internal()``.
        What is queued is stored before the storage closes. Call it inside the
        loop; *module* replaces the logger's name.
        """
        made = CatalogHandler(self._in_background, level, module=module)
        self._queue()
        self._handlers.append(made)
        return made

    def note_internal(self, part: str, error: BaseException | str) -> None:
        """Record a failure of the storage itself; from any thread, never raises.

        The same failure is recorded at most once a minute, with a count, and one
        that happens while another is being stored is only logged: no failure
        leads to another.
        """
        self._internal.note(part, error)

    def watch_internal(self, level: int = logging.WARNING) -> None:
        """Record the warnings that the storage's own parts log, as their failures."""
        self._queue()
        self._internal.watch(level)

    def _queue(self) -> Background:
        """Return the background queue; before the first use only inside the loop."""
        if self._loop is None:
            self._opened_store()
        with self._lock:
            if self._background is None:
                assert self._loop is not None  # noqa: S101 - set by _opened_store()
                self._background = Background(
                    self._recorder, self._store_drafts, self._loop
                )
            return self._background

    def _in_background(self, make: Callable[[], Draft]) -> None:
        """Hand an error in from any thread, also before the first use in the loop."""
        try:
            background = self._background or self._queue()
        except (RuntimeError, StorageError):
            # No loop here, or no open storage: the disk is always there, and what
            # lies on it is replayed when the manager opens.
            self._recorder.spool.append([make().prepared()])
            return
        background.put(make)

    async def _store_drafts(self, drafts: Sequence[Draft]) -> None:
        if self._pre:
            drafts = [await self._hooked_draft(draft) for draft in drafts]
        rows = [draft.prepared() for draft in drafts]
        durable = await self._recorder.store_many(rows)
        if self._post:
            for row in rows:
                await self._notify(_recorded(row, durable=durable))

    async def _hooked_draft(self, draft: Draft) -> Draft:
        entry = draft.entry
        for hook in self._pre:
            try:
                result = hook(entry)
                if inspect.isawaitable(result):
                    result = await result
            except Exception:
                logger.exception("a hook before recording failed; going on without it")
                continue
            entry = result if isinstance(result, ErrorEntry) else entry
        return draft.replaced(entry)

    async def _notify(self, recorded: Recorded) -> None:
        for hook in self._post:
            try:
                result = hook(recorded)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("a hook after recording failed")

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
        committed one by one; if cancelled, those before stay.

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

    # -- answers ---------------------------------------------------------

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
            ConfigurationInvalid: Vectors are switched off (``qdrant=None``).
            VectorStoreUnavailable: The vector store does not answer.
        """
        catalogue = self._opened_store()
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
        window: timedelta | None = None,
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
            window: What counts as lately; by default a tenth of the period.
            severity: Only errors at least so bad.
            limit: Groups in each part.
        """
        self._opened_store()
        with_vectors = self.storage.config.qdrant is not None
        return await make_report(
            self._analyzer,
            self._similar_groups if with_vectors else None,
            title=title,
            since=since,
            until=until,
            window=window,
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
        older_than: datetime,
        *,
        batch_size: int = 1000,
        progress: Progress | None = None,
    ) -> int:
        """Delete errors from before *older_than*, with their vectors; return how many.

        In batches, each a statement of its own: no lock is held for long, and
        what was deleted before a cancellation stays deleted.
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


def _recorded(row: Prepared, *, durable: bool) -> Recorded:
    return Recorded(row.entry, durable, row.repairs)
