"""The writing half of a repository: many records at a time, all or none.

Apart because a batch has a question of its own, which way is fastest: arrays to
about 5,000 rows, COPY above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fm_storage.errors import InvalidRecord
from fm_storage.repositories.query.point_statements import Payload, Vector
from fm_storage.repositories.query.statements import upsert_returned
from fm_storage.repositories.rows.bad_row import Blame
from fm_storage.repositories.rows.hooks import Change

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.model.entity import Stored

__all__ = ["COPY_ABOVE", "Bulk"]

M = TypeVar("M")

COPY_ABOVE = 5000
"""Rows above which COPY beats arrays, whose elements the server unpacks."""

_CHUNK = 2000


class Bulk(Blame[M]):
    """An entity's rows, written in batches through one executor."""

    async def create_many(
        self,
        records: Iterable[M],
        *,
        vectors: Sequence[Vector | None] | None = None,
        payloads: Sequence[Payload | None] | None = None,
    ) -> list[M]:
        """Write new rows, and what their points should be, all or none.

        If cancelled, all of them or none are written.

        Args:
            records: Any number of records; they are checked before any is sent.
            vectors: Of their points, one for each record, None to be embedded.
            payloads: Of their points, one for each record.

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
                Change("create", batch),
                lambda inner: inner.create_many(
                    batch, vectors=vectors, payloads=payloads
                ),
                _all,
            )
        entity = self.entity
        points = self._pointed(vectors, payloads)
        if points is not None:
            if any(item.generated for item in entity.key):
                return await self._one_by_one(batch, vectors, payloads)
            found = await self._pointing(
                batch, entity.key, points.columns(len(batch), vectors, payloads)
            )
            return [record for record, _ in found]
        copied = len(batch) > COPY_ABOVE and entity.copied
        columns = entity.insert_columns(batch, copy=copied)
        write = self._copy if copied else self._insert
        written: list[M] = await self._blaming(
            batch, lambda to: write(to, batch, columns)
        )
        return written

    async def _one_by_one(
        self,
        batch: list[M],
        vectors: Sequence[Vector | None] | None,
        payloads: Sequence[Payload | None] | None,
    ) -> list[M]:
        """Write rows whose ids, and so whose points' ids, only the server knows."""
        async with self.executor.transaction() as transaction:
            inner = self._rebound(transaction, self.hooks)
            return [
                await inner.create(
                    record,
                    vector=None if vectors is None else vectors[at],
                    payload=(payloads[at] if payloads is not None else None) or {},
                )
                for at, record in enumerate(batch)
            ]

    async def _pointing(
        self,
        batch: list[M],
        target: tuple[Stored, ...],
        points: list[list[Any]],
        *,
        upsert: bool = False,
    ) -> list[tuple[M, bool]]:
        """Write rows and points together, from arrays."""
        to = self.points
        assert to is not None
        columns = self.entity.insert_columns(batch)
        places = self._places(target, batch)
        keys = [
            item.kind.encode_many([getattr(record, item.field) for record in batch])
            for item in target
        ]
        order = sorted(range(len(batch)), key=_sort_key(list(places)))
        ordered = [
            [values[at] for at in order] for values in (*columns, *keys, *points)
        ]
        sql = to.many(target, upsert=upsert)
        first = len(columns)

        async def write(executor: Executor) -> list[Any]:
            rows: list[Any] = []
            async with executor.transaction() as transaction:
                for at in range(0, len(batch), _CHUNK):
                    part = [values[at : at + _CHUNK] for values in ordered]
                    rows += await transaction.fetch(
                        sql, *part[:first], to.collection, *part[first:]
                    )
            return rows

        async def write_once(executor: Executor) -> list[Any]:
            return await executor.fetch(
                sql, *ordered[:first], to.collection, *ordered[first:]
            )

        once = len(batch) <= COPY_ABOVE
        found = await self._blaming(
            batch, write_once if once else write, on=target if upsert else None
        )
        to.wake()
        return self._matched(target, batch, places, found, upsert=upsert)

    async def _copy(
        self, executor: Executor, batch: list[M], columns: Sequence[Sequence[Any]]
    ) -> list[M]:
        entity = self.entity
        try:
            await executor.copy_records(
                entity.table,
                schema=entity.schema,
                columns=[item.column for item in entity.inserted],
                records=entity.outgoing(columns),
            )
        except InvalidRecord:
            # A JSON value was changed while others were sent: a second look
            # names the field. Else the column is narrower than the model says.
            entity.insert_columns(batch, copy=True)
            raise
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
        self,
        records: Iterable[M],
        *,
        on: str | Sequence[str] | None = None,
        vectors: Sequence[Vector | None] | None = None,
        payloads: Sequence[Payload | None] | None = None,
    ) -> list[tuple[M, bool]]:
        """Write rows, or change those with the same values in *on*, all or none.

        Rows are locked in the order of *on*, so that batches of several tasks
        and processes wait for each other instead of deadlocking.

        Args:
            records: What the rows shall be, each once.
            on: Fields with a unique constraint (default: the key).
            vectors: Of their points, one for each record, None to be embedded.
            payloads: Of their points, one for each record.

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
                lambda inner: inner.upsert_many(
                    batch, on=on, vectors=vectors, payloads=payloads
                ),
                _firsts,
            )
        target = self._target(on)
        points = self._pointed(vectors, payloads)
        if points is not None:
            together = points.columns(len(batch), vectors, payloads)
            return await self._pointing(batch, target, together, upsert=True)
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
        *,
        upsert: bool = True,
    ) -> list[tuple[M, bool]]:
        """Put the returned rows where their records stand in the batch."""
        entity = self.entity
        if upsert:
            returned = upsert_returned(entity, target, many=True)
        else:
            wanted = (*target, *entity.returned)
            returned = tuple(item for item in entity.stored if item in wanted)
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
