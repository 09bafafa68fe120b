"""What every function of this folder takes: an entity bound to an executor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from fm_storage.errors import (
    ConfigurationInvalid,
    DuplicateRecord,
    InvalidName,
    QueryFailed,
)
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.executor import Executor
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.table import Table
from fm_storage.repositories.query.filters import Filter, Parameters, where_sql
from fm_storage.repositories.query.point_statements import Points
from fm_storage.repositories.query.statements import Statements
from fm_storage.repositories.rows.hooks import Change, HookTable

M = TypeVar("M")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Bound(Generic[M]):
    """An entity's rows through one executor.

    Attributes:
        executor: What runs the statements.
        entity: What is known of the model and its table.
        statements: The entity's SQL, for the living rows or for all.
        hooks: What runs around a change.
        points: What writes the points of records; None without a collection.
        table: What is known of the table, shared by all copies.
    """

    executor: Executor
    entity: Entity[M]
    statements: Statements
    hooks: HookTable[M]
    points: Points | None
    table: Table

    async def look_up(self) -> bool:
        """Read what the catalogue says of the table; return whether it differs."""
        entity = self.entity
        return await self.table.look_up(
            self.executor, entity.quoted, entity.inserted, entity.key
        )

    def pointed(self, *given: object) -> Points | None:
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

    def condition(self, filters: Sequence[Filter], parameters: Parameters) -> str:
        """Return ``WHERE`` of *filters*, and of the rows that are not deleted."""
        condition = where_sql(self.entity, filters, parameters)
        living = self.statements.living
        if not living:
            return condition
        return f"{condition} AND {living}" if condition else f" WHERE {living}"

    @property
    def in_transaction(self) -> bool:
        """Whether the executor is a transaction."""
        return isinstance(self.executor, Transaction)

    def lock(self, *, for_update: bool, skip_locked: bool) -> str:
        """Return what makes a SELECT lock its rows.

        Raises:
            ConfigurationInvalid: There is no transaction to hold the lock.
        """
        if not for_update:
            if skip_locked:
                raise ConfigurationInvalid(
                    "skip_locked", "it goes with a lock; give for_update=True too"
                )
            return ""
        if not self.in_transaction:
            raise ConfigurationInvalid(
                "for_update",
                f"{self.entity.name}: outside a transaction a lock ends with its "
                "statement; bind() the repository to a transaction",
            )
        return " FOR UPDATE SKIP LOCKED" if skip_locked else " FOR UPDATE"

    def target(self, on: str | Sequence[str] | None) -> tuple[Stored, ...]:
        """Return the fields of a conflict target.

        Raises:
            InvalidName: One is no field, or its value is not known beforehand.
        """
        several = isinstance(on, Iterable) and not isinstance(on, str)
        names: Any = on if several else (on,)
        fields = self.entity.key if on is None else map(self.entity.field, names)
        target = tuple(fields)
        if not target:
            raise InvalidName(
                f"{self.entity.name}: on= names no field; name those of a unique "
                "constraint, or leave it out for the key's"
            )
        for item in target:
            if item.generated:
                raise InvalidName(
                    f"{self.entity.name}: {item.field} is given by the server and "
                    "cannot tell whether a row exists; name other fields with on="
                )
        return target


async def hooked(
    bound: Bound[M],
    change: Change[M],
    work: Callable[[Bound[M]], Awaitable[R]],
    records_of: Callable[[R], Sequence[M]] | None,
) -> R:
    """Run *work* between the hooks of *change*, in one transaction.

    Args:
        bound: Where the change happens.
        change: What the hooks are shown.
        work: Makes the change, with no hooks around it.
        records_of: Finds the stored records in the result of *work*; None where
            it has none.
    """
    async with bound.executor.transaction() as transaction:
        await bound.hooks.run("before", transaction, change)
        result = await work(replace(bound, executor=transaction, hooks=HookTable()))
        stored = change.records if records_of is None else records_of(result)
        done = replace(change, records=stored)
        await bound.hooks.run("after", transaction, done)
    return result


async def despite_race(bound: Bound[Any], write: Callable[[], Awaitable[R]]) -> R:
    """Return what *write* does, an INSERT with a conflict target.

    Tasks that write the same new row may meet at the index of another unique
    constraint first, which is no conflict but an error; the row is there after it.
    Inside a transaction the error has undone that, and stays.
    """
    try:
        return await write()
    except DuplicateRecord:
        if bound.in_transaction:
            raise
    return await write()


def only(record: M) -> Sequence[M]:
    """Return the records of a change that gives one."""
    return (record,)


def first_of(found: tuple[M, bool]) -> Sequence[M]:
    """Return the records of a change that also tells whether it created one."""
    return (found[0],)


def all_of(records: list[M]) -> Sequence[M]:
    """Return the records of a change that gives many."""
    return records


def as_list(given: Iterable[R], name: str) -> list[R]:
    """Return what a caller gave as *name*.

    Raises:
        ConfigurationInvalid: It is not several.
    """
    of_kind(given, Iterable, name, "give a list")
    return list(given)


def suppressed(entity: Entity[Any], missing: int = 1, count: int = 1) -> QueryFailed:
    """Return the error for rows that the server neither wrote nor refused."""
    which = "the row" if count == 1 else f"{missing} of {count} rows"
    return QueryFailed(
        f"{entity.name}: a trigger, rule or policy suppressed {which} on the way into "
        "the table; correct the record, or what suppresses it",
        table=entity.name,
    )
