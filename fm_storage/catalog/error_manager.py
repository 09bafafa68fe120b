"""The error manager: what an application calls to record errors and to read them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import (
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar
from uuid import UUID

from fm_storage.catalog.logs.formats import pattern_from
from fm_storage.catalog.logs.ingest import Log, ingest_log
from fm_storage.catalog.queries import CatalogQueries
from fm_storage.catalog.query.arguments import refuse_unclear
from fm_storage.catalog.query.retention import purge_older
from fm_storage.catalog.record.capture import Capture
from fm_storage.catalog.record.drafts import (
    Draft,
    active_span,
    draft_of,
    severity_from,
)
from fm_storage.catalog.record.frames import own_code
from fm_storage.catalog.record.hooks import PostHook, PreHook, RecordHooks
from fm_storage.catalog.record.internal import InternalFailures
from fm_storage.catalog.record.limit import GroupLimit, fetch_counted
from fm_storage.catalog.record.logging_handler import CatalogHandler, level_from
from fm_storage.catalog.record.queue import Background
from fm_storage.catalog.record.recorder import Recorder
from fm_storage.catalog.record.row import Origin, Prepared, Recorded
from fm_storage.catalog.record.store import CatalogStore, fetch_origins
from fm_storage.catalog.record.structlog_processor import CatalogProcessor
from fm_storage.catalog.watch import OnGroup, Watch, WatcherStatus, fetch_watchers
from fm_storage.catalog.web import ErrorPages, Guard
from fm_storage.concurrency.lifecycle import Home, Lifecycle
from fm_storage.concurrency.shield import shielded
from fm_storage.errors import ConfigurationInvalid, StorageError
from fm_storage.postgres.arguments import function, of_kind
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from fm_storage._typing import Progress
    from fm_storage.catalog.logs.entry import IngestReport
    from fm_storage.catalog.ports import Storage
    from fm_storage.catalog.query.analyzer import Analyzer
    from fm_storage.catalog.query.groups import ErrorGroup, Order
    from fm_storage.catalog.query.similarity import SimilarEntry
    from fm_storage.catalog.query.splitting import GroupMember
    from fm_storage.catalog.query.states import State
    from fm_storage.catalog.report.report import Report
    from fm_storage.postgres import Pool
    from fm_storage.vectors import Vectorizer

__all__ = ["ErrorManager", "Origin", "Recorded"]

Pre = TypeVar("Pre", bound=PreHook)
Post = TypeVar("Post", bound=PostHook)


class ErrorManager(Lifecycle):
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
        reads: The pool that ``groups()``, ``report()`` and ``analyzer`` read from
            (``storage.reads``, late by the replica's lag); ``storage.pool`` if None.

    Raises:
        ConfigurationInvalid: *storage* is no storage manager.
    """

    def __init__(
        self,
        storage: Storage,
        vectorizer: Vectorizer | None = None,
        *,
        timeout: float = 5.0,
        freshness: float = 5.0,
        reads: Pool | None = None,
    ) -> None:
        if not hasattr(storage, "hooks"):
            raise ConfigurationInvalid(
                "storage", f"is a {type(storage).__name__}; give a StorageManager"
            )
        self.storage = storage
        self._recorder = Recorder(
            storage, vectorizer, timeout=timeout, freshness=freshness
        )
        self._queries = CatalogQueries(storage, self._recorder, reads)
        self._hooks = RecordHooks()
        settings = storage.config.catalog
        if settings.own_code:
            own_code(settings.own_code)
        self._place = (settings.release, settings.environment)
        self._limit: GroupLimit | None = None
        if settings.group_limit is not None:
            self._limit = GroupLimit(settings.group_limit, lambda: storage.pool)
        # Set at the first call inside the loop, and at first use (under _lock).
        self._home = Home("error manager")
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._internal = InternalFailures(self._in_background)

    # -- life ------------------------------------------------------------

    async def _opened(self) -> Self:
        self._opened_store()
        return self

    def _opened_store(self) -> CatalogStore:
        store = self._recorder.open()
        if self._home.loop is None:
            self._home.enter()
            self.storage.hooks.register(self._before_closing)
        return store

    async def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything handed in is stored or spooled; return whether it is.

        Covers log handlers, decorated plain functions, and the replay of the
        spool as far as it gets within *timeout* seconds.
        """
        done = True
        if self._background is not None:
            done = await asyncio.to_thread(self._background.flush, timeout)
        await self._recorder.flush(timeout)
        return done and not self._recorder.behind

    async def aclose(self) -> None:
        """Store what was handed in, and end what runs in the background.

        What PostgreSQL does not take now stays in the spool for the next start.
        Twice is fine; runs to its end even if cancelled.

        Raises:
            WrongLoop: Called from another loop than the manager's; it stays open.
        """
        if self._recorder.closed:
            return
        self._home.check()
        if self._home.loop is not None:
            self.storage.hooks.unregister(self._before_closing)
        await shielded(self._end, timeout=self._recorder.timeout * 3)

    async def _before_closing(self) -> None:
        """Run as a shutdown hook, while the parts still work."""
        await shielded(self._end, timeout=self._recorder.timeout * 3)

    async def _end(self) -> None:
        self._internal.unwatch()
        patience = min(2.0, self._recorder.timeout)
        if self._background is not None:
            await asyncio.to_thread(self._background.close, patience)
        await self._recorder.flush(patience)
        if self._limit is not None:
            await self._limit.aclose()
        await self._recorder.aclose()

    # -- hooks -----------------------------------------------------------

    def before_record(self, hook: Pre) -> Pre:
        """Call *hook* with every entry before it is masked and stored.

        It may change the entry, or return another one; sync or async. One that
        fails is logged and passed over: a hook must not lose an error.
        """
        self._hooks.before.append(hook)
        return hook

    def after_record(self, hook: Post) -> Post:
        """Call *hook* with every ``Recorded``; sync or async, failures are logged."""
        self._hooks.after.append(hook)
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
        and ``durable`` is False, as it is for one beyond ``catalog.group_limit``
        that was only ``counted``. If cancelled, the entry is stored wholly or not
        at all. What tasks record at the same moment shares a statement.

        The active trace and span of OpenTelemetry, and the configured release and
        environment, are kept beside it: ``Recorded.origin``, ``origins()``.

        Args:
            error: An exception (causes, groups and notes are kept), a message,
                or an entry.
            module: Part of the application; for an exception without one, the
                module that raised it.
            error_code: Stable code of the kind; by default the exception's type,
                or a code made of the normalised message.
            severity: Severity; ``ERROR`` by default.
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
        draft.origin = self._origin()
        if self._hooks.before:
            draft = await self._hooks.changed(draft)
        row = draft.prepared()
        if self._limit is not None and not self._limit.admits(row.fingerprint):
            recorded = row.recorded(durable=False, counted=True)
        else:
            recorded = row.recorded(durable=await self._recorder.store(row))
        if self._hooks.after:
            await self._hooks.notify(recorded)
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
        What is queued is stored before the storage closes, and what is logged
        afterwards goes to the spool, for the next start. Call it inside the loop.

        Args:
            level: Number or name; records below it are left out.
            module: Module of the entries; by default the logger's name.

        Raises:
            ConfigurationInvalid: There is no such level.
        """
        made = CatalogHandler(self._in_background, level_from(level), module=module)
        self._queue()
        return made

    def structlog_processor(
        self, level: int | str = logging.ERROR, *, module: str | None = None
    ) -> CatalogProcessor:
        """Return a processor for structlog that stores events from *level* on.

        Put it into the chain before whatever renders the event, and before
        ``format_exc_info``; it returns the event unchanged. As ``handler()``, it
        only queues. Where structlog writes through ``logging``, use one of the
        two, or each error is stored twice.

        Args:
            level: Number or name; events below it are left out.
            module: Module of the entries; by default the event's logger.

        Raises:
            ConfigurationInvalid: There is no such level.
        """
        made = CatalogProcessor(self._in_background, level_from(level), module=module)
        self._queue()
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

    # -- the background queue ----------------------------------------------

    def _queue(self) -> Background:
        """Return the background queue; before the first use only inside the loop."""
        if self._home.loop is None:
            self._opened_store()
        with self._lock:
            if self._background is None:
                assert self._home.loop is not None
                self._background = Background(
                    self._recorder,
                    self._store_handed_in,
                    self._home.loop,
                    hooked=lambda: bool(self._hooks.before),
                )
            return self._background

    def _in_background(self, make: Callable[[], Draft]) -> None:
        """Hand an error in from any thread, also before the first use in the loop."""
        if origin := self._origin():
            make = partial(_from, origin, make)
        try:
            background = self._background or self._queue()
        except (RuntimeError, StorageError):
            # No loop here, or no open storage: the disk is always there, and what
            # lies on it is replayed when the manager opens.
            self._recorder.spool.append([make().prepared()])
            return
        background.put(make)

    async def _store_handed_in(self, errors: Sequence[Draft | Prepared]) -> None:
        rows = [
            (await self._hooks.changed(error)).prepared()
            if isinstance(error, Draft)
            else error
            for error in errors
        ]
        limit = self._limit
        kept = (
            rows if limit is None else [r for r in rows if limit.admits(r.fingerprint)]
        )
        durable = bool(kept) and await self._recorder.store(*kept)
        if self._hooks.after:
            stored = {id(row) for row in kept}
            for row in rows:
                counted = id(row) not in stored
                recorded = row.recorded(
                    durable=durable and not counted, counted=counted
                )
                await self._hooks.notify(recorded)

    def _origin(self) -> Origin | None:
        """Return where an error comes from that is handed in at this moment."""
        span = active_span()
        if span is None and self._place == (None, None):
            return None
        trace_id, span_id = span or (None, None)
        return Origin(trace_id, span_id, *self._place)

    # -- whole logs, and the end of old errors -----------------------------

    async def ingest(
        self,
        log: Log,
        *,
        source: str | None = None,
        module: str | None = None,
        severity: Severity | str | None = None,
        zone: tzinfo = UTC,
        format: re.Pattern[str] | str | None = None,
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
            severity: Leave out entries below this severity.
            zone: Time zone of timestamps that name none.
            format: A regular expression for the first line of entries that no known
                format fits, tried first. Its named groups are those of
                ``fm_storage.catalog.logs.patterns.Format``: *message*, *level*,
                *module*, *at* or *year*, *month*, *day*, *clock*; others go into
                the context.
            batch_size: Entries stored in one statement.
            progress: Called with bytes read and bytes in all, if known.

        Raises:
            ConfigurationInvalid: *log* or *zone* is of another type.
            InvalidRecord: The file is empty, or it is not text, or *format* is no
                pattern with a group *message*.
            OSError: The file cannot be read.
            StorageError: PostgreSQL did not take a batch; those before stay.
        """
        store = self._opened_store()
        kinds = (str, os.PathLike, Iterable, AsyncIterable)
        of_kind(log, kinds, "log", "give a path, or lines")
        of_kind(zone, tzinfo, "zone", "give a tzinfo, such as ZoneInfo('Asia/Tokyo')")
        if progress is not None:
            function(progress, "progress")
        for name, text in (("source", source), ("module", module)):
            if text is not None:
                of_kind(text, str, name, "give text")
        if format is not None:
            of_kind(format, (str, re.Pattern), "format", "give a regular expression")
        fresh = True

        async def write(columns: list[list[Any]]) -> int:
            nonlocal fresh
            added = await store.write_columns(
                self.storage.pool,
                columns,
                fresh=fresh,
                timeout=self._recorder.timeout * 12,
            )
            fresh = added == len(columns[0])
            return added

        try:
            return await ingest_log(
                log,
                write,
                source=source,
                module=module,
                least=severity_from(severity),
                zone=zone,
                format=pattern_from(format),
                batch_size=batch_size,
                progress=progress,
            )
        finally:
            # Once, at the end: vectors made meanwhile would take the processor
            # from the reading.
            self._recorder.written()

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

    # -- reading ---------------------------------------------------------

    async def origins(self, ids: Iterable[UUID]) -> dict[UUID, Origin]:
        """Return trace, release and environment of errors, where any is known."""
        self._opened_store()
        return await fetch_origins(self.storage.pool, list(ids))

    async def counted(self, *, since: datetime | None = None) -> dict[str, int]:
        """Return by group how many errors were only counted, beyond the limit.

        Groups are named as in ``ErrorGroup.fingerprint``. What was counted in the
        last second may be missing.

        Args:
            since: Only those of minutes from then on.
        """
        self._opened_store()
        if self._limit is not None:
            await self._limit.write()
        return await fetch_counted(self.storage.pool, since)

    def _reading(self) -> CatalogQueries:
        """Return the queries, once the parts are open."""
        self._opened_store()
        return self._queries

    async def groups(
        self,
        *,
        limit: int = 20,
        module: str | None = None,
        severity: Severity | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        order: Order = "count",
        state: State | None = None,
    ) -> list[ErrorGroup]:
        """Return groups of equal errors, by default the commonest first.

        Args:
            limit: Maximum number of groups.
            module: Only groups of this module.
            severity: Minimum severity.
            since: Only errors from then on.
            until: Only errors before then.
            order: ``count``, ``last_seen`` or ``first_seen`` (newest first).
            state: Only groups that are ``open``, ``resolved``, ``muted`` or
                ``regressed``.
        """
        return await self._reading().groups(
            limit=limit,
            module=module,
            severity=severity,
            since=since,
            until=until,
            order=order,
            state=state,
        )

    async def resolve(self, group: ErrorGroup | str) -> ErrorGroup:
        """Call a group resolved; when it has an error after that, it has regressed.

        It counts when an error happened, not when it arrived: what lay in a spool
        or an old log does not bring a group back.

        Args:
            group: The group, or its fingerprint.

        Returns:
            The group as it is now.

        Raises:
            InvalidRecord: *group* is no fingerprint.
            RecordNotFound: There is no such group.
        """
        return await self._reading().set_state(group, "resolved")

    async def mute(
        self, group: ErrorGroup | str, until: datetime | timedelta | None = None
    ) -> ErrorGroup:
        """Mute a group until a time, for a span, or until ``reopen()``.

        Its errors are recorded and counted as before. Raises as ``resolve()``.

        Raises:
            InvalidRecord: *until* has passed, or has no zone.
        """
        return await self._reading().set_state(group, "muted", until)

    async def reopen(self, group: ErrorGroup | str) -> ErrorGroup:
        """Make a group open again, whatever it was. Raises as ``resolve()``."""
        return await self._reading().set_state(group, "open")

    async def group_members(self, group: ErrorGroup | str) -> list[GroupMember]:
        """Return the fingerprints that were merged into a group, the oldest first.

        Raises as ``resolve()``.
        """
        return await self._reading().group_members(group)

    async def split_group(
        self, group: ErrorGroup | str, members: Sequence[GroupMember | str]
    ) -> ErrorGroup:
        """Make members of a group one of their own, which no merging puts back.

        The part with the oldest member keeps the name, and both keep the state. If
        cancelled, it happened wholly or not at all.

        Args:
            group: The group, or its fingerprint.
            members: Some of ``group_members()``, or their fingerprints.

        Returns:
            The group of these members.

        Raises:
            InvalidRecord: They are no members of it, or all of them.
            RecordNotFound: There is no such group.
            LockTimeout: Other processes have been merging for ten seconds.
        """
        return await self._reading().split_group(group, members)

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

        Words and identifiers (BM25) and the dense vector are both asked; what they
        find is ordered by its score, from 0 to 1 (see ``SimilarEntry``), in which
        the innermost frames of one's own weigh most. The error itself is left out.
        What this manager recorded before is found: the call waits (at most
        *freshness* seconds) until the outbox has delivered it; entries of other
        processes are found once their drainer has delivered them.

        Args:
            error: A stored entry, an exception, or any text.
            limit: Maximum number of hits.
            module: Only errors of this module.
            severity: Minimum severity.
            since: Only errors from then on.

        Raises:
            InvalidRecord: *limit* is below one, or *since* has no zone.
            ConfigurationInvalid: Vectors are switched off (``qdrant=None``).
            VectorStoreUnavailable: The vector store does not answer.
        """
        return await self._reading().find_similar(
            error, limit, module=module, severity=severity, since=since
        )

    @property
    def analyzer(self) -> Analyzer:
        """Counts over the whole catalogue: patterns, timelines, relations."""
        return self._queries.analyzer

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
        same as data.

        Args:
            title: Title of the page.
            since: Only errors from then on.
            until: Only errors before then.
            window: What counts as lately, a span or seconds; by default a tenth
                of the period.
            severity: Minimum severity, by default a warning; ``"DEBUG"`` for all.
            limit: Groups in each part.
        """
        return await self._reading().report(
            title=title,
            since=since,
            until=until,
            window=window,
            severity=severity,
            limit=limit,
        )

    def web(
        self,
        *,
        token: str | None = None,
        guard: Guard | None = None,
        unguarded: bool = False,
        title: str = "Errors",
    ) -> ErrorPages:
        """Return the report as an ASGI application, live, with a search.

        Mount it below any path (``app.mount("/errors", errors.web(token=…))``), or
        serve it alone. It runs no script and changes nothing. Use it in the loop of
        the manager, as long as that is open.

        Args:
            token: What a client must show: the password of HTTP Basic (any user
                name), or ``Authorization: Bearer``. Compared in constant time; give
                it over TLS.
            guard: Called with the ASGI scope of each request instead, sync or async;
                what it returns says whether the client may look (else 403).
            unguarded: Everybody who reaches it may look.
            title: Title of the first page.

        Raises:
            ConfigurationInvalid: Not exactly one of the first three is given.
            StorageClosed: The manager is not open, or closed.
        """
        if token is not None:
            of_kind(token, str, "token", "give text")
        return ErrorPages(
            self._reading(),
            title=title,
            search=self.storage.config.qdrant is not None,
            token=token,
            guard=guard,
            unguarded=unguarded,
        )

    def watch(
        self,
        *,
        new: OnGroup | None = None,
        regressed: OnGroup | None = None,
        name: str = "default",
        since: datetime | None = None,
        timeout: float = 30.0,
    ) -> Coroutine[Any, Any, NoReturn]:
        """Call an async function for each group that is new, or that came back.

        ``task = asyncio.create_task(errors.watch(new=page))``; it runs until it is
        cancelled, in as many processes as you like: of those that watch under one
        *name* one calls at a time, and another goes on when it ends, however it
        ends. Every event is delivered at least once, also one from while nobody
        watched; ``GroupNotice.key`` tells a repetition. A call that fails is
        repeated after a pause that doubles (a second to five minutes), the others
        go on; ``watchers()`` shows it. While a function runs, one connection of
        the pool is in use. If cancelled during a call, that event is delivered
        again.

        Args:
            new: Called with a ``GroupNotice`` when a group has its first error.
            regressed: Called when a resolved group has an error again.
            name: Whose events they are; each name gets all of them.
            since: Groups whose first error is older are not new; by default now.
                Of a name that has watched before, its own beginning counts.
            timeout: Seconds after which a call has failed and is cancelled.

        Raises:
            InvalidRecord: No function is given, or one is not async.
            StorageError: One that is not retryable; an outage is waited for.
        """
        self._opened_store()
        refuse_unclear(since=since)
        return Watch(
            self.storage.pool,
            name,
            {"new": new, "regressed": regressed},
            since=since or datetime.now(UTC),
            timeout=timeout,
        ).run()

    async def watchers(self) -> list[WatcherStatus]:
        """Return how far each name of ``watch()`` has got, and what fails."""
        self._opened_store()
        return await fetch_watchers(self.storage.pool)

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
        return self._reading().tail(module=module, severity=severity)


def _from(origin: Origin, make: Callable[[], Draft]) -> Draft:
    draft = make()
    draft.origin = origin
    return draft
