"""The long form of the ledger."""

from __future__ import annotations

import pytest

from tests.support.ledger import write_in_a_storm


@pytest.mark.timeout(600)
async def test_2000_writes_in_a_storm_happen_once_or_not_at_all(empty_dsn, tcp_proxy):
    """A backend is terminated every 20 ms, answers are dropped at random."""
    assert await write_in_a_storm(empty_dsn, tcp_proxy(empty_dsn), 2_000) > 500
