"""What a manager tells about itself: health by part, and counters.

Apart from the manager so that a monitoring probe can import the types alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, cast

__all__ = ["Health", "PartHealth", "probe"]

Status = Literal["ok", "degraded", "down", "off"]


@dataclass(frozen=True, slots=True)
class PartHealth:
    """One part: how it is, and how quickly it answered.

    Attributes:
        name: ``postgres``, ``migrations``, ``qdrant``, ``outbox`` or ``sessions``.
        status: ``ok``; ``degraded`` (works, but behind or impaired); ``down``
            (does not answer); ``off`` (switched off by the settings).
        latency: Seconds the part took to answer, None if it was not asked.
        detail: What is wrong, or what the part is.
    """

    name: str
    status: Status
    latency: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """All parts at one moment."""

    parts: tuple[PartHealth, ...]

    @property
    def status(self) -> Status:
        """The worst of the parts; a part that is off counts for nothing."""
        found = {part.status for part in self.parts}
        for status in ("down", "degraded"):
            if status in found:
                return status
        return "ok"

    @property
    def ok(self) -> bool:
        """Whether every part that is on works as it should."""
        return self.status == "ok"

    def __getitem__(self, name: str) -> PartHealth:
        """Return the part called *name*."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)


async def probe(
    name: str,
    ask: Callable[[], Awaitable[tuple[str, str]]],
    *,
    timeout: float,
) -> PartHealth:
    """Ask one part, never for longer than *timeout* seconds; never raises.

    Cancellation goes through to the caller.
    """
    begin = time.perf_counter()
    status: Status
    try:
        async with asyncio.timeout(timeout):
            said, detail = await ask()
            status = cast("Status", said)
    except TimeoutError as exc:
        status, detail = "down", str(exc) or f"no answer within {timeout:g} s"
    except Exception as exc:
        status, detail = "down", str(exc) or type(exc).__name__
    return PartHealth(name, status, time.perf_counter() - begin, detail)
