"""sqlspec doing what a repository does: SQL by hand, rows made dataclasses."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
from sqlspec import SQLSpec
from sqlspec.adapters.asyncpg import AsyncpgConfig, AsyncpgDriver

from fm_storage.repositories import ErrorEntry
from tests.bench.peers import NAMES

__all__ = ["opened"]

_INSERT = (
    f"INSERT INTO project_errors ({NAMES}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
)
_GET = f"SELECT {NAMES} FROM project_errors WHERE id = $1"
_RECENT = (
    f"SELECT {NAMES} FROM project_errors ORDER BY timestamp DESC, id DESC LIMIT 1000"
)


class Sqlspec:
    """One held session, which outside a transaction commits each statement."""

    def __init__(self, driver: AsyncpgDriver) -> None:
        self._driver = driver

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        return await self._driver.execute(
            _INSERT,
            one.message,
            one.module,
            one.error_code,
            one.severity.value,
            one.stack_trace,
            one.manager_context,
            one.timestamp,
            one.id,
        )

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        return await self._driver.select_one(_GET, key, schema_type=ErrorEntry)

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        return await self._driver.select(_RECENT, schema_type=ErrorEntry)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Sqlspec]:
    """Give a session on a pool of one."""
    config = AsyncpgConfig(
        connection_config={"dsn": dsn, "min_size": 1, "max_size": 1},
        driver_features={
            "json_serializer": lambda value: orjson.dumps(value).decode(),
            "json_deserializer": orjson.loads,
        },
    )
    library = SQLSpec()
    library.add_config(config)
    try:
        async with library.provide_session(config) as driver:
            yield Sqlspec(driver)
    finally:
        await library.close_all_pools()
