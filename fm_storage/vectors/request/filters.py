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
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import Any
from uuid import UUID

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.request.points import to_wire_id

Filter = Any
"""A mapping in short or REST form, or a ``Filter`` of ``qdrant_client.models``."""

_CLAUSES = frozenset({"must", "should", "must_not", "min_should"})
_BOUNDS = frozenset({"gt", "gte", "lt", "lte"})
_TEXTS = frozenset({"text", "text_any", "phrase", "prefix", "substring"})
_DEPTH = 40
_SEGMENT = r'(?:[\w-]+|"(?:[^"\\]|\\.)+")'
_PATH = re.compile(rf"{_SEGMENT}(?:\[\d*\])*(?:\.{_SEGMENT}(?:\[\d*\])*)*")
_RING = 4


def normal_filter(given: Filter) -> dict[str, Any] | None:
    """Return *given* in the form of Qdrant's REST API; None where it chooses all.

    Raises:
        InvalidRecord: It is no filter; the message says what is wrong.
    """
    if given is None:
        return None
    plain = as_json(given)
    if not isinstance(plain, Mapping):
        raise _refused(f"it is a {type(given).__name__}; give a mapping")
    if plain.keys() <= _CLAUSES:
        return _filter(plain) or None
    if plain.keys() & _CLAUSES:
        unknown = min(plain.keys() - _CLAUSES)
        raise _refused(f"{unknown!r} stands beside 'must' or 'should'; move it there")
    must: list[Any] = []
    must_not: list[Any] = []
    for field, wanted in plain.items():
        if field == "has_id":
            must.append({"has_id": _ids(wanted)})
        else:
            _short(payload_path(field), wanted, must, must_not)
    made = {"must": must, "must_not": must_not}
    return {clause: conditions for clause, conditions in made.items() if conditions}


def as_json(value: Any, field: str = "filter", depth: int = 0) -> Any:
    """Return *value* with models, dates, UUIDs and enums as plain JSON values.

    Raises:
        InvalidRecord: It holds something else, or is nested too deep.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str) and not value.isascii():
        return _text(value, field)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise _refused(f"it holds {value}; give integers of 64 bits", field)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise _refused(f"it holds {value!r}; give finite numbers", field)
    if isinstance(value, date):
        return _date(value, field)
    if isinstance(value, UUID):
        return str(value)
    if depth > _DEPTH:
        raise _refused(f"it is nested deeper than {_DEPTH} levels; flatten it", field)
    return _inside(value, field, depth + 1)


def _text(value: str, field: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = f"{value!r} holds a lone surrogate; give valid text"
        raise _refused(problem, field) from None
    return value


def _inside(value: Any, field: str, depth: int) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        # exclude_none: an unset bound and a missing one mean the same.
        return as_json(dump(exclude_none=True, by_alias=True), field, depth)
    if isinstance(value, Mapping):
        return {str(k): as_json(v, field, depth) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [as_json(inner, field, depth) for inner in value]
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", 1) == 0:
        return as_json(item(), field, depth)  # a scalar of numpy
    raise _refused(f"it holds a {type(value).__name__}; give JSON values", field)


def _date(value: date, field: str) -> str:
    if isinstance(value, datetime) and value.tzinfo is None:
        problem = f"{value.isoformat()} has no time zone; give an aware datetime"
        raise _refused(problem, field)
    return value.isoformat()


def payload_path(given: Any, field: str = "filter") -> str:
    """Return a payload field's path (``a.b``, ``a[].b``, ``a[0]``, ``"a b".c``).

    Raises:
        InvalidRecord: It is none; a name with other characters is put in quotes.
    """
    if isinstance(given, str) and _PATH.fullmatch(given):
        return given
    problem = f"{given!r} is no payload field; put a name like 'a b' in double quotes"
    raise _refused(problem, field)


def _short(field: str, wanted: Any, must: list[Any], must_not: list[Any]) -> None:
    if wanted is None:
        must.append({"is_empty": {"key": field}})
        return
    if not isinstance(wanted, Mapping):
        made = _one_of if isinstance(wanted, list) else _equal
        must.append(made(field, wanted))
        return
    if not wanted:
        raise _refused(f"field {field!r} has no condition")
    bounds = {k: v for k, v in wanted.items() if k in _BOUNDS}
    if bounds:
        must.append(_field({"key": field, "range": bounds}))
    for name, value in wanted.items():
        if name == "not":
            many = value if isinstance(value, list) else [value]
            must_not.append(_one_of(field, many))
        elif name == "exists":
            (must_not if value else must).append({"is_empty": {"key": field}})
        elif name not in _BOUNDS:
            must.append(_by_word(field, name, value))


def _by_word(field: str, name: str, value: Any) -> dict[str, Any]:
    if name == "any":
        return _one_of(field, value)
    if name in _TEXTS:
        return _field({"key": field, "match": {name: value}})
    return _field({"key": field, name: value})


def _equal(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, float):
        # Qdrant matches integers, text and bools only.
        return {"key": field, "range": {"gte": value, "lte": value}}
    return _field({"key": field, "match": {"value": value}})


def _one_of(field: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, list):
        raise _refused(f"field {field!r}: give a list of values")
    if len(values) == 1:
        return _equal(field, values[0])
    kinds = {type(value) for value in values}
    if kinds in ({str}, {int}, set()):
        return _field({"key": field, "match": {"any": values}})
    return {"should": [_equal(field, value) for value in values]}


# Qdrant's own form


def _filter(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not given.keys() <= _CLAUSES:
        raise _refused(f"{_shown(given)} is no filter; name {', '.join(_CLAUSES)}")
    made: dict[str, Any] = {}
    for clause, value in given.items():
        if clause != "min_should":
            conditions = [normal_condition(each) for each in _many(value)]
            if conditions:
                made[clause] = conditions
        elif value is not None:
            _only(value, {"conditions", "min_count"}, "min_should")
            least = value["min_count"]
            if not _is_count(least) or not _many(value["conditions"]):
                raise _refused("min_should needs conditions and a min_count from 0")
            made[clause] = {
                "conditions": [normal_condition(c) for c in _many(value["conditions"])],
                "min_count": least,
            }
    return made


def _many(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def normal_condition(given: Any) -> dict[str, Any]:
    """Return one condition of a filter, checked.

    Raises:
        InvalidRecord: It is none, or holds nothing to compare with.
    """
    if not isinstance(given, Mapping) or not given:
        raise _refused(f"{_shown(given)} is no condition; give a mapping")
    if "key" in given:
        return _field(given)
    if given.keys() <= _CLAUSES:
        inner = _filter(given)
        if not inner:
            raise _refused(f"{_shown(given)} holds no condition")
        return inner
    (name, value), *others = given.items()
    if others or name not in _CONDITIONS:
        raise _refused(f"a condition has the unknown keys {sorted(given)}")
    return {name: _CONDITIONS[name](value)}


def _field(given: Mapping[str, Any]) -> dict[str, Any]:
    key = payload_path(given["key"])
    made: dict[str, Any] = {"key": key}
    for name, value in given.items():
        if name == "key" or value is None:
            continue
        if name not in _FIELD:
            raise _refused(f"field {key!r} has the unknown condition {name!r}")
        try:
            made[name] = _FIELD[name](value)
        except _Wrong as exc:
            raise _refused(f"field {key!r}: {name} {_shown(value)}: {exc}") from None
    if len(made) == 1:
        raise _refused(f"field {key!r} has no condition")
    return made


class _Wrong(Exception):
    """What a condition holds is not what it needs."""


def _match(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _Wrong("give one of value, any, except, text, phrase")
    [(name, wanted)] = value.items()
    if name in _TEXTS:
        if not isinstance(wanted, str):
            raise _Wrong("give text")
    elif name in {"any", "except"}:
        kinds = {type(each) for each in wanted} if isinstance(wanted, list) else {None}
        if kinds - {str} and kinds - {int}:
            raise _Wrong("give a list of texts, or one of integers")
        for each in wanted:
            _matched(each)
    elif name == "value":
        _matched(wanted)
    else:
        raise _Wrong(f"{name!r} is not known")
    return dict(value)


def _matched(value: Any) -> None:
    if not isinstance(value, str | int):
        raise _Wrong("give text, an integer or a bool; a range for floats")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Wrong("Qdrant compares integers of 64 bits; give a range for greater")


def _range(value: Any) -> Any:
    bounds = _bounds(value)
    texts = [isinstance(bound, str) for bound in bounds.values()]
    if all(texts):
        for bound in bounds.values():
            _moment(bound)
    elif any(texts) or not all(map(_is_number, bounds.values())):
        raise _Wrong("give numbers, or datetimes")
    return bounds


def _moment(value: str) -> None:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise _Wrong("give datetimes as in ISO 8601") from None


def _counts(value: Any) -> Any:
    bounds = _bounds(value)
    if not all(map(_is_count, bounds.values())):
        raise _Wrong("give integers from 0")
    return bounds


def _bounds(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value.keys() <= _BOUNDS:
        raise _Wrong(f"give {', '.join(sorted(_BOUNDS))}")
    bounds = {name: bound for name, bound in value.items() if bound is not None}
    if not bounds:
        raise _Wrong("it has no bound")
    return bounds


def _place(value: Any) -> Any:
    for name, most in (("lon", 180.0), ("lat", 90.0)):
        if not isinstance(value, Mapping) or value.keys() != {"lon", "lat"}:
            raise _Wrong("give lon and lat")
        if not _is_number(value[name]) or abs(value[name]) > most:
            raise _Wrong(f"{name} is a number from {-most:g} to {most:g}")
    return dict(value)


def _parts(value: Any, kinds: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value.keys() <= kinds.keys():
        raise _Wrong(f"give {', '.join(kinds)}")
    return {name: kind(value.get(name)) for name, kind in kinds.items()}


def _radius(value: Any) -> Any:
    if not _is_number(value) or value < 0:
        raise _Wrong("radius is a number of metres from 0")
    return value


def _ring(value: Any) -> Any:
    made = _parts(value, {"points": lambda points: [_place(p) for p in _many(points)]})
    points = made["points"]
    if len(points) < _RING or points[0] != points[-1]:
        raise _Wrong(f"a ring has {_RING} points or more, the first again at the end")
    return made


def _polygon(value: Any) -> Any:
    rings = {
        "exterior": _ring,
        "interiors": lambda all_: [_ring(r) for r in _many(all_)],
    }
    made = _parts(value, rings)
    return made if made["interiors"] else {"exterior": made["exterior"]}


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("give True or False")
    return value


_FIELD: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": lambda box: _parts(
        box, {"top_left": _place, "bottom_right": _place}
    ),
    "geo_radius": lambda circle: _parts(circle, {"center": _place, "radius": _radius}),
    "geo_polygon": _polygon,
    "values_count": _counts,
    "is_empty": _bool,
    "is_null": _bool,
}


def _keyed(value: Any) -> Any:
    _only(value, {"key"}, "is_empty and is_null")
    return {"key": payload_path(value["key"])}


def _nested(value: Any) -> Any:
    _only(value, {"key", "filter"}, "nested")
    return {"key": payload_path(value["key"]), "filter": _filter(value["filter"])}


def _vector_name(value: Any) -> str:
    if not isinstance(value, str):
        raise _refused("has_vector takes the name of a vector")
    return value


def _ids(given: Any) -> list[int | str]:
    return [to_wire_id(value)[0] for value in _many(given)]


_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "has_id": _ids,
    "has_vector": _vector_name,
    "is_empty": _keyed,
    "is_null": _keyed,
    "nested": _nested,
}


def _only(value: Any, keys: set[str], what: str) -> None:
    if not isinstance(value, Mapping) or value.keys() != keys:
        raise _refused(f"{what} needs {' and '.join(sorted(keys))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _refused(problem: str, field: str = "filter") -> InvalidRecord:
    return InvalidRecord(f"{field}: {problem}", field=field)
