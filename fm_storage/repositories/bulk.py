"""The writing half of a repository: many records at a time, all or none.

Apart because a batch has two questions of its own: which way is fastest (arrays
to about 5,000 rows, COPY above), and which of its rows was the bad one. The
server names a row only in message text, so the batch is halved in savepoints
until one row is left: some twenty statements, on the way to an error only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fm_storage.errors import InvalidRecord, QueryFailed, StorageError
from fm_storage.postgres.sql import Sql
from fm_storage.postgres.transaction import Transaction
from fm_storage.repositories.changes import Change
from fm_storage.repositories.statements import upsert_returned
from fm_storage.repositories.writes import Writes

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.entity import Stored

__all__ = ["COPY_ABOVE", "Bulk"]

M = TypeVar("M")

COPY_ABOVE = 5000
"""Rows above which COPY beats arrays, whose elements the server unpacks."""

_CHUNK = 2000
_ROW_FAULTS = ("22", "23")
"""SQLSTATE classes that blame a row: data exceptions, integrity violations."""

_COLUMNS_OF = Sql(
    "SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_constraint AS c "
    "CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY AS k (number, place) "
    "JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = k.number "
    "WHERE c.conrelid = $1::regclass AND c.conname = $2"
)
_LENGTHS_OF = Sql(
    "SELECT attname::text, atttypmod - 4 FROM pg_attribute WHERE attrelid = "
    "$1::regclass AND atttypmod > 4 AND atttypid IN "
    "('varchar'::regtype, 'bpchar'::regtype)"
)
_TOO_LONG = "22001"


class _Undo(Exception):
    """Leaves a transaction that was only a trial."""


class Bulk(Writes[M]):
    """An entity's rows, written in batches through one executor."""

    async def create_many(self, records: Iterable[M]) -> list[M]:
        """Write new rows, all or none.

        If cancelled, all of them or none are written.

        Args:
            records: Any number of records; they are checked before any is sent.

        Returns:
            The records, in the same order, with what the server gives.

        Raises:
            InvalidRecord: A value cannot be stored (``.index``, ``.field``);
                nothing was sent.
            DuplicateRecord: Among other refusals of the server; ``.index`` is the
                position of the first bad record, ``.column`` and ``.constraint``
                what it violates. Nothing was written.
        """
        batch = list(records)
        if not batch:
            return []
        if self.hooks.any and self.hooks.wants("create"):
            return await self._hooked(
                Change("create", batch), lambda inner: inner.create_many(batch), _all
            )
        entity = self.entity
        copied = len(batch) > COPY_ABOVE and not entity.returned
        columns = entity.insert_columns(batch, copy=copied)
        write = self._copy if copied else self._insert
        written: list[M] = await self._blaming(
            batch, lambda to: write(to, batch, columns)
        )
        return written

    async def _copy(
        self, executor: Executor, batch: list[M], columns: Sequence[Sequence[Any]]
    ) -> list[M]:
        entity = self.entity
        await executor.copy_records(
            entity.table,
            schema=entity.schema,
            columns=[item.column for item in entity.inserted],
            records=zip(*columns, strict=True),
        )
        return batch

    async def _insert(
        self, executor: Executor, batch: list[M], columns: Sequence[Sequence[Any]]
    ) -> list[M]:
        entity = self.entity
        if len(batch) > COPY_ABOVE:
            async with executor.transaction() as transaction:
                return [
                    record
                    for at in range(0, len(batch), _CHUNK)
                    for record in await self._insert(
                        transaction,
                        batch[at : at + _CHUNK],
                        [values[at : at + _CHUNK] for values in columns],
                    )
                ]
        if not entity.returned:
            await executor.execute(self._sql.insert_many, *columns)
            return batch
        rows = await executor.fetch(self._sql.insert_many, *columns)
        return [
            entity.completed(record, entity.returned, tuple(row))
            for record, row in zip(batch, rows, strict=True)
        ]

    async def upsert_many(
        self, records: Iterable[M], *, on: str | Sequence[str] | None = None
    ) -> list[tuple[M, bool]]:
        """Write rows, or change those with the same values in *on*, all or none.

        Rows are locked in the order of *on*, so that batches of several tasks
        and processes wait for each other instead of deadlocking.

        Args:
            records: What the rows shall be, each once.
            on: Fields with a unique constraint (default: the key).

        Returns:
            For each record, in the same order: as stored, and whether created.

        Raises:
            InvalidRecord: A value cannot be stored, or two records have the same
                values in *on*; nothing was sent.
            QueryFailed: As in ``create_many()``; nothing was written.
        """
        batch = list(records)
        if not batch:
            return []
        if self.hooks.any and self.hooks.wants("upsert"):
            return await self._hooked(
                Change("upsert", batch),
                lambda inner: inner.upsert_many(batch, on=on),
                _firsts,
            )
        target = self._target(on)
        columns = self.entity.insert_columns(batch)
        places = self._places(target, batch)
        order = sorted(range(len(batch)), key=_sort_key(list(places)))
        ordered = [[values[at] for at in order] for values in columns]
        found = await self._blaming(
            batch, lambda to: self._upsert(to, target, ordered), on=target
        )
        return self._matched(target, batch, places, found)

    def _places(
        self, target: tuple[Stored, ...], batch: list[M]
    ) -> dict[tuple[Any, ...], int]:
        """Return where each value of *on* stands in the batch."""
        places: dict[tuple[Any, ...], int] = {}
        encoded = [
            [item.kind.encode(getattr(record, item.field)) for record in batch]
            for item in target
        ]
        for at, values in enumerate(zip(*encoded, strict=True)):
            first = places.setdefault(values, at)
            if first != at:
                raise InvalidRecord(
                    f"record {at}: the same "
                    f"{', '.join(item.field for item in target)} as record {first}; "
                    "give each once",
                    field=target[0].field,
                    index=at,
                )
        return places

    async def _upsert(
        self,
        executor: Executor,
        target: tuple[Stored, ...],
        columns: Sequence[Sequence[Any]],
    ) -> list[Any]:
        sql = self._sql.upsert(target, many=True)
        if len(columns[0]) <= COPY_ABOVE:
            return await executor.fetch(sql, *columns)
        async with executor.transaction() as transaction:
            return [
                row
                for at in range(0, len(columns[0]), _CHUNK)
                for row in await transaction.fetch(
                    sql, *(values[at : at + _CHUNK] for values in columns)
                )
            ]

    def _matched(
        self,
        target: tuple[Stored, ...],
        batch: list[M],
        places: dict[tuple[Any, ...], int],
        rows: list[Any],
    ) -> list[tuple[M, bool]]:
        """Put the returned rows where their records stand in the batch."""
        entity = self.entity
        returned = upsert_returned(entity, target, many=True)
        at_target = [1 + returned.index(item) for item in target]
        found: list[Any] = [None] * len(batch)
        if tuple(returned) == target:
            for row in rows:
                created, *values = row
                at = places[tuple(values)]
                found[at] = (batch[at], created)
            return found
        for row in rows:
            values = tuple(row)
            at = places[tuple(values[place] for place in at_target)]
            found[at] = (entity.completed(batch[at], returned, values[1:]), values[0])
        return found

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete the rows with *keys* and return how many there were.

        Raises:
            InvalidRecord: A key cannot be one of this table; nothing was sent.
            ForeignKeyViolated: Other rows refer to one of them; none is deleted.
        """
        wanted = list(keys)
        if not wanted:
            return 0
        entity = self.entity
        if self.hooks.any and self.hooks.wants("delete"):
            return await self._hooked(
                Change("delete", (), wanted),
                lambda inner: inner.delete_many(wanted),
                None,
            )
        if len(entity.key) == 1 and set(map(type, wanted)) <= entity.key[0].kind.exact:
            columns: list[Sequence[Any]] = [entity.key[0].kind.encode_many(wanted)]
        else:
            values = [entity.key_values(key) for key in wanted]
            columns = [
                item.kind.encode_many(column)
                for item, column in zip(
                    entity.key, zip(*values, strict=True), strict=True
                )
            ]
        tag = await self.executor.execute(self._sql.delete_many, *columns)
        return int(tag.rpartition(" ")[2])

    # -- which record was the bad one --------------------------------------

    async def _blaming(
        self,
        batch: list[M],
        write: Callable[[Executor], Awaitable[Any]],
        *,
        on: tuple[Stored, ...] | None = None,
    ) -> Any:  # noqa: ANN401 - what *write* returns
        """Run *write*; if the server refuses, say which record it refuses."""
        executor = self.executor
        try:
            if not isinstance(executor, Transaction):
                return await write(executor)
            # A failed statement would end the caller's transaction, and with it
            # the chance to look for the record.
            async with executor.savepoint() as savepoint:
                return await write(savepoint)
        except QueryFailed as exc:
            if (exc.sqlstate or "")[:2] not in _ROW_FAULTS:
                raise
            raise await self._blamed(exc, batch, on) from exc

    async def _blamed(
        self, exc: QueryFailed, batch: list[M], on: tuple[Stored, ...] | None
    ) -> QueryFailed:
        try:
            index, found, column = await self._search(batch, on)
        except StorageError:
            # The connection went, or a rule forbids the trial: the first error
            # is the caller's answer.
            return exc
        if index is None or found is None:
            return exc
        named = type(found)(
            f"record {index}"
            + (f", {column}" if column else "")
            + f": {str(found).partition(': ')[2] or found}",
            sqlstate=found.sqlstate,
            constraint=found.constraint,
            table=found.table,
            column=column,
            retryable=found.retryable,
        )
        named.index = index
        return named

    async def _search(
        self, batch: list[M], on: tuple[Stored, ...] | None
    ) -> tuple[int | None, QueryFailed | None, str | None]:
        """Return the first bad record, its error and its column, by halving."""
        low, high = 0, len(batch)
        found: QueryFailed | None = None
        column: str | None = None
        try:
            async with self.executor.transaction() as transaction:
                # Whatever stands before *low* is good and written; the first bad
                # record stands before *high*, once an error has been seen.
                while low < high:
                    middle = high if found is None else (low + high + 1) // 2
                    error = await self._trial(transaction, batch[low:middle], on)
                    if error is None:
                        low = middle
                        continue
                    found, high = error, middle
                    if high - low == 1:
                        break
                if found is not None and low < len(batch):
                    column = await self._column(transaction, batch[low], found)
                raise _Undo  # noqa: TRY301 - rolls the trial back
        except _Undo:
            pass
        return (low if found is not None and low < high else None), found, column

    async def _trial(
        self,
        transaction: Any,  # noqa: ANN401 - a transaction
        part: list[M],
        on: tuple[Stored, ...] | None,
    ) -> QueryFailed | None:
        columns = self.entity.insert_columns(part)
        sql = self._sql.insert_many if on is None else self._sql.upsert(on, many=True)
        try:
            async with transaction.savepoint() as savepoint:
                await savepoint.fetch(sql, *columns)
        except QueryFailed as exc:
            if (exc.sqlstate or "")[:2] in _ROW_FAULTS:
                return exc
            raise
        return None

    async def _column(
        self,
        transaction: Any,  # noqa: ANN401 - a transaction
        record: M,
        error: QueryFailed,
    ) -> str | None:
        """Return the column, or columns, that *error* is about."""
        entity = self.entity
        if error.column is not None:
            return error.column
        if error.constraint is not None:
            names = await transaction.fetchval(
                _COLUMNS_OF, entity.quoted, error.constraint
            )
            return ", ".join(names) if names else None
        if error.sqlstate == _TOO_LONG:
            lengths = dict(
                map(tuple, await transaction.fetch(_LENGTHS_OF, entity.quoted))
            )
            for item in entity.inserted:
                value = item.encode(getattr(record, item.field))
                if isinstance(value, str) and len(value) > lengths.get(
                    item.column, len(value)
                ):
                    return item.column
        return None


def _sort_key(values: list[tuple[Any, ...]]) -> Callable[[int], Any]:
    """Return the sort key of a position: the values, or their text."""
    try:
        sorted(values[:2])
    except TypeError:
        return lambda at: repr(values[at])
    if any(None in value for value in values):
        return lambda at: repr(values[at])
    return values.__getitem__


def _all(records: list[M]) -> Sequence[M]:
    return records


def _firsts(found: list[tuple[M, bool]]) -> Sequence[M]:
    return [record for record, _ in found]
