"""Working through a batch without keeping the loop from everybody else.

Apart because decoding, digesting and encoding a batch of 500 points each take
milliseconds of Python in one go, and the application's requests wait meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

__all__ = ["in_chunks"]

T = TypeVar("T")

_SLICE = 64
"""About a millisecond of work on points of 384 numbers."""


async def in_chunks(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Yield *items* a few at a time; others have their turn in between."""
    for start in range(0, len(items), _SLICE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + _SLICE]
