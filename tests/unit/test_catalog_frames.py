"""Which fault a trace shows: the place in one's own code, whatever is around it."""

from __future__ import annotations

import pytest

from fm_storage.catalog.record.fingerprint import fingerprint_of
from fm_storage.catalog.record.frames import (
    frames_of,
    own_code,
    own_names,
    place_of,
    raised_of,
    weighed_frames,
)

SITE, LIB = "/srv/venv/lib/python3.12/site-packages/", "/usr/lib/python3.12/"
VIEW, PAY = ("/srv/shop/billing/views.py", "post"), ("/srv/shop/billing/pay.py", "pay")
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"


def trace(*frames, last="ValueError: no money"):
    """Return a trace as Python prints it."""
    lines = [
        f'  File "{file}", line {7 * at + 1}, in {name}\n    x()\n'
        for at, (file, name) in enumerate(frames)
    ]
    return "Traceback (most recent call last):\n" + "".join(lines) + last + "\n"


def group(*children):
    """Return the trace of a TaskGroup with children."""
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        f'  |   File "{VIEW[0]}", line 3, in {VIEW[1]}\n  |     x()\n'
        f"  | ExceptionGroup: unhandled errors in a TaskGroup ({len(children)})\n"
    )
    for number, child in enumerate(children, 1):
        text += f"  +-+---------------- {number} ----------------\n"
        text += "".join(f"    | {line}\n" for line in child.rstrip().split("\n"))
    return text + "    +------------------------------------\n"


def walk(depth):
    """Return the frames of a recursion."""
    return [VIEW, *[("/srv/shop/tree.py", "walk")] * depth]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            trace((SITE + "uvicorn/run.py", "run"), VIEW, PAY),
            trace(
                (SITE + "gunicorn/sync.py", "handle"), (LIB + "x.py", "y"), VIEW, PAY
            ),
            id="server",
        ),
        pytest.param(
            trace(VIEW, (LIB + "json/__init__.py", "loads")),
            trace(
                VIEW, (LIB + "json/__init__.py", "loads"), (LIB + "json/d.py", "raw")
            ),
            id="library",
        ),
        pytest.param(trace(*walk(2)), trace(*walk(40)), id="depth"),
        pytest.param(
            trace(VIEW, PAY),
            trace(
                ("/app/releases/20260102/shop/billing/views.py", "post"),
                ("/app/releases/20260102/shop/billing/pay.py", "pay"),
            ),
            id="folder",
        ),
        pytest.param(
            trace(VIEW, PAY, last="KeyError: 'tulip'"),
            trace(VIEW, PAY, last="KeyError: 'rose'"),
            id="message",
        ),
        pytest.param(
            trace(VIEW, PAY, last="shop_v1.errors.Refused: 1"),
            trace(VIEW, PAY, last="shop_v2.errors.Refused: 2"),
            id="module of the type",
        ),
        pytest.param(
            trace(
                *[("/srv/a/b.py", f"f{at % 2}") for at in range(80)],
                last="RecursionError",
            ),
            trace(
                *[("/srv/a/b.py", f"f{at % 2}") for at in range(61)],
                last="RecursionError",
            ),
            id="recursion that is cut",
        ),
        pytest.param(
            trace(VIEW, ("/srv/shop/x.py", "<listcomp>"), PAY),
            trace(VIEW, PAY),
            id="3.12",
        ),
        pytest.param(
            group(trace(PAY), trace(VIEW, last="KeyError: 1")),
            group(trace(VIEW, last="KeyError: 2"), trace(PAY)),
            id="children in another order",
        ),
    ],
)
def test_what_is_around_a_fault_does_not_split_it(one, other):
    """Values, releases, libraries, servers, depth and order do not count."""
    first, second = (
        fingerprint_of(text, module="m", stack_trace=text) for text in (one, other)
    )
    assert place_of(one)[1]
    assert first.value == second.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            trace(VIEW), trace(("/srv/shop/users/views.py", "post")), id="package"
        ),
        pytest.param(
            trace(VIEW, PAY), trace(VIEW, PAY, last="LookupError: x"), id="type"
        ),
        pytest.param(
            trace(VIEW, PAY), trace(("/srv/shop/cli.py", "m"), PAY), id="caller"
        ),
        pytest.param(
            trace(VIEW, last="KeyError: 1") + CAUSE + trace(PAY, last="Refused: 1"),
            trace(VIEW, last="OSError: 1") + CAUSE + trace(PAY, last="Refused: 1"),
            id="root",
        ),
        pytest.param(group(trace(PAY)), group(trace(VIEW)), id="child"),
    ],
)
def test_two_faults_stay_two(one, other):
    """Another place, type, caller or root is another fault."""
    first, second = (
        fingerprint_of("request failed", module="m", stack_trace=text)
        for text in (one, other)
    )
    assert first.value != second.value


def test_a_message_counts_where_there_is_no_frame_of_ones_own():
    """Libraries fail for many reasons in one place."""
    text = trace((SITE + "lib/a.py", "f"), (SITE + "lib/b.py", "g"))
    found = {
        fingerprint_of(message, module="m", stack_trace=text).value
        for message in ("no route to 10.0.0.1", "no route to 10.0.0.2", "reset by peer")
    }
    assert place_of(text)[1] is False
    assert len(found) == 2


def test_a_code_that_is_the_type_does_not_count_and_another_does():
    """record() makes the code of the type; an application's own code is its word."""
    text = trace(VIEW, PAY)
    codes = ("", "ValueError", "M-0123abcd", "E42", "ValueError:23505")
    found = [
        fingerprint_of("x", error_code=code, stack_trace=text).value for code in codes
    ]
    assert len(set(found[:3])) == 1
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("text", "frames", "kind"),
    [
        (
            (
                "System.InvalidOperationException: no money\n"
                "   at Shop.Pay.Charge(Int32 n) in /src/Shop/Pay.cs:line 12\n"
                "   at Microsoft.AspNetCore.Mvc.Run()\n"
            ),
            [("Microsoft.AspNetCore.Mvc.Run", False), ("Shop.Pay.Charge", True)],
            "System.InvalidOperationException",
        ),
        (
            (
                "PHP Fatal error:  Uncaught RuntimeException: no money\n"
                "#0 /srv/shop/src/Pay.php(12): Shop\\Pay->charge(3)\n"
                "#1 /srv/shop/vendor/x/Kernel.php(9): Kernel->run()\n"
            ),
            [
                ("x/Kernel.php:Kernel->run", False),
                ("src/Pay.php:Shop\\Pay->charge", True),
            ],
            "RuntimeException",
        ),
        (
            (
                "app/pay.rb:12:in 'charge': no money (Shop::Refused)\n"
                "\tfrom /usr/lib/ruby/gems/3.3/rack.rb:3:in 'call'\n"
                "\tfrom app/pay.rb:3:in 'main'\n"
            ),
            [("<n>/rack.rb:call", False), ("app/pay.rb:charge", True)],
            "Shop::Refused",
        ),
        (
            (
                "java.io.IOException: reset\n\tat com.shop.Cart.add(Cart.java:3)\n"
                "\tat org.springframework.web.Run.go(Run.java:9)\n"
            ),
            [("org.springframework.web.Run.go", False), ("com.shop.Cart.add", True)],
            "java.io.IOException",
        ),
    ],
)
def test_frames_of_other_languages_are_read_and_told_apart(text, frames, kind):
    """The innermost last; those of libraries and frameworks are not one's own."""
    [raised] = raised_of(text)
    assert list(map(tuple, raised.frames[-len(frames) :])) == frames
    assert raised.kind == kind


def test_the_innermost_of_ones_own_weigh_most():
    """Entry points, which all traces share, weigh least."""
    found = weighed_frames(
        trace((SITE + "s.py", "run"), VIEW, PAY, (LIB + "j.py", "k"))
    )
    assert found == [
        ("billing/pay.py:pay", 4.0),
        ("billing/views.py:post", 2.0),
        ("python<n>/j.py:k", 1.0),
    ]
    assert weighed_frames(None) == weighed_frames("no trace") == []


def test_an_application_may_name_its_own_code():
    """A package that is installed like any library is its own all the same."""
    text = trace(VIEW, (SITE + "acme/core.py", "run"), (SITE + "lib/x.py", "y"))
    assert "billing/views.py:post" in place_of(text)[0]
    own_code(["acme"])
    try:
        assert own_names() == ("acme",)
        assert place_of(text) == ("ValueError\nValueError\x1eacme/core.py:run", True)
    finally:
        own_code([])
    assert "billing/views.py:post" in place_of(text)[0]
    assert len(frames_of(text)) == 3
