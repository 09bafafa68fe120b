"""Secrets out, and nothing that PostgreSQL cannot hold: no I/O."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_storage.catalog.record import redact
from fm_storage.catalog.record.redact import (
    MAX_CONTEXT_BYTES,
    clean_context,
    is_plain,
    mask_context,
    mask_text,
    repair_context,
    repair_text,
)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("login with password=hunter2 failed", "hunter2"),
        ("user's Password: 'a b c' is wrong", "a b c"),
        ('{"api_key": "abcd-1234", "n": 1}', "abcd-1234"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+gh", "abc/def"),
        ("accessToken: tok_9f", "tok_9f"),
        ("Authorization: Bearer abc.def.ghi-jkl", "abc.def"),
        ("sent Bearer abcdefghijklmnop123456 along", "abcdefghij"),
        ("Cookie: sid=1; theme=dark", "sid=1"),
        ("postgresql://ada:p@ss@db.test/shop refused", "p@ss"),
        ("https://x.test/p?token=abc&page=2", "=abc"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_d", "eyJ"),
        ("key AKIAIOSFODNN7EXAMPLE found", "AKIA"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_"),
        ("xoxb-123456789012-abcdefghij", "xoxb"),
        ("card 4111 1111 1111 1111 declined", "4111"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            "MIIE",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut off", "MIIE"),
    ],
)
def test_a_secret_is_masked_and_masking_again_changes_nothing(text, secret):
    """The line stays readable, the secret is gone, and the mask is stable."""
    masked = mask_text(text)
    assert secret not in masked
    assert "***" in masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "compass: north",
        "tokens: 5 left",
        "password is wrong",
        "password=",
        "keyboard interrupt",
        "order 4111111111111112 shipped",
        "job_1445144423722_0020",
        "https://shop.test:8443/a/b",
        "authenticated as ada",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    """Words that merely contain a secret's name are left alone."""
    assert mask_text(text) == text


def test_context_is_masked_by_key_and_by_shape():
    """A secret's key masks any value; other values are searched like text."""
    assert mask_context(
        {
            "password": "x",
            "userPassword": 7,
            "sessionId": "s",
            "auth": {"a": 1},
            "deep": [{"token": ["t"]}, "pwd=3 here"],
            "empty": {"secret": "", "token": None},
            "author": "me",
            "passenger": "z",
            "tokens": 3,
        }
    ) == {
        "password": "***",
        "userPassword": "***",
        "sessionId": "***",
        "auth": "***",
        "deep": [{"token": "***"}, "pwd=*** here"],
        "empty": {"secret": "", "token": None},
        "author": "me",
        "passenger": "z",
        "tokens": 3,
    }


def test_text_is_repaired_and_the_repairs_are_named():
    """NUL and surrogates are shown as text; the middle of a long text goes."""
    assert repair_text("fine ü 漢") == ("fine ü 漢", ())
    text, done = repair_text("a\x00b\udcffc")
    assert text == "a\\x00b\\udcffc"
    assert done == ("NUL escaped", "surrogates escaped")
    long, done = repair_text("x" * 50 + "y" * 500 + "z" * 50, limit=200)
    assert long.startswith("x" * 50)
    assert long.endswith("z" * 50)
    assert "600" in done[0]


class _Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class _Thing:
    name: str
    size: float


class _Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class _BrokenMap(dict):  # type: ignore[type-arg]  # hostile on purpose
    def items(self):
        raise RuntimeError("no items")


def test_values_of_every_kind_become_json():
    """What JSON has a word for is kept, the rest becomes text, and it says so."""
    given_id = UUID(int=7)
    context, done = repair_context(
        {
            "id": given_id,
            "at": datetime(2024, 1, 2, tzinfo=UTC),
            "day": date(2024, 1, 2),
            "took": timedelta(seconds=3),
            "colour": _Colour.RED,
            "thing": _Thing("t", 1.5),
            "bytes": b"ab\xff",
            "set": {1},
            "tuple": (1, None, True),
            "nan": float("nan"),
            "huge": 2**70,
            3: object,
            "broken": _Broken(),
            "map": _BrokenMap(a=1),
            "nul": "a\x00",
        }
    )
    assert context is not None
    assert context["id"] == str(given_id)
    assert context["at"] == "2024-01-02T00:00:00+00:00"
    assert context["day"] == "2024-01-02"
    assert context["took"] == "0:00:03"
    assert context["colour"] == "red"
    assert context["thing"] == {"name": "t", "size": 1.5}
    assert context["bytes"] == "ab\ufffd"
    assert context["set"] == [1]
    assert context["tuple"] == [1, None, True]
    assert context["nan"] == "nan"
    assert context["huge"] == str(2**70)
    assert context["3"] == "<class 'object'>"
    assert context["broken"] == "<unreadable _Broken>"
    assert context["map"] == "<unreadable _BrokenMap>"
    assert context["nul"] == "a\\x00"
    assert len(done) == 5
    assert repair_context(None) == (None, ())


def test_a_context_without_bound_is_bounded():
    """Depth, length and bytes have limits; what was cut is named."""
    deep: dict[str, object] = {}
    at = deep
    for _ in range(100):
        at["down"] = at = {}
    context, done = repair_context({"deep": deep, "list": range(3)})
    assert any("too deep" in change for change in done)
    assert context is not None

    context, done = repair_context({"many": list(range(5000))})
    assert len(context["many"]) == 1000  # type: ignore[index, arg-type]  # a list

    context, done = repair_context({f"key{n}": "v" * 2000 for n in range(900)})
    assert len(orjson.dumps(context)) <= MAX_CONTEXT_BYTES
    assert any("shortened" in change for change in done)
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic
    assert repair_context(cyclic)[0] is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_any_context_can_be_stored_after_repair(context):
    """JSON and PostgreSQL take the result: no NUL, no surrogate, no NaN."""
    repaired, _ = repair_context(context)
    data = orjson.dumps(mask_context(repaired))
    assert not any("\x00" in text for text in _texts(orjson.loads(data)))


def _texts(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_can_be_stored_after_repair(text):
    """Whatever a log holds can be encoded and has no NUL."""
    repaired, _ = repair_text(text)
    assert "\x00" not in mask_text(repaired)
    mask_text(repaired).encode()


PIECES = st.sampled_from(
    [
        "api",
        "access",
        "private",
        "session",
        "_",
        "-",
        "key",
        "KEY",
        "keyboard",
        "=",
        ":",
        "'",
        "x",
        "7",
        "4111111111111111",
        "a@b",
        "acce\u017f\u017f",
        "\u212aey",
        "AP\u0130",
        "ap\u0131",
        "to\u212aen",
        "\u00e9",
        "http://u:p@h",
        "\u0664111111111111111",
        "secret",
        " ",
        "\n",
        "4111 1111 1111 1111",
        "Bearer abcdefghijklmnopqrst",
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_the_quick_looks_never_hide_a_secret_from_the_patterns(text):
    """Text counts as free of secrets only if every pattern leaves it as it is."""
    masked = text
    for rule in redact._RULES:
        masked = rule.pattern.sub(redact._mask, masked)
    assert mask_text(text) == redact._CARD.sub(redact._mask_card, masked)
    if is_plain(text, None):
        assert mask_text(text) == text
    if is_plain("message", {text: "value"}):
        assert clean_context({text: "value"}) == ({text: "value"}, ())


@given(
    st.dictionaries(
        PIECES | st.text(max_size=20),
        st.text(max_size=20) | st.integers() | st.booleans() | st.none() | st.floats(),
        min_size=1,
    )
)
def test_a_plain_context_is_one_that_cleaning_leaves_as_it_is(context):
    """Numbers beside the text are no reason to look at everything."""
    if is_plain("message", context):
        assert clean_context(context) == (context, ())


@pytest.mark.parametrize(
    ("context", "plain"),
    [
        ({"key1": "v", "user": 7, "late": True, "shop": None}, True),
        ({"n": 2**64 - 1, "m": -(2**63)}, True),
        ({"n": 2**64}, False),
        ({"n": 0.5}, False),
        ({"pin": "4111 1111 1111 1111"}, False),
        ({"password": 7}, False),
        ({"api-key2": "v"}, False),
        ({7: "v"}, False),
    ],
)
def test_what_counts_as_plain(context, plain):
    """Common contexts take the short way, everything doubtful the long one."""
    assert is_plain("order 7 refused", context) is plain
