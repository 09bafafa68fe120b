"""Tortoise doing what a repository does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
from tortoise import Tortoise, fields
from tortoise.models import Model

from fm_storage.repositories import ErrorEntry
from tests.bench.peers import server_of

__all__ = ["opened"]


class Row(Model):
    """The table as Tortoise maps it."""

    id = fields.UUIDField(primary_key=True)
    timestamp = fields.DatetimeField()
    message = fields.TextField()
    stack_trace = fields.TextField(null=True)
    module = fields.CharField(255)
    error_code = fields.CharField(100)
    manager_context = fields.JSONField[dict[str, object] | None](
        encoder=lambda value: orjson.dumps(value).decode(),
        decoder=orjson.loads,
        null=True,
    )
    severity = fields.CharField(50)

    class Meta:
        """Where it is."""

        table = "project_errors"


class TortoiseOrm:
    """Its models, as its documentation shows."""

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        return await Row.create(
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
        return await Row.get(id=key)

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        return await Row.all().order_by("-timestamp", "-id").limit(1000)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[TortoiseOrm]:
    """Give the models on a pool of one.

    Tortoise holds a connection only as long as a transaction lasts, so a held one
    would commit nothing: each call takes it from the pool, as sessions do.
    """
    await Tortoise.init(
        config={
            "connections": {
                "default": {
                    "engine": "tortoise.backends.asyncpg",
                    "credentials": {**server_of(dsn), "minsize": 1, "maxsize": 1},
                }
            },
            "apps": {"models": {"models": [__name__]}},
            "use_tz": True,
            "timezone": "UTC",
        }
    )
    try:
        yield TortoiseOrm()
    finally:
        await Tortoise.close_connections()
