"""Filters: the short form, Qdrant's own form and the client's models, made one.

Each engine is handed the same thing: a filter in the form of Qdrant's REST API.

The short form is a mapping of payload fields; every one must match::

    {"module": "billing"}                     equal (text, integer, bool)
    {"module": ["billing", "orders"]}         one of
    {"ts": {"gte": start, "lt": end}}         range: numbers or datetimes
    {"module": {"not": "billing"}}            none of (a value or several)
    {"note": {"text": "refused"}}             words in the text
    {"note": None}                            no value
    {"note": {"exists": True}}                some value
    {"id": …} is an ordinary field; {"has_id": […]} chooses points by id
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import Any
from uuid import UUID

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.request.points import to_wire_id

__all__ = ["Filter", "as_json", "normal_filter"]

Filter = Any
"""A mapping in short or REST form, or a ``Filter`` of ``qdrant_client.models``."""

_CLAUSES = frozenset({"must", "should", "must_not", "min_should"})
_BOUNDS = frozenset({"gt", "gte", "lt", "lte"})
_MATCHES = frozenset({"text", "text_any", "phrase", "prefix", "substring"})
_WHOLE = frozenset(
    {
        "match",
        "range",
        "geo_bounding_box",
        "geo_radius",
        "geo_polygon",
        "values_count",
        "is_empty",
        "is_null",
    }
)


def normal_filter(given: Filter) -> dict[str, Any] | None:
    """Return *given* in the form of Qdrant's REST API; None stays None.

    Raises:
        InvalidRecord: It is no filter; the message says what is wrong.
    """
    if given is None:
        return None
    plain = as_json(given)
    if not isinstance(plain, Mapping):
        message = f"it is a {type(given).__name__}; give a mapping"
        raise _refused(message)
    if not plain:
        return None
    if plain.keys() <= _CLAUSES:
        return _filter(plain)
    if plain.keys() & _CLAUSES:
        unknown = min(plain.keys() - _CLAUSES)
        message = f"{unknown!r} stands beside 'must' or 'should'; move it into them"
        raise _refused(message)
    must: list[Any] = []
    must_not: list[Any] = []
    for field, wanted in plain.items():
        if field == "has_id":
            must.append({"has_id": _ids(wanted)})
        else:
            _short(field, wanted, must, must_not)
    made = {"must": must, "must_not": must_not}
    return {clause: conditions for clause, conditions in made.items() if conditions}


def as_json(value: Any) -> Any:  # noqa: C901 - one branch per kind
    """Return *value* with models, dates, UUIDs and enums as plain JSON values."""
    if value is None or isinstance(value, str | bool | int):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            message = f"it holds {value!r}; give finite numbers"
            raise _refused(message)
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            message = f"{value.isoformat()} has no time zone; give an aware datetime"
            raise _refused(message)
        return value.isoformat()
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Enum):
        return as_json(value.value)
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        # exclude_none: an unset bound and a missing one mean the same.
        return as_json(dump(exclude_none=True, by_alias=True))
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [as_json(inner) for inner in value]
    item = getattr(value, "item", None)
    if item is not None:
        return as_json(item())  # a scalar of numpy
    message = f"it holds a {type(value).__name__}; give JSON values"
    raise _refused(message)


def _short(  # noqa: C901, PLR0912 - one branch per word of the short form
    field: str,
    wanted: Any,
    must: list[Any],
    must_not: list[Any],
) -> None:
    if wanted is None:
        must.append({"is_empty": {"key": field}})
    elif isinstance(wanted, list):
        must.append(_one_of(field, wanted))
    elif not isinstance(wanted, Mapping):
        must.append(_equal(field, wanted))
    elif not wanted:
        message = f"field {field!r} has no condition"
        raise _refused(message)
    else:
        bounds = {k: v for k, v in wanted.items() if k in _BOUNDS}
        if bounds:
            must.append({"key": field, "range": bounds})
        for name, value in wanted.items():
            if name in _BOUNDS:
                continue
            if name == "not":
                many = value if isinstance(value, list) else [value]
                must_not.append(_one_of(field, many))
            elif name == "any":
                must.append(_one_of(field, value))
            elif name == "exists":
                (must_not if value else must).append({"is_empty": {"key": field}})
            elif name in _MATCHES:
                must.append({"key": field, "match": {name: value}})
            elif name in _WHOLE:
                must.append({"key": field, name: value})
            else:
                message = f"field {field!r} has the unknown condition {name!r}"
                raise _refused(message)


def _equal(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, float):
        # Qdrant matches integers, text and bools only.
        return {"key": field, "range": {"gte": value, "lte": value}}
    return {"key": field, "match": {"value": value}}


def _one_of(field: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, list):
        message = f"field {field!r}: give a list of values"
        raise _refused(message)
    if len(values) == 1:
        return _equal(field, values[0])
    kinds = {type(value) for value in values}
    if kinds in ({str}, {int}, set()):
        return {"key": field, "match": {"any": values}}
    return {"should": [_equal(field, value) for value in values]}


def _filter(given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for clause, value in given.items():
        if value is None:
            continue
        if clause == "min_should":
            made[clause] = {
                "conditions": [_condition(c) for c in _many(value["conditions"])],
                "min_count": value["min_count"],
            }
        else:
            made[clause] = [_condition(c) for c in _many(value)]
    return made


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _condition(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        message = f"a condition is a {type(given).__name__}; give a mapping"
        raise _refused(message)
    if "has_id" in given:
        return {"has_id": _ids(given["has_id"])}
    if "nested" in given:
        inner = given["nested"]
        return {"nested": {"key": inner["key"], "filter": _filter(inner["filter"])}}
    if given.keys() <= _CLAUSES:
        return _filter(given)
    if "key" in given:
        unknown = given.keys() - _WHOLE - {"key"}
        if unknown:
            message = (
                f"field {given['key']!r} has the unknown condition {min(unknown)!r}"
            )
            raise _refused(message)
        return dict(given)
    if given.keys() & {"is_empty", "is_null", "has_vector"}:
        return dict(given)
    message = f"a condition has the unknown keys {sorted(given)}"
    raise _refused(message)


def _ids(given: Any) -> list[int | str]:
    return [to_wire_id(value)[0] for value in _many(given)]


def _refused(problem: str) -> InvalidRecord:
    return InvalidRecord(f"filter: {problem}", field="filter")
