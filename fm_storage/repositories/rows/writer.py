"""What all writes share: hooks, points, and being bound to another executor.

Apart from the writes so that each kind of them has a file of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fm_storage.errors import ConfigurationInvalid, InvalidName
from fm_storage.repositories.query.point_statements import Points
from fm_storage.repositories.query.statements import Statements
from fm_storage.repositories.rows.hooks import Change, HookTable
from fm_storage.repositories.rows.reading import Reads

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Executor
    from fm_storage.repositories.model.entity import Entity, Stored

__all__ = ["Writer", "one", "the_created"]

M = TypeVar("M")
R = TypeVar("R")


class Writer(Reads[M]):
    """An entity's rows, and what happens around a change of them."""

    def __init__(
        self,
        executor: Executor,
        entity: Entity[M],
        statements: Statements,
        hooks: HookTable[M],
        points: Points | None = None,
    ) -> None:
        super().__init__(executor, entity, statements)
        self.hooks = hooks
        self.points = points

    def _rebound(self, executor: Executor, hooks: HookTable[M]) -> Self:
        bound = copy.copy(self)
        bound.executor = executor
        bound.hooks = hooks
        return bound

    def _pointed(self, *given: object) -> Points | None:
        """Return what writes points, if any of *given* asks for one.

        Raises:
            ConfigurationInvalid: The repository has no collection.
        """
        if all(item is None for item in given):
            return None
        if self.points is None:
            raise ConfigurationInvalid(
                "collection",
                f"{self.entity.name} has no vectors; declare the repository with "
                "collection=",
            )
        return self.points

    def _target(self, on: str | Sequence[str] | None) -> tuple[Stored, ...]:
        """Return the fields of a conflict target."""
        if on is None:
            target = self.entity.key
        else:
            names = (on,) if isinstance(on, str) else tuple(on)
            target = tuple(map(self.entity.field, names))
        for item in target:
            if item.generated:
                raise InvalidName(
                    f"{self.entity.name}: {item.field} is given by the server and "
                    "cannot tell whether a row exists; name other fields with on="
                )
        return target

    async def _hooked(
        self,
        change: Change[M],
        work: Callable[[Any], Awaitable[R]],
        records_of: Callable[[R], Sequence[M]] | None,
    ) -> R:
        """Run *work* between the hooks of *change*, in one transaction."""
        async with self.executor.transaction() as transaction:
            await self.hooks.run("before", transaction, change)
            result = await work(self._rebound(transaction, HookTable()))
            stored = change.records if records_of is None else records_of(result)
            done = Change(change.operation, stored, change.keys, change.values)
            await self.hooks.run("after", transaction, done)
        return result


def one(record: M) -> Sequence[M]:
    """Return the records of a change that gives one."""
    return (record,)


def the_created(found: tuple[M, bool]) -> Sequence[M]:
    """Return the records of a change that also says whether it created one."""
    return (found[0],)
