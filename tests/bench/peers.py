"""Other libraries doing what a repository does, as their documentation shows.

Apart because SQLAlchemy and advanced-alchemy are installed for measuring only.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import orjson
import psycopg
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from psycopg.rows import class_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from sqlalchemy import DateTime, String, Text, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fm_storage.repositories import ErrorEntry

__all__ = ["Library", "others"]

NAMES = (
    "message, module, error_code, severity, stack_trace, manager_context, timestamp, id"
)


class Library(Protocol):
    """What is measured of each."""

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        ...

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        ...

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        ...


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


class Psycopg:
    """psycopg 3, one held connection, rows made dataclasses."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        return await self._connection.execute(
            f"INSERT INTO project_errors ({NAMES}) "  # noqa: S608 - constants
            "VALUES (%s,%s,%s,%s,%s,%s,%s,%s)",
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
                f"SELECT {NAMES} FROM project_errors WHERE id = %s",  # noqa: S608 - constants
                (key,),
            )
            return await cursor.fetchone()

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        async with self._connection.cursor(
            binary=True, row_factory=class_row(ErrorEntry)
        ) as cursor:
            await cursor.execute(
                f"SELECT {NAMES} FROM project_errors "  # noqa: S608 - constants
                "ORDER BY timestamp DESC, id DESC LIMIT 1000"
            )
            return await cursor.fetchall()


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


class AlchemyRepository(SQLAlchemyAsyncRepository[Mapped_]):
    """The table as advanced-alchemy's repository."""

    model_type = Mapped_


class AdvancedAlchemy(Orm):
    """advanced-alchemy's repository, a session per operation."""

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        async with self._session() as session:
            repository = AlchemyRepository(session=session)
            return await repository.add(mapped(one), auto_commit=True)

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        async with self._session() as session:
            return await AlchemyRepository(session=session).get(key)

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        async with self._session() as session:
            newest: Any = NEWEST.limit(1000)
            return await AlchemyRepository(session=session, statement=newest).list()


@asynccontextmanager
async def others(dsn: str) -> AsyncIterator[Mapping[str, Library]]:
    """Give the other libraries, connected to *dsn*."""
    set_json_dumps(orjson.dumps)
    set_json_loads(orjson.loads)
    parts = urlsplit(dsn)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    async with AsyncExitStack() as stack:
        connection = await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, prepare_threshold=0
        )
        await stack.enter_async_context(connection)
        engine = create_async_engine(
            "postgresql+asyncpg://",
            connect_args={
                "user": parts.username,
                "password": parts.password,
                "host": query.get("host", parts.hostname),
                "port": int(query.get("port", parts.port or 5432)),
                "database": parts.path.removeprefix("/"),
            },
            pool_size=1,
            max_overflow=0,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
        )
        stack.push_async_callback(engine.dispose)
        yield {
            "psycopg 3": Psycopg(connection),
            "SQLAlchemy ORM": Orm(engine),
            "advanced-alchemy": AdvancedAlchemy(engine),
        }
