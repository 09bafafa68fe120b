"""The error manager: from a raised exception to an answer.

Here stands what a caller may ask for and in which order things happen; how an
exception is rendered, masked, stored, spooled or compared is told in the files
beside this one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from fm_storage.catalog.fingerprint import text_for_vector
from fm_storage.catalog.groups import ErrorGroup, Order, fetch_groups
from fm_storage.catalog.ingest import Log, ingest_log
from fm_storage.catalog.prepared import Prepared, prepare
from fm_storage.catalog.render import render
from fm_storage.catalog.replay import Replayer
from fm_storage.catalog.similarity import (
    CatalogVectorizer,
    SimilarEntry,
    collection_name,
    payload_filter,
    text_of_entries,
    text_of_entry,
)
from fm_storage.catalog.spool import Spool, spool_folder
from fm_storage.catalog.store import CatalogStore
from fm_storage.errors import (
    ConfigurationInvalid,
    ForkedProcess,
    InvalidRecord,
    StorageClosed,
    StorageError,
    WrongLoop,
)
from fm_storage.hooks import outlast
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from fm_storage._typing import Progress
    from fm_storage.catalog.needs import Storage
    from fm_storage.catalog.reading import IngestReport
    from fm_storage.vectors import Vectorizer

__all__ = ["ErrorManager", "Recorded"]

logger = logging.getLogger("fm_storage.catalog")

PreHook = Callable[[ErrorEntry], "ErrorEntry | Awaitable[ErrorEntry | None] | None"]
PostHook = Callable[["Recorded"], "Awaitable[object] | object"]
Pre = TypeVar("Pre", bound=PreHook)
Post = TypeVar("Post", bound=PostHook)

# Mistakes of the caller: spooling would hide them.
_MISUSE = (StorageClosed, WrongLoop, ForkedProcess, ConfigurationInvalid)


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
        self._given = vectorizer
        self._timeout = timeout
        self._freshness = freshness
        self._pre: list[PreHook] = []
        self._post: list[PostHook] = []
        # Set once by _open(), at the first call inside the loop.
        self._vectorizer: CatalogVectorizer | None = None
        self._store: CatalogStore | None = None
        self._spool: Spool | None = None
        self._replayer: Replayer | None = None
        self._closed = False
        self._writes = 0
        self._fresh = True  # whether all our entries are known to be delivered

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
        self._open()
        return self

    def _open(self) -> CatalogStore:
        """Make the parts on first use; begin to replay what the spool holds."""
        if self._store is not None:
            return self._store
        if self._closed:
            raise StorageClosed(
                "error manager: it is closed; make a new ErrorManager(storage)"
            )
        config = self.storage.config
        collection: str | None = None
        if config.qdrant is not None:
            outbox = self.storage.outbox
            self._vectorizer = CatalogVectorizer(self._given or _default_vectorizer())
            collection = collection_name(self._vectorizer)
            outbox.register_vectorizer(
                collection, self._vectorizer, text_of=text_of_entries
            )
        else:
            _ = self.storage.pool  # says at once that the manager is not open
        address = config.postgres.safe_dsn if config.postgres is not None else ""
        self._spool = Spool(spool_folder(config.data_dir, address))
        self._replayer = Replayer(self._spool, self._write_replayed)
        self._store = CatalogStore(collection)
        self.storage.hooks.register(self._flush)
        if self._spool.has_any():
            self._replayer.wake()
        return self._store

    async def aclose(self) -> None:
        """Bring in what is spooled if that is quick, and end background work.

        Entries that remain stay on disk for the next start. Twice is fine; runs
        to its end even if cancelled.
        """
        if self._closed:
            return
        self._closed = True
        if self._store is None:
            return
        self.storage.hooks.unregister(self._flush)
        await outlast(self._end, timeout=self._timeout * 2)

    async def _end(self) -> None:
        await self._flush()
        self._store = None

    async def _flush(self) -> None:
        """Run before the parts of the manager are closed."""
        assert self._replayer is not None  # noqa: S101 - set by _open()
        assert self._spool is not None  # noqa: S101 - set by _open()
        if self._replayer.away:
            await self._replayer.wait_empty(min(1.0, self._timeout))
        await self._replayer.aclose()
        await asyncio.to_thread(self._spool.close)

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
        entry, notes = _draft(
            error,
            module=module,
            error_code=error_code,
            severity=severity,
            context=context,
            timestamp=timestamp,
        )
        for hook in self._pre:
            entry = await _apply(hook, entry)
        row = _prepared(entry, notes)
        recorded = await self._store_one(row)
        for post in self._post:
            await _notify(post, recorded)
        return recorded

    async def catalog(self, entry: ErrorEntry) -> Recorded:
        """Store an entry that the application made; as ``record()``."""
        return await self.record(entry)

    async def _store_one(self, row: Prepared) -> Recorded:
        store = self._open()
        assert self._replayer is not None  # noqa: S101 - set by _open()
        failure: Exception | None = None
        if not self._replayer.away:
            try:
                await store.write(self.storage.pool, row, timeout=self._timeout)
            except _MISUSE:
                raise
            except (StorageError, OSError) as exc:
                failure = exc
            else:
                self._written()
                return _recorded(row, durable=True)
        await self._spool_rows([row], failure)
        return _recorded(row, durable=False)

    async def _spool_rows(
        self, rows: Sequence[Prepared], cause: Exception | None
    ) -> None:
        """Keep rows on disk and begin to replay."""
        assert self._spool is not None  # noqa: S101 - set by _open()
        assert self._replayer is not None  # noqa: S101 - set by _open()
        if cause is not None:
            logger.warning(
                "PostgreSQL did not take an error; it is spooled (%s)", cause
            )
        spool = self._spool
        try:
            await outlast(lambda: asyncio.to_thread(spool.append, rows))
        except OSError as exc:
            if cause is None:
                raise
            raise cause from exc
        self._replayer.wake()

    def _written(self) -> None:
        if self._vectorizer is not None:
            self._writes += 1
            self._fresh = False
            self.storage.outbox.wake()

    async def _write_replayed(self, rows: Sequence[Prepared]) -> int:
        store = self._open()
        added = await store.write_many(
            self.storage.pool, rows, timeout=self._timeout * 6
        )
        self._written()
        return added

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
        store = self._open()

        async def write(columns: list[list[Any]]) -> int:
            added = await store.write_columns(
                self.storage.pool, columns, timeout=self._timeout * 12
            )
            if added:
                self._written()
            return added

        return await ingest_log(
            log,
            write,
            source=source,
            module=module,
            least=_severity(severity),
            zone=zone,
            batch_size=batch_size,
            progress=progress,
        )

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
        self._open()
        return await fetch_groups(
            self.storage.pool,
            limit=limit,
            module=module,
            severity=_severity(severity),
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

        Raises:
            ConfigurationInvalid: Vectors are switched off (``qdrant=None``).
            VectorStoreUnavailable: The vector store does not answer.
        """
        self._open()
        store = self.storage.qdrant
        vectorizer, collection = self._vectors()
        await self._wait_fresh()
        text, own = _question(error, module)
        [embedding] = await vectorizer.embed([text])
        await store.ensure_collection_exists(collection, vectorizer.spec)
        hits = await store.search_hybrid(
            collection,
            embedding,
            limit + 1,
            filter=payload_filter(
                module=module, severity=_severity(severity), since=since
            ),
        )
        wanted = [hit for hit in hits if str(hit.id) != str(own)]
        assert self._store is not None  # noqa: S101 - set by _open()
        found = await self._store.entries(
            self.storage.pool, [UUID(str(hit.id)) for hit in wanted]
        )
        return [
            SimilarEntry(found[key], hit.score)
            for hit in wanted
            if (key := UUID(str(hit.id))) in found
        ][:limit]

    def _vectors(self) -> tuple[CatalogVectorizer, str]:
        if self._vectorizer is None or self._store is None:
            raise ConfigurationInvalid(
                "qdrant",
                "is switched off; leave out qdrant=None to search by similarity",
            )
        assert self._store.collection is not None  # noqa: S101 - set with the vectorizer
        return self._vectorizer, self._store.collection

    async def _wait_fresh(self) -> None:
        """Wait, for a bounded time, until our own entries can be found."""
        if self._fresh or self._store is None:
            return
        written = self._writes
        deadline = time.monotonic() + self._freshness
        pool = self.storage.pool
        mark = await self._store.watermark(pool)
        pause = 0.005
        while not await self._store.delivered(pool, mark):
            if time.monotonic() > deadline:
                logger.info("find_similar: the newest entries are still on their way")
                return
            self.storage.outbox.wake()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)
        self._fresh = self._writes == written


def _default_vectorizer() -> Vectorizer:
    from fm_storage.vectors import LexicalVectorizer  # noqa: PLC0415 - loads numpy

    return LexicalVectorizer()


def _draft(
    error: BaseException | str | ErrorEntry,
    *,
    module: str | None,
    error_code: str | None,
    severity: Severity | str | None,
    context: Mapping[str, Any] | None,
    timestamp: datetime | None,
) -> tuple[ErrorEntry, list[str]]:
    """Return the entry before masking and repair, and notes on what was unclear."""
    notes: list[str] = []
    level = Severity.ERROR
    if severity is not None:
        try:
            level = _severity(severity) or level
        except InvalidRecord:
            notes.append(f"severity: {str(severity)[:40]!r} is unknown, taken as ERROR")
    if isinstance(error, ErrorEntry):
        entry = replace(
            error,
            module=module or error.module,
            error_code=error_code or error.error_code,
            manager_context=_merged(error.manager_context, context),
        )
        if severity is not None:
            entry.severity = level
    elif isinstance(error, BaseException):
        found = render(error)
        entry = ErrorEntry(
            message=found.message,
            module=module or _module_of(error),
            error_code=error_code or found.error_code,
            severity=level,
            stack_trace=found.stack_trace,
            manager_context=_merged(context, found.context),
        )
    else:
        entry = ErrorEntry(
            message=str(error),
            module=module or "",
            error_code=error_code or "",
            severity=level,
            manager_context=_merged(context, None),
        )
    if timestamp is not None:
        entry.timestamp = timestamp
    return entry, notes


def _merged(
    first: Mapping[Any, Any] | None, second: Mapping[Any, Any] | None
) -> dict[Any, Any] | None:
    if not first and not second:
        return None
    return {**(first or {}), **(second or {})}


def _module_of(exc: BaseException) -> str:
    """Return the module whose code raised *exc*."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(exc).__module__
    return str(trace.tb_frame.f_globals.get("__name__", "unknown"))


def _prepared(entry: ErrorEntry, notes: list[str]) -> Prepared:
    """Mask and repair an entry; an unknown severity is taken as ERROR."""
    try:
        severity = Severity(entry.severity)
    except ValueError:
        severity = Severity.ERROR
        notes = [
            *notes,
            f"severity: {str(entry.severity)[:40]!r} is unknown, taken as ERROR",
        ]
    return prepare(
        entry.message,
        module=entry.module,
        error_code=entry.error_code,
        severity=severity,
        stack_trace=entry.stack_trace,
        context=entry.manager_context,
        timestamp=entry.timestamp,
        entry_id=entry.id,
        notes=notes,
    )


def _recorded(row: Prepared, *, durable: bool) -> Recorded:
    return Recorded(row.entry, durable, row.repairs)


async def _apply(hook: PreHook, entry: ErrorEntry) -> ErrorEntry:
    try:
        result = hook(entry)
        if inspect.isawaitable(result):
            result = await result
    except Exception:
        logger.exception("a hook before recording failed; the entry goes on without it")
        return entry
    return result if isinstance(result, ErrorEntry) else entry


async def _notify(hook: PostHook, recorded: Recorded) -> None:
    try:
        result = hook(recorded)
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception("a hook after recording failed")


def _severity(severity: Severity | str | None) -> Severity | None:
    if severity is None or isinstance(severity, Severity):
        return severity
    try:
        return Severity(severity.upper())
    except ValueError:
        raise InvalidRecord(
            f"severity {severity!r} is unknown; use one of {', '.join(Severity)}",
            field="severity",
        ) from None


def _question(
    error: ErrorEntry | Recorded | BaseException | str, module: str | None
) -> tuple[str, UUID | None]:
    if isinstance(error, Recorded):
        error = error.entry
    if isinstance(error, ErrorEntry):
        return text_of_entry(error), error.id
    if isinstance(error, BaseException):
        found = render(error)
        text = text_for_vector(
            found.message,
            module=module or _module_of(error),
            error_code=found.error_code,
            stack_trace=found.stack_trace,
        )
        return text, None
    return text_for_vector(error), None
