"""The repository: a model's rows, through whatever executor it is bound to."""

from __future__ import annotations

import copy
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from fm_storage._typing import Relation
from fm_storage.errors import ConfigurationInvalid, RecordNotFound
from fm_storage.postgres import Pool
from fm_storage.postgres.executor import Executor
from fm_storage.repositories.model.declaration import Column
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.table import Table
from fm_storage.repositories.query.filters import Filter
from fm_storage.repositories.query.ordering import OrderBy
from fm_storage.repositories.query.paging import Page
from fm_storage.repositories.query.point_statements import Payload, Points, Vector
from fm_storage.repositories.query.statements import statements_of
from fm_storage.repositories.rows import (
    batches,
    by_filter,
    deletes,
    reading,
    updates,
    writing,
)
from fm_storage.repositories.rows.bound import Bound
from fm_storage.repositories.rows.hooks import Hook, HookTable, Operation
from fm_storage.vector_state import Shapes

M = TypeVar("M")


class Repository(Generic[M]):
    """The rows of one table as records of one model.

    ``Repository(pool, Invoice, table="billing.invoice")``: the key is the field
    ``id``, and the columns are named like the fields, unless declared otherwise.
    The model is a dataclass (slotted ones are fastest), a pydantic model or a
    msgspec struct. Bound to the pool every call stands alone; ``bind(transaction)``
    returns the same repository inside a transaction.

    Attributes:
        executor: What runs the statements.
        entity: What is known of the model and its table.
    """

    def __init__(
        self,
        executor: Executor,
        model: type[M] | Entity[M],
        *,
        table: str | Relation | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
        deleted: str | None = None,
        collection: str | None = None,
        wake: Callable[[], object] | None = None,
        shapes: Shapes | None = None,
        durable: bool = True,
        reads: Pool | None = None,
    ) -> None:
        """Declare a repository; nothing is sent.

        Args:
            executor: A pool, connection or transaction.
            model: Class of the records (or an entity already declared).
            table: Table, with its schema if that is not on the search path
                (default: the model's name in snake case); or a session's
                ``TempView``.
            key: Field or fields that identify a record (default: ``id``).
            columns: For some fields the column's name, or a ``Column``.
            version: Whole-number field that turns the optimistic lock on.
            deleted: Field, a ``datetime | None``, that turns soft deletion on: a
                deleted row stays, marked with the time, no read sees it but those
                of ``with_deleted()``, and ``restore()`` brings it back.
            collection: Collection of the vector store that has a point for each
                record; writes may then give ``vector=`` and ``payload=``, in the
                same statement, and deleting a record deletes its point.
            wake: Called after such a write (``storage.outbox.wake``).
            shapes: Sizes of the collections' vectors (``storage.outbox.shapes``): a
                vector that cannot fit is refused at once.
            durable: Pin ``synchronous_commit = on`` in writes of points; False leaves
                the server's setting, as in ``outbox.upsert()``.
            reads: Pool of ``on_replica()`` (``storage.reads``).

        Raises:
            ConfigurationInvalid: The model cannot be stored as declared.
            InvalidName: *key*, *columns*, *version* or *deleted* name no field.
        """
        if not isinstance(model, Entity):
            model = Entity(
                model,
                table=table,
                key=key,
                columns=columns,
                version=version,
                deleted=deleted,
            )
        if not hasattr(executor, "fetch"):
            raise ConfigurationInvalid(
                "executor",
                f"is a {type(executor).__name__}; give a pool, connection or "
                "transaction, or use storage.repository()",
            )
        points = None
        if collection is not None:
            points = Points(model, collection, wake, shapes, durable=durable)
        self.executor, self.entity = executor, model
        self._reads = reads
        self._on_replica = False
        self._bound: Bound[M] = Bound(
            executor, model, statements_of(model), HookTable(), points, Table()
        )

    def bind(self, executor: Executor) -> Self:
        """Return this repository on another executor, with the same hooks."""
        return self._with(replace(self._writing, executor=executor))

    def on_replica(self, *, after: str | Awaitable[str] | None = None) -> Self:
        """Return this repository for reading from ``storage.reads``.

        Its writing verbs are refused. Without a replica it reads from the pool.

        Args:
            after: ``storage.position()``, awaited or not, after a commit that its
                reads are to see. They wait for the replica (``postgres.read_wait``),
                else the primary answers.

        Raises:
            ConfigurationInvalid: Inside a transaction, whose changes a replica has
                not; or *after* is no position.
        """
        reads = self._reads
        if reads is None and isinstance(self.executor, Pool):
            reads = self.executor
        if reads is None or reads.in_transaction or self._bound.in_transaction:
            raise ConfigurationInvalid(
                "on_replica",
                f"{self.entity.name}: a replica does not see what the transaction of "
                "this task has changed; read through the transaction (bind()), or "
                "before or after it",
            )
        if after is not None:
            reads = reads.after(after)
        return self._with(replace(self._bound, executor=reads), _on_replica=True)

    def with_deleted(self) -> Self:
        """Return this repository with the softly deleted rows among its records.

        Its reads and its ``update()`` see them; ``delete()`` and ``restore()`` do
        what they always do.

        Raises:
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        entity = self.entity
        if entity.deleted is None:
            raise ConfigurationInvalid(
                "deleted",
                f"{entity.name} keeps no deleted rows; declare the repository with "
                "deleted=",
            )
        statements = statements_of(entity, every=True)
        return self._with(replace(self._bound, statements=statements))

    def _with(self, bound: Bound[M], **changes: Any) -> Self:
        found = copy.copy(self)
        vars(found).update(executor=bound.executor, _bound=bound, **changes)
        return found

    @property
    def _writing(self) -> Bound[M]:
        if self._on_replica:
            raise ConfigurationInvalid(
                "on_replica",
                f"{self.entity.name}: this repository only reads; write with the one "
                "that on_replica() was called on",
            )
        return self._bound

    async def find_by_id(self, key: Any, *, for_update: bool = False) -> M | None:
        """Return the record with *key*, or None.

        Args:
            key: The key's value, or a tuple of them for a key of several fields;
                text is accepted for a UUID or number.
            for_update: Lock the row until the transaction ends.

        Raises:
            InvalidRecord: *key* cannot be a key of this table.
            ConfigurationInvalid: *for_update* outside a transaction.
        """
        return await reading.find_by_id(self._bound, key, for_update=for_update)

    async def get_by_id(self, key: Any, *, for_update: bool = False) -> M:
        """Return the record with *key*, which must be there.

        Raises:
            RecordNotFound: There is none; ``find_by_id()`` returns None instead.
            InvalidRecord: *key* cannot be a key of this table.
            ConfigurationInvalid: *for_update* outside a transaction.
        """
        found = await reading.find_by_id(self._bound, key, for_update=for_update)
        if found is None:
            raise RecordNotFound(self.entity.name, key)
        return found

    async def find_many(
        self,
        *filters: Filter,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        for_update: bool = False,
        skip_locked: bool = False,
    ) -> list[M]:
        """Return the records that match every filter.

        Args:
            filters: Conditions made with ``where()``; none means all records.
            order_by: ``"-timestamp"``, ``("module", desc("total", nulls="last"))``;
                without one the order is the server's.
            limit: Maximum number of records. To go on after them use ``page()``.
            for_update: Lock the rows until the transaction ends.
            skip_locked: Leave out the rows that another transaction has locked,
                instead of waiting for it.

        Raises:
            InvalidName: A field is not the model's.
            InvalidRecord: A value cannot be compared with its field.
            ConfigurationInvalid: *for_update* outside a transaction.

        See https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE.
        """
        lock = ""
        if for_update or skip_locked:
            lock = self._bound.lock(for_update=for_update, skip_locked=skip_locked)
        return await reading.find_many(self._bound, filters, order_by, limit, lock)

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
            size: Maximum number of records on the page.
            cursor: ``next_cursor`` of the page before, None for the first page.
            total: Also count the records on all pages (a statement of its own).

        Raises:
            InvalidName: A field is not the model's, or cannot order pages.
            InvalidCursor: *cursor* was changed or belongs to another query.
        """
        return await reading.page(
            self._bound, filters, order_by, size, cursor, total=total
        )

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
        return reading.stream(self._bound, filters, order_by, prefetch)

    async def count(self, *filters: Filter) -> int:
        """Return the number of records that match every filter."""
        return await reading.count(self._bound, filters)

    async def exists(self, *filters: Filter) -> bool:
        """Return whether any record matches every filter."""
        return await reading.exists(self._bound, filters)

    async def create(
        self,
        record: M,
        *,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> M:
        """Write a new row, and with it what its point should be.

        If cancelled, the row may or may not be written; its key tells.

        Args:
            record: The new row.
            vector: Of its point in the repository's collection: numbers, a sparse
                vector, or several by name. None with a payload: to be embedded.
            payload: Of its point.

        Returns:
            *record* itself, or, where the server gives values, a new one.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            DuplicateRecord: A row with this key, or another unique value, exists.
            ForeignKeyViolated: A row it refers to is missing.
            CheckViolated: A check constraint refuses it.
            NotNullViolated: A column that is no field must have a value.
            QueryFailed: A trigger or rule left the row out, among others.
        """
        return await writing.create(self._writing, record, vector, payload)

    async def get_or_create(
        self, record: M, *, on: str | Sequence[str] | None = None
    ) -> tuple[M, bool]:
        """Return the row with the same values in *on*, or write *record*.

        Any number of tasks and processes may do this at once: exactly one creates
        the row, and all get it. A row that was deleted softly counts as none: it
        is made *record* and live again, and that is creating it; its point stays
        deleted until one is written.

        Args:
            record: Written if there is no such row.
            on: Fields with a unique constraint (default: the key).

        Returns:
            The stored record, and whether this call created it.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            SerializationFailed: Inside a transaction that may not see the row
                which is in the way; run the transaction again.
            DuplicateRecord: Another row has the same values in another unique
                constraint; inside a transaction also if a task that wrote the same
                row at once was met there.
        """
        return await writing.get_or_create(self._writing, record, on)

    async def upsert(
        self,
        record: M,
        *,
        on: str | Sequence[str] | None = None,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> tuple[M, bool]:
        """Write a row, or change the one that has the same values in *on*.

        One statement, so that any number of tasks and processes may do this at
        once. An existing row keeps its key; its version, if there is one, rises.
        One that was deleted softly is live again, with the values of *record*,
        but was not created; its point comes back only with a vector or payload.

        Args:
            record: What the row shall be.
            on: Fields with a unique constraint (default: the key).
            vector: Of its point; None with a payload: to be embedded.
            payload: Of its point.

        Returns:
            The stored record, and whether this call created it.

        Raises:
            InvalidRecord: A value cannot be stored; nothing was sent.
            QueryFailed: *on* has no unique constraint (42P10), among others.
        """
        return await writing.upsert(self._writing, record, on, vector, payload)

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
        return await batches.create_many(self._writing, records, vectors, payloads)

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
        return await batches.upsert_many(self._writing, records, on, vectors, payloads)

    async def update(
        self,
        record_or_key: M | Any,
        changes: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        vector: Vector | None = None,
        payload: Payload | None = None,
    ) -> M:
        """Change a row, and with it its point, and return it as it is then.

        Args:
            record_or_key: A record, all of whose fields are written unless
                *changes* names some; or a key.
            changes: Fields and their new values.
            version: With the optimistic lock: change the row only if it is still
                at this version. A record brings its own.
            vector: New vector of its point; None with a payload: to be embedded.
            payload: New payload of its point, in place of the whole old one.

        Raises:
            InvalidName: *changes* names a field that the model has not.
            InvalidRecord: A value cannot be stored; nothing was sent.
            RecordNotFound: There is no such row, or it is deleted softly.
            StaleRecord: The row is at another version, or gone.
        """
        return await updates.update(
            self._writing,
            record_or_key,
            changes,
            version=version,
            vector=vector,
            payload=payload,
        )

    async def delete(self, record_or_key: M | Any) -> bool:
        """Delete a row, and its point if the repository has a collection.

        With ``deleted=`` the row stays, marked with the time, and ``restore()``
        brings it back; its point goes, and comes back with it.

        Args:
            record_or_key: A key; or a record, which with the optimistic lock is
                deleted only at its own version.

        Returns:
            Whether there was one.

        Raises:
            StaleRecord: The row is at another version than the record, or gone.
            ForeignKeyViolated: Other rows refer to it.
            QueryFailed: A trigger, rule or policy kept the row, among others.
        """
        return await deletes.delete(self._writing, record_or_key, erase=False)

    async def erase(self, record_or_key: M | Any) -> bool:
        """Delete a row for good, whether or not it is deleted softly already.

        As ``delete()``, which does just this where the repository was declared
        without ``deleted=``.
        """
        return await deletes.delete(self._writing, record_or_key, erase=True)

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete the rows with *keys*, and their points, and return how many.

        With ``deleted=`` they stay and can be restored, as by ``delete()``.

        Raises:
            InvalidRecord: A key cannot be one of this table, or a filter was given
                in place of keys; nothing was sent.
            ForeignKeyViolated: Other rows refer to one of them; none is deleted.
        """
        return await deletes.delete_many(self._writing, keys)

    async def update_where(
        self,
        filters: Filter | Sequence[Filter],
        values: Mapping[str, Any],
        *,
        everything: bool = False,
    ) -> int:
        """Change all rows that match, in one statement, and return how many.

        Their versions rise; softly deleted rows stay as they are. Points keep their
        vectors. With hooks for ``update`` the rows are locked first, and the change
        has their keys.

        Args:
            filters: A condition, or several of which all must hold.
            values: Fields and their new values.
            everything: Allow no condition at all.

        Raises:
            InvalidName: *values* names a field that the model has not, or the key.
            InvalidRecord: A value cannot be stored, or there is no condition;
                nothing was sent.
        """
        return await by_filter.update_where(
            self._writing, filters, values, everything=everything
        )

    async def delete_where(
        self, filters: Filter | Sequence[Filter], *, everything: bool = False
    ) -> int:
        """Delete all rows that match, and their points, and return how many.

        With ``deleted=`` they stay and can be restored, as by ``delete()``. With
        hooks for ``delete`` the rows are locked first, and the change has their keys.

        Args:
            filters: A condition, or several of which all must hold.
            everything: Allow no condition at all.

        Raises:
            InvalidRecord: There is no condition; nothing was sent.
            ForeignKeyViolated: Other rows refer to one of them; none is deleted.
        """
        return await by_filter.delete_where(
            self._writing, filters, everything=everything
        )

    async def restore(self, record_or_key: M | Any) -> M:
        """Bring a softly deleted row back, and its point as it last was.

        A row that is not deleted is returned as it is. Its version, if there is
        one, rises when the row comes back.

        Args:
            record_or_key: A key; or a record, which with the optimistic lock is
                restored only at its own version.

        Returns:
            The row as it is now.

        Raises:
            RecordNotFound: There is no such row; it was erased, or never was.
            StaleRecord: The row is at another version than the record.
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        return await deletes.restore(self._writing, record_or_key)

    async def purge(self, before: datetime) -> int:
        """Erase the rows that were deleted softly before a moment.

        Returns:
            How many there were.

        Raises:
            InvalidRecord: *before* has no time zone.
            ForeignKeyViolated: Other rows refer to one of them; none is erased.
            ConfigurationInvalid: The repository was declared without ``deleted=``.
        """
        return await deletes.purge(self._writing, before)

    def before(self, *operations: Operation) -> Callable[[Hook[M]], Hook[M]]:
        """Register a hook that runs before a change, in the same transaction.

        ``@repository.before("create")`` on ``async def hook(transaction, change)``.
        Without operations the hook runs before every change. It runs before the
        values are looked at, so that it may correct what would be refused; what
        is still wrong then is refused, and what the hook wrote in the transaction
        is undone. An error it raises undoes the change and reaches the caller.
        """
        return self._bound.hooks.registering("before", operations)

    def after(self, *operations: Operation) -> Callable[[Hook[M]], Hook[M]]:
        """Register a hook that runs after a change, in the same transaction.

        As ``before()``; ``change.records`` are as stored.
        """
        return self._bound.hooks.registering("after", operations)
