"""Points that share their vectors: encoded once, and still distinguished."""

from __future__ import annotations

from array import array

import pytest

from fm_storage.errors import DimensionMismatch
from fm_storage.vectors import Point
from fm_storage.vectors.request.points import encode_points

SPEC = {"vectors": {"": {"size": 2}}, "sparse_vectors": {}}


def encoded(points):
    """Return the points as they are sent."""
    return encode_points(points, SPEC, "c", limit=10_000)


def test_one_vector_of_many_points_is_encoded_once():
    """Equal errors have one embedding; equal numbers elsewhere are their own."""
    shared = array("f", [1.0, 2.0])
    other = array("f", [1.0, 2.0])
    first, second, third = encoded(
        [Point(1, shared, {}), Point(2, shared, {"a": 1}), Point(3, other, {})]
    )
    assert first.vectors is second.vectors
    assert third.vectors is not first.vectors
    assert third.vectors[""].data == first.vectors[""].data
    assert [first.id, second.id, third.id] == [1, 2, 3]
    assert first.payload != second.payload


def test_vectors_made_while_encoding_are_not_taken_for_one_another():
    """An object that has gone may leave its place in memory to the next one."""
    points = (Point(n, [float(n), 1.0], {}) for n in range(1, 200))
    found = encoded(points)
    assert len({point.vectors[""].data for point in found}) == 199


def test_a_wrong_shared_vector_names_the_first_point_that_has_it():
    """Nothing wrong is remembered."""
    wrong = [1.0]
    with pytest.raises(DimensionMismatch) as caught:
        encoded([Point(1, [1.0, 2.0], {}), Point(2, wrong, {}), Point(3, wrong, {})])
    assert caught.value.index == 1
