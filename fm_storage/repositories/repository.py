"""The repository: a model's rows, through whatever executor it is bound to.

Apart from its halves because this is the declaration: what a user says once
about a model, and what every copy bound to a transaction shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.query.point_statements import Points
from fm_storage.repositories.query.statements import statements_of
from fm_storage.repositories.rows.batches import Bulk
from fm_storage.repositories.rows.hooks import (
    Hook,
    HookTable,
    Operation,
    known_operations,
)

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.model.declaration import Column
    from fm_storage.vector_state import Shapes

__all__ = ["Repository"]

M = TypeVar("M")


class Repository(Bulk[M]):
    """The rows of one table as records of one model.

    ``Repository(pool, Invoice, table="billing.invoice")``: the key is the field
    ``id``, the columns are named like the fields, unless told otherwise. The
    model is a dataclass (slotted ones are fastest), a pydantic model or a msgspec
    struct. Bound to the pool every call stands alone; ``bind(transaction)``
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
        table: str | None = None,
        key: str | Sequence[str] | None = None,
        columns: Mapping[str, str | Column] | None = None,
        version: str | None = None,
        deleted: str | None = None,
        collection: str | None = None,
        wake: Callable[[], object] | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        """Declare a repository; nothing is sent.

        Args:
            executor: A pool, connection or transaction.
            model: Class of the records (or an entity already declared).
            table: Table, with its schema if that is not on the search path
                (default: the model's name in snake case).
            key: Field or fields that identify a record (default: ``id``).
            columns: For some fields the column's name, or a ``Column``.
            version: Whole-number field that turns the optimistic lock on.
            deleted: Field, a ``datetime | None``, that turns soft deletion on: a
                deleted row stays, marked with the time, no read sees it but those
                of ``with_deleted()``, and ``restore()`` brings it back.
            collection: Collection of the vector store that has a point for each
                record; writes may then say ``vector=`` and ``payload=``, in the
                same statement, and deleting a record deletes its point.
            wake: Called after such a write (``storage.outbox.wake``).
            shapes: Sizes of the collections' vectors (``storage.outbox.shapes``): a
                vector that cannot fit is refused at once.

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
        points = None
        if collection is not None:
            points = Points(model, collection, wake, shapes)
        super().__init__(executor, model, statements_of(model), HookTable(), points)

    def bind(self, executor: Executor) -> Self:
        """Return this repository on another executor, with the same hooks."""
        return self._rebound(executor, self.hooks)

    def before(self, *operations: Operation) -> Callable[[Hook[M]], Hook[M]]:
        """Register a hook that runs before a change, in the same transaction.

        ``@repository.before("create")`` on ``async def hook(transaction, change)``.
        Without operations the hook runs before every change. It runs before the
        values are looked at, so that it may put right what would be refused; what
        is still wrong then is refused, and what the hook wrote in the transaction
        is undone. An error it raises undoes the change and reaches the caller.
        """
        return self._registering("before", operations)

    def after(self, *operations: Operation) -> Callable[[Hook[M]], Hook[M]]:
        """Register a hook that runs after a change, in the same transaction.

        As ``before()``; ``change.records`` are as stored.
        """
        return self._registering("after", operations)

    def _registering(
        self, moment: str, operations: Sequence[Operation]
    ) -> Callable[[Hook[M]], Hook[M]]:
        known = known_operations(operations)

        def register(hook: Hook[M]) -> Hook[M]:
            self.hooks.add(moment, hook, known)
            return hook

        return register
