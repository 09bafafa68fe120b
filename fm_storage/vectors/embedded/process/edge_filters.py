"""Filters in the form of Qdrant's REST API as the types of qdrant-edge.

Runs in the engine's process only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.process.edge_types import BadRequest

Json = Mapping[str, Any]


def filter_from(given: Json | None) -> edge.Filter | None:
    """Return the engine's filter for one in REST form."""
    if not given:
        return None
    unknown = given.keys() - {"must", "should", "must_not", "min_should"}
    if unknown:
        message = f"unknown clause {min(unknown)!r} in a filter"
        raise BadRequest(message)
    least = given.get("min_should")
    return edge.Filter(
        must=_conditions(given.get("must")),
        should=_conditions(given.get("should")),
        must_not=_conditions(given.get("must_not")),
        min_should=None
        if least is None
        else edge.MinShould(
            conditions=_conditions(least["conditions"]) or [],
            min_count=least["min_count"],
        ),
    )


def _conditions(given: Any) -> list[Any] | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        given = [given]
    return [condition_from(item) for item in given]


def condition_from(given: Json) -> Any:
    """Return the engine's condition for one in REST form."""
    if "key" in given:
        return _field(given)
    if "has_id" in given:
        return edge.HasIdCondition(point_ids=set(given["has_id"]))
    if "is_empty" in given:
        return edge.IsEmptyCondition(key=given["is_empty"]["key"])
    if "is_null" in given:
        return edge.IsNullCondition(key=given["is_null"]["key"])
    if "has_vector" in given:
        return edge.HasVectorCondition(vector=given["has_vector"])
    if "nested" in given:
        inner = given["nested"]
        return edge.NestedCondition(
            key=inner["key"], filter=filter_from(inner["filter"]) or edge.Filter()
        )
    return filter_from(given) or edge.Filter()


def _field(given: Json) -> edge.FieldCondition:
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name == "key" or value is None:
            continue
        if name not in _FIELD:
            message = f"unknown condition {name!r} on field {given['key']!r}"
            raise BadRequest(message)
        made[name] = _FIELD[name](value)
    return edge.FieldCondition(key=given["key"], **made)


def _match(given: Json) -> Any:
    (name, value), *rest = given.items()
    if rest or name not in _MATCHES:
        message = f"unknown match {sorted(given)}"
        raise BadRequest(message)
    if name == "value" and isinstance(value, bool):
        # The engine takes True for the integer 1; numpy's bool is a bool.
        # numpy is loaded only for such a filter: it costs more than the engine.
        import numpy as np

        value = np.bool_(value)
    return _MATCHES[name](value)


def _range(given: Json) -> Any:
    bounds = {k: v for k, v in given.items() if v is not None}
    if any(isinstance(value, str) for value in bounds.values()):
        return edge.RangeDateTime(**bounds)
    return edge.RangeFloat(**bounds)


def geo_point_from(given: Json) -> edge.GeoPoint:
    """Return a place."""
    return edge.GeoPoint(lon=given["lon"], lat=given["lat"])


def _line(given: Json) -> list[edge.GeoPoint]:
    return [geo_point_from(point) for point in given["points"]]


_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": edge.MatchValue,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
}

_FIELD: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": lambda box: edge.GeoBoundingBox(
        top_left=geo_point_from(box["top_left"]),
        bottom_right=geo_point_from(box["bottom_right"]),
    ),
    "geo_radius": lambda circle: edge.GeoRadius(
        center=geo_point_from(circle["center"]), radius=circle["radius"]
    ),
    "geo_polygon": lambda polygon: edge.GeoPolygon(
        exterior=_line(polygon["exterior"]),
        interiors=[_line(line) for line in polygon.get("interiors") or []] or None,
    ),
    "values_count": lambda bounds: edge.ValuesCount(
        **{k: v for k, v in bounds.items() if v is not None}
    ),
    "is_empty": bool,
    "is_null": bool,
}
