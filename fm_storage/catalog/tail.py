"""Following new errors: woken by LISTEN, read from the table.

Apart because a notification says only *look*: it carries no error, may be lost
with its connection, and does not pass a transaction pooler. What is shown is
always what the table holds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from fm_storage.catalog.prepared import RANKS
from fm_storage.catalog.store import ENTRY_COLUMNS, entry_of
from fm_storage.errors import ConfigurationInvalid
from fm_storage.postgres import Sql
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

__all__ = ["CHANNEL", "tail_errors"]

CHANNEL = "fm_storage_errors"
"""Notified, at most a few times a second and process, after errors were committed."""

_BACKSTOP = 2.0
_OVERLAP = timedelta(seconds=30)
_REMEMBERED = 20_000
_MOST = 5000

# An error is committed some time after it happened, so each look goes back a
# while and what was shown already is left out.
_NEWER = Sql(
    f"""SELECT {ENTRY_COLUMNS}
FROM fm_storage.error_fingerprints AS f
JOIN project_errors AS e ON e.id = f.error_id
WHERE f.timestamp >= $1 AND f.severity >= $2 AND ($3::text IS NULL OR e.module = $3)
ORDER BY f.timestamp DESC LIMIT {_MOST}"""  # noqa: S608 - constant text
)


@asynccontextmanager
async def tail_errors(
    pool: Pool, *, module: str | None, severity: Severity | None
) -> AsyncIterator[AsyncIterator[ErrorEntry]]:
    """Yield an endless iterator over new errors; see ``ErrorManager.tail()``."""
    async with AsyncExitStack() as stack:
        wait = await _waiter(pool, stack)
        entries = _follow(pool, wait, module, RANKS[severity] if severity else 0)
        stack.push_async_callback(entries.aclose)  # type: ignore[attr-defined]  # a generator
        yield entries


class _Waiter:
    """Waits for a notification, or for a moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), _BACKSTOP)
        except TimeoutError:
            return
        self._event.clear()


async def _waiter(pool: Pool, stack: AsyncExitStack) -> _Waiter:
    waiter = _Waiter()
    try:
        subscription = await stack.enter_async_context(pool.listen(CHANNEL))
    except ConfigurationInvalid:
        return waiter  # a pooler is in the way: look now and then

    async def relay() -> None:
        async for _ in subscription:
            waiter.set()

    task = asyncio.create_task(relay(), name="fm_storage tail")

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
    return waiter


async def _follow(
    pool: Pool, waiter: _Waiter, module: str | None, least: int
) -> AsyncIterator[ErrorEntry]:
    start = datetime.now(UTC)
    latest = start
    shown: OrderedDict[UUID, None] = OrderedDict()
    while True:
        since = max(start, latest - _OVERLAP)
        rows = await pool.fetch(_NEWER, since, least, module)
        for row in reversed(rows):
            entry = entry_of(row)
            if entry.id in shown:
                continue
            shown[entry.id] = None
            latest = max(latest, entry.timestamp)
            yield entry
        while len(shown) > _REMEMBERED:
            shown.popitem(last=False)
        await waiter.wait()
