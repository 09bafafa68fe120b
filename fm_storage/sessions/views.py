"""The views of one session: what it knows of them, and how they come and go.

The order of every operation is the same: record the intent without I/O, then act,
then note the outcome; so a cancellation at any await leaves nothing that the set
does not know of. Cleaning up is reached in many ways (a block's end, a
cancellation, a later attempt, the manager's closing) and does the same in all.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Hashable, Sequence
from time import monotonic

from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.shield import shielded
from fm_storage.config import SessionConfig
from fm_storage.errors import (
    DuplicateRecord,
    InvalidName,
    PermissionDenied,
    QueryFailed,
    StorageClosed,
    StorageError,
)
from fm_storage.postgres import quote_ident, quote_qualified
from fm_storage.postgres.arguments import of_kind
from fm_storage.sessions import registry
from fm_storage.sessions.creating import CreateProgress, ViewPlan, create, refresh
from fm_storage.sessions.dropping import Claim, drop_all, drop_known
from fm_storage.sessions.lease import Lease, LeaseState
from fm_storage.sessions.names import Kind, TempView
from fm_storage.sessions.owner import Owner
from fm_storage.sessions.reports import CleanupReport
from fm_storage.sessions.schema import drop_schema_if_empty
from fm_storage.sessions.source import Provider

logger = logging.getLogger("fm_storage.sessions")

Key = tuple[str, str]
"""Schema and name of a view."""

_RELKINDS: dict[str, Kind] = {"v": "view", "m": "materialized view"}
_NO_SCHEMA = "3F000"
_WAIT_FOR_NAME = 120.0
_LOOK_AGAIN = 1.0  # in which a name's holder may still turn out to be dead


class ViewSet:
    """The views of one session, with the owner whose lease keeps them alive.

    Args:
        provider: A pool or a function, for which an owner is made when it is
            needed; the owner that several sessions share; or None.
        schema: Where the views are.
        keep: Whether closing leaves them.
        private: Whether only the session's own role may read them.
        config: Limits.
        application_name: Shown to people in the registry.
    """

    def __init__(
        self,
        provider: Provider | Owner | None,
        *,
        schema: str,
        keep: bool,
        private: bool,
        config: SessionConfig,
        application_name: str,
    ) -> None:
        self.id = uuid.uuid4()
        self.schema = schema
        self.keep = keep  # by set_keep()
        self.closed = False  # by aclose()
        self.touched = False  # whether there may be anything in the registry
        self.views: dict[Key, TempView] = {}  # by create, adopt, drop, clean_up
        self.last_cleanup = CleanupReport()
        self._provider = provider
        self._private = private
        self._config = config
        self._application_name = application_name
        self._shared = provider if isinstance(provider, Owner) else None
        self._owner = self._shared  # by owner() and leave(), if not shared
        self._lease: Lease | None = None  # by ready()
        self._mark = ""  # COMMENT of the views, by ready()
        self._numbers: dict[Key, int] = {}  # registry rows of the views
        self._holders: dict[Key, set[Hashable]] = {}  # by add_holder(), last_left()
        self._uncertain: set[Key] = set()  # creations nobody saw the end of
        self._opening, self._cleaning = asyncio.Lock(), asyncio.Lock()
        self._done = False  # whether the last clean-up reached its end, by it

    @property
    def is_lost(self) -> bool:
        """Whether the views were reaped while the lease was lost."""
        return self._lease is not None and self._lease.state is LeaseState.GONE

    # -- the owner and its lease ------------------------------------------------------

    def owner(self) -> Owner:
        """Return the owner; one of our own if the session stands alone."""
        if self._owner is None:
            if self._provider is None or isinstance(self._provider, Owner):
                raise StorageClosed("session: PostgreSQL is not available")
            self._owner = Owner(
                self._provider, self._config, application_name=self._application_name
            )
        return self._owner

    async def ready(self) -> tuple[Owner, Lease]:
        """Return owner and lease, opened at the first operation.

        Raises:
            SessionLost: The views were reaped.
            StorageClosed: The session is closed.
        """
        if self.closed:
            raise StorageClosed(
                f"session {self.id}: it is closed; open a new one for more views"
            )
        async with self._opening:
            owner, lease = self.owner(), self._lease
            if lease is None or (self.is_lost and not self.touched):
                # Lost without any view, nothing was lost: a new owner will do.
                if self._shared is None:
                    await owner.open()
                self._lease = lease = await owner.take_lease()
                self._mark = registry.tag(lease.owner, self.id)
                owner.add(self)
        if lease.state is LeaseState.GONE:
            lease.check()
        return owner, lease

    def check_home(self) -> None:
        """Refuse another loop or process before anything of theirs is awaited.

        Raises:
            WrongLoop: This is another event loop than the owner's.
            ForkedProcess: This is a forked child.
        """
        if self._owner is not None:
            self._owner.home.check()

    async def leave(self) -> None:
        """Give back the lease of a session that stands alone."""
        if self._shared is not None:
            return
        owner, self._owner, self._lease = self._owner, None, None
        if owner is not None:
            owner.remove(self)
            await owner.aclose()

    async def aclose(self) -> None:
        """Drop the views (or mark them as kept) and leave the owner; idempotent.

        A cancellation is raised when the clean-up is done or its deadline over.
        Does nothing in a forked child.

        Raises:
            WrongLoop: Called on another event loop than the owner's.
        """
        owner = self._owner
        if self.closed or (owner is not None and owner.home.forked):
            return
        self.check_home()
        self.closed = True
        if owner is None:
            return
        try:
            if not self.keep:
                await self.finish()
            elif self.touched:
                await shielded(self._release, timeout=self._config.cleanup_timeout)
        except TimeoutError:
            logger.warning("session: %s not released in time", self.id)
        finally:
            owner.remove(self)
            await self.leave()

    # -- what is known ----------------------------------------------------------------

    def key(self, view: TempView | str) -> Key:
        """Return schema and name of what the caller means."""
        if isinstance(view, TempView):
            return view.schema, view.name
        if not isinstance(view, str):
            quote_ident(view)  # which names what it is
        for key, known in self.views.items():
            if view in {known.name, str(known), known.sql}:
                return key
        quote_ident(view)
        return self.schema, view

    def own(self, view: TempView | str) -> TempView:
        """Return the view that the caller means.

        Raises:
            SessionLost: The views were reaped.
            InvalidName: It is none of this session.
        """
        found = self.views.get(self.key(view))
        if found is None:
            if self._lease is not None:
                self._lease.check()
            raise InvalidName(
                f"session: {view} is not one of its views; see get_session_views()"
            )
        return found

    def add_holder(self, view: TempView | str, holder: Hashable) -> None:
        """Note that *holder* uses the view."""
        of_kind(holder, Hashable, "holder", "give what can be in a set")
        target = self.own(view)
        self._holders.setdefault((target.schema, target.name), set()).add(holder)

    def last_left(self, view: TempView | str, holder: Hashable) -> TempView | None:
        """Note that *holder* is done; return the view if it was the last one."""
        of_kind(holder, Hashable, "holder", "give what can be in a set")
        key = self.key(view)
        holders = self._holders.get(key, set())
        if holder not in holders:
            return None
        holders.discard(holder)
        return None if holders else self.views.get(key)

    # -- coming -----------------------------------------------------------------------

    async def create(
        self, plan: ViewPlan, progress: Callable[[CreateProgress], None] | None
    ) -> TempView:
        """Create the view of *plan*; a name that a dead session holds is waited for.

        If cancelled, ``clean_up()`` drops the view if it was made after all.
        """
        key = (plan.schema, plan.name)
        owner, lease = await self.ready()
        if key in self._uncertain:
            await self._settle(owner, key)
        if key in self.views:
            raise InvalidName(
                f"session: it has a view {plan.target} already; drop that first, or "
                "give another name"
            )
        give_up = monotonic() + _WAIT_FOR_NAME
        lost_schema = False
        while True:
            # The intent, before any await that could make the view exist.
            self._uncertain.add(key)
            self.touched = True
            try:
                async with owner.source.acquire() as connection:
                    if lost_schema or plan.schema not in owner.schemas:
                        await owner.ensure_schema(connection, plan.schema)
                    view, number = await create(
                        connection,
                        plan,
                        owner=lease.owner,
                        session=self.id,
                        mark=self._mark,
                        keep=self.keep,
                        private=self._private,
                        progress=progress,
                    )
            except DuplicateRecord as exc:
                self._uncertain.discard(key)
                if exc.constraint != "session_objects_name_key":
                    raise
                await self._wait_for_name(lease.owner, plan, exc, give_up)
                continue
            except QueryFailed as exc:
                # A definite answer of the server: it was rolled back.
                self._uncertain.discard(key)
                if exc.sqlstate != _NO_SCHEMA or lost_schema:
                    raise
                lost_schema = True  # dropped as empty by another session
                continue
            self._add(view, number)
            owner.tally.created += 1
            return view

    async def _wait_for_name(
        self, owner_id: uuid.UUID, plan: ViewPlan, exc: DuplicateRecord, give_up: float
    ) -> None:
        """Return when the name may be free; raise *exc* if its holder lives.

        The server frees a killed process's lock when it sees the socket closed: a
        moment later than the kill, and later still on a busy machine. So a holder
        that seems to live is looked at again before its name is refused.
        """
        owner = self.owner()
        sure = min(give_up, monotonic() + _LOOK_AGAIN)
        while True:
            async with owner.source.acquire() as connection:
                holder = await connection.fetchrow(
                    registry.HOLDER, plan.schema, plan.name
                )
            if holder is None:
                return
            if (
                not holder["alive"]
                or holder["keep"]
                or holder["owner_id"] == owner_id
                or monotonic() >= sure
            ):
                break
            await asyncio.sleep(_LOOK_AGAIN / 5)
        if holder["alive"] or holder["keep"] or monotonic() > give_up:
            raise DuplicateRecord(
                f"session: {plan.target} belongs to another session "
                f"{'that lives' if holder['alive'] else 'that kept it'}; give another "
                "name, or none",
                sqlstate=exc.sqlstate,
                constraint=exc.constraint,
            ) from exc
        # Its owner is dead: reap it here and now, should nobody else do so.
        await owner.reap()

    async def adopt(self, view: TempView | str) -> None:
        """Track a view that somebody else made."""
        key = self.key(view)
        if key in self.views:
            return
        owner, lease = await self.ready()
        shown = quote_qualified(*key)
        async with owner.source.acquire() as connection:
            found = await connection.fetchrow(registry.FIND_RELATION, *key)
            if found is None or found["relkind"] not in _RELKINDS:
                raise InvalidName(
                    f"session: {shown} is not a view; create it first, or use "
                    "create_view()"
                )
            if not found["mine"]:
                raise PermissionDenied(
                    f"session: {shown} belongs to another role; let that role's own "
                    "session register it",
                    sqlstate="42501",
                )
            kind = _RELKINDS[found["relkind"]]
            self._uncertain.add(key)
            self.touched = True
            number = await connection.fetchval(
                registry.ADOPT,
                *(lease.owner, self.id, *key, kind, self.keep, found["oid"]),
            )
        self._uncertain.discard(key)
        if number is None:
            lease.check()
            raise StorageClosed("session: its owner's row is gone; open it again")
        self._add(TempView(*key, kind, found["oid"]), number)

    async def refresh(
        self, view: TempView, *, concurrently: bool | None
    ) -> tuple[bool, str]:
        """Fill *view* anew; return whether readers were let in, else why not."""
        owner, _ = await self.ready()
        async with owner.source.acquire() as connection:
            return await refresh(
                connection, view, session=self.id, concurrently=concurrently
            )

    # -- going ------------------------------------------------------------------------

    async def disown(self, view: TempView | str) -> None:
        """Stop tracking a view, which then stays."""
        key = self.key(view)
        owner, _ = await self.ready()
        async with (
            owner.source.acquire() as connection,
            connection.transaction() as transaction,
        ):
            row = await transaction.fetchrow(registry.FORGET_OBJECT, self.id, *key)
            if row is not None and not row["adopted"]:
                # Without its mark it is an ordinary view of its owner's.
                await transaction.execute(
                    f"COMMENT ON {row['kind'].upper()} {quote_qualified(*key)} IS NULL"
                )
        self._forget(key)

    async def drop(self, given: TempView | str, *, cascade: bool) -> bool:
        """Drop one view now; return whether it was dropped."""
        key = self.key(given)
        if key in self._uncertain:
            await self._settle((await self.ready())[0], key)
            if key not in self.views:  # its creation was undone
                return False
        view = self.own(given)
        owner, _ = await self.ready()
        claim = Claim(
            "b.id = $1",
            self._numbers[key],
            own=True,
            trusted={view.oid},
            cascade=cascade,
        )
        done: list[CleanupReport] = []
        await self._drop(owner, claim, [view], done)
        report = CleanupReport.sum(done)
        self._note(owner, report)
        if not report.refused:
            self._forget(key)
        return bool(report.dropped)

    async def set_keep(self, *, keep: bool) -> None:
        """Set whether closing leaves the views, and mark them so."""
        self.keep = keep
        if self.touched and not self.closed:
            owner, _ = await self.ready()
            async with owner.source.acquire() as connection:
                await connection.execute(registry.SET_KEEP, self.id, keep)

    async def finish(self) -> int:
        """Drop the views, then the schema if it is empty; return how many."""
        self.check_home()
        try:
            if not self.touched:
                return 0
            report = await self.clean_up()
            await shielded(self._drop_schema, timeout=5.0)
        except TimeoutError:
            return len(self.last_cleanup.dropped)
        finally:
            await self.leave()
        return len(report.dropped)

    async def clean_up(self) -> CleanupReport:
        """Drop every view; and report what became of it.

        Not stopped by a cancellation, which is raised when the views are gone or
        ``cleanup_timeout`` is over.
        """
        owner = self._owner
        self.check_home()
        if owner is None or not self.touched or self.is_lost:
            return CleanupReport()
        done: list[CleanupReport] = []
        complete = False

        async def work() -> None:
            async with self._cleaning:
                await self._drop_all(owner, done)

        try:
            await shielded(work, timeout=self._config.cleanup_timeout)
            complete = True
        except TimeoutError:
            logger.warning(
                "session: clean-up not done within %.1f s; the rest is tried again",
                self._config.cleanup_timeout,
            )
        except StorageError as exc:
            logger.warning("session: clean-up failed, it is tried again: %s", exc)
        finally:
            report = CleanupReport.sum(done)
            # Cancelled, yet done: shielded() raises only when it is.
            complete = complete or self._done
            if not complete:
                report += CleanupReport(complete=False)
            self._note(owner, report)
            if report.refused or not complete:
                owner.retry_later(self)
        return report

    async def _drop_all(self, owner: Owner, done: list[CleanupReport]) -> None:
        """Drop until nothing is left, also across a server's restart."""
        self._done = False
        pause = Backoff(0.05, 1.0)
        trusted = {view.oid for view in self.views.values()}
        claim = Claim("b.session_id = $1", self.id, own=True, trusted=trusted)
        while not self._done:
            try:
                await self.settle(owner)
                await self._drop(owner, claim, [*self.views.values()], done)
                self._done = True
            except StorageError as exc:
                if not exc.retryable:
                    raise
                logger.debug("session: clean-up interrupted (%s)", exc)
                await pause.sleep()

    async def _drop(
        self,
        owner: Owner,
        claim: Claim,
        views: Sequence[TempView],
        done: list[CleanupReport],
    ) -> None:
        """Drop what *claim* finds, and those of *views* that have no row any more."""
        try:
            await drop_all(owner.source, claim, self._config, report=done.append)
        except QueryFailed as exc:
            if not registry.is_missing(exc):
                raise
        report = CleanupReport.sum(done)
        found = {*report.dropped, *report.already_gone, *report.forgotten}
        found |= {refusal.view for refusal in report.refused}
        views = [view for view in views if str(view) not in found]
        done.append(await drop_known(owner.source, views, self._config))

    async def settle(self, owner: Owner) -> None:
        """Wait for the end of each creation whose outcome nobody saw."""
        for key in list(self._uncertain):
            try:
                await self._settle(owner, key)
            except QueryFailed as exc:
                if not registry.is_missing(exc):  # without it nothing is made
                    raise

    async def _settle(self, owner: Owner, key: Key) -> None:
        """Wait for the end of one creation; track its view if it was made."""
        if self._lease is None:
            return
        async with (
            owner.source.acquire() as connection,
            connection.transaction() as transaction,
        ):
            await transaction.execute(registry.PROBE, self._lease.owner, self.id, *key)
            await transaction.execute(registry.REMOVE_PROBE, self.id, *key)
            row = await transaction.fetchrow(registry.FIND_OBJECT, self.id, *key)
        self._uncertain.discard(key)
        if row is not None and key not in self.views:
            self._add(TempView(*key, row["kind"], row["oid"]), row["id"])

    async def _release(self) -> None:
        """Leave the kept views to ``sessions reap --kept``."""
        async with self.owner().source.acquire() as connection:
            await connection.execute(registry.SET_KEEP, self.id, True)
            await connection.execute(registry.RELEASE, self.id)

    async def _drop_schema(self) -> None:
        if self._owner is not None and not self.views:
            try:
                await drop_schema_if_empty(self._owner.source, self.schema)
            except StorageError as exc:
                logger.debug("session: schema not dropped (%s)", exc)

    def _add(self, view: TempView, number: int) -> None:
        key = (view.schema, view.name)
        self._uncertain.discard(key)
        self.views[key] = view
        self._numbers[key] = number

    def _note(self, owner: Owner, report: CleanupReport) -> None:
        """Forget what is gone."""
        self.last_cleanup = report
        gone = {*report.dropped, *report.already_gone, *report.forgotten}
        for key, view in list(self.views.items()):
            if str(view) in gone:
                self._forget(key)
        owner.tally.dropped += len(report.dropped)

    def _forget(self, key: Key) -> None:
        self.views.pop(key, None)
        self._numbers.pop(key, None)
        self._holders.pop(key, None)
