"""What a pool does to its connections between two borrowers, off everyone's path.

Roll back, reset, close: each is bounded, and a connection that does not answer in
time is terminated and its slot freed. Now and then the pool closes connections that
are old or unused, refills ``min_size`` and reports leaks.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.concurrency.shield import wait_done
from fm_storage.postgres.connect.internals import (
    forget_session,
    forget_statements,
    prepared_count,
    wait_for_cancellation,
)
from fm_storage.postgres.connection import driver
from fm_storage.postgres.connection.classifier import (
    PREPARED_SQL,
    RESET_SQL,
    UserNames,
)
from fm_storage.postgres.pool.core import Verdict
from fm_storage.postgres.pool.timeouts import Ticker

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import asyncpg

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connect.connector import Connector
    from fm_storage.postgres.connection.entry import PoolEntry
    from fm_storage.postgres.pool.core import PoolCore

_GOODBYE = 1.0
_SHORTEST, _LONGEST = 0.02, 15.0


class Maintenance:
    """Carries out what the core decided."""

    def __init__(
        self, core: PoolCore, connector: Connector, config: PostgresConfig
    ) -> None:
        self._core = core
        self._connector = connector
        self._limit = config.check_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        bounds = (config.max_idle, config.max_lifetime, config.leak_after or _LONGEST)
        self.ticker = Ticker(min(_LONGEST, max(_SHORTEST, min(bounds) / 4)), core.sweep)

    def act(self, entry: PoolEntry, verdict: Verdict) -> None:
        """Reset or close *entry* in a task."""
        work = self._reset if verdict is Verdict.RESET else self._close
        self.spawn(work(entry))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* in a task that ``cancel()`` waits for."""
        loop = self._core.home or asyncio.get_running_loop()
        task = loop.create_task(work, name=f"fm_storage {self._core.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self, limit: float) -> None:
        """Cancel all tasks, and wait for them for *limit* seconds."""
        last = monotonic() + limit
        while self._tasks and (left := last - monotonic()) > 0:
            for task in self._tasks:  # one that ends may have begun another
                task.cancel()
            await asyncio.wait(self._tasks, timeout=left)

    async def _reset(self, entry: PoolEntry) -> None:
        """Make *entry* as good as new and give it back, or drop it."""
        try:
            await self._clean(entry)
        except asyncio.CancelledError:
            self._drop(entry)
            raise
        except Exception:  # what could not be reset is not used again
            self._drop(entry)
            return
        self._core.give_reset(entry)

    async def _clean(self, entry: PoolEntry) -> None:
        raw, limit = entry.raw, self._limit
        if entry.settling is not None:
            await wait_done(entry.settling)
            entry.settling = None
        await wait_for_cancellation(raw, limit)
        words = []
        if raw.is_in_transaction():
            words.append("ROLLBACK")
        # Behind a transaction pooler the reset would hit somebody else's session.
        if entry.dirty and not self._connector.transaction_pooler:
            words.append(RESET_SQL)
            self._core.counters.resets += 1
        if entry.unsynced and not words:
            words.append("SELECT 1")
        forget_session(raw)
        for sql in words:
            await raw.execute(sql, timeout=limit)
        if RESET_SQL in words:
            await self._deallocate(raw)
            async with asyncio.timeout(limit):
                await self._connector.prepare(raw)
        entry.dirty = entry.unsynced = False
        if entry.refused_write:
            entry.refused_write = False
            if await raw.fetchval("SELECT pg_is_in_recovery()", timeout=limit):
                self._core.renew("the server accepts no more writes")

    async def _deallocate(self, raw: asyncpg.Connection[Any]) -> None:
        """Remove what PREPARE made; look again at what a borrower has defined."""
        found = await driver.fetchrow(raw, PREPARED_SQL, timeout=self._limit)
        assert found is not None
        if found[0]:
            await raw.execute(found[0], timeout=self._limit)
        if found[1] < prepared_count(raw):  # after DEALLOCATE ALL, DISCARD ALL
            forget_statements(raw)
        classifier = self._core.classifier
        if classifier.stale:
            classifier.learn(await UserNames.read(raw, self._limit))

    async def _close(self, entry: PoolEntry) -> None:
        """Close gracefully (1 s), then terminate; always release the slot."""
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_GOODBYE):
                    await entry.raw.close()
        finally:
            self._drop(entry)

    def _drop(self, entry: PoolEntry) -> None:
        """Terminate *entry* and free its slot, once."""
        entry.raw.terminate()
        if entry in self._core.resetting:
            self._core.forget(entry)
