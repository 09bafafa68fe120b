"""Formulas over scores and payloads as the types of qdrant-edge.

Runs in the engine's process only. A formula ranks what a prefetch has found:
``{"formula": {"sum": ["$score", {"mult": [0.5, "weight"]}]}, "defaults": {…}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.process.edge_filters import (
    condition_from,
    geo_point_from,
)
from fm_storage.vectors.embedded.process.edge_types import BadRequest

Json = Mapping[str, Any]

_Make = edge.Expression


def formula_from(given: Json) -> edge.Formula:
    """Return the engine's formula for one in REST form."""
    defaults = given.get("defaults") or None
    return edge.Formula(_expression(given["formula"]), defaults)


def _expression(
    given: Any,
) -> edge.Expression:
    if isinstance(given, bool) or given is None:
        message = f"a formula holds {given!r}; give numbers, names and expressions"
        raise BadRequest(message)
    if isinstance(given, int | float):
        return _Make.Constant(float(given))
    if isinstance(given, str):
        return _Make.Variable(given)
    name = next(iter(given), "")
    if name in _ONE:
        return _ONE[name](_expression(given[name]))
    if name in _MANY:
        return _MANY[name]([_expression(part) for part in given[name]])
    if name in _DECAYS:
        return _decay(_DECAYS[name], given[name])
    if name in _OTHERS:
        return _OTHERS[name](given[name])
    return _Make.Condition(condition_from(given))


def _div(given: Json) -> edge.Expression:
    return _Make.Div(
        _expression(given["left"]),
        _expression(given["right"]),
        given.get("by_zero_default"),
    )


def _pow(given: Json) -> edge.Expression:
    return _Make.Pow(_expression(given["base"]), _expression(given["exponent"]))


def _decay(kind: edge.DecayKind, given: Json) -> edge.Expression:
    target = given.get("target")
    return _Make.Decay(
        kind,
        _expression(given["x"]),
        None if target is None else _expression(target),
        given.get("midpoint"),
        given.get("scale"),
    )


def _geo_distance(given: Json) -> edge.Expression:
    return _Make.GeoDistance(geo_point_from(given["origin"]), given["to"])


_ONE: dict[str, Callable[[edge.Expression], edge.Expression]] = {
    "abs": _Make.Abs,
    "acosh": _Make.Acosh,
    "exp": _Make.Exp,
    "ln": _Make.Ln,
    "log10": _Make.Log10,
    "neg": _Make.Neg,
    "sqrt": _Make.Sqrt,
}

_MANY: dict[str, Callable[[list[edge.Expression]], edge.Expression]] = {
    "max": _Make.Max,
    "min": _Make.Min,
    "mult": _Make.Mult,
    "sum": _Make.Sum,
}

_DECAYS = {
    "exp_decay": edge.DecayKind.Exp,
    "gauss_decay": edge.DecayKind.Gauss,
    "lin_decay": edge.DecayKind.Lin,
}

_OTHERS: dict[str, Callable[[Any], edge.Expression]] = {
    "datetime": _Make.Datetime,
    "datetime_key": _Make.DatetimeKey,
    "div": _div,
    "geo_distance": _geo_distance,
    "pow": _pow,
}
