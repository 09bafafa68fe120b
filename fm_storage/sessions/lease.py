"""The lease: one lock on one idle connection, which shows that a process lives.

Nothing else decides that a process is dead. No heartbeat is sent and no
time is compared: a blocked event loop, or a stopped process, keeps its socket and
so its lock; a dead one loses both at once. The connection is outside the pool
(whose reset drops locks) and idle (a backend in mid-query keeps a dead client's
lock until the query ends).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import socket
import uuid

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    SessionLost,
    StorageError,
)
from fm_storage.postgres import Connection, Sql
from fm_storage.sessions import registry
from fm_storage.sessions.source import Source

logger = logging.getLogger("fm_storage.sessions")

_PING_EVERY = 5.0
_PING_TIMEOUT = 10.0


class LeaseState(enum.Enum):
    """The life of a lease."""

    HELD = "held"
    LOST = "lost"  # the connection broke; the lock is being taken again
    GONE = "gone"  # a reaper came first: the sessions are lost
    CLOSED = "closed"


class Lease:
    """An owner's row and the lock that keeps it from being reaped.

    Args:
        source: Where the dedicated connection comes from.
        dsn: Direct address of the server, if the source's is a pooler's.
        application_name: Shown to people in the registry.
    """

    def __init__(
        self,
        source: Source,
        *,
        dsn: str | None,
        application_name: str,
    ) -> None:
        self.owner = uuid.uuid4()
        self.key = registry.lock_key(self.owner)
        self.state = LeaseState.CLOSED  # by open(), _watch() and aclose()
        self._source = source
        self.dsn = dsn
        self._application_name = application_name
        self._connection: Connection | None = None
        self.pooled = False
        self.backend = 0
        self._broken = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take the lock and write the owner's row.

        If cancelled, the connection is closed; a row that was already written is
        an orphan without views, which any reaper removes.

        Raises:
            ConfigurationInvalid: A pooler does not let a transaction stay open.
            SchemaOutOfDate: The registry's tables are missing.
            ConnectionFailed: No connection could be made.
        """
        connection = await self._source.connect("lease", dsn=self.dsn)
        try:
            self.pooled = await self._is_pooled(connection)
            if self.pooled:
                await self._hold_in_transaction(connection)
            row = (
                self.owner,
                self.key,
                self._application_name,
                socket.gethostname(),
                os.getpid(),
            )
            if self.pooled:
                async with self._source.acquire() as other:
                    await other.execute(Sql(registry.ADD_OWNER), *row)
            else:
                self.backend = await self._take(connection, *row)
        except BaseException as exc:  # close the connection, then pass it on
            await connection.aclose()
            if isinstance(exc, StorageError):
                raise registry.explained(exc) from exc.__cause__
            raise
        self._adopt(connection)
        self._watcher = asyncio.get_running_loop().create_task(
            self._watch(), name="fm_storage lease"
        )

    def check(self) -> None:
        """Return if the sessions are not lost, as far as this process knows.

        Raises:
            SessionLost: They are; at once, without asking the server.
        """
        if self.state is LeaseState.GONE:
            raise SessionLost(
                "session: its lease was lost for longer than the grace and its "
                "views were reaped; open a new session and create them again"
            )

    async def aclose(self) -> None:
        """Give the lock back and remove the owner's row if it has no views left.

        Views that are kept, or whose DROP was refused, keep the row, and reapers
        see to them from now on. If cancelled, the connection is closed anyway.
        """
        held = self.state is LeaseState.HELD
        self.state = LeaseState.CLOSED
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if held and not connection.is_closed:
                await self._remove_row(connection)
        except StorageError as exc:
            logger.debug("session: the owner's row stays for a reaper (%s)", exc)
        finally:
            await connection.aclose()

    async def _remove_row(self, connection: Connection) -> None:
        # No parameters: one round trip. The text is a UUID of our making.
        statement = Sql(registry.REMOVE_OWNER.replace("$1", f"'{self.owner}'::uuid"))
        if not self.pooled:
            await connection.execute(statement, timeout=5.0)
            return
        async with self._source.acquire(5.0) as other:
            await other.execute(statement, timeout=5.0)

    # -- taking the lock ----------------------------------------------------------

    async def _is_pooled(self, connection: Connection) -> bool:
        """Whether another client may get the server connection between two."""
        if self.dsn is None and self._source.transaction_pooler is not None:
            return self._source.transaction_pooler
        shown = connection.raw.get_server_pid()
        real = await connection.fetchval(Sql("SELECT pg_catalog.pg_backend_pid()"))
        return bool(shown != real)

    @staticmethod
    async def _take(connection: Connection, *row: object) -> int:
        """Take the lock and write the row, in one statement."""
        pid: int | None = await connection.fetchval(registry.TAKE_LEASE, *row)
        if pid is None:
            raise ConnectionFailed(
                "session: the lease's lock is taken by another owner (a collision of "
                "random keys); open the session again"
            )
        return pid

    async def _hold_in_transaction(self, connection: Connection) -> bool:
        """Take the lock in a transaction that stays open."""
        try:
            await connection.execute(Sql("BEGIN"))
            await connection.execute(registry.NO_TRANSACTION_TIMEOUT)
            held = await connection.fetchval(registry.HOLD_LEASE, self.key)
            # The statement's portal keeps its snapshot until another replaces it,
            # and an old snapshot would hold back vacuum.
            await connection.execute(Sql("SELECT"))
            return bool(held)
        except StorageError as exc:
            raise ConfigurationInvalid(
                "session.dsn",
                "is not set, and the pooler at postgres.dsn lets no transaction stay "
                f"open ({exc}); give the server's own address for sessions",
            ) from exc

    def _adopt(self, connection: Connection) -> None:
        self._connection = connection
        self._broken.clear()
        connection.add_termination_listener(self._broken.set)
        if connection.is_closed:
            self._broken.set()
        self.state = LeaseState.HELD

    async def _watch(self) -> None:
        """Notice a lost lease, and take it again."""
        while True:
            try:
                async with asyncio.timeout(_PING_EVERY):
                    await self._broken.wait()
            except TimeoutError:
                if await self._answers():
                    continue
            self.state = LeaseState.LOST
            logger.warning("session: the lease's connection broke; taking it again")
            if not await self._regain():
                self.state = LeaseState.GONE
                logger.error("session: a reaper came first; the sessions are lost")
                return
            logger.info("session: the lease is held again; nothing was lost")

    async def _answers(self) -> bool:
        """Whether the connection still works, which a cut cable does not show."""
        connection = self._connection
        if connection is None or connection.is_closed:
            return False
        try:
            await connection.fetchval(Sql("SELECT 1"), timeout=_PING_TIMEOUT)
        except StorageError:
            return False
        return True

    async def _regain(self) -> bool:
        """Take the lock again; False if a reaper has condemned the owner."""
        old, self._connection = self._connection, None
        if old is not None:
            await old.aclose(0.1)
        pause = Backoff(0.01, 1.0)
        while True:
            try:
                found = await self.try_again()
            except (StorageError, OSError) as exc:
                logger.debug("session: lease not regained yet (%s)", exc)
                found = None
            if found is not None:
                return found
            await pause.sleep()

    async def try_again(self) -> bool | None:
        """Try once: True held, False condemned, None not yet."""
        connection = await self._source.connect("lease", dsn=self.dsn)
        try:
            if self.pooled:
                held = await self._hold_in_transaction(connection)
            else:
                held = await connection.fetchval(registry.RELOCK, self.key)
            async with self._source.acquire(5.0) as other:
                if not held:
                    # Polled, because a blocking advisory lock deadlocks with
                    # CREATE INDEX CONCURRENTLY. A reaper holds it for moments; a
                    # backend of ours that has not noticed its end is ended.
                    await other.fetchval(
                        registry.END_PREDECESSOR, self.backend, self.key
                    )
                    alive = await other.fetch(registry.OWNER_LIVES, self.owner)
                    found = None if alive else False
                else:
                    row = await other.fetchrow(registry.RETURN_TO_OWNER, self.owner)
                    found = row is not None
            if found and not self.pooled:
                self.backend = await connection.fetchval(
                    Sql("SELECT pg_catalog.pg_backend_pid()")
                )
        except BaseException:  # close the connection, then pass it on
            await connection.aclose()
            raise
        if found:
            self._adopt(connection)
        else:
            await connection.aclose()
        return found
