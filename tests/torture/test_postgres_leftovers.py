"""Twenty thousand random statements: what counts as lean leaves nothing behind."""

from __future__ import annotations

import random

import pytest

from tests.support.statements import sweep


@pytest.mark.timeout(1800)
async def test_twenty_thousand_statements_leave_nothing(empty_dsn: str):
    """The seed is part of the message of a failure."""
    await sweep(empty_dsn, random.randrange(1_000_000), 20_000)
