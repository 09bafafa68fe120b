"""What is opened by ``await`` or ``async with``, and closed by ``aclose()``.

Apart because the manager, the error manager, both together and a session all have
this life, and differ only in what opening and closing mean.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

__all__ = ["Lifecycle"]


class Lifecycle(abc.ABC):
    """Awaitable and async context manager; both give the object itself, open."""

    def __await__(self) -> Generator[Any, None, Self]:
        """Open it outside a block; close it with ``aclose()``."""
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        """Open it for the block."""
        return await self._opened()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it, whatever ended the block."""
        await self.aclose()

    @abc.abstractmethod
    async def _opened(self) -> Self:
        """Open it, and return it."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close it; twice is fine."""
