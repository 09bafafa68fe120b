"""PostgreSQL away for a minute under load: 0 errors lost, 0 doubled."""

from __future__ import annotations

import pytest

from tests.support.catalog_outages import play_kill, play_outage

pytestmark = pytest.mark.timeout(600)


async def test_a_minute_without_postgresql_loses_and_doubles_nothing(cluster, tmp_path):
    """Six workers and a log of some hundred lines a second go on meanwhile."""
    assert await play_outage(cluster, tmp_path / "data", 60) > 10_000


async def test_a_process_killed_after_a_minute_without_postgresql_loses_nothing(
    cluster, child, tmp_path
):
    """Everything it said it had kept is brought in by the next one, once."""
    assert await play_kill(cluster, child, tmp_path / "data", 60) > 1000
