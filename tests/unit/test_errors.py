"""The error tree: every class documented, drawn, constructed and truthful."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from fm_storage import errors


def _classes() -> list[type[errors.StorageError]]:
    return [getattr(errors, name) for name in errors.__all__]


def test_every_error_is_drawn_and_exported():
    """The picture in the module names exactly the exported classes."""
    assert errors.__doc__ is not None
    drawn = re.findall(r"(?:── |^    )(\w+)", errors.__doc__, re.MULTILINE)

    assert sorted(drawn) == errors.__all__
    assert all(issubclass(cls, errors.StorageError) for cls in _classes())
    assert all(cls.__doc__ for cls in _classes())


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigurationInvalid("a.b", "is wrong; correct it"), ValueError),
        (errors.ConnectionFailed("server: gone"), ConnectionError),
        (errors.PoolTimeout("p", waited=1, in_use=2, size=2), TimeoutError),
        (errors.RecordNotFound("t", 1), LookupError),
        (errors.PermissionDenied("no"), PermissionError),
        (errors.LockTimeout("late"), TimeoutError),
        (errors.QueryTimeout("late"), TimeoutError),
        (errors.InvalidName("x"), ValueError),
        (errors.InvalidRecord("x", field="f", index=3), ValueError),
        (errors.InvalidCursor("x"), errors.InvalidRecord),
        (errors.CollectionNotFound("c", operation="search"), LookupError),
        (errors.DimensionMismatch("c", expected=3, got=2, index=1), ValueError),
        (errors.VectorStoreUnavailable("x", operation="o"), ConnectionError),
    ],
)
def test_an_error_is_also_the_builtin_that_fits(
    error: errors.StorageError, builtin: type[Exception]
):
    """Code that knows only builtins still catches the right thing."""
    assert isinstance(error, builtin)
    assert str(error)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (errors.SerializationFailed("x", sqlstate="40001"), True),
        (errors.DeadlockDetected("x", sqlstate="40P01"), True),
        (errors.LockTimeout("x"), True),
        (errors.QueryFailed("x"), False),
        (errors.QueryFailed("x", retryable=True), True),
        (errors.DuplicateRecord("x", constraint="c"), False),
        (errors.ConnectionFailed("x"), True),
        (errors.ServerTooOld("s", version="9", minimum="14"), False),
        (errors.RateLimited("x", operation="o", retry_after=1.0), True),
        (errors.StaleRecord("t", 1, version=2), False),
        (errors.SessionLost("x"), False),
    ],
)
def test_retryable_tells_whether_waiting_helps(
    error: errors.StorageError, *, retryable: bool
):
    """The same call later, unchanged: may it succeed?"""
    assert error.retryable is retryable


@pytest.mark.parametrize("kind", errors.__all__)
def test_an_error_travels_between_processes(kind: str):
    """Whatever its constructor asks for: type, message and fields arrive."""
    made = getattr(errors, kind).__new__(getattr(errors, kind))
    made.args = ("what was said",)
    made.sqlstate, made.retryable = "40001", True
    for arrived in (pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert type(arrived) is type(made)
        assert (str(arrived), arrived.sqlstate) == ("what was said", "40001")
        assert arrived.retryable
    assert type(made).__module__ == "fm_storage.errors"


def test_errors_made_in_the_usual_way_travel_too():
    """Those with keyword-only fields, those that are an OSError, an annotated one."""
    made = errors.PoolTimeout("p", waited=1.5, in_use=2, size=3)
    made.add_note("seen by nobody")
    arrived = pickle.loads(pickle.dumps(made))
    assert (arrived.waited, arrived.size) == (1.5, 3)
    assert arrived.__notes__ == ["seen by nobody"]
    assert str(arrived) == str(made)
    failed = errors.ConnectionFailed("gone", sqlstate="08006")
    assert str(pickle.loads(pickle.dumps(failed))) == "gone"


def test_messages_end_in_a_remedy():
    """*owner: fact with numbers; remedy*, as a reader meets it."""
    said = [
        str(errors.PoolTimeout("main", waited=2, in_use=4, size=4, detail="held by x")),
        str(errors.PoolClosed("main")),
        str(errors.WrongLoop("pool 'main'")),
        str(errors.ForkedProcess("pool 'main'")),
        str(errors.SchemaOutOfDate(["0001_a", "0002_b"])),
        str(errors.CollectionMismatch("c", {"size": (3, 4)})),
        str(errors.CollectionNotFound("c", operation="count")),
    ]

    assert all(": " in text and ";" in text for text in said)
    assert "4 of 4 in use" in said[0]
    assert "0001_a, 0002_b" in said[4]
    assert "size is 4 but 3 was asked for" in said[5]
    assert errors.SchemaOutOfDate([]).migration is None
