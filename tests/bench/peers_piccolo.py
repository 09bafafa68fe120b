"""Piccolo doing what a repository does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from piccolo.columns import JSONB, UUID, Text, Timestamptz, Varchar
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

from fm_storage.repositories import ErrorEntry
from tests.bench.peers import server_of

__all__ = ["opened"]


class Row(Table, tablename="project_errors"):
    """The table as Piccolo maps it; it uses orjson where that is installed."""

    id = UUID(primary_key=True)
    timestamp = Timestamptz()
    message = Text()
    stack_trace = Text(null=True)
    module = Varchar(255)
    error_code = Varchar(100)
    manager_context = JSONB(null=True)
    severity = Varchar(50)


class Piccolo:
    """Its objects, as its documentation shows."""

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        return await Row.objects().create(
            id=one.id,
            timestamp=one.timestamp,
            message=one.message,
            stack_trace=one.stack_trace,
            module=one.module,
            error_code=one.error_code,
            manager_context=one.manager_context,
            severity=one.severity.value,
        )

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        return await Row.objects().get(Row.id == key).output(load_json=True)

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        return await (
            Row.objects()
            .order_by(Row.timestamp, Row.id, ascending=False)
            .limit(1000)
            .output(load_json=True)
        )


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Piccolo]:
    """Give the objects on a pool of one.

    Piccolo holds a connection only as long as a transaction lasts, so a held one
    would commit nothing: each call takes it from the pool, as sessions do.
    """
    engine = PostgresEngine(server_of(dsn))
    await engine.start_connection_pool(min_size=1, max_size=1)
    Row._meta.db = engine
    try:
        yield Piccolo()
    finally:
        await engine.close_connection_pool()
