"""The public transaction: the verbs, and the parts that take part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from fm_storage.postgres import Transaction

if TYPE_CHECKING:
    from fm_storage.outbox import BoundOutbox, Outbox
    from fm_storage.repositories import ErrorEntryRepository, Repository

Model = TypeVar("Model")


class Storage(Protocol):
    """What can be bound to a transaction; a ``StorageManager`` has it."""

    @property
    def error_entries(self) -> ErrorEntryRepository:
        """The repository of recorded errors."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Vectors on their way to Qdrant."""
        ...

    def repository(self, model: type[Model], /) -> Repository[Model]:
        """Return the repository of *model*."""
        ...


class StorageTransaction(Transaction):
    """A transaction of a ``StorageManager``: verbs, repositories and outbox.

    What is done through ``error_entries``, ``repository()`` and ``outbox`` is
    part of it: committed together, or not at all. Nothing is ambient: what is
    called on the manager instead runs outside.
    """

    _owner: Storage

    @property
    def error_entries(self) -> ErrorEntryRepository:
        """The catalogue's repository, inside this transaction."""
        return self._owner.error_entries.bind(self)

    @property
    def outbox(self) -> BoundOutbox:
        """The outbox: what it is given is delivered only if this commits."""
        return self._owner.outbox.bind(self)

    def repository(self, model: type[Model]) -> Repository[Model]:
        """Return the repository of *model*, inside this transaction.

        Declare the model first, with ``StorageManager.repository()``, unless its
        table and key are the default ones.
        """
        return self._owner.repository(model).bind(self)
