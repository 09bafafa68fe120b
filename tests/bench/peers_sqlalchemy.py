"""SQLAlchemy's ORM doing what a repository does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import DateTime, String, Text, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fm_storage.repositories import ErrorEntry
from tests.bench.peers import server_of

__all__ = ["NEWEST", "Mapped_", "Orm", "engine_for", "mapped", "opened"]


class Base(DeclarativeBase):
    """The mapped classes."""


class Mapped_(Base):  # noqa: N801 - beside Mapped
    """The table as SQLAlchemy maps it."""

    __tablename__ = "project_errors"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    message: Mapped[str] = mapped_column(Text)
    stack_trace: Mapped[str | None] = mapped_column(Text)
    module: Mapped[str] = mapped_column(String(255))
    error_code: Mapped[str] = mapped_column(String(100))
    manager_context: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    severity: Mapped[str] = mapped_column(String(50))


def mapped(one: ErrorEntry) -> Mapped_:
    """Return an entry as SQLAlchemy's object."""
    return Mapped_(
        id=one.id,
        timestamp=one.timestamp,
        message=one.message,
        stack_trace=one.stack_trace,
        module=one.module,
        error_code=one.error_code,
        manager_context=one.manager_context,
        severity=one.severity.value,
    )


NEWEST = select(Mapped_).order_by(Mapped_.timestamp.desc(), Mapped_.id.desc())


class Orm:
    """SQLAlchemy's ORM, a session per operation."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._session = async_sessionmaker(engine, expire_on_commit=False)

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        async with self._session.begin() as session:
            session.add(mapped(one))
        return None

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        async with self._session() as session:
            return await session.get(Mapped_, key)

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        async with self._session() as session:
            return (await session.scalars(NEWEST.limit(1000))).all()


@asynccontextmanager
async def engine_for(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Give an engine with a pool of one; a session takes and returns it each time."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args=server_of(dsn),
        pool_size=1,
        max_overflow=0,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
    )
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Orm]:
    """Give the ORM."""
    async with engine_for(dsn) as engine:
        yield Orm(engine)
