"""Opening and closing: the states, and the process and event loop of an object."""

from __future__ import annotations

import abc
import asyncio
import enum
import os

# Returns None where get_running_loop() raises. Documented, underscore and all:
# https://docs.python.org/3/library/asyncio-extending.html.
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any, Self

from fm_storage.errors import ForkedProcess, StorageClosed, WrongLoop

if TYPE_CHECKING:
    from collections.abc import Generator


class Life(enum.Enum):
    """State of an object that is opened once and closed once."""

    NEW = "not open yet"
    OPENING = "still opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Home:
    """The process and the event loop that an object belongs to, and its state.

    The owner has one, sets ``life``, and calls ``enter()`` when it opens.

    Args:
        owner: Named at the start of each error (``vector store``).
        usage: How the owner is used, for the error of one that is not open.
    """

    __slots__ = ("life", "loop", "owner", "pid", "usage")

    def __init__(
        self,
        owner: str,
        *,
        usage: str = "use it inside 'async with' or between open() and aclose()",
    ) -> None:
        self.owner = owner
        self.usage = usage
        self.life = Life.NEW
        self.pid = os.getpid()
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def forked(self) -> bool:
        """Whether this is a child process that inherited the object by fork."""
        return os.getpid() != self.pid

    def enter(self) -> asyncio.AbstractEventLoop:
        """Belong to the running event loop from now on, and return it.

        Raises:
            ForkedProcess: The object is the parent process's.
            WrongLoop: No event loop of asyncio runs here (trio).
        """
        if self.forked:
            raise ForkedProcess(self.owner)
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoop(self.owner, none_runs=True) from None
        return self.loop

    def check(self) -> None:
        """Refuse a use in another process or on another loop.

        Any loop will do until ``enter()`` has been called, and a call from outside
        every loop is no use of another one.

        Raises:
            ForkedProcess: This is a forked child.
            WrongLoop: Another event loop runs here.
        """
        if os.getpid() != self.pid:
            raise ForkedProcess(self.owner)
        if self.loop is not None and _get_running_loop() not in (None, self.loop):
            raise WrongLoop(self.owner)

    def require_open(self, *also: Life) -> None:
        """Refuse a use outside the object's life, process or loop.

        Args:
            *also: States in which it may be used as well as ``Life.OPEN``.

        Raises:
            StorageClosed: It is not open.
            ForkedProcess: See ``check()``.
            WrongLoop: See ``check()``.
        """
        if self.life is not Life.OPEN and self.life not in also:
            raise StorageClosed(f"{self.owner}: it is {self.life.value}; {self.usage}")
        self.check()


class Lifecycle(abc.ABC):
    """Awaitable and async context manager; both give the object itself, open."""

    def __await__(self) -> Generator[Any, None, Self]:
        """Open it outside a block; close it with ``aclose()``."""
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        """Open it for the block."""
        return await self._opened()

    async def __aexit__(self, *_: object) -> None:
        """Close it, whatever ended the block."""
        await self.aclose()

    @abc.abstractmethod
    async def _opened(self) -> Self:
        """Open it, and return it."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close it; twice is fine."""
