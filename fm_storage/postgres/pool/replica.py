"""A pool of a replica, for reading: it watches the replica, and falls back.

Every read goes to the replica while it is there; else, and where it may be run again,
to the primary, in a transaction that refuses writes. The watch has a connection of
its own, so that neither a full pool nor a silent server keeps it from looking.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.lifecycle import Life
from fm_storage.config.addresses import query_of
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    PermissionDenied,
    StorageError,
)
from fm_storage.postgres.arguments import check_position, seconds
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.connection import Connection
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.pool.pool import Acquire, Pool
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connection.statements import Statements
    from fm_storage.postgres.pool.listen import Subscription
    from fm_storage.postgres.statistics import PoolStatistics

T = TypeVar("T")
_log = logging.getLogger("fm_storage.postgres")

_LOOK = 2.0
"""Seconds from one look at the replica to the next, less up to a half."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_CONNECT = 3.0
"""An attempt to connect to a replica takes no longer: the primary is there."""
_CONFLICTS = frozenset({"40001", "40P01"})
_CONFLICT_PAUSE = 0.05
_REPEATED = frozenset({driver.fetch, driver.fetchrow, driver.execute})
"""Calls of the driver that may be made again: none has given anything away."""
_TO_PRIMARY = 3
"""The attempt of a transaction from which on it goes to the primary."""
_IDENTITY = Sql(
    "SELECT c.system_identifier::text || '/' || d.oid::text "
    "FROM pg_control_system() AS c, pg_database AS d "
    "WHERE d.datname = current_database()"
)
_LOG_END = (
    "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
    "ELSE pg_current_wal_insert_lsn() END"
)
_HAS = Sql(f"SELECT coalesce({_LOG_END} >= $1::text::pg_lsn, false)")
_END = Sql(f"SELECT (({_LOG_END}) - '0/0')::int8")
_STATE = Sql(
    f"SELECT pg_is_in_recovery(), (({_LOG_END}) - '0/0')::int8, "
    "extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"
)
_READ_ONLY = Sql("SET default_transaction_read_only = on")


class _Behind(StorageError):
    """The replica has not in time what a read is to see."""


class _Watch:
    """What is known of the replica, shared by all views of its pool.

    Attributes:
        standby: Whether it is one; None until it was first asked.
        lag: Seconds that it is behind; None if unknown.
        fallbacks: Reads that the primary answered in its place.
        pauses: Pauses until it is tried again.
        retry_at: Monotonic time of that.
        away_since: Monotonic time; None while it is used.
        equal_at: Monotonic time at which it had all that the primary had.
        wake: Set to look at once.
        askers: Who waits for the end of a look.
    """

    def __init__(self) -> None:
        self.standby: bool | None = None
        self.lag: float | None = None
        self.fallbacks = 0
        self.pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self.retry_at = 0.0
        self.away_since: float | None = None
        self.equal_at: float | None = None
        self.wake = asyncio.Event()
        self.askers: list[asyncio.Future[None]] = []

    def note(self, written: int | None, asked: float, *state: Any) -> None:
        """Work out the lag.

        Args:
            written: End of the primary's log, None if it did not answer.
            asked: When it was asked, which was before the replica was.
            *state: What ``_STATE`` gave.
        """
        self.standby, replayed, age = state
        if not self.standby:
            self.lag = 0.0
        elif written is None:
            self.lag = None
        elif (replayed or 0) >= written:
            self.equal_at, self.lag = asked, 0.0
        else:
            # The age of its last commit says too much after a quiet hour, the time
            # since both were equal too much where they never are.
            equal = None if self.equal_at is None else monotonic() - self.equal_at
            self.lag = min((x for x in (age, equal) if x is not None), default=None)


class ReadPool(Pool):
    """Connections to a replica of *primary*, with everything that reads.

    Transactions are read-only. While the replica is away, that is from the first
    failure to connect, or a look that is not answered within ``check_timeout``, until
    a look succeeds (they go on with pauses of 0.2 to 30 s, with jitter), and while it
    is more than ``read_max_lag`` behind, reads go to the primary.

    Args:
        primary: The pool that takes writes; open before this one, closed after it.
        make_transaction: As of ``Pool``.
    """

    def __init__(
        self,
        primary: Pool,
        make_transaction: Callable[[Statements], Transaction] = Transaction,
    ) -> None:
        super().__init__(
            _config_of(primary.config),
            name=f"{primary.name}-reads",
            make_transaction=make_transaction,
        )
        self._primary = primary
        self._watch = _Watch()
        self._watching: asyncio.Task[None] | None = None
        self._identity: str | None = None
        self._position: str | Awaitable[str] | None = None  # of a view, see after()
        self._core.takes_writes = False
        self._core.on_failure = self._suspend
        self._connector.verify = self._verify
        self._replica_run, self._run = self._run, self._read
        primary.shared.renewals.extend(self.shared.renewals)
        self.shared = primary.shared
        self._connector.composites = self.shared.types

    @property
    def primary(self) -> Pool:
        """The pool that takes writes."""
        return self._primary

    @property
    def in_transaction(self) -> bool:
        """Whether the running task is inside a transaction of the primary's pool."""
        return self._primary.in_transaction

    # -- life ------------------------------------------------------------

    async def open(self) -> None:
        """Open the pool, also if the replica is away.

        Raises:
            ConfigurationInvalid: At the address is another database system.
            ConnectionFailed: The server there is too old, or has no such database.
            PermissionDenied: It refuses the role or the password.
        """
        if self._core.life is not Life.NEW:
            return await super().open()
        with suppress(PermissionDenied):  # then it cannot be compared
            self._identity = await self._primary.fetchval(_IDENTITY)
        try:
            await super().open()
        except ConnectionFailed as error:
            if not error.retryable:
                raise
            self._begin()
            self._suspend(error)
        self._watching = asyncio.create_task(
            self._look(), name=f"fm_storage {self.name}"
        )
        return None

    async def _close(self, limit: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching], timeout=1.0)
        await super()._close(limit)

    async def _verify(self, raw: Any) -> None:
        """Refuse another database system than the primary's."""
        if self._identity is None:
            return
        found = await raw.fetchval(_IDENTITY.text)
        if found != self._identity:
            raise ConfigurationInvalid(
                "postgres.read_dsn",
                f"names another database ({found}) than postgres.dsn "
                f"({self._identity}; system identifier/oid); give the address of a "
                "replica of it",
            )

    # -- the watch -------------------------------------------------------

    def _suspend(self, error: StorageError, *, cut: bool = False) -> None:
        """Send reads to the primary from now on."""
        watch = self._watch
        watch.retry_at = monotonic() + watch.pauses.next()
        if watch.away_since is None:
            watch.away_since = monotonic()
            _log.warning(
                "%s: the replica is not used, the primary answers: %s",
                self._core.owner,
                error,
            )
            self._core.renew("the replica is away")
        self._core.suspend(str(error), cut=cut)

    def _resume(self) -> None:
        watch = self._watch
        if watch.away_since is None:
            watch.pauses.reset()
        elif monotonic() >= watch.retry_at:
            _log.info(
                "%s: the replica is used again after %.1f s",
                self._core.owner,
                monotonic() - watch.away_since,
            )
            watch.away_since = None
            self._core.resume()

    async def _look(self) -> None:
        """Look at the replica now and then, for as long as the pool is open."""
        watch, line = self._watch, None
        try:
            while True:
                known = line is not None
                try:
                    line = line or await self.connect("replica")
                    await self._measure(line)
                except Exception as exc:  # whatever it is, the replica is not used
                    if line is not None:
                        await line.aclose(0.01)
                    line = None
                    if known and isinstance(exc, ConnectionFailed):
                        continue  # this connection was lost; is the server there?
                    error = exc if isinstance(exc, StorageError) else StorageError(exc)
                    self._suspend(error, cut=watch.pauses.failures > 0)
                pause = _LOOK * random.uniform(0.5, 1.0)
                if watch.away_since is not None:
                    pause = max(watch.retry_at - monotonic(), 0.0)
                for asker in watch.askers:
                    if not asker.done():
                        asker.set_result(None)
                watch.askers.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await watch.wake.wait()
                watch.wake.clear()
        finally:
            if line is not None:
                await line.aclose(0.1)

    async def _measure(self, line: Connection) -> None:
        """Ask both servers how far they are; use the replica if it is good enough."""
        watch, limit, was = self._watch, self.config.check_timeout, self._watch.standby
        asked = monotonic()
        written = None
        with suppress(StorageError):  # the replica answers without the primary
            written = await self._primary.fetchval(_END, timeout=limit)
        [state] = await line.fetch(_STATE, timeout=limit)
        watch.note(written, asked, *state)
        if was not in {None, watch.standby}:
            self._core.renew("the replica was promoted or demoted")
        most = self.config.read_max_lag
        if most is not None and watch.lag is not None and watch.lag > most:
            self._suspend(
                StorageError(f"it is {watch.lag:.1f} s behind (read_max_lag {most:g})")
            )
        else:
            self._resume()

    async def health(self) -> tuple[str, str]:
        """Look at the replica now; return a status and what there is to say."""
        self._core.require_open()
        asker = asyncio.get_running_loop().create_future()
        self._watch.askers.append(asker)
        self._watch.wake.set()
        await asker
        if self._core.suspended is not None:
            return "degraded", f"{self._core.suspended}; the primary answers reads"
        lag = self._watch.lag
        behind = "lag unknown" if lag is None else f"{lag:.1f} s behind"
        return "ok", f"{'standby' if self._watch.standby else 'primary'}, {behind}"

    # -- reading ---------------------------------------------------------

    def after(self, position: str | Awaitable[str]) -> ReadPool:
        """Return a view of this pool that reads what was committed before *position*.

        Each read waits for the replica, at most ``read_wait`` seconds; then the
        primary answers.
        """
        if isinstance(position, Awaitable):  # by every read
            position = asyncio.ensure_future(position)
        else:
            check_position(position)
        view = copy.copy(self)
        vars(view).update(_position=position, _run=partial(ReadPool._read, view))
        return view

    async def _read(
        self,
        call: Callable[..., Awaitable[Any]],
        sql: str,
        args: Sequence[Any],
        timeout: float | None,
    ) -> Any:
        """Run one call on the replica, and if that fails on the primary."""
        until = None if timeout is None else monotonic() + seconds(timeout)
        begun = False

        async def noted(raw: Any, *given: Any, timeout: float | None) -> Any:
            nonlocal begun
            if self._position is not None:
                await self._wait(partial(driver.fetchrow, raw), timeout)
            begun = True
            return await call(raw, *given, timeout=timeout)

        chosen = call if call in _REPEATED and self._position is None else noted
        for first in (True, False):
            if not self.is_used:
                break
            try:
                return await self._replica_run(chosen, sql, args, _left(until))
            except StorageError as error:
                conflict = getattr(error, "sqlstate", None) in _CONFLICTS
                lost = isinstance(error, (ConnectionFailed, _Behind))
                if (begun and call not in _REPEATED) or not (conflict or lost):
                    raise
                if lost:
                    self.look_after(error)
                    break
                if first:
                    await asyncio.sleep(_CONFLICT_PAUSE * random.random())
        self.count_fallback()
        return await self.shared.run(driver.in_read_only(call), sql, args, _left(until))

    @property
    def is_used(self) -> bool:
        """Whether reads go to the replica now."""
        return self._core.suspended is None

    def look_after(self, error: StorageError) -> None:
        """Look at the replica now if it may be away."""
        if not isinstance(error, _Behind):
            self._watch.wake.set()

    async def _wait(self, ask: Callable[..., Any], timeout: float | None) -> None:
        """Wait until a server has what this view is to see.

        Args:
            ask: Runs a statement there: ``ask(sql, position, timeout=…)``.
            timeout: Seconds of the whole call.

        Raises:
            _Behind: It has not, after ``read_wait`` seconds.
        """
        wait = self.config.read_wait
        if self._watch.lag is not None and self._watch.lag > 2 * wait:
            raise _Behind  # it would not be in time
        if isinstance(self._position, Awaitable):
            self._position = await asyncio.shield(self._position)
        until = monotonic() + (wait if timeout is None else min(wait, timeout / 2))
        pauses = Backoff(0.002, 0.05)
        try:
            while not (await ask(_HAS.text, self._position, timeout=_left(until)))[0]:
                if monotonic() >= until:
                    raise _Behind
                await pauses.sleep()
        except TimeoutError as exc:
            raise _Behind from exc

    # -- borrowing -------------------------------------------------------

    def _borrow(
        self,
        make: Callable[[Statements], T],
        timeout: float | None = None,
        *,
        _attempt: int = 1,
    ) -> Acquire[T]:
        return _Routed(
            self,
            super()._borrow(_itself, timeout) if _attempt < _TO_PRIMARY else None,
            self.shared.borrow(_itself, timeout),
            make,
        )

    async def enter(self, statements: Statements) -> None:
        """Wait, on a borrowed connection, until its server has what is to be seen."""
        if self._position is not None:

            async def ask(sql: str, position: str, *, timeout: float) -> Any:
                run = statements.run
                return await run(driver.fetchrow, Sql(sql), (position,), timeout)

            await self._wait(ask, None)

    def count_fallback(self) -> None:
        """Count a read that goes to the primary."""
        self._watch.fallbacks += 1

    async def run_in_transaction(
        self,
        fn: Callable[[Any], Awaitable[T]],
        *,
        isolation: str | None = "repeatable_read",
        readonly: bool = True,
        deferrable: bool = False,
        attempts: int = 10,
    ) -> T:
        """Run ``await fn(transaction)``, read-only; repeat all of it at need.

        As ``Pool.run_in_transaction()``; from the third attempt on the primary.
        """
        return await super().run_in_transaction(
            fn,
            isolation=isolation,
            readonly=readonly,
            deferrable=deferrable,
            attempts=attempts,
        )

    def listen(self, channel: str) -> Subscription:
        """Listen on the primary: nothing can be heard on a replica."""
        return self._primary.listen(channel)

    # -- numbers ---------------------------------------------------------

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of the pool; no I/O."""
        watch = self._watch
        return replace(super().statistics(), lag=watch.lag, fallbacks=watch.fallbacks)


class _Routed(Acquire[T]):
    """What ``acquire()`` of a replica returns: a connection to it, or to the primary.

    On the primary its default is read-only: the reset after its use takes that back.
    """

    __slots__ = ("_leave", "_make", "_pool", "_primary", "_replica")

    def __init__(
        self,
        pool: ReadPool,
        replica: Acquire[Statements] | None,
        primary: Acquire[Statements],
        make: Callable[[Statements], T],
    ) -> None:
        self._pool, self._make = pool, make
        self._replica, self._primary = replica, primary
        self._leave = AsyncExitStack()

    async def __aenter__(self) -> T:
        if self._replica is not None and self._pool.is_used:
            try:
                async with AsyncExitStack() as stack:
                    statements = await stack.enter_async_context(self._replica)
                    await self._pool.enter(statements)
                    self._leave = stack.pop_all()
                    return self._make(statements)
            except (ConnectionFailed, _Behind) as error:
                self._pool.look_after(error)
        self._pool.count_fallback()
        async with AsyncExitStack() as stack:
            statements = await stack.enter_async_context(self._primary)
            if self._make is Connection and not self._pool.primary.transaction_pooler:
                await statements.run(driver.execute, _READ_ONLY)
                statements.required().dirty = True
            self._leave = stack.pop_all()
            return self._make(statements)

    async def __aexit__(self, *_: object) -> None:
        await self._leave.aclose()


def _config_of(config: PostgresConfig) -> PostgresConfig:
    """Return the settings of the replica's pool."""
    dsn = config.read_dsn or config.dsn
    chosen = "target_session_attrs" in query_of(dsn)
    return config.model_copy(
        update={
            "dsn": dsn,
            "target_session_attrs": None if chosen else "prefer-standby",
            "server_settings": {
                **config.server_settings,
                "default_transaction_read_only": "on",
            },
            "connect_timeout": min(config.connect_timeout, _CONNECT),
        }
    )


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.001, until - monotonic())


def _itself(statements: Statements) -> Statements:
    return statements
