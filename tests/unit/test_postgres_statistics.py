"""Waits are counted in buckets, close enough to be believed."""

from __future__ import annotations

import pytest

from fm_storage.postgres.statistics import Counters


def test_percentiles_count_those_who_did_not_wait():
    """Half the callers without a wait make a median of zero."""
    counters = Counters()
    counters.at_once = 50
    for _ in range(49):
        counters.add_wait(0.1)
    assert counters.percentile(0.5) == 0.0
    assert counters.percentile(0.99) == pytest.approx(0.1, rel=0.1)
    assert counters.longest == 0.1


def test_percentiles_are_exact_to_a_tenth():
    """A uniform spread is read back."""
    counters = Counters()
    for number in range(1, 1001):
        counters.add_wait(number / 1000)
    assert counters.percentile(0.5) == pytest.approx(0.5, rel=0.11)
    assert counters.percentile(0.99) == pytest.approx(0.99, rel=0.11)
    assert counters.percentile(1.0) == 1.0


def test_no_wait_at_all_is_zero():
    """An unused pool has no percentiles to speak of."""
    assert Counters().percentile(0.99) == 0.0
