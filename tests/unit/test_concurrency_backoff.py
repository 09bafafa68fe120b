"""Pauses that double, with jitter."""

from __future__ import annotations

import asyncio

import pytest

from fm_storage.concurrency.backoff import Backoff


def test_pauses_double_up_to_the_longest():
    """The first one is *first*; none is above *longest*."""
    backoff = Backoff(0.5, 3.0, jitter=0.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_success_begins_again():
    """Otherwise one bad hour would slow down the rest of the day."""
    backoff = Backoff(0.5, 3.0, jitter=0.0)
    assert [backoff.next() for _ in range(3)] == [0.5, 1.0, 2.0]
    backoff.reset()
    assert backoff.next() == 0.5


@pytest.mark.parametrize("jitter", [0.1, 0.5, 1.0])
def test_jitter_shortens_a_pause_by_its_share_at_most(jitter: float):
    """Pauses of one length differ, and none leaves the band."""
    backoff = Backoff(1.0, 8.0, jitter=jitter)
    pauses = [backoff.after(2) for _ in range(500)]
    assert all(4.0 * (1.0 - jitter) <= pause <= 4.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 2.0 * jitter
    assert backoff.failures == 0


def test_many_failures_stay_at_the_longest():
    """A server that is away for a year overflows nothing."""
    backoff = Backoff(0.01, 30.0, jitter=0.0)
    assert backoff.after(10**9) == 30.0


async def test_sleep_takes_the_next_pause(monkeypatch: pytest.MonkeyPatch):
    """Each sleep is one failure more."""
    slept: list[float] = []

    async def sleep(pause: float) -> None:
        slept.append(pause)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    backoff = Backoff(0.25, 0.5, jitter=0.0)
    for _ in range(3):
        await backoff.sleep()
    assert slept == [0.25, 0.5, 0.5]
    assert backoff.failures == 3
