"""Where a session's connections come from: a pool, or the caller's function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from fm_storage.errors import ConfigurationInvalid, ConnectionFailed
from fm_storage.postgres import Connection, Pool
from fm_storage.postgres.arguments import awaitable
from fm_storage.postgres.connection.joining import adopted
from fm_storage.postgres.errors import translate

Provider = Pool | Callable[[], Awaitable[Any]]


class Source(Protocol):
    """Gives connections for a block, or for good; a pool is one."""

    @property
    def transaction_pooler(self) -> bool | None:
        """Whether a transaction pooler stands before the server; None: unknown."""
        ...

    def acquire(
        self, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """Give a connection for the block."""
        ...

    async def connect(self, purpose: str, *, dsn: str | None = None) -> Connection:
        """Make a connection that the caller closes."""
        ...


class _FromFunction:
    """Connections of the caller's making: asyncpg's, or ours.

    Each is closed when it was used; the lease's when the session is closed.
    """

    transaction_pooler = None

    def __init__(self, make: Callable[[], Awaitable[Any]]) -> None:
        self._make = make

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        del timeout  # so is the time it takes
        connection = await self.connect("session")
        try:
            yield connection
        finally:
            await connection.aclose()

    async def connect(self, purpose: str, *, dsn: str | None = None) -> Connection:
        del dsn  # the address is the function's own affair
        waiting = awaitable(
            self._make(),
            "provider",
            "give an async function that returns a connection",
        )
        try:
            made = await waiting
        except OSError as exc:
            raise ConnectionFailed(
                f"session provider: it made no connection ({exc}); is the server "
                "running, and is the address right?"
            ) from exc
        except Exception as exc:  # the driver's own become ours
            error = translate(exc, owner="session provider")
            if error is exc:
                raise
            raise error from exc
        return adopted(made, purpose=purpose)


def source_of(provider: Provider) -> Source:
    """Return the source behind *provider*.

    Raises:
        ConfigurationInvalid: It is neither a pool nor a function.
    """
    if isinstance(provider, Pool):
        return provider
    if callable(provider):
        return _FromFunction(provider)
    raise ConfigurationInvalid(
        "provider",
        f"{type(provider).__name__} gives no connections; pass a Pool, an async "
        "function that returns a connection, or None",
    )
