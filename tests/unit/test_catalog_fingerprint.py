"""What is the same error, and what is not: no I/O."""

from __future__ import annotations

import pytest

from fm_storage.catalog.record.fingerprint import (
    code_of_template,
    fingerprint_of,
    normalise,
    text_for_vector,
)
from fm_storage.catalog.record.frames import exception_type, frames_of

PYTHON = """Traceback (most recent call last):
  File "/srv/app/billing/charge.py", line {line}, in charge
    gateway.pay(card)
  File "/srv/app/billing/gateway.py", line 7, in pay
    raise PaymentRefused(code)
billing.errors.PaymentRefused: refused {line}"""
JAVA = """java.io.IOException: Connection reset by peer
\tat java.base/sun.nio.ch.SocketChannelImpl.read(SocketChannelImpl.java:{line})
\tat com.shop.Cart$$Lambda$14/0x1.run(Cart.java:{line})
\t... 12 more
Caused by: com.shop.StoreClosed: closed
\tat com.shop.Store.<init>(Store.java:1)"""
GO = """panic: runtime error: index out of range [{line}] with length 3

goroutine 1 [running]:
main.(*Server).handle(0x1, {{0xc000, 0x3}})
\t/home/me/app/server.go:{line} +0x1d
main.main()
\t/home/me/app/main.go:9 +0x20"""
JAVASCRIPT = """TypeError: Cannot read properties of undefined (reading 'total')
    at Cart.sum (/app/src/cart.js:{line}:17)
    at async file:///app/src/main.mjs:8:3"""
RUST = """thread 'main' panicked at src/main.rs:{line}:5:
index out of bounds
stack backtrace:
   0: std::panicking::begin_panic::h0123456789abcdef
   1: app::run::{{{{closure}}}}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read 42 bytes", "read <n> bytes"),
        ("took 1.5e3 s, 12%", "took <n>, <n>"),
        ("order 6f1c0b1e-8c1d-4f6e-9a43-0f2d4c6b8e11 lost", "order <uuid> lost"),
        ("at 0xdeadBEEF", "at <n>"),
        ("commit 9e107d9d372bb6826bd81d3542a419d6", "commit <n>"),
        ("peer 10.0.0.7:5432 closed", "peer <addr> closed"),
        ("peer fe80::1:2:3:4 closed", "peer <addr> closed"),
        ("GET https://shop.test/a?b=1 failed", "GET <url> failed"),
        ("no such file: '/var/lib/x/y.txt'", "no such file: '<path>'"),
        (r"no such file: C:\Users\me\x.txt", "no such file: <path>"),
        ("mail to ada@example.org bounced", "mail to <email> bounced"),
        ("at 2024-05-06T07:08:09.123Z", "at <time>"),
        ("ids 1, 2, 3 and 4", "ids <n> and <n>"),
        ("attempt_1445_0020_m_01", "attempt_<n>"),
        ("utf8 and http2 stay", "utf8 and http2 stay"),
        ("  spaces\t and\nlines  ", "spaces and lines"),
        ("", ""),
    ],
)
def test_variable_parts_are_replaced_and_words_stay(text, expected):
    """A template keeps what people read and drops what differs each time."""
    assert normalise(text) == expected


def test_only_the_beginning_of_a_long_message_counts():
    """A message of a megabyte costs no more than its first 2000 characters."""
    assert normalise("word " * 200_000) == normalise("word " * 400)


@pytest.mark.parametrize(
    ("trace", "frames", "kind"),
    [
        (
            PYTHON,
            ("billing/charge.py:charge", "billing/gateway.py:pay"),
            "billing.errors.PaymentRefused",
        ),
        (
            JAVA,
            (
                "sun.nio.ch.SocketChannelImpl.read",
                "com.shop.Cart.run",
                "com.shop.Store.<init>",
            ),
            "java.io.IOException",
        ),
        (GO, ("app/server.go:main.(*Server).handle", "app/main.go:main.main"), "panic"),
        (JAVASCRIPT, ("src/cart.js:Cart.sum", "src/main.mjs:"), "TypeError"),
        (RUST, ("std::panicking::begin_panic", "app::run::"), "panic"),
    ],
)
def test_frames_of_five_languages_are_read_without_line_numbers(trace, frames, kind):
    """A changed line number is the same error; the frames name it."""
    assert frames_of(trace.format(line=12)) == frames
    assert frames_of(trace.format(line=345)) == frames
    assert exception_type(trace.format(line=12)) == kind


def test_a_recursion_counts_once():
    """A thousand equal frames are one, so that depth does not split a group."""
    frame = '  File "a.py", line 1, in f\n'
    assert frames_of("Traceback (most recent call last):\n" + frame * 1000) == (
        "a.py:f",
    )


def test_text_without_frames_has_none():
    """Plain text and nothing at all are no trace."""
    assert frames_of(None) == ()
    assert frames_of("look at this") == ()
    assert exception_type(None) is None
    assert exception_type("Traceback (most recent call last):") is None
    assert exception_type("all is well") is None


def test_numbers_do_not_split_a_group_but_module_code_and_frames_do():
    """Two errors are the same if all four parts agree."""
    first = fingerprint_of("failed after 3 s", module="m", error_code="E")
    assert first == fingerprint_of("failed after 9 s", module="m", error_code="E")
    others = [
        fingerprint_of("failed before 3 s", module="m", error_code="E"),
        fingerprint_of("failed after 3 s", module="n", error_code="E"),
        fingerprint_of("failed after 3 s", module="m", error_code="F"),
        fingerprint_of(
            "failed after 3 s",
            module="m",
            error_code="E",
            stack_trace=PYTHON.format(line=1),
        ),
    ]
    assert len({first.value, *(other.value for other in others)}) == 5


def test_a_fingerprint_is_the_same_on_every_machine():
    """The number is stored: it may never change between versions or processes."""
    found = fingerprint_of("read 42 bytes", module="disk", error_code="EIO")
    assert (str(found), found.template) == ("e7058b80d98ac591", "read <n> bytes")


def test_a_message_without_code_gets_a_stable_one():
    """The code is made of the template, so that it can be searched for."""
    code = code_of_template(normalise("read 42 bytes"))
    assert code == code_of_template(normalise("read 7 bytes"))
    assert code.startswith("M-")
    assert code != code_of_template(normalise("wrote 42 bytes"))


def test_the_text_for_vectors_holds_what_errors_have_in_common():
    """Template, code, module, type and frames; no number, no derived code."""
    text = text_for_vector(
        "refused 12",
        module="billing",
        error_code="M-0123",
        stack_trace=PYTHON.format(line=1),
    )
    assert text.split("\n") == [
        "refused <n>",
        "billing",
        "billing.errors.PaymentRefused",
        *["billing/gateway.py:pay"] * 4,
        *["billing/charge.py:charge"] * 2,
    ]
    assert text_for_vector("x", error_code="E1") == "x\nE1"
