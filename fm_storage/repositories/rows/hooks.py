"""Hooks of a repository: what runs before and after a change, in its transaction.

A table of functions that all copies of a repository share; an empty one costs the
hot path a single look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from fm_storage.errors import ConfigurationInvalid, InvalidName
from fm_storage.postgres.arguments import function
from fm_storage.postgres.connection.transaction import Transaction

M = TypeVar("M")

Operation: TypeAlias = Literal["create", "update", "upsert", "delete", "restore"]


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


Hook: TypeAlias = Callable[[Transaction, Change[M]], Awaitable[None]]
"""Called with the transaction of the change; an error undoes the change."""


class HookTable(Generic[M]):
    """The registered hooks. Changed by ``registering()`` only."""

    __slots__ = ("_hooks", "any")

    def __init__(self) -> None:
        self._hooks: dict[tuple[str, Operation], list[Hook[M]]] = {}
        self.any = False

    def registering(
        self, moment: Literal["before", "after"], operations: Sequence[Operation]
    ) -> Callable[[Hook[M]], Hook[M]]:
        """Return a decorator that registers a hook; for all if none is named.

        Raises:
            InvalidName: An operation is unknown.
        """
        known = get_args(Operation)
        for operation in operations:
            if operation not in known:
                raise InvalidName(
                    f"operation {operation!r}: use one of {', '.join(known)}"
                )

        def register(hook: Hook[M]) -> Hook[M]:
            function(hook, "hook")
            for operation in operations or known:
                self._hooks.setdefault((moment, operation), []).append(hook)
            self.any = True
            return hook

        return register

    def wants(self, operation: Operation) -> bool:
        """Return whether a hook is registered for *operation*."""
        return ("before", operation) in self._hooks or (
            "after",
            operation,
        ) in self._hooks

    async def run(self, moment: str, transaction: Any, change: Change[M]) -> None:
        """Run the hooks in the order of their registration.

        Raises:
            ConfigurationInvalid: One is no coroutine function.
        """
        for hook in self._hooks.get((moment, change.operation), ()):
            running: object = hook(transaction, change)
            if not isinstance(running, Awaitable):
                raise ConfigurationInvalid(
                    "hook", f"{hook!r} gave nothing to await; write it with async def"
                )
            await running
