"""Writing many records at a time, all or none: arrays to 5,000 rows, COPY above."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Generic, TypeVar

from fm_storage.errors import InvalidRecord, QueryFailed, StorageError
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.executor import Executor
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.table import Sources
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.rows.bad_row import naming_bad_row
from fm_storage.repositories.rows.bound import (
    Bound,
    all_of,
    as_list,
    despite_race,
    hooked,
    suppressed,
)
from fm_storage.repositories.rows.hooks import Change

M = TypeVar("M")

COPY_ABOVE = 5000
"""Rows above which COPY beats arrays, whose elements the server unpacks."""

_CHUNK = 2000
_PARAMETER = re.compile(r"parameter \$\d+")
_OTHER_TYPE = frozenset({"42804", "42883", "42704", "22P02"})
"""What the server answers to values that travel as the type a column had before."""


async def create_many(
    bound: Bound[M],
    records: Iterable[M],
    vectors: Sequence[Vector | None] | None,
    payloads: Sequence[Payload | None] | None,
) -> list[M]:
    """Do what ``Repository.create_many()`` promises."""
    given = as_list(records, "records")
    if not given:
        return []
    if bound.hooks.any and bound.hooks.wants("create"):
        return await hooked(
            bound,
            Change("create", given),
            lambda inner: create_many(inner, given, vectors, payloads),
            all_of,
        )
    entity = bound.entity
    rows = await Batch(bound, given, vectors=vectors, payloads=payloads).run()
    if not entity.returned:
        return given
    return [
        entity.completed(record, entity.returned, tuple(row))
        for record, row in zip(given, rows, strict=True)
    ]


async def upsert_many(
    bound: Bound[M],
    records: Iterable[M],
    on: str | Sequence[str] | None,
    vectors: Sequence[Vector | None] | None,
    payloads: Sequence[Payload | None] | None,
) -> list[tuple[M, bool]]:
    """Do what ``Repository.upsert_many()`` promises."""
    given = as_list(records, "records")
    if not given:
        return []
    if bound.hooks.any and bound.hooks.wants("upsert"):
        return await hooked(
            bound,
            Change("upsert", given),
            lambda inner: upsert_many(inner, given, on, vectors, payloads),
            lambda found: [record for record, _ in found],
        )
    target = bound.target(on)
    batch = Batch(bound, given, on=target, vectors=vectors, payloads=payloads)
    found: list[Any] = [None] * len(given)
    rows = await despite_race(bound, batch.run)
    made = bound.entity.from_rows([row[1:] for row in rows])
    for at, row, record in zip(batch.order, rows, made, strict=True):
        found[at] = (record, row[0])
    return found


class Batch(Generic[M]):
    """Records on their way into a table, by the fastest way that it takes.

    Attributes:
        order: Positions of the records in the order in which they are written, and
            in which what the server returns of them comes back.
    """

    def __init__(
        self,
        bound: Bound[M],
        records: list[M],
        *,
        on: tuple[Stored, ...] | None = None,
        vectors: Sequence[Vector | None] | None = None,
        payloads: Sequence[Payload | None] | None = None,
    ) -> None:
        """Check what belongs to the batch as a whole.

        Args:
            bound: Where to write.
            records: The records.
            on: Conflict target of an upsert; None for an insert.
            vectors: Of the points, one for each record.
            payloads: Of the points, one for each record.

        Raises:
            InvalidRecord: Two records have the same values in *on*.
        """
        self._bound, self._records, self._on = bound, records, on
        self._points = bound.pointed(vectors, payloads)
        self._columns: list[Any] = []
        self._last: list[Any] = []
        if self._points is not None:
            self._columns = self._points.columns(len(records), vectors, payloads)
            self._last = [self._points.collection]
        # An upsert locks its rows in the order of their keys, so that batches of
        # several tasks wait for each other instead of deadlocking.
        self.order = _order(bound.entity, on, records) if on else range(len(records))
        self._read = bool(on or self._points or bound.entity.returned)

    async def run(self) -> Sequence[Any]:
        """Write all records or none; return what comes back of them.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            QueryFailed: The server refused a record, or a trigger suppressed one.
        """
        bound = self._bound
        large = len(self._records) > COPY_ABOVE
        # Before anything is sent, so looked at for the way that is the likeliest.
        likely = large and not self._read
        columns = bound.entity.insert_columns(self._records, copy=likely)
        again = False
        if large or not bound.table.known:
            # Before a COPY always: whether row security stands in its way depends
            # on the role, and a refusal would end the caller's transaction.
            # What the columns are tells how elements of arrays travel.
            again = await bound.look_up() and not likely
        if again or (likely and not bound.table.copied):
            columns = bound.entity.insert_columns(self._records)
        try:
            rows = await self._write(columns)
        except (InvalidRecord, QueryFailed) as exc:
            if not await self._was_altered(exc):
                raise
            copied = likely and bound.table.copied
            columns = bound.entity.insert_columns(self._records, copy=copied)
            rows = await self._write(columns)
        if self._points is not None:
            self._points.wake()
        return rows

    async def _was_altered(self, exc: InvalidRecord | QueryFailed) -> bool:
        """Return whether the columns have other types than were looked up."""
        if isinstance(exc, QueryFailed):
            suspect = exc.sqlstate in _OTHER_TYPE
        else:
            suspect = _PARAMETER.match(str(exc.__cause__)) is not None
        try:
            return suspect and await self._bound.look_up()
        except StorageError:
            return False  # the connection went: the first error is the answer

    async def _write(self, columns: list[list[Any]]) -> Sequence[Any]:
        entity, table, records = self._bound.entity, self._bound.table, self._records
        sources, checked = table.sources, self._read or table.suppresses
        write: Callable[[Executor], Awaitable[Sequence[Any]]]
        if len(records) > COPY_ABOVE and table.copied and not self._read:
            write = functools.partial(self.copy, columns)
        elif sources is None or any(
            not item.type.checked and _nests(column)
            for item, column in zip(entity.inserted, columns, strict=True)
        ):
            values = [entity.insert_values(one, at) for at, one in enumerate(records)]
            points = zip(*self._columns, strict=True) if self._columns else repeat(())
            rows = [
                [*row, *point, *self._last]
                for row, point in zip(values, points, strict=False)
            ]
            write = functools.partial(self._one_by_one, self._single(), rows)
            checked = bool(self._on or entity.returned) or table.suppresses
        else:
            ordered = [
                [column[at] for at in self.order]
                for column in (*columns, *self._columns)
            ]
            write = functools.partial(self._in_chunks, self._many(sources), ordered)
        write = functools.partial(self._all_or_none, write, checked)
        return await naming_bad_row(
            self._bound, records, write, self._trial, self._alone
        )

    def _single(self) -> Sql:
        """Return the statement of one row."""
        statements = self._bound.statements
        if self._points is not None:
            return self._points.upsert(self._on) if self._on else self._points.insert()
        return statements.upsert(self._on) if self._on else statements.insert

    def _many(self, sources: Sources) -> Sql:
        """Return the statement of many rows."""
        if self._points is not None:
            return self._points.many(sources, self._on)
        statements = self._bound.statements
        if self._on is None:
            return statements.insert_many(sources)
        return statements.upsert(self._on, sources)

    async def _trial(self, executor: Executor, part: list[M]) -> None:
        """Write some of the records, without points, and look only whether it works."""
        entity, sources = self._bound.entity, self._bound.table.sources
        statements = self._bound.statements
        if sources is None:
            sql = statements.upsert(self._on) if self._on else statements.insert
            for record in part:
                await executor.fetch(sql, *entity.insert_values(record))
        elif self._on is None:
            sql = statements.insert_many(sources)
            await executor.fetch(sql, *entity.insert_columns(part))
        else:
            sql = statements.upsert(self._on, sources)
            await executor.fetch(sql, *entity.insert_columns(part))

    async def _alone(self, executor: Executor, at: int) -> None:
        """Write one record, without its point, as ``create()`` or ``upsert()`` do."""
        entity, statements = self._bound.entity, self._bound.statements
        sql = statements.upsert(self._on) if self._on else statements.insert
        values = entity.insert_values(self._records[at], at)
        try:
            await executor.fetch(sql, *values)
        except InvalidRecord as exc:
            raise entity.named(exc, entity.inserted, at) from exc

    async def _all_or_none(
        self,
        write: Callable[[Executor], Awaitable[Sequence[Any]]],
        checked: bool,
        executor: Executor,
    ) -> Sequence[Any]:
        """Undo *write* if a row is missing, where that may happen."""
        within = isinstance(executor, Transaction) or len(self._records) == 1
        if within or not checked:
            return self._complete(await write(executor))
        async with executor.transaction() as transaction:
            return self._complete(await write(transaction))

    def _complete(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return *rows* if there is one for each record.

        Raises:
            QueryFailed: The server left some out.
        """
        missing = len(self._records) - len(rows)
        if missing:
            raise suppressed(self._bound.entity, missing, len(self._records))
        return rows

    async def copy(
        self, columns: Sequence[Sequence[Any]], executor: Executor
    ) -> Sequence[Any]:
        """Write *columns*, the records' values made for it, by COPY."""
        entity = self._bound.entity
        try:
            number = await executor.copy_records(
                entity.table,
                schema=entity.schema,
                columns=[item.column for item in entity.inserted],
                records=entity.outgoing(columns),
            )
        except InvalidRecord:
            entity.insert_columns(self._records)  # names the field, if it finds it
            raise
        return range(number)

    async def _one_by_one(
        self, sql: Sql, rows: list[list[Any]], executor: Executor
    ) -> Sequence[Any]:
        """Write row after row: a column's type can travel alone only."""
        entity = self._bound.entity
        found: list[Any] = []
        reads = bool(self._on or entity.returned)
        if not (reads or self._bound.table.suppresses):
            with contextlib.suppress(InvalidRecord):  # which row, is found below
                async with executor.transaction() as transaction:
                    await transaction.executemany(sql, [rows[at] for at in self.order])
                return rows
        async with executor.transaction() as transaction:
            for at in self.order:
                try:
                    found += await _sent(transaction, sql, *rows[at], reads=reads)
                except InvalidRecord as exc:
                    raise entity.named(exc, entity.inserted, at) from exc
        return found

    async def _in_chunks(
        self, sql: Sql, columns: list[list[Any]], executor: Executor
    ) -> Sequence[Any]:
        """Write arrays, one per column, all at once or in parts that fit memory."""
        count = len(self._records)
        if count <= COPY_ABOVE:
            return await self._chunk(executor, sql, columns, 0, count)
        async with executor.transaction() as transaction:
            return [
                row
                for at in range(0, count, _CHUNK)
                for row in await self._chunk(transaction, sql, columns, at, _CHUNK)
            ]

    async def _chunk(
        self, executor: Executor, sql: Sql, columns: list[list[Any]], at: int, size: int
    ) -> Sequence[Any]:
        entity = self._bound.entity
        values = [*(column[at : at + size] for column in columns), *self._last]
        try:
            return await _sent(executor, sql, *values, reads=self._read)
        except InvalidRecord as exc:
            index = None if exc.index is None else self.order[at + exc.index]
            raise entity.named(exc, entity.inserted, index) from exc


async def _sent(
    executor: Executor, sql: Sql, *values: Any, reads: bool
) -> Sequence[Any]:
    """Run a statement; return its rows, or as many numbers as it wrote rows."""
    if reads:
        return await executor.fetch(sql, *values)
    tag = await executor.execute(sql, *values)
    return range(int(tag.rpartition(" ")[2]))


def _nests(values: Iterable[Any]) -> bool:
    """Return whether the driver would take one of *values* for an inner array."""
    return any(
        issubclass(kind, Iterable) and not issubclass(kind, str | bytes | Mapping)
        for kind in set(map(type, values))
    )


def _order(
    entity: Entity[Any], target: tuple[Stored, ...], records: list[Any]
) -> Sequence[int]:
    """Return the positions of *records* in the order of their keys.

    Raises:
        InvalidRecord: Two have the same values, or one cannot be stored.
    """
    numbered = list(enumerate(records))
    try:
        encoded = [
            [item.encode(getattr(record, item.field), at) for at, record in numbered]
            for item in target
        ]
    except AttributeError:
        entity.insert_columns(records)  # names the record that is none
        raise
    keys = list(zip(*encoded, strict=True))
    places: dict[Any, int] = {}
    for at, key in enumerate(keys):
        first = places.setdefault(key if _is_hashable(key) else repr(key), at)
        if first != at and None not in key:
            raise InvalidRecord(
                f"record {at}: the same "
                f"{', '.join(item.field for item in target)} as record {first}; "
                "give each once",
                field=target[0].field,
                index=at,
            )
    return sorted(range(len(keys)), key=_sort_key(keys))


def _is_hashable(key: tuple[Any, ...]) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _sort_key(values: list[tuple[Any, ...]]) -> Callable[[int], Any]:
    """Return the sort key of a position: the values, or their text."""
    try:
        sorted(values[:2])
    except TypeError:
        return lambda at: repr(values[at])
    if any(None in value for value in values):
        return lambda at: repr(values[at])
    return values.__getitem__
