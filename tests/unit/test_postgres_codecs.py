"""JSON that PostgreSQL cannot keep is refused before it is sent."""

from __future__ import annotations

import json

import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.connect.codecs import decode_json, encode_json
from fm_storage.postgres.errors import explain_parameters


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, True, "é"]}, [], None, "null", 2**63 - 1, {"k\\u0000": 1}],
)
def test_json_survives(value):
    """What JSON can say comes back equal."""
    assert decode_json(encode_json(value)) == value


def test_integers_beyond_64_bits_are_written_exactly():
    """Orjson refuses them; jsonb keeps them."""
    assert json.loads(encode_json({"n": 2**70})) == {"n": 2**70}


@pytest.mark.parametrize(
    "value",
    [
        {"a": float("nan")},
        [[float("inf")]],
        {"a": "x\0y"},
        {"a\0": 1},
        {"a": "\ud800"},
        object(),
        {"n": 2**70, "x": float("nan")},
        [2**70, object()],
    ],
)
def test_what_json_cannot_say_is_refused(value):
    """NaN, NUL, surrogates and strangers are InvalidRecord, never null."""
    with pytest.raises(InvalidRecord):
        encode_json(value)


def test_the_wrong_parameter_is_found_inside_lists_and_objects():
    """The first bad text decides which number is named."""
    found = explain_parameters([1, ["ok", {"k": "\0"}], "\ud800"])
    assert found is not None
    assert found.field == "$2"
    assert explain_parameters([1, "fine", None]) is None
