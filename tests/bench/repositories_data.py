"""The table of the repositories' measurements, its rows, and who works on it.

All that is measured uses the same.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from fm_storage.config import PostgresConfig
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.repositories import ErrorEntry, ErrorEntryRepository, Severity

__all__ = ["COLUMNS", "NAMES", "Bench", "entry", "json_row", "opened", "row"]

COLUMNS = (
    "message",
    "module",
    "error_code",
    "severity",
    "stack_trace",
    "manager_context",
    "timestamp",
    "id",
)
NAMES = ", ".join(COLUMNS)
TABLE = """
CREATE TABLE project_errors (
    id UUID PRIMARY KEY, timestamp TIMESTAMPTZ NOT NULL, message TEXT NOT NULL,
    stack_trace TEXT, module VARCHAR(255) NOT NULL, error_code VARCHAR(100) NOT NULL,
    manager_context JSONB, severity VARCHAR(50) NOT NULL
);
CREATE INDEX ON project_errors (timestamp, id);
"""
TRACE = "".join(
    f'  File "/srv/app/module_{n}.py", line {n * 7}, in handle\n    return call(n)\n'
    for n in range(8)
)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def entry(number: int) -> ErrorEntry:
    """Return an entry of about 0.9 kB."""
    return ErrorEntry(
        f"request {number} failed: connection refused by upstream",
        f"module_{number % 50}",
        f"E{number % 200}",
        severity=Severity.ERROR,
        stack_trace=TRACE,
        manager_context={
            "request": number,
            "user": "ann",
            "ratio": 0.25,
            "retry": True,
            "tags": ["a", "b"],
            "host": "app-7",
        },
        timestamp=NOON + timedelta(seconds=number),
    )


def row(one: ErrorEntry) -> tuple[Any, ...]:
    """Return an entry's values, as one writes it by hand."""
    return (
        one.message,
        one.module,
        one.error_code,
        one.severity,
        one.stack_trace,
        one.manager_context,
        one.timestamp,
        one.id,
    )


def json_row(one: ErrorEntry) -> tuple[Any, ...]:
    """Return an entry's values with its JSON as text, which COPY wants."""
    values = list(row(one))
    values[5] = orjson.dumps(one.manager_context).decode()
    return tuple(values)


@dataclass
class Bench:
    """The connections of all peers, and the rows they work on."""

    dsn: str
    raw: asyncpg.Connection[Any]
    pool: Pool
    held: ErrorEntryRepository
    loose: ErrorEntryRepository
    options: argparse.Namespace
    entries: list[ErrorEntry] = field(default_factory=list)
    fresh: Any = field(default_factory=lambda: itertools.count(10_000_000))
    todo: list[Any] = field(default_factory=list)

    def ids(self) -> Callable[[], UUID]:
        """Return a function that gives stored ids in turn."""
        turn = itertools.cycle([one.id for one in self.entries])
        return lambda: next(turn)

    async def prepare(self, count: int) -> None:
        """Make the entries that the next block writes."""
        self.todo[:] = [entry(next(self.fresh)) for _ in range(count)]

    async def fill(self, count: int) -> None:
        """Put *count* rows into the table, and nothing else."""
        await self.raw.execute("TRUNCATE project_errors")
        self.entries = []
        for start in range(0, count, 50_000):
            part = [entry(n) for n in range(start, min(start + 50_000, count))]
            await self.loose.create_many(part)
            self.entries += part[:2000]
        await self.raw.execute("VACUUM ANALYZE project_errors")

    def scaled(self, count: int) -> int:
        """Return *count*, made smaller by ``--scale``."""
        return max(100, int(count * self.options.scale))


@asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncIterator[Bench]:
    """Give a bench on the server that *options* name, or on one of its own."""
    async with AsyncExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            folder = Path(tempfile.mkdtemp(prefix="fm-bench-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            dsn = await stack.enter_async_context(EmbeddedPostgres(folder))
        admin = await asyncpg.connect(dsn)
        await admin.execute("DROP DATABASE IF EXISTS fm_bench WITH (FORCE)")
        await admin.execute("CREATE DATABASE fm_bench")
        await admin.execute("ALTER DATABASE fm_bench SET synchronous_commit = off")
        await admin.close()
        dsn = with_database(dsn, "fm_bench")
        raw = await asyncpg.connect(dsn)
        stack.push_async_callback(raw.close)
        await raw.execute(TABLE)
        await raw.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=orjson.loads,
        )
        pool = await stack.enter_async_context(Pool(PostgresConfig(dsn=dsn)))
        connection = await stack.enter_async_context(pool.acquire())
        yield Bench(
            dsn,
            raw,
            pool,
            ErrorEntryRepository(connection),
            ErrorEntryRepository(pool),
            options,
        )


def with_database(dsn: str, name: str) -> str:
    """Return *dsn* on another database."""
    head, _, query = dsn.partition("?")
    head = head.rsplit("/", 1)[0]
    return f"{head}/{name}" + (f"?{query}" if query else "")
