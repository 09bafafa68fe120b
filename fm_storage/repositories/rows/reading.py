"""The reading half of a repository: by key, by filters, in pages, as a stream.

Apart from the writing half because none of it needs a transaction, a hook or a
vector. No statement here is preceded by BEGIN: one SELECT sees one snapshot.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fm_storage.errors import ConfigurationInvalid, InvalidRecord, RecordNotFound
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.query.filters import (
    Filter,
    Parameters,
    where_sql,
)
from fm_storage.repositories.query.ordering import OrderBy, order_sql, orders
from fm_storage.repositories.query.paging import (
    Page,
    decode_cursor,
    encode_cursor,
    keyset,
    page_order,
)
from fm_storage.repositories.query.statements import Statements, statements_of

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor, Record
    from fm_storage.repositories.model.entity import Entity

__all__ = ["Reads"]

M = TypeVar("M")

_BIGGEST = (1 << 63) - 1


class Reads(Generic[M]):
    """An entity's rows, read through one executor."""

    def __init__(
        self, executor: Executor, entity: Entity[M], statements: Statements
    ) -> None:
        self.executor = executor
        self.entity = entity
        self._sql = statements

    def with_deleted(self) -> Self:
        """Return this repository with the softly deleted rows among its records.

        Its reads and its ``update()`` see them; ``delete()`` and ``restore()`` do
        what they always do.

        Raises:
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        if self.entity.deleted is None:
            raise ConfigurationInvalid(
                "deleted",
                f"{self.entity.name} keeps no deleted rows; declare the repository "
                "with deleted=",
            )
        found = copy.copy(self)
        found._sql = statements_of(self.entity, every=True)  # noqa: SLF001 - a copy of this
        return found

    async def find_by_id(self, key: Any) -> M | None:
        """Return the record with *key*, or None.

        Args:
            key: The key's value, or a tuple of them for a key of several fields;
                text is accepted for a UUID or number.

        Raises:
            InvalidRecord: *key* cannot be a key of this table.
        """
        entity = self.entity
        row = await self.executor.fetchrow(self._sql.get, *entity.key_values(key))
        return None if row is None else entity.from_row(row)

    async def get_by_id(self, key: Any) -> M:
        """Return the record with *key*.

        Raises:
            RecordNotFound: There is none; ``find_by_id()`` returns None instead.
            InvalidRecord: *key* cannot be a key of this table.
        """
        entity = self.entity
        if isinstance(key, entity.plain_key):
            row = await self.executor.fetchrow(self._sql.get, key)
        else:
            row = await self.executor.fetchrow(self._sql.get, *entity.key_values(key))
        if row is None:
            raise RecordNotFound(entity.name, key)
        return entity.from_row(row)

    async def find_many(
        self,
        *filters: Filter,
        order_by: OrderBy | None = None,
        limit: int | None = None,
    ) -> list[M]:
        """Return the records that match every filter.

        Args:
            filters: Conditions made with ``where()``; none means all records.
            order_by: ``"-timestamp"``, ``("module", desc("total", nulls="last"))``;
                without one the order is the server's.
            limit: Greatest number of records. To go on after them use ``page()``.

        Raises:
            InvalidName: A field is not the model's.
            InvalidRecord: A value cannot be compared with its field.
        """
        sql, parameters = self._select(filters, order_by, limit)
        rows = await self.executor.fetch(sql, *parameters)
        return self.entity.from_rows(rows)

    async def page(
        self,
        *filters: Filter,
        order_by: OrderBy | None = None,
        size: int = 50,
        cursor: str | None = None,
        total: bool = False,
    ) -> Page[M]:
        """Return one page of the records that match, and where the next begins.

        A page begins after the last record of the one before, wherever that is
        by now: records written or deleted meanwhile make no record appear twice
        or go missing, and the thousandth page costs what the first did. The key
        is the last step of every order, so equal values do not matter.

        Args:
            filters: As in ``find_many()``; the same for every page.
            order_by: As in ``find_many()``; by key if not given.
            size: Greatest number of records on the page.
            cursor: ``next_cursor`` of the page before, None for the first page.
            total: Also count the records on all pages (a statement of its own).

        Raises:
            InvalidName: A field is not the model's, or cannot order pages.
            InvalidRecord: *cursor* was changed or belongs to another query.
        """
        entity = self.entity
        if size == 0:
            raise InvalidRecord(
                "page: size 0 holds nothing; give 1 or more", field="size"
            )
        steps = page_order(entity, orders(entity, order_by))
        parameters = Parameters()
        condition = self._where(filters, parameters)
        matched = list(parameters.values)
        place = ""
        if cursor is not None:
            values = decode_cursor(entity, steps, condition, cursor)
            after = keyset(entity, steps, values, parameters)
            place = f"{condition} AND {after}" if condition else f" WHERE {after}"
        limit = parameters.add(_limit(size) + 1)
        sql = Sql(
            f"SELECT {entity.select_list} FROM {entity.quoted}"
            f"{place or condition}{order_sql(entity, steps)} LIMIT {limit}"
        )
        items = entity.from_rows(await self.executor.fetch(sql, *parameters.values))
        following = None
        if len(items) > size:
            del items[size:]
            following = encode_cursor(entity, steps, condition, items[-1])
        number = await self._count(condition, matched) if total else None
        return Page(items, following, number)

    def stream(
        self,
        *filters: Filter,
        order_by: OrderBy | None = None,
        prefetch: int = 1000,
    ) -> AbstractAsyncContextManager[AsyncIterator[M]]:
        """Open a server cursor over the records that match.

        ``async with repository.stream() as records: async for record in records``.
        At most *prefetch* records are in memory; leaving the block at any point
        leaves nothing open.

        Args:
            filters: As in ``find_many()``.
            order_by: As in ``find_many()``.
            prefetch: Records fetched at a time.
        """
        sql, parameters = self._select(filters, order_by, None)
        return self._stream(sql, parameters, prefetch)

    @asynccontextmanager
    async def _stream(
        self, sql: Sql, parameters: Sequence[Any], prefetch: int
    ) -> AsyncIterator[AsyncIterator[M]]:
        opened = self.executor.stream(sql, *parameters, prefetch=prefetch)
        async with opened as rows, aclosing(self._records(rows)) as records:
            yield records

    async def _records(self, rows: AsyncIterator[Record]) -> AsyncGenerator[M, None]:
        from_row = self.entity.from_row
        async for row in rows:
            yield from_row(row)

    async def count(self, *filters: Filter) -> int:
        """Return the number of records that match every filter."""
        parameters = Parameters()
        condition = self._where(filters, parameters)
        return await self._count(condition, parameters.values)

    async def exists(self, *filters: Filter) -> bool:
        """Return whether any record matches every filter."""
        parameters = Parameters()
        condition = self._where(filters, parameters)
        found: bool = await self.executor.fetchval(
            Sql(f"SELECT EXISTS (SELECT FROM {self.entity.quoted}{condition})"),
            *parameters.values,
        )
        return found

    async def _count(self, condition: str, values: Sequence[Any]) -> int:
        number: int = await self.executor.fetchval(
            Sql(f"SELECT count(*) FROM {self.entity.quoted}{condition}"),
            *values,
        )
        return number

    def _where(self, filters: Sequence[Filter], parameters: Parameters) -> str:
        """Return ``WHERE`` of *filters*, and of the rows that are not deleted."""
        condition = where_sql(self.entity, filters, parameters)
        living = self._sql.living
        if not living:
            return condition
        return f"{condition} AND {living}" if condition else f" WHERE {living}"

    def _select(
        self, filters: Sequence[Filter], order_by: OrderBy | None, limit: int | None
    ) -> tuple[Sql, list[Any]]:
        entity = self.entity
        parameters = Parameters()
        sql = (
            f"SELECT {entity.select_list} FROM {entity.quoted}"
            f"{self._where(filters, parameters)}"
            f"{order_sql(entity, orders(entity, order_by))}"
        )
        if limit is not None:
            sql += f" LIMIT {parameters.add(_limit(limit))}"
        return Sql(sql), parameters.values


def _limit(number: object) -> int:
    """Return *number* if it can be a LIMIT.

    Raises:
        InvalidRecord: It is no whole number from 0.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidRecord(
            f"limit: {number!r} is not a whole number; give one", field="limit"
        )
    if not 0 <= number < _BIGGEST:
        raise InvalidRecord(
            f"limit: {number} is out of range; give one from 0", field="limit"
        )
    return number
