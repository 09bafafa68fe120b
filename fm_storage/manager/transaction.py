"""The public transaction: the verbs, and the parts that take part in it.

Put together here because only the manager knows repositories and outbox; the
pool below knows statements alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from fm_storage.postgres import Transaction

if TYPE_CHECKING:
    from fm_storage.manager.storage import StorageManager
    from fm_storage.outbox import BoundOutbox
    from fm_storage.repositories import ErrorEntryRepository, Repository

__all__ = ["StorageTransaction", "transaction_class"]

Model = TypeVar("Model")


class StorageTransaction(Transaction):
    """A transaction of a ``StorageManager``: verbs, repositories and outbox.

    What is done through ``error_entries``, ``repository()`` and ``outbox`` is
    part of it: committed together, or not at all. Nothing is ambient: what is
    called on the manager instead runs outside.
    """

    _storage: ClassVar[StorageManager]

    @property
    def error_entries(self) -> ErrorEntryRepository:
        """The catalogue's repository, inside this transaction."""
        return self._storage.error_entries.bind(self)

    @property
    def outbox(self) -> BoundOutbox:
        """The outbox: what it is told is delivered only if this commits."""
        return self._storage.outbox.bind(self)

    def repository(self, model: type[Model]) -> Repository[Model]:
        """Return the repository of *model*, inside this transaction.

        Declare the model first, with ``StorageManager.repository()``, unless its
        table and key are the default ones.
        """
        return self._storage.repository(model).bind(self)


def transaction_class(storage: StorageManager) -> type[StorageTransaction]:
    """Return the class of the transactions of *storage*."""
    return type("Transaction", (StorageTransaction,), {"_storage": storage})
