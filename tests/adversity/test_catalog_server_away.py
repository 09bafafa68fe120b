"""The server goes away for a while under load: no error is lost, none is doubled."""

from __future__ import annotations

import pytest

from tests.support.catalog_outages import play_kill, play_outage

# A cluster of its own is started and stopped twice.
pytestmark = pytest.mark.timeout(180)


async def test_errors_recorded_and_logged_while_the_server_is_stopped_arrive_once(
    cluster, tmp_path
):
    """Stopped as by a power cut, under the load of workers and of a log."""
    assert await play_outage(cluster, tmp_path / "data", 1.0) > 200


async def test_a_process_killed_while_the_server_is_away_loses_nothing_it_kept(
    cluster, child, tmp_path
):
    """The next process replays what the dead one had spooled."""
    assert await play_kill(cluster, child, tmp_path / "data", 0.5) > 10
