"""Rows as records of a class: who makes them is registered from above.

What a class's fields mean is known by ``repositories``, which stands on this room
and registers its maker when it is imported.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

from asyncpg import Record

M = TypeVar("M")


class RowMaker(Protocol):
    """Finds out how a class's records are made of rows with some columns."""

    def __call__(
        self, model: type[M], columns: tuple[str, ...], /
    ) -> Callable[[Sequence[Record]], list[M]]:
        """Return what makes the records of rows.

        Raises:
            InvalidName: Columns and fields do not match.
        """
        ...


_makers: list[RowMaker] = []


def use_row_maker(maker: RowMaker) -> None:
    """Register what makes records; the last one counts."""
    _makers[:] = [maker]


def records_of(model: type[M], rows: Sequence[Record]) -> list[M]:
    """Return *rows* as records of *model*."""
    if not rows:
        return []
    return _makers[0](model, tuple(rows[0].keys()))(rows)


async def stream_of(
    model: type[M], rows: AsyncIterator[Record]
) -> AsyncGenerator[M, None]:
    """Yield *rows* as records of *model*."""
    make: Any = None
    async for row in rows:
        make = make or _makers[0](model, tuple(row.keys()))
        yield make([row])[0]
