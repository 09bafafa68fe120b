"""The entity of the error catalogue, and the queries that its users run most.

It is the one model that the package itself owns; its table is made by the first
migration and its indexes by the fifth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fm_storage.postgres import Pool
from fm_storage.postgres.executor import Executor
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.identifiers import uuid7
from fm_storage.repositories.model.declaration import Column
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.query.filters import (
    Filter,
    Parameters,
    where,
    where_sql,
)
from fm_storage.repositories.query.ordering import Order
from fm_storage.repositories.repository import Repository
from fm_storage.repositories.severity import Severity


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class ErrorEntry:
    """One recorded error, a row of ``project_errors``.

    Attributes:
        message: What the error says.
        module: Part of the application that failed, at most 255 characters.
        error_code: Stable code of the kind of error, at most 100 characters.
        severity: How bad it is.
        stack_trace: Traceback as text.
        manager_context: JSON object with whatever helps to understand the error.
        timestamp: When it happened; aware.
        id: Identity, time-ordered unless the caller chooses it.
    """

    message: str
    module: Annotated[str, Column(max_length=255)]
    error_code: Annotated[str, Column(max_length=100)]
    severity: Annotated[Severity, Column(max_length=50)] = Severity.ERROR
    stack_trace: str | None = None
    manager_context: dict[str, Any] | None = None
    timestamp: datetime = field(default_factory=_now)
    id: UUID = field(default_factory=uuid7)


_ENTITY = Entity(ErrorEntry, table="project_errors")


class ErrorEntryRepository(Repository[ErrorEntry]):
    """The recorded errors, newest first wherever an order is not chosen."""

    def __init__(self, executor: Executor, *, reads: Pool | None = None) -> None:
        super().__init__(executor, _ENTITY, reads=reads)

    async def get_recent_errors(
        self,
        limit: int = 50,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ErrorEntry]:
        """Return the newest errors, of a time range if one is given.

        Args:
            limit: Maximum number of entries.
            since: First moment that counts; aware.
            until: First moment that no longer counts; aware.

        Raises:
            InvalidRecord: A moment has no time zone.
        """
        return await self._newest((), limit, since, until)

    async def find_by_module(
        self,
        module: str,
        *,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ErrorEntry]:
        """Return the newest errors of one module. See ``get_recent_errors()``."""
        return await self._newest((where("module") == module,), limit, since, until)

    async def find_by_code(
        self,
        error_code: str,
        *,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ErrorEntry]:
        """Return the newest errors with one code. See ``get_recent_errors()``."""
        return await self._newest(
            (where("error_code") == error_code,), limit, since, until
        )

    async def find_by_severity(
        self,
        severity: Severity | str,
        *,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ErrorEntry]:
        """Return the newest errors of one severity. See ``get_recent_errors()``."""
        return await self._newest((where("severity") == severity,), limit, since, until)

    async def _newest(
        self,
        filters: tuple[Filter, ...],
        limit: int,
        since: datetime | None,
        until: datetime | None,
    ) -> list[ErrorEntry]:
        return await self.find_many(
            *filters, *_range(since, until), order_by=_NEWEST, limit=limit
        )

    async def count_by_module(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, int]:
        """Return the number of errors of each module, the greatest first."""
        return await self._counts("module", since, until)

    async def count_by_code(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, int]:
        """Return the number of errors of each code, the greatest first."""
        return await self._counts("error_code", since, until)

    async def count_by_severity(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[Severity, int]:
        """Return the number of errors of each severity that occurs."""
        found = await self._counts("severity", since, until)
        return {level: found[level] for level in Severity if level in found}

    async def count_by_hour(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[datetime, int]:
        """Return the number of errors in each hour (UTC) that has some, in order."""
        parameters = Parameters()
        condition = where_sql(_ENTITY, _range(since, until), parameters)
        rows = await self.executor.fetch(
            Sql(
                "SELECT date_trunc('hour', timestamp, 'UTC') AS hour, count(*) "
                f"FROM {_ENTITY.quoted}{condition} GROUP BY 1 ORDER BY 1"
            ),
            *parameters.values,
        )
        return {row[0]: row[1] for row in rows}

    async def _counts(
        self, field_name: str, since: datetime | None, until: datetime | None
    ) -> dict[Any, int]:
        parameters = Parameters()
        condition = where_sql(_ENTITY, _range(since, until), parameters)
        name = _ENTITY.field(field_name).quoted
        rows = await self.executor.fetch(
            Sql(
                f"SELECT {name}, count(*) FROM {_ENTITY.quoted}{condition} "
                "GROUP BY 1 ORDER BY 2 DESC, 1"
            ),
            *parameters.values,
        )
        return {row[0]: row[1] for row in rows}


_NEWEST = (Order("timestamp", descending=True), Order("id", descending=True))


def _range(since: datetime | None, until: datetime | None) -> tuple[Filter, ...]:
    """Return the filters of a half-open time range."""
    found: list[Filter] = []
    if since is not None:
        found.append(where("timestamp") >= since)
    if until is not None:
        found.append(where("timestamp") < until)
    return tuple(found)
