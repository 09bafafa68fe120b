"""The pool's long sweeps."""

from __future__ import annotations

import pytest

from tests.support.cancelling import cancel_at_random


@pytest.mark.timeout(300)
async def test_1500_random_cancellations_leak_nothing(empty_dsn):
    """None of the connections is lost, and there are never more than max_size."""
    await cancel_at_random(empty_dsn, 1500)
