"""Repeating what failed for a passing reason: full jitter, the server's wish first.

The deadline is the caller's; nothing here counts attempts.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import RateLimited, VectorStoreUnavailable

_PAUSES = Backoff(0.1, 5.0, jitter=1.0)


@dataclass(slots=True)
class Scope:
    """What the attempts of one public call share.

    Attributes:
        deadline: Loop time at which the call must have ended.
        failure: What the last repeated attempt failed with.
    """

    deadline: float
    failure: str = ""


current_scope: ContextVar[Scope | None] = ContextVar("current_scope", default=None)


def time_left() -> float | None:
    """Return the seconds until the deadline of the call around, if there is one."""
    scope = current_scope.get()
    if scope is None:
        return None
    return max(0.001, scope.deadline - asyncio.get_running_loop().time())


async def pause_before_retry(exc: VectorStoreUnavailable, failures: int) -> None:
    """Wait before an attempt is repeated; raise *exc* where there is no time for it.

    The enclosing ``asyncio.timeout()`` ends the wait. A pause that the server asked
    for is kept; where it outlasts the deadline the error is raised at once.

    Args:
        exc: What the attempt failed with.
        failures: Attempts of this request that failed before.

    Raises:
        VectorStoreUnavailable: It is not retryable, or the pause too long.
    """
    if not exc.retryable:
        raise exc
    pause = _PAUSES.after(failures)
    if isinstance(exc, RateLimited) and exc.retry_after is not None:
        pause = exc.retry_after + pause / 10
    scope = current_scope.get()
    if scope is not None:
        if asyncio.get_running_loop().time() + pause >= scope.deadline:
            raise exc
        scope.failure = str(exc)
    await asyncio.sleep(pause)
