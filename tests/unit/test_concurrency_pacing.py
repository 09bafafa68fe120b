"""Long computations that let the loop go first."""

from __future__ import annotations

from fm_storage.concurrency.pacing import yielding_gil


def test_items_pass_unchanged_and_the_interpreter_is_offered_between_them(monkeypatch):
    """Before the first, and before every one that *every* says."""
    pauses: list[float] = []
    monkeypatch.setattr("fm_storage.concurrency.pacing.time.sleep", pauses.append)
    assert list(yielding_gil(range(40))) == list(range(40))
    assert pauses == [0, 0, 0]
    assert list(yielding_gil(iter("abcd"), 2)) == list("abcd")
    assert len(pauses) == 5
    assert list(yielding_gil([])) == []
    assert len(pauses) == 5


def test_nothing_is_taken_before_it_is_asked_for():
    """A stream is passed on item by item."""
    given = iter(range(3))
    passed = yielding_gil(given)
    assert next(passed) == 0
    assert next(given) == 1
