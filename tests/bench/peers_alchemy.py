"""advanced-alchemy doing what a repository does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from advanced_alchemy.repository import SQLAlchemyAsyncRepository

from fm_storage.repositories import ErrorEntry
from tests.bench.peers_sqlalchemy import NEWEST, Mapped_, Orm, engine_for, mapped

__all__ = ["opened"]


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
async def opened(dsn: str) -> AsyncIterator[AdvancedAlchemy]:
    """Give its repositories, on an engine like that of the ORM alone."""
    async with engine_for(dsn) as engine:
        yield AdvancedAlchemy(engine)
