"""psycopg 3 doing what a repository does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads

from fm_storage.repositories import ErrorEntry
from tests.bench.peers import NAMES

__all__ = ["opened"]


class Psycopg:
    """psycopg 3, one held connection, rows made dataclasses."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        return await self._connection.execute(
            f"INSERT INTO project_errors ({NAMES}) VALUES (%s,%s,%s,%s,%s,%s,%s,%s)",
            (
                one.message,
                one.module,
                one.error_code,
                one.severity.value,
                one.stack_trace,
                Jsonb(one.manager_context),
                one.timestamp,
                one.id,
            ),
        )

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        async with self._connection.cursor(
            binary=True, row_factory=class_row(ErrorEntry)
        ) as cursor:
            await cursor.execute(
                f"SELECT {NAMES} FROM project_errors WHERE id = %s",
                (key,),
            )
            return await cursor.fetchone()

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        async with self._connection.cursor(
            binary=True, row_factory=class_row(ErrorEntry)
        ) as cursor:
            await cursor.execute(
                f"SELECT {NAMES} FROM project_errors "
                "ORDER BY timestamp DESC, id DESC LIMIT 1000"
            )
            return await cursor.fetchall()


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Psycopg]:
    """Give one held connection, whose statements are prepared at first sight."""
    set_json_dumps(orjson.dumps)
    set_json_loads(orjson.loads)
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, prepare_threshold=0
    ) as connection:
        yield Psycopg(connection)
