"""In what order: steps that become ORDER BY."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fm_storage.errors import InvalidName
from fm_storage.repositories.model.entity import Entity


@dataclass(frozen=True, slots=True)
class Order:
    """One step of an order."""

    field: str
    descending: bool = False
    nulls: Literal["first", "last"] | None = None

    @property
    def nulls_first(self) -> bool:
        """Whether NULL comes first; by default PostgreSQL counts it as greatest."""
        if self.nulls is None:
            return self.descending
        return self.nulls == "first"


OrderBy: TypeAlias = "str | Order | Sequence[str | Order]"
"""Field names (``-`` before a name turns it round) or ``asc()`` and ``desc()``."""


def asc(field: str, *, nulls: Literal["first", "last"] | None = None) -> Order:
    """Order from small to great; NULL comes last unless *nulls* is "first"."""
    return Order(field, descending=False, nulls=nulls)


def desc(field: str, *, nulls: Literal["first", "last"] | None = None) -> Order:
    """Order from great to small; NULL comes first unless *nulls* is "last"."""
    return Order(field, descending=True, nulls=nulls)


def orders(entity: Entity[Any], order_by: OrderBy | None) -> tuple[Order, ...]:
    """Return the steps of *order_by*, every field known to the model.

    Raises:
        InvalidName: A field is not the model's.
    """
    if order_by is None:
        return ()
    if isinstance(order_by, str | Order) or not isinstance(order_by, Iterable):
        order_by = (order_by,)
    steps = tuple(
        Order(step.removeprefix("-"), step[:1] == "-")
        if isinstance(step, str)
        else step
        if isinstance(step, Order)
        else Order(step)  # refused below
        for step in order_by
    )
    for step in steps:
        if step.nulls not in {None, "first", "last"}:
            raise InvalidName(f"nulls={step.nulls!r}: use 'first' or 'last'")
        entity.field(step.field)
    return steps


def order_sql(entity: Entity[Any], steps: Sequence[Order]) -> str:
    """Return ``ORDER BY``, or nothing for no steps."""
    if not steps:
        return ""
    parts = []
    for step in steps:
        item = entity.field(step.field)
        text = item.quoted + (" DESC" if step.descending else "")
        # Written only where it differs: the bare form matches a plain index.
        if step.nulls_first != step.descending:
            text += f" NULLS {'FIRST' if step.nulls_first else 'LAST'}"
        parts.append(text)
    return f" ORDER BY {', '.join(parts)}"
