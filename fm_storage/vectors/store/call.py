"""What every call of a store shares: its life, its name, one deadline, counting.

Apart from the calls themselves, which are grouped by what they do.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.errors import (
    ForkedProcess,
    InvalidName,
    StorageClosed,
    VectorStoreUnavailable,
    WrongLoop,
)
from fm_storage.errors.vectors import name_operation
from fm_storage.vectors.backend import Backend
from fm_storage.vectors.retry import Retry, Scope, call_scope
from fm_storage.vectors.tracing import span

__all__ = ["Life", "StoreCalls", "check_name"]

T = TypeVar("T")

_NAME_LIMIT = 255
_WITHOUT_COLLECTION = frozenset(
    {
        "ready",
        "identity",
        "get_marker",
        "set_marker",
        "list_collections",
        "list_aliases",
        "set_aliases",
    }
)


class Life(Enum):
    """Where a store is in its life."""

    NEW = "not opened"
    OPEN = "open"
    CLOSED = "closed"


class StoreCalls:
    """State of a store, and how one public call is run."""

    def __init__(
        self, config: QdrantConfig, *, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.config = config
        self.folder = None if folder is None else Path(folder)
        # Changed by open() and aclose() only.
        self._life = Life.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._backend: Backend
        # Changed by every call.
        self._specs: dict[str, dict[str, Any]] = {}
        self._calls: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._retry = Retry()
        # Changed by when_defined() only.
        self._listeners: list[Callable[[str, CollectionConfig], None]] = []

    def when_defined(self, listener: Callable[[str, CollectionConfig], None]) -> None:
        """Have *listener* told of each definition that this store gives to a name.

        Called as ``listener(name, definition)`` when a collection was ensured, and
        when ``reindex()`` has exchanged a name; it must neither wait nor raise.
        """
        self._listeners.append(listener)

    def _defined(self, name: str, definition: CollectionConfig) -> None:
        for listener in self._listeners:
            listener(name, definition)

    def _check(self) -> None:
        if self._life is not Life.OPEN:
            raise StorageClosed(
                f"vector store: it is {self._life.value}; use it inside 'async with' "
                "or between open() and aclose()"
            )
        if self._pid != os.getpid():
            raise ForkedProcess("vector store")

    def _backend_(self) -> Backend:
        self._check()
        return self._backend

    async def _spec(self, collection: str) -> dict[str, Any]:
        spec = self._specs.get(collection)
        if spec is None:
            spec = await self._backend.spec(collection)
            self._specs[collection] = spec
        return spec

    async def _changed_spec(self, collection: str) -> dict[str, Any] | None:
        """Look a definition up again; None when it is what was known."""
        known = self._specs.pop(collection, None)
        spec = await self._spec(collection)
        return None if spec == known else spec

    async def _call(
        self,
        operation: str,
        collection: str | None,
        run: Callable[[], Awaitable[T]],
        *,
        once: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Run one public call: life, loop, deadline, retries, counting, span."""
        self._check()
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("vector store")
        if operation not in _WITHOUT_COLLECTION:
            check_name(collection)
        self._calls[operation] += 1
        within = self.config.timeout if timeout is None else timeout
        until = self._loop.time() + within
        with (
            span(operation, collection, engine=self._backend.kind),
            call_scope(until) as scope,
        ):
            deadline = asyncio.timeout_at(until)
            try:
                async with deadline:
                    return await self._retry.run(
                        run, active=self._backend.retries and not once
                    )
            except TimeoutError as exc:
                self._errors[operation] += 1
                if not deadline.expired():
                    raise
                raise self._late(operation, collection, scope, within) from exc
            except Exception as exc:  # counted, named, and passed on
                self._errors[operation] += 1
                name_operation(exc, operation)
                if collection is not None:
                    self._specs.pop(collection, None)
                raise

    def _late(
        self, operation: str, collection: str | None, scope: Scope, within: float
    ) -> VectorStoreUnavailable:
        if operation == "ready":  # changes nothing
            said = scope.failure or f"vector store: no answer within {within:g} s"
            return VectorStoreUnavailable(said, operation=operation)
        failed = f" (before: {scope.failure})" if scope.failure else ""
        return VectorStoreUnavailable(
            f"vector store: {operation} got no answer within "
            f"{within:g} s{failed}; whether it was carried out is not "
            "known; raise qdrant.timeout",
            operation=operation,
            collection=collection,
        )


def check_name(name: object) -> None:
    """Refuse what is no name of a collection.

    Raises:
        InvalidName: It is empty, too long, or Qdrant would misread it.
    """
    if (
        not isinstance(name, str)
        or not name
        or len(name.encode(errors="replace")) > _NAME_LIMIT
        or name in {".", ".."}
        or any(c in '<>:"/\\|?*' or not c.isprintable() for c in name)
    ):
        raise InvalidName(
            f"{name!r} is no name of a collection; give 1 to {_NAME_LIMIT} bytes "
            'without <>:"/\\|?* and control characters'
        )
