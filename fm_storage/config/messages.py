"""Messages about a wrong value: what was given, and which values are accepted.

Pydantic's own report contains neither, and repeats itself for each branch of a union.
Values are shown, except secrets: fields that are kept out of ``repr``, addresses, and
whatever stands where a whole section belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

_ENDLESS = frozenset({"inf", "infinity", "Infinity", "nan", "NaN"})
_LONGEST = 60
_AROUND = 12
_NAMED = 4
Schema = Mapping[str, Any]


def placed(field: FieldInfo, path: Sequence[str | int]) -> tuple[list[str], Schema]:
    """Follow *path* into a field's value; return it without a union's branches.

    Returns:
        The names that lead to the wrong value, and what is accepted there, as JSON
        Schema (https://json-schema.org).
    """
    whole: Schema = TypeAdapter(field.rebuild_annotation()).json_schema()
    at, names = _resolved(whole, whole), []
    for part in path:
        choices = at.get("anyOf", [at])
        inner: Schema = next(
            (c for c in choices if c.get("type") in {"object", "array"}), {}
        )
        below = inner.get("items", inner.get("additionalProperties"))
        if len(_values(choices)) > 1 or not isinstance(below, Mapping):
            break
        names.append(str(part))
        at = _resolved(below, whole)
    return names, at


def _resolved(schema: Schema, whole: Schema) -> Schema:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        return {**whole["$defs"][name]}
    if "anyOf" in schema:
        return {"anyOf": [_resolved(choice, whole) for choice in schema["anyOf"]]}
    return schema


def _values(choices: Sequence[Schema]) -> list[Schema]:
    return [choice for choice in choices if choice.get("type") != "null"]


def refused(given: object, accepted: Schema, *, secret: bool) -> str:
    """Return the message for *given*, which the setting does not accept."""
    if isinstance(given, str) and given[:1] in {"{", "["}:
        try:
            json.loads(given)
        except ValueError as exc:
            return broken_json(exc, accepted, secret=secret)
    shown = "the value" if secret or _is_section(accepted) else repr(given)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}…"
    endless = (
        isinstance(given, float | int | str) and str(given).strip("+-") in _ENDLESS
    )
    wrong = "is no finite number" if endless else "is not accepted"
    return f"{shown} {wrong}; give {_words(accepted)}"


def broken_json(exc: BaseException, accepted: Schema, *, secret: bool) -> str:
    """Return the message for broken JSON: where, and what stands there if no secret."""
    place = ""
    if isinstance(exc, json.JSONDecodeError):
        near = exc.doc[max(0, exc.pos - _AROUND) : exc.pos + _AROUND]
        shown = "" if secret or _is_section(accepted) else f", near {near!r}"
        place = f" ({exc.msg} at character {exc.pos + 1}{shown})"
    return f"is no JSON{place}; give {_words(accepted)}"


def _is_section(schema: Schema) -> bool:
    return any("properties" in choice for choice in schema.get("anyOf", [schema]))


def _words(schema: Schema) -> str:
    """Return what *schema* accepts, as an end of "give …"."""
    choices = schema.get("anyOf", [schema])
    values = _values(choices)
    accepted = " or ".join(dict.fromkeys(map(_one, values)))
    if _is_section(schema) and len(values) < len(choices):
        return f"{accepted}, or none to do without it"  # others may be left out
    return accepted


def _one(schema: Schema) -> str:
    """Return what *schema*, which is no union, accepts."""
    if "properties" in schema:
        some = ", ".join(list(schema["properties"])[:_NAMED])
        return f"its settings by name ({some}, …)"
    if "enum" in schema:
        *words, last = map(repr, schema["enum"])
        return f"{', '.join(words)} or {last}" if words else last
    return {
        "integer": f"a whole number{_bounds(schema)}",
        "number": f"a number{_bounds(schema)}",
        "boolean": "true or false",
        "string": _text(schema),
        "array": 'a list, such as ["…"]',
        "function": "a function",
        "object": 'an object, such as {"name": …}',
    }.get(str(schema.get("type")), "another value")


def _bounds(schema: Schema) -> str:
    low, above, high = (
        schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum")
    )
    if high is not None:
        return f" from {low if low is not None else (above or 0) + 1} to {high}"
    if low is not None:
        return f", {low} or more"
    return f" above {above}" if above is not None else ""


def _text(schema: Schema) -> str:
    if "maxLength" in schema:
        return f"text of {schema['maxLength']} characters at most"
    if schema.get("minLength"):
        return "text that is not empty"
    return "a path" if schema.get("format") == "path" else "text"
