"""The verbs of one borrowed connection, shared by Connection and Transaction.

Apart because both run statements on the same link under the same rules: one
task at a time, nothing after release, driver errors translated.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from fm_storage.errors import ConnectionBusy, ConnectionReleased
from fm_storage.postgres import copying
from fm_storage.postgres.errors import translate
from fm_storage.postgres.reset import is_lean
from fm_storage.postgres.sql import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

    import asyncpg
    from asyncpg import Record

    from fm_storage.postgres.link import Link

__all__ = ["Verbs"]


class Verbs:
    """Statements on one link. See ``Executor`` for what each verb promises."""

    _what = "connection"

    def __init__(
        self, link: Link, *, owner: str, command_timeout: float | None
    ) -> None:
        self._link: Link | None = link
        self._owner = owner
        self._command_timeout = command_timeout

    def _enter(self, sql: str) -> asyncpg.Connection[Any]:
        """Claim the link for the running task; ``_leave()`` gives it back."""
        link = self._link
        if link is None:
            raise self._gone()
        if link.task is not None:
            raise ConnectionBusy(
                f"{self._owner}: {self._what} is running a statement of task "
                f"{link.task.get_name()!r} while "
                f"{_task_name()!r} wants to run another; acquire one connection "
                "per task"
            )
        if not link.dirty and not is_lean(sql):
            link.dirty = True
        link.task = asyncio.current_task()
        return link.raw

    def _leave(self) -> None:
        if self._link is not None:
            self._link.task = None

    def _gone(self) -> Exception:
        return ConnectionReleased(
            f"{self._owner}: this {self._what} was already given back; use it "
            "inside its 'async with' block"
        )

    def _deadline(self, timeout: float | None) -> float | None:
        if timeout is None:
            return self._command_timeout
        return None if timeout == math.inf else timeout

    async def fetch(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> list[Record]:
        """Run a statement and return all its rows."""
        raw = self._enter(sql)
        try:
            return await raw.fetch(plain(sql), *args, timeout=self._deadline(timeout))
        except Exception as exc:
            raise self._failed(exc, args) from exc
        finally:
            self._leave()

    async def fetchrow(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> Record | None:
        """Run a statement and return its first row, or None."""
        raw = self._enter(sql)
        try:
            return await raw.fetchrow(
                plain(sql), *args, timeout=self._deadline(timeout)
            )
        except Exception as exc:
            raise self._failed(exc, args) from exc
        finally:
            self._leave()

    async def fetchval(
        self, sql: str, /, *args: Any, column: int = 0, timeout: float | None = None
    ) -> Any:  # noqa: ANN401 - whatever the column holds
        """Run a statement and return one value of its first row, or None."""
        raw = self._enter(sql)
        try:
            return await raw.fetchval(
                plain(sql), *args, column=column, timeout=self._deadline(timeout)
            )
        except Exception as exc:
            raise self._failed(exc, args) from exc
        finally:
            self._leave()

    async def execute(
        self, sql: str, /, *args: Any, timeout: float | None = None
    ) -> str:
        """Run a statement, or without parameters several, and return the tag."""
        raw = self._enter(sql)
        try:
            return await raw.execute(plain(sql), *args, timeout=self._deadline(timeout))
        except Exception as exc:
            raise self._failed(exc, args) from exc
        finally:
            self._leave()

    async def executemany(
        self,
        sql: str,
        /,
        rows: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
    ) -> None:
        """Run a statement once for each row of parameters, all or none."""
        raw = self._enter(sql)
        try:
            await raw.executemany(plain(sql), rows, timeout=self._deadline(timeout))
        except Exception as exc:
            raise self._failed(exc, ()) from exc
        finally:
            self._leave()

    async def copy_records(
        self,
        table: str,
        /,
        *,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        schema: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write rows by COPY, all or none, and return how many.

        Without a timeout of its own a COPY may take as long as it needs.
        """
        raw = self._enter(copying.COPY)
        try:
            return await copying.copy_records(
                raw,
                table,
                schema=schema,
                columns=columns,
                records=records,
                timeout=None if timeout is None else self._deadline(timeout),
            )
        except Exception as exc:
            raise self._failed(exc, ()) from exc
        finally:
            self._leave()

    @asynccontextmanager
    async def stream(
        self, sql: str, /, *args: Any, prefetch: int = 1000
    ) -> AsyncIterator[AsyncIterator[Record]]:
        """Open a server cursor and yield an iterator over its rows.

        The cursor lives in a transaction, opened if there is none. Leaving the
        block early, for any reason, leaves nothing open.
        """
        link = self._link
        if link is None:
            raise self._gone()
        if link.raw.is_in_transaction():
            async with self._rows(sql, args, prefetch) as rows:
                yield rows
            return
        await self.execute(copying.BEGIN_READ)
        try:
            async with self._rows(sql, args, prefetch) as rows:
                yield rows
        finally:
            if not link.raw.is_closed():
                await asyncio.shield(self.execute(copying.ROLLBACK))

    @asynccontextmanager
    async def _rows(
        self, sql: str, args: tuple[Any, ...], prefetch: int
    ) -> AsyncIterator[AsyncIterator[Record]]:
        self._enter(sql)
        self._leave()
        rows = self._iterate(sql, args, prefetch)
        try:
            yield rows
        finally:
            await rows.aclose()  # type: ignore[attr-defined]  # an async generator

    async def _iterate(
        self, sql: str, args: tuple[Any, ...], prefetch: int
    ) -> AsyncIterator[Record]:
        raw = cast("asyncpg.Connection[Any]", self._link and self._link.raw)
        try:
            async for row in raw.cursor(plain(sql), *args, prefetch=prefetch):
                yield row
        except Exception as exc:
            raise self._failed(exc, args) from exc

    def _failed(self, exc: Exception, args: Sequence[Any]) -> BaseException:
        return translate(exc, args, owner=self._owner)


def _task_name() -> str:
    task = asyncio.current_task()
    return task.get_name() if task else "?"
