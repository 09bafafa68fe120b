"""Hooks of a repository: what runs before and after a change, inside its transaction.

Apart because hooks are a table of functions that all copies of a repository
share, and an empty one must cost the hot path a single look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from fm_storage.errors import InvalidName

if TYPE_CHECKING:
    from fm_storage.postgres.connection.transaction import Transaction

__all__ = ["Change", "Hook", "HookTable", "Operation", "known_operations"]

M = TypeVar("M")

Operation: TypeAlias = Literal["create", "update", "upsert", "delete", "restore"]
OPERATIONS: tuple[Operation, ...] = (
    "create",
    "update",
    "upsert",
    "delete",
    "restore",
)


@dataclass(frozen=True, slots=True)
class Change(Generic[M]):
    """What is about to happen, or has just happened.

    Attributes:
        operation: ``create``, ``update``, ``upsert``, ``delete`` or ``restore``; a
            call for many records is one change.
        records: The records given (before) or stored (after). A *before* hook may
            change mutable ones. Empty for a deletion by key and for a partial
            update that has not happened yet.
        keys: Keys of a deletion, key of a partial update or a restoration.
        values: Fields of a partial update.
    """

    operation: Operation
    records: Sequence[M] = ()
    keys: Sequence[Any] = ()
    values: dict[str, Any] | None = None


Hook: TypeAlias = Callable[["Transaction", Change[M]], Awaitable[None]]
"""Called with the transaction of the change; an error undoes the change."""


def known_operations(operations: Sequence[Operation]) -> Sequence[Operation]:
    """Return *operations*, all of them if none is named.

    Raises:
        InvalidName: One is unknown.
    """
    for operation in operations:
        if operation not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise InvalidName(f"operation {operation!r}: use one of {known}")
    return operations or OPERATIONS


class HookTable(Generic[M]):
    """The registered hooks. Changed by ``add()`` only."""

    __slots__ = ("_hooks", "any")

    def __init__(self) -> None:
        self._hooks: dict[tuple[str, Operation], list[Hook[M]]] = {}
        self.any = False

    def add(self, moment: str, hook: Hook[M], operations: Sequence[Operation]) -> None:
        """Register *hook* for *operations*."""
        for operation in operations:
            self._hooks.setdefault((moment, operation), []).append(hook)
        self.any = True

    def wants(self, operation: Operation) -> bool:
        """Return whether a hook is registered for *operation*."""
        return bool(
            self._hooks.get(("before", operation))
            or self._hooks.get(("after", operation))
        )

    async def run(
        self, moment: str, transaction: Transaction, change: Change[M]
    ) -> None:
        """Run the hooks in the order of their registration."""
        for hook in self._hooks.get((moment, change.operation), ()):
            await hook(transaction, change)
