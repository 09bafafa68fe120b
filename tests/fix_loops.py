"""Which event loops a test runs on.

Apart, because only the pool's suite is worth running twice: it is the part that
talks to transports, timers and sockets itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]  # its absence is the point

__all__ = ["pytest_asyncio_loop_factories"]

Factory = Callable[[], asyncio.AbstractEventLoop]
_TWICE = "test_postgres_pool"


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Factory]:
    """Run the pool's suite on asyncio and on uvloop, all else on asyncio."""
    loops: dict[str, Factory] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None and item.path.name.startswith(_TWICE):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
