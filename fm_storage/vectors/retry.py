"""Repeating what failed for a passing reason: full jitter, the server's wish first.

Apart from the store, so that the rule can be tested without one. The deadline
is the caller's; nothing here counts attempts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from fm_storage.errors import RateLimited, VectorStoreUnavailable

__all__ = ["Retry", "Scope", "call_scope", "time_left"]

T = TypeVar("T")

_BASE = 0.1
_CEILING = 5.0


@dataclass(slots=True)
class Scope:
    """What the attempts of one public call share.

    Attributes:
        deadline: Loop time at which the call must have ended.
        failure: What the last repeated attempt failed with.
    """

    deadline: float
    failure: str = ""


_scope: ContextVar[Scope | None] = ContextVar("_scope", default=None)


@contextmanager
def call_scope(deadline: float) -> Iterator[Scope]:
    """Tell the attempts made inside when they must be over."""
    scope = Scope(deadline)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def time_left() -> float | None:
    """Return the seconds until the deadline of the call around, if there is one."""
    scope = _scope.get()
    if scope is None:
        return None
    return max(0.001, scope.deadline - asyncio.get_running_loop().time())


class Retry:
    """Runs attempts until one succeeds or fails for good.

    Attributes:
        count: Attempts that were repeated, since the store opened.
    """

    def __init__(self) -> None:
        self.count = 0

    async def run(self, attempt: Callable[[], Awaitable[T]], *, active: bool) -> T:
        """Run *attempt*; again after a retryable failure, while the deadline lasts.

        The enclosing ``asyncio.timeout()`` ends it. A pause that the server asked
        for is kept; where it outlasts the deadline the error is raised at once.

        Raises:
            RateLimited: The server asked for more patience than there is time.
        """
        failures = 0
        while True:
            try:
                return await attempt()
            except VectorStoreUnavailable as exc:
                if not active or not exc.retryable:
                    raise
                pause = random.uniform(0, min(_CEILING, _BASE * 2**failures))
                if isinstance(exc, RateLimited) and exc.retry_after is not None:
                    pause = exc.retry_after + pause / 10
                scope = _scope.get()
                if scope is not None:
                    now = asyncio.get_running_loop().time()
                    if now + pause >= scope.deadline:
                        raise
                    scope.failure = str(exc)
                failures += 1
                self.count += 1
                await asyncio.sleep(pause)
