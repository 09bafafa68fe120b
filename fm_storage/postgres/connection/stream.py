"""Rows from a server cursor, a thousand at a time.

Apart because a cursor needs an end as surely as a beginning: the portal is
closed, and a transaction opened for it is rolled back, on every way out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConfigurationInvalid
from fm_storage.postgres.sql import Sql, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from asyncpg import Record

    from fm_storage.postgres.connection.statements import Verbs

__all__ = ["Stream"]

_BEGIN = Sql("BEGIN READ ONLY")
_ROLLBACK = Sql("ROLLBACK")
_GOODBYE = 0.4


class Stream:
    """Async context manager that gives an iterator over a statement's rows."""

    def __init__(
        self, verbs: Verbs, sql: str, args: tuple[Any, ...], prefetch: int
    ) -> None:
        if prefetch < 1:
            raise ConfigurationInvalid(
                "prefetch", f"{prefetch} is below 1; ask for some rows at a time"
            )
        self._verbs = verbs
        self._sql = sql
        self._args = args
        self._prefetch = prefetch
        self._own_transaction = False
        self._cursor: Any = None

    async def __aenter__(self) -> AsyncIterator[Record]:
        link = self._verbs._link  # noqa: SLF001 - same room
        if link is None:
            raise self._verbs._gone()  # noqa: SLF001 - same room
        if not link.raw.is_in_transaction():
            await self._verbs.execute(_BEGIN)
            self._own_transaction = True
        try:
            self._cursor = await self._verbs._run(  # noqa: SLF001 - same room
                _open_cursor, self._sql, self._args, float("inf")
            )
        except BaseException:  # end its transaction, then pass it on
            await self._close()
            raise
        return self._rows()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _rows(self) -> AsyncIterator[Record]:
        while True:
            cursor = self._cursor
            if cursor is None:
                raise self._verbs._gone()  # noqa: SLF001 - same room
            rows = await self._verbs._run(  # noqa: SLF001 - same room
                _fetch_more, Sql("FETCH"), (cursor, self._prefetch), float("inf")
            )
            for row in rows:
                yield row
            if len(rows) < self._prefetch:
                return

    async def _close(self) -> None:
        """End what was begun; if that fails, never lend the connection again."""
        link = self._verbs._link  # noqa: SLF001 - same room
        cursor, self._cursor = self._cursor, None
        if link is None or link.raw.is_closed():
            return
        work = asyncio.ensure_future(self._end(cursor))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work}, timeout=_GOODBYE)
            if not work.done() or work.cancelled() or work.exception() is not None:
                link.doubtful = True
            raise
        except Exception:
            link.doubtful = True

    async def _end(self, cursor: Any) -> None:
        if self._own_transaction:
            await self._verbs.execute(_ROLLBACK, timeout=_GOODBYE)
        elif cursor is not None:
            await self._verbs._run(_close_cursor, Sql("CLOSE"), (cursor,), _GOODBYE)  # noqa: SLF001 - same room


async def _open_cursor(raw: Any, sql: str, *args: Any, timeout: float | None) -> Any:
    return await raw.cursor(plain(sql), *args, timeout=timeout)


async def _fetch_more(
    _raw: Any,
    _sql: str,
    cursor: Any,
    count: int,
    *,
    timeout: float | None,
) -> list[Record]:
    rows: list[Record] = await cursor.fetch(count, timeout=timeout)
    return rows


async def _close_cursor(
    raw: Any,
    _sql: str,
    cursor: Any,
    *,
    timeout: float | None,
) -> None:
    if raw.is_in_transaction() and cursor._portal_name:  # noqa: SLF001 - closing is not offered
        await cursor._close_portal(timeout)  # noqa: SLF001 - as above
