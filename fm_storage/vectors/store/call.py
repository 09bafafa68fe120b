"""How every public call of a store is run: life, loop, deadline, retries, counting.

The calls themselves stand in ``store.py``; each of them is one ``run()`` around
one or more ``ask()``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from fm_storage.concurrency.lifecycle import Home, Life
from fm_storage.config import QdrantConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidVector,
    VectorStoreUnavailable,
)
from fm_storage.errors.vectors import name_operation
from fm_storage.vectors.backend import Backend, backend_for
from fm_storage.vectors.request.operations import Request
from fm_storage.vectors.retry import Scope, current_scope, pause_before_retry
from fm_storage.vectors.tracing import span

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


class Calls:
    """A store's engine, and how one public call reaches it.

    Attributes:
        config: Where the vectors are, and the bounds of a call.
        folder: Data folder of an embedded engine.
        backend: The engine, once opened.
        specs: Definitions of collections as last seen.
        sizes: Bytes of a point as last seen, by collection and what was asked for.
        calls: Calls answered, by operation.
        errors: Calls that raised, by operation.
        retries: Attempts repeated after a failure that may pass.
    """

    def __init__(self, config: QdrantConfig, folder: Path | None) -> None:
        self.config, self.folder = config, folder
        # Changed by open() and aclose() only.
        self._home = Home("vector store")
        self.backend: Backend
        # Changed by every call.
        self.specs: dict[str, dict[str, Any]] = {}
        self.sizes: dict[tuple[str, str, str], float] = {}
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.retries = 0

    async def open(self) -> bool:
        """Choose and open the engine; False when that was done before."""
        if self._home.life is Life.OPEN:
            return False
        self._home = Home("vector store")  # may be another process than ours was
        self._home.enter()
        self.backend = backend_for(self.config, self.folder)
        await self.backend.open()
        self._home.life = Life.OPEN
        return True

    async def aclose(self) -> None:
        """Let go of the engine; harmless when repeated, or in a forked child."""
        if self._home.life is not Life.OPEN:
            return
        self._home.life = Life.CLOSED
        if not self._home.forked:
            await self.backend.aclose()

    def check(self) -> None:
        """Refuse a use outside the store's life, process or loop."""
        self._home.require_open()

    async def spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition, as last seen where it was."""
        spec = self.specs.get(collection)
        if spec is None:
            spec = self.specs[collection] = await self.ask("spec", collection)
        return spec

    async def fitted(
        self, collection: str, work: Callable[[dict[str, Any]], Awaitable[T]]
    ) -> T:
        """Do *work* by a definition; again where it was out of date, and unfit so."""
        known = await self.spec(collection)
        try:
            return await work(known)
        except InvalidVector:
            self.specs.pop(collection, None)
            changed = await self.spec(collection)
            if changed == known:
                raise
            return await work(changed)

    async def ask(
        self, operation: str, collection: str | None, request: Request | None = None
    ) -> Any:
        """Have the engine carry out one operation.

        The one place where attempts are repeated: after a failure that may pass,
        while the deadline of the call around lasts.
        """
        failures = 0
        while True:
            try:
                return await self.backend.call(operation, collection, request)
            except VectorStoreUnavailable as exc:
                if not self.backend.retries:
                    raise
                await pause_before_retry(exc, failures)
                failures += 1
                self.retries += 1

    async def one(
        self,
        operation: str,
        collection: str | None,
        asked: str | None = None,
        request: Request | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run a public call that is one operation of the engine.

        Args:
            operation: Name of the call in errors, statistics and spans.
            collection: What it is about.
            asked: The engine's operation; the same by default.
            request: Its request.
            timeout: Seconds; ``qdrant.timeout`` by default.
        """
        return await self.run(
            operation,
            collection,
            lambda: self.ask(asked or operation, collection, request),
            timeout=timeout,
        )

    async def run(
        self,
        operation: str,
        collection: str | None,
        work: Callable[[], Awaitable[T]],
        *,
        timeout: float | None = None,
    ) -> T:
        """Run one public call: life, loop, deadline, counting, span."""
        # Compared here, as every call passes by; require_open() finds the error.
        # After a fork no loop runs: the process is compared first.
        home = self._home
        if home.life is not Life.OPEN or home.pid != os.getpid():
            home.require_open()
        loop = asyncio.get_running_loop()
        if home.loop is not loop:
            home.require_open()
        if operation not in _WITHOUT_COLLECTION and not (
            type(collection) is str and collection in self.specs  # checked before
        ):
            check_name(collection)
        self.calls[operation] += 1
        within = self.config.timeout
        if timeout is not None:
            within = _seconds(timeout)
        scope = Scope(loop.time() + within)
        trace = sys.modules.get("opentelemetry.trace")
        spanned = (
            nullcontext()
            if trace is None
            else span(
                trace,
                operation,
                collection,
                engine=self.backend.kind,
                url=self.config.url,
            )
        )
        outer = current_scope.set(scope)
        deadline = asyncio.timeout_at(scope.deadline)
        try:
            with spanned:
                try:
                    async with deadline:
                        return await work()
                except Exception as exc:  # counted, named, and passed on
                    self.errors[operation] += 1
                    if collection is not None:
                        self.specs.pop(collection, None)
                    if isinstance(exc, TimeoutError) and deadline.expired():
                        raise _late(operation, collection, scope, within) from exc
                    name_operation(exc, operation)
                    raise
        finally:
            current_scope.reset(outer)


def _late(
    operation: str, collection: str | None, scope: Scope, within: float
) -> VectorStoreUnavailable:
    if operation == "ready":  # changes nothing
        message = scope.failure or f"vector store: no answer within {within:g} s"
        return VectorStoreUnavailable(message, operation=operation)
    failed = f" (before: {scope.failure})" if scope.failure else ""
    return VectorStoreUnavailable(
        f"vector store: {operation} got no answer within "
        f"{within:g} s{failed}; whether it was carried out is not "
        "known; raise qdrant.timeout",
        operation=operation,
        collection=collection,
    )


def _seconds(timeout: object) -> float:
    """Return *timeout*, checked.

    Raises:
        ConfigurationInvalid: It is no number of seconds.
    """
    if isinstance(timeout, int | float) and timeout is not True and timeout >= 0:
        return timeout
    raise ConfigurationInvalid("timeout", f"is {timeout!r}; give seconds")


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
