"""Following new errors: woken by LISTEN, read from the table.

A notification is only a reason to look: it carries no error, may be lost with its
connection, and does not pass a transaction pooler. What is shown is always what
the table holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from fm_storage.catalog.query.grouping import group_ungrouped
from fm_storage.catalog.record.row import RANKS
from fm_storage.catalog.record.store import CHANNEL, CLAMPED, ENTRY_COLUMNS, entry_of
from fm_storage.errors import ConfigurationInvalid, StorageError
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

T = TypeVar("T")
logger = logging.getLogger("fm_storage.catalog")

BACKSTOP = 2.0
_PAUSE = 0.1
OVERLAP = timedelta(seconds=30)
_REPLAYING = timedelta(minutes=10)
_CHUNK = 500

# An error is committed some time after it happened, so each look goes back a
# while and what was shown already is left out. Only ids are read for that.
_NEWER = Sql(
    f"""SELECT error_id, {CLAMPED.format("timestamp")}
FROM fm_storage.error_fingerprints
WHERE timestamp >= $1 AND severity >= $2
  AND ($3::text IS NULL OR fingerprint IN (
    SELECT fingerprint FROM fm_storage.fingerprints WHERE module = $3))
ORDER BY timestamp, error_id"""
)
_ENTRIES = Sql(
    f"SELECT {ENTRY_COLUMNS} FROM project_errors AS e "
    "WHERE e.id = ANY($1::uuid[]) ORDER BY e.timestamp, e.id"
)


@asynccontextmanager
async def tail_errors(
    pool: Pool, *, module: str | None, severity: Severity | None
) -> AsyncIterator[AsyncIterator[ErrorEntry]]:
    """Yield an endless iterator over new errors; see ``ErrorManager.tail()``."""
    async with AsyncExitStack() as stack:
        waiter = await open_waiter(pool, stack)
        follower = _Follower(pool, waiter, module, RANKS[severity] if severity else 0)
        entries = follower.entries()
        stack.push_async_callback(entries.aclose)
        yield entries


class Waiter:
    """Waits for a notification, or for a moment; knows whether any were missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.missed = False

    def set(self, *, missed: bool = False) -> None:
        """End the wait; *missed*: others may have come before."""
        self.missed |= missed
        self._event.set()

    async def wait(self) -> None:
        """Wait until it is set, for a bounded time."""
        # Not wait_for(): before Python 3.12 it swallows a cancellation that comes
        # together with the event.
        try:
            async with asyncio.timeout(BACKSTOP):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()
        # Notifications come in flocks: one look answers several.
        await asyncio.sleep(_PAUSE)


async def open_waiter(pool: Pool, stack: AsyncExitStack) -> Waiter:
    """Return what is set by every notification, until *stack* ends."""
    waiter = Waiter()
    try:
        subscription = await stack.enter_async_context(pool.listen(CHANNEL))
    except ConfigurationInvalid:
        return waiter  # a pooler is in the way: look now and then

    async def relay() -> None:
        async for heard in subscription:
            waiter.set(missed=heard.missed)

    task = asyncio.create_task(relay(), name="fm_storage tail")

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
    return waiter


class _Follower:
    """Looks again and again, and shows what it has not shown.

    While the server is away, what happens lies in the spools of those whom it
    happens to, and is replayed minutes later with the time at which it happened:
    so for a while after an outage each look goes back to before its beginning.
    """

    def __init__(
        self, pool: Pool, waiter: Waiter, module: str | None, least: int
    ) -> None:
        self._pool = pool
        self._waiter = waiter
        self._module = module
        self._least = least
        self._start = self._looked = datetime.now(UTC)
        self._shown: dict[UUID, datetime] = {}
        self._away: tuple[datetime, datetime] | None = None  # since, noticed last

    async def entries(self) -> AsyncGenerator[ErrorEntry]:
        """Yield new errors for ever; a server that is away is waited for.

        Raises:
            StorageError: One that is not retryable.
        """
        while True:
            new = await self._patiently(self._look)
            for at in range(0, len(new), _CHUNK):
                ids = new[at : at + _CHUNK]
                fetch = partial(self._pool.fetch, _ENTRIES, ids)
                for row in await self._patiently(fetch):
                    yield entry_of(row)
            await self._waiter.wait()

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer; *ask* must be harmless to repeat."""
        while True:
            try:
                return await ask()
            except StorageError as exc:
                if not exc.retryable:
                    raise
                logger.info("following waits: %s", exc)
                self._note_away()
                await asyncio.sleep(_PAUSE)

    async def _look(self) -> list[UUID]:
        if self._waiter.missed:
            self._note_away()
            self._waiter.missed = False
        begin = datetime.now(UTC)
        since = max(self._start, self._horizon(begin))
        await group_ungrouped(self._pool)
        rows = await self._pool.fetch(_NEWER, since, self._least, self._module)
        self._looked = begin
        self._shown = {k: at for k, at in self._shown.items() if at >= since}
        new = [row for row in rows if row[0] not in self._shown]
        self._shown.update((row[0], row[1]) for row in new)
        return [row[0] for row in new]

    def _note_away(self) -> None:
        since = self._looked if self._away is None else self._away[0]
        self._away = (since, datetime.now(UTC))

    def _horizon(self, now: datetime) -> datetime:
        """Return how far a look goes back."""
        reach = self._looked
        if self._away is not None:
            if now - self._away[1] > _REPLAYING:
                self._away = None
            else:
                reach = min(reach, self._away[0])
        return reach - OVERLAP
