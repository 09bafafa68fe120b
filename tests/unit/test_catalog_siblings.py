"""Which templates are one event: names vary, words do not, unless there are many."""

from __future__ import annotations

import random

import pytest

from fm_storage.catalog.query.siblings import common, pieces_of, shape_of, siblings
from fm_storage.catalog.record.fingerprint import normalise


def groups_of(*messages):
    """Return how many groups there are of messages, in any order the same."""
    templates = list(dict.fromkeys(map(normalise, messages)))
    counts = set()
    for seed in range(5):
        random.Random(seed).shuffle(templates)
        by_shape = {}
        for template in templates:
            by_shape.setdefault(shape_of(template), []).append(pieces_of(template))
        counts.add(
            sum(
                len(set(siblings([words for words, _ in ours], ours[0][1])))
                for ours in by_shape.values()
            )
        )
    [count] = counts
    return count


@pytest.mark.parametrize(
    ("count", "messages"),
    [
        (1, [f"cannot load {name} now" for name in ("FooBar", "BazQux", "QuuxTwo")]),
        (2, [f"cannot load {name} now" for name in ("FooBar", "BazQux")]),
        (1, [f"loading class a.b.{n}.Main done" for n in ("foo", "bar")]),
        (1, [f"no column '{name}' in table" for name in ("id", "age", "name")]),
        (1, ["found 1 error in it", "found 2 errors in it"]),
        (1, ["peer at () went away", "peer at (10.0.0.1) went away"]),
        (1, ["link eth0 is down", "link eth1 is down"]),
        (2, ["the door was opened", "the door was closed"]),
        (3, [f"{verb} the door failed" for verb in ("opening", "closing", "locking")]),
        (4, [f'"{verb} /a" gave 404 today' for verb in ("GET", "PUT", "POST", "HEAD")]),
        (3, [f"task went from NEW to {s}" for s in ("DONE", "FAILED", "KILLED")]),
        (
            7,
            [
                f"failed to {v} the file"
                for v in ["open", "read", "write", "link", "stat", "sync", "lock"]
            ],
        ),
        (2, ["connection lost to peer", "connection made by peer"]),
        (
            1,
            [
                f"session of {w} was closed"
                for w in ["abby", "bert", "carl", "dora", "eva", "fred"]
            ],
        ),
        (2, [f"session of {w} was closed" for w in ["abby", "bert"]]),
        (1, [f"killed process 7 ({w}) now" for w in ["java", "bash", "sshd", "perl"]]),
        (3, [f"killed process 7 ({w}) now" for w in ["java", "bash", "sshd"]]),
        (1, [f"login tty={w} by hand" for w in ["red", "blue", "green", "grey"]]),
        (4, [f"task ended state={w} now" for w in ["ok", "lost", "failed", "idle"]]),
        (4, [f"[{w}] disk is full" for w in ["error", "warn", "info", "debug"]]),
        (1, [f"{w}.service: main process died" for w in ["ssh", "cups", "cron"]]),
        (1, [f"{w}: battery is low" for w in ["GkPlayer", "QLThumb", "NSVersion"]]),
        (3, [f"on{w} called by system" for w in ["Start", "Stop", "Pause"]]),
        (1, [f"offset of group {w} was lost" for w in ["mail", "audit-log", "shop"]]),
        (2, [f"received action a.b.{w}" for w in ["SCREEN_ON", "SCREEN_OFF"]]),
        (1, [f"received a.b.{w}" for w in ["Step", "Sync"]]),
        (
            4,
            [
                f"rpc error: code = {w} desc = no server"
                for w in ["NotFound", "PermissionDenied", "InternalFault", "TryLater"]
            ],
        ),
        (
            3,
            [
                f"java.{w}: connection to db broke"
                for w in ["net.ConnectException", "io.IOException", "lang.Error"]
            ],
        ),
        (
            3,
            [
                f"{w}: call to bucket ended"
                for w in ["AccessDenied", "NoSuchKey", "SlowDown"]
            ],
        ),
    ],
)
def test_names_vary_and_words_do_not(count, messages):
    """Two or three names show a variable place, many words do, few are events."""
    assert groups_of(*messages) == count


def test_places_that_vary_together_are_found_together():
    """A class and its handler, always another pair."""
    pairs = [
        ("JobEvent", "JobHandler"),
        ("TaskEvent", "TaskHandler"),
        ("MapEvent", "MapRun"),
    ]
    assert groups_of(*(f"registering class {a} for class {b}" for a, b in pairs)) == 1


def test_what_has_too_little_in_common_is_not_compared():
    """One word between names is no event."""
    assert (
        groups_of("FooBar at BazQux", "BarBaz at QuuxTwo", "TwoThree at FourFive") == 3
    )


def test_what_templates_have_in_common_is_shown():
    """Words that differ become a sign; what stands in no line keeps the first."""
    assert common(["a b c", "a x c"]) == "a <*> c"
    assert common(["a b c", "a b"]) == "a b c"
    assert common(["a"]) == "a"
    assert common([]) == ""


def test_thousands_of_siblings_take_time_in_proportion():
    """A structure that never ends does not stop a question."""
    rows = [("link", f"toHost{n}", "was", "lost") for n in range(20_000)]
    assert set(siblings(rows, (" ", " ", " "))) == {0}
