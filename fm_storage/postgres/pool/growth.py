"""How the pool gets new connections.

While connecting works, as many attempts run at once as there are callers waiting.
After a failure a single one runs, with pauses that grow with the outage (a twentieth
of it, 10 ms to 2 s, so that the end of a short outage is noticed at once); callers
wait inside their own deadlines, and nobody sees the failures in between.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.errors import StorageError
from fm_storage.postgres.connect.internals import mark_unchanged
from fm_storage.postgres.connection.classifier import UserNames
from fm_storage.postgres.connection.entry import PoolEntry
from fm_storage.postgres.errors import translate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import asyncpg

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connect.connector import Connector
    from fm_storage.postgres.pool.core import PoolCore

_SHORTEST_PAUSE, _LONGEST_PAUSE, _SHARE = 0.01, 2.0, 0.05
_SHORTEST_ATTEMPT = 1.0
_FIRST_PAUSE = 0.1
_SOON = frozenset({"57P03", "53300"})
"""Starting up, too many connections: worth waiting for at the very start."""


class Growth:
    """Makes connections for the core's queue and for ``min_size``."""

    def __init__(
        self,
        core: PoolCore,
        connector: Connector,
        config: PostgresConfig,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._core = core
        self._connector = connector
        self._config = config
        self._spawn = spawn
        self._usual = config.connect_timeout
        """Seconds of the last success; an attempt gets four times as long."""
        self._timeouts = 0

    def wake(self) -> None:
        """Start as many attempts as are needed, allowed and sensible."""
        core = self._core
        for _ in range(core.missing):
            if core.failing_for is not None and core.connecting:
                return
            core.reserve()
            self._spawn(self._grow())

    async def first(self) -> PoolEntry:
        """Make the first connection; a server that is just starting is waited for."""
        deadline = monotonic() + self._config.connect_timeout
        while True:
            started = monotonic()
            try:
                raw = await self._connect(max(0.001, deadline - started))
            except StorageError as error:
                if error.sqlstate not in _SOON or monotonic() > deadline:
                    raise
                await asyncio.sleep(_FIRST_PAUSE)
            else:
                return self._made(raw, started)

    async def _grow(self) -> None:
        """Make one connection; while that fails, keep trying for those who wait."""
        core = self._core
        entry: PoolEntry | None = None
        try:
            while True:
                started = monotonic()
                try:
                    raw = await self._connect(self._patience())
                except StorageError as error:
                    self._failed(error, started)
                    if not error.retryable:
                        core.refuse_waiters(error)
                        return
                else:
                    entry = self._made(raw, started)
                    break
                if core.connecting > 1 or not core.is_waiting:
                    return
                await asyncio.sleep(self._pause())
                if not core.is_waiting:
                    return
        finally:
            if entry is None:
                core.cancel_reservation()
        core.admit(entry)

    async def _connect(self, timeout: float) -> asyncpg.Connection[Any]:
        """Connect; the first of a generation asks what users have defined."""
        raw = await self._connector.connect(timeout=timeout)
        core = self._core
        generation = core.generation
        if core.named_generation == generation:
            return raw
        try:
            core.classifier.learn(await UserNames.read(raw, timeout))
        except BaseException as exc:  # nobody else knows of the connection yet
            raw.terminate()
            if isinstance(exc, Exception):
                raise translate(exc, owner=core.owner) from exc
            raise
        core.named_generation = generation
        return raw

    def _made(self, raw: asyncpg.Connection[Any], started: float) -> PoolEntry:
        """Wrap a new connection, and learn that the server is there."""
        core = self._core
        self._timeouts = 0
        self._usual = monotonic() - started
        core.note_success(self._usual)
        lifetime = self._config.max_lifetime * random.uniform(0.9, 1.0)
        entry = PoolEntry(
            raw,
            on_error=core.note,
            generation=core.generation,
            expires=monotonic() + lifetime,
        )
        raw.add_termination_listener(lambda _: core.on_end(entry))
        mark_unchanged(raw)
        return entry

    def _failed(self, error: StorageError, started: float) -> None:
        if monotonic() - started >= _SHORTEST_ATTEMPT:
            self._timeouts += 1
        self._core.note_failure(error, started)

    def _pause(self) -> float:
        outage = self._core.failing_for or 0.0
        pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, _SHARE * outage))
        return pause * random.uniform(0.8, 1.0)

    def _patience(self) -> float:
        """Return how long one attempt may take.

        A black hole swallows an attempt without a word, and one started just
        before the network came back would wait out the full timeout. So an
        attempt gets a multiple of the usual time, doubled after each that was
        swallowed, up to ``connect_timeout``.
        """
        usual = max(_SHORTEST_ATTEMPT, 4 * self._usual)
        allowed = usual * float(2 ** min(self._timeouts, 10))
        return min(self._config.connect_timeout, allowed)
