"""Servers that do not answer; pools and connections used where they cannot be."""

from __future__ import annotations

from fm_storage.errors.root import StorageError


class ConnectionFailed(StorageError, ConnectionError):
    """No connection could be made, or one broke while a statement ran."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.retryable = retryable


class ServerTooOld(ConnectionFailed):
    """The server's version is below the oldest that is supported."""

    def __init__(self, server: str, *, version: str, minimum: str) -> None:
        super().__init__(
            f"{server}: version {version} is older than {minimum}; "
            "upgrade the server or use an older fm_storage",
            retryable=False,
        )
        self.version, self.minimum = version, minimum


class EmbeddedFailed(StorageError):
    """An embedded engine could not be installed, started or reached."""


class StorageClosed(StorageError):
    """A manager, or a part of it, was used before opening or after closing."""


class PoolClosed(StorageClosed):
    """A pool was used before it was opened or after it was closed."""

    def __init__(self, pool: str, *, state: str = "closed") -> None:
        super().__init__(
            f"pool {pool!r}: it is {state}; use it inside 'async with' or "
            "between open() and aclose()"
        )


class ConnectionReleased(StorageClosed):
    """A connection was used after its block had given it back."""


class PoolTimeout(StorageError, TimeoutError):
    """No connection became free in time."""

    retryable = True

    def __init__(
        self,
        pool: str,
        *,
        waited: float,
        in_use: int,
        size: int,
        waiting: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(
            f"pool {pool!r}: no connection within {waited:.2f} s "
            f"({in_use} of {size} in use, {waiting} waiting); "
            "release connections sooner, or raise max_size or timeout"
            + (f"; {detail}" if detail else "")
        )
        self.waited, self.in_use, self.size = waited, in_use, size
        self.waiting = waiting


class ConnectionBusy(StorageError):
    """A second task used a connection while a statement was running on it."""


class WrongLoop(StorageError):
    """An object was used from an event loop other than the one it opened on.

    Or opened where no event loop of asyncio runs, as under trio.
    """

    def __init__(self, owner: str, *, none_runs: bool = False) -> None:
        super().__init__(
            f"{owner}: no event loop of asyncio runs here; open it under "
            "asyncio.run(), uvloop.run() or anyio's asyncio backend (trio is not "
            "supported)"
            if none_runs
            else f"{owner}: it was opened on another event loop; open one per loop, "
            "or hand the call over with asyncio.run_coroutine_threadsafe()"
        )


class ForkedProcess(StorageError):
    """An object was used in a child process that inherited it by fork."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"{owner}: it was opened in the parent process and a forked child "
            "cannot share its sockets; open a new one in the child"
        )
