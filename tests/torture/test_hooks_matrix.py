"""The whole matrix of hosts and ways out; the normal suite runs a part of it."""

from __future__ import annotations

import pytest

from tests.adversity.test_hooks_hosts import CODES, HOSTS, SHORT, Starter, check


@pytest.mark.parametrize(
    ("host", "way"),
    [(host, way) for host in HOSTS for way in CODES if (host, way) not in SHORT],
)
async def test_hooks_run_whatever_host_and_end(child: Starter, host: str, way: str):
    """LIFO, all tried, within the total deadline, and the right exit code."""
    await check(child, host, way)
