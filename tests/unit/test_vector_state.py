"""The encodings of desired state: what goes in comes out, what cannot is refused."""

from __future__ import annotations

import math
from array import array
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_storage.config import CollectionConfig
from fm_storage.errors import DimensionMismatch, InvalidRecord, InvalidVector
from fm_storage.vector_state import (
    Shapes,
    decode_id,
    decode_vectors,
    delete_ctes,
    encode_id,
    encode_vectors,
    payload_digest,
    point_id_sql,
    state_row,
    stored_payload,
    upsert_ctes,
)

KEY = UUID("0190163d-8694-739b-aea5-966c26f8ad90")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
IDS = (
    st.integers(0, 2**64 - 1)
    | st.uuids()
    | st.text(min_size=1).filter(lambda text: "\0" not in text)
)


@given(IDS)
def test_ids_come_back_as_the_vector_store_gives_them(value: int | str | UUID):
    """Integers stay integers, UUIDs are canonical text, other text is itself."""
    expected = str(value) if isinstance(value, UUID) else value
    if isinstance(value, str) and encode_id(value) == value.lower():
        expected = value.lower()  # it reads as a UUID
    assert decode_id(encode_id(value)) == expected


@given(st.lists(IDS, unique_by=lambda value: (type(value), value)))
def test_different_ids_stay_different(values: list[int | str | UUID]):
    """5 and "5" are two points; a UUID and its text are one."""
    canonical = {
        (type(v).__name__, v) if isinstance(v, int) else str(v).lower()
        for v in values
        if not isinstance(v, str)
    }
    encoded = {encode_id(v) for v in values if not isinstance(v, str)}
    assert len(encoded) == len(canonical)
    assert encode_id(5) != encode_id("5")
    assert encode_id(KEY) == encode_id(str(KEY).upper())


@pytest.mark.parametrize("value", [-1, 2**64, "", "a\0b", None, 1.5, True, object()])
def test_what_is_no_id_is_refused(value: object):
    """The error names the field and the place."""
    with pytest.raises(InvalidRecord, match="no id") as info:
        encode_id(value, index=3)
    assert (info.value.field, info.value.index) == ("id", 3)


@given(st.lists(FLOATS, max_size=50))
def test_dense_vectors_survive_as_float32(values: list[float]):
    """Lists, arrays and numpy arrays are encoded alike."""
    data = encode_vectors(values)
    assert list(decode_vectors(data)[""]) == values
    assert encode_vectors(array("f", values)) == data
    numbers: Any = np.array(values, dtype=np.float64)
    assert encode_vectors(numbers) == data


@given(
    st.dictionaries(
        st.text(max_size=20).filter(lambda name: name.isprintable()),
        st.lists(FLOATS, min_size=1, max_size=8)
        | st.dictionaries(st.integers(0, 2**32 - 1), FLOATS, max_size=8).map(
            lambda terms: SimpleNamespace(
                indices=list(terms), values=list(terms.values())
            )
        ),
        max_size=4,
    )
)
def test_named_dense_and_sparse_vectors_survive(vectors: dict[str, object]):
    """Any mixture of named vectors comes back under its names."""
    found = decode_vectors(encode_vectors(vectors))
    assert found.keys() == vectors.keys()
    for name, vector in vectors.items():
        back = found[name]
        if isinstance(vector, SimpleNamespace):
            assert isinstance(back, tuple)
            assert [list(part) for part in back] == [vector.indices, vector.values]
        else:
            assert list(back) == vector


@pytest.mark.parametrize(
    "vector",
    [
        [1.0, math.nan],
        [math.inf],
        [1.0, -math.inf, 3.0],
        ["a"],
        "text",
        5,
        [[1.0]],
        np.ones((2, 2)),
        np.array([np.nan]),
        SimpleNamespace(indices=[1, 2], values=[1.0]),
        SimpleNamespace(indices=[-1], values=[1.0]),
        SimpleNamespace(indices=[2**32], values=[1.0]),
        SimpleNamespace(indices=[4, 4], values=[1.0, 2.0]),
        {"x" * 256: [1.0]},
    ],
    ids=repr,
)
def test_what_is_no_vector_is_refused(vector: object):
    """NaN, infinity, text, wrong shapes: typed, with collection and index."""
    with pytest.raises(InvalidVector) as info:
        encode_vectors(vector, collection="things", index=7)
    assert (info.value.collection, info.value.index) == ("things", 7)


def test_a_large_but_finite_vector_is_not_refused():
    """The sum of finite numbers may overflow; that is no reason."""
    assert decode_vectors(encode_vectors([3e38, 3e38, 3e38]))


SPARSE = SimpleNamespace(indices=[1], values=[1.0])
SHAPES = Shapes(
    {
        "plain": CollectionConfig(size=2),
        "mixed": CollectionConfig(size=2, sparse_vectors={"words": {}}),
        "named": CollectionConfig(
            vectors={"text": {"size": 2}, "image": {"size": 3}},
            sparse_vectors={"words": {}},
        ),
    }
)


@pytest.mark.parametrize(
    ("collection", "vector"),
    [
        ("plain", [1.0, 2.0]),
        ("plain", np.ones(2)),
        ("plain", {"": [1.0, 2.0]}),
        ("mixed", {"": [1.0, 2.0], "words": SPARSE}),
        ("named", {"text": [1.0, 2.0], "words": SPARSE}),
        ("named", {"image": [1.0, 2.0, 3.0]}),
        ("unknown", [1.0]),
    ],
    ids=repr,
)
def test_vectors_that_fit_their_collection_are_taken(collection: str, vector: Any):
    """What is not known is not judged."""
    shape = SHAPES.get(collection)
    data = encode_vectors(vector, collection=collection, shape=shape)
    assert data == encode_vectors(vector)


@pytest.mark.parametrize(
    ("collection", "vector", "expected", "got"),
    [
        ("plain", [1.0], 2, 1),
        ("plain", [], 2, 0),
        ("named", {"text": [1.0, 2.0], "image": [1.0, 2.0]}, 3, 2),
    ],
    ids=repr,
)
def test_vectors_of_another_size_are_refused_by_name(
    collection: str, vector: Any, expected: int, got: int
):
    """The error names collection, point, and both sizes."""
    with pytest.raises(DimensionMismatch, match=f"{collection}.*point 4") as info:
        encode_vectors(
            vector, collection=collection, index=4, shape=SHAPES.get(collection)
        )
    assert (info.value.expected, info.value.got) == (expected, got)


@pytest.mark.parametrize(
    ("collection", "vector", "said"),
    [
        ("plain", {"text": [1.0, 2.0]}, "text.* is not defined; .*the unnamed one"),
        ("plain", SPARSE, "vector.* is dense"),
        ("named", [1.0, 2.0], "has no name; name one of image, text, words"),
        ("named", {"words": [1.0, 2.0]}, "words.* is sparse"),
        ("named", {"text": SPARSE}, "text.* is dense"),
        ("named", {"sound": [1.0]}, "sound.* defined: image, text, words"),
        ("mixed", {"words": SPARSE}, "point 4 has no unnamed vector"),
    ],
    ids=repr,
)
def test_vectors_that_a_collection_has_no_place_for_are_refused(
    collection: str, vector: Any, said: str
):
    """Names and kinds are checked like sizes."""
    with pytest.raises(InvalidVector, match=said) as info:
        encode_vectors(
            vector, collection=collection, index=4, shape=SHAPES.get(collection)
        )
    assert (info.value.collection, info.value.index) == (collection, 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1.0}, {"a": 1}),
        ({"a": 1e16}, {"a": 10**16}),
        ({"a": 0.1 + 0.2}, {"a": 0.30000000000000004}),
        ({"a": -0.0}, {"a": 0}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": 1}, {"a": 1, "_ver": 7, "_fm_id": "x"}),
        ({}, None),
    ],
)
def test_payloads_that_json_cannot_tell_apart_have_one_digest(
    one: dict[str, object], other: dict[str, object] | None
):
    """Order, number forms and reserved keys do not count."""
    assert payload_digest(one) == payload_digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": "1"}),
        ({"a": None}, {}),
        ({"a": True}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": 2**60}, {"a": 2**60 + 1}),
    ],
)
def test_payloads_that_differ_have_different_digests(
    one: dict[str, object], other: dict[str, object]
):
    """What JSON tells apart, the digest does."""
    assert payload_digest(one) != payload_digest(other)


@pytest.mark.parametrize("payload", [{"a": math.nan}, {"a": object()}, {1: "x"}, [1]])
def test_what_is_no_json_object_is_refused(payload: object):
    """NaN, objects, other keys than text."""
    with pytest.raises(InvalidRecord, match="payload") as info:
        payload_digest(payload, index=2)
    assert (info.value.field, info.value.index) == ("payload", 2)


@pytest.mark.parametrize("payload", [[1], 5, {"_fm_id": "mine"}], ids=repr)
def test_payload_that_the_store_would_refuse_is_refused_at_once(payload: Any):
    """No mapping, or the key under which mapped ids are kept."""
    with pytest.raises(InvalidRecord, match="payload of point 2") as info:
        stored_payload(payload, index=2)
    assert info.value.index == 2


def test_state_row_holds_what_the_statements_take():
    """A point without a vector is to be embedded."""
    row = state_row(KEY, None, {"n": 1})
    assert (row.point_id, row.vectors, row.payload) == (str(KEY), None, {"n": 1})
    assert row.payload_hash == payload_digest({"n": 1})


def test_fragments_take_expressions_and_pin_the_commit_unless_asked_not_to():
    """The version is taken again in DO UPDATE, under the lock of the row."""
    for make in (upsert_ctes, delete_ctes):
        text = make(
            collection="$1", point_id="rec.id::text", source="rec", durable=False
        )
        assert "DO UPDATE SET\n    ver = nextval" in text
        assert "synchronous_commit" not in text
        assert text.count("FROM rec") == 1
        pinned = make(collection="$1", point_id="$2")
        assert "set_config('synchronous_commit'" in pinned
    fresh = upsert_ctes(collection="$1", point_id="$2", fresh=True, last=True)
    assert "ON CONFLICT" not in fresh


def test_keys_are_encoded_in_sql_by_their_kind():
    """A text key is distinguished from a UUID and from an integer."""
    assert point_id_sql("rec.id", "uuid") == "(rec.id)::text"
    assert point_id_sql("rec.id", "integer") == "(rec.id)::text"
    assert "'s:'" in point_id_sql("rec.name", "text")
