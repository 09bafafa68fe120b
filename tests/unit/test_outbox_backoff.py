"""How long is waited after failures: longer each time, never too long, never alike."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fm_storage.outbox.agreement.sequence import furthest
from fm_storage.outbox.delivery.delivery import pauses


@given(st.integers(0, 10_000), st.floats(0.001, 3600.0))
def test_pause_is_capped_and_never_nothing(failures: int, longest: float):
    """Whatever the number of failures; it is no reason to give up, or to overflow."""
    pause = pauses(longest).after(failures)
    assert 0.0 < pause <= longest


def test_pause_doubles_until_the_cap_and_has_jitter():
    """Half of it is chance: processes that failed together do not return together."""
    highest = [max(pauses(30.0).after(n) for _ in range(500)) for n in range(12)]
    assert all(1.5 < after / before < 2.7 for before, after in pairwise(highest[:9]))
    assert highest[-1] <= 30.0
    drawn = [pauses(30.0).after(20) for _ in range(500)]
    assert min(drawn) >= 15.0
    assert len(set(drawn)) > 400


@given(st.integers(1, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_furthest_version_is_past_all_that_were_given_out_and_never_past_the_end(
    last: int, marked: int
):
    """What the sequence gave is believed, whatever the marker says."""
    found = furthest(last, marked)
    assert max(last, marked) <= found < 2**53
