"""Which event loops a test runs on.

Apart, because only what talks to transports, timers and sockets itself is worth
running twice. ``FM_STORAGE_TEST_LOOP=uvloop`` runs all of it on uvloop instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]  # its absence is the point

__all__ = ["pytest_asyncio_loop_factories"]

Factory = Callable[[], asyncio.AbstractEventLoop]
_TWICE = ("test_postgres_pool", "test_vectors_engine", "test_hooks_stack")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Factory]:
    """Run a few suites on asyncio and on uvloop, all else on asyncio."""
    loops: dict[str, Factory] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None and os.environ.get("FM_STORAGE_TEST_LOOP") == "uvloop":
        return {"uvloop": uvloop.new_event_loop}
    if uvloop is not None and item.path.name.startswith(_TWICE):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
