"""Formulas over scores and payloads, checked: ``{"sum": ["$score", "weight"]}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fm_storage.errors import InvalidRecord
from fm_storage.vectors.request.filters import normal_condition, payload_path


def normal_expression(given: Any, depth: int = 0) -> Any:
    """Return an expression in REST form.

    Raises:
        InvalidRecord: It is none; the message shows the part.
    """
    if depth > 40:
        raise _refused("nested deeper than 40 levels")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    if isinstance(given, str):
        return given if given.startswith("$score") else payload_path(given, "formula")
    if not isinstance(given, Mapping) or not given:
        raise _refused(f"{given!r}: give numbers, names and expressions")
    name = next(iter(given))
    if name in _PARTS:
        if len(given) > 1:
            raise _refused(f"{name!r} stands beside {sorted(given)}")
        return {name: _PARTS[name](given[name], depth + 1)}
    return normal_condition(given)


def _refused(problem: str) -> InvalidRecord:
    return InvalidRecord(f"formula: {problem}", field="formula")


def _many(given: Any, depth: int) -> list[Any]:
    if not isinstance(given, list):
        raise _refused(f"{given!r}: give a list of expressions")
    return [normal_expression(part, depth) for part in given]


def _named(
    needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Callable[[Any, int], dict[str, Any]]:
    def check(given: Any, depth: int) -> dict[str, Any]:
        if not isinstance(given, Mapping) or not (
            set(needed) <= given.keys() <= {*needed, *optional}
        ):
            raise _refused(f"{given!r}: give {', '.join((*needed, *optional))}")
        made = {}
        for name, value in given.items():
            if name in _NUMBERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise _refused(f"{name} is {value!r}; give a number")
                made[name] = value
            else:
                made[name] = normal_expression(value, depth)
        return made

    return check


def _moment(given: Any, _depth: int) -> str:
    try:
        datetime.fromisoformat(given)
    except (TypeError, ValueError):
        raise _refused(f"{given!r} is no datetime as in ISO 8601") from None
    return str(given)


def _distance(given: Any, _depth: int) -> dict[str, Any]:
    if not isinstance(given, Mapping) or given.keys() != {"origin", "to"}:
        raise _refused(f"{given!r}: give origin and to")
    circle = {"center": given["origin"], "radius": 0}
    origin = normal_condition({"key": "at", "geo_radius": circle})
    return {
        "origin": origin["geo_radius"]["center"],
        "to": payload_path(given["to"], "formula"),
    }


_NUMBERS = frozenset({"midpoint", "scale", "by_zero_default"})
_DECAY = _named(("x",), ("target", "midpoint", "scale"))

_PARTS: dict[str, Callable[[Any, int], Any]] = {
    **dict.fromkeys(
        ("abs", "acosh", "exp", "ln", "log10", "neg", "sqrt"), normal_expression
    ),
    **dict.fromkeys(("max", "min", "mult", "sum"), _many),
    **dict.fromkeys(("exp_decay", "gauss_decay", "lin_decay"), _DECAY),
    "datetime": _moment,
    "datetime_key": lambda given, _depth: payload_path(given, "formula"),
    "div": _named(("left", "right"), ("by_zero_default",)),
    "geo_distance": _distance,
    "pow": _named(("base", "exponent")),
}
