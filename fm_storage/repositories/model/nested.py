"""Models inside JSON: what converts them, and back to what was annotated.

pydantic does it for dataclasses, its own models, typed dictionaries, named tuples
and containers of them; msgspec, if the application has it, for its structs and for
attrs classes.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from fm_storage._typing import Json
from fm_storage.postgres.connect.codecs import encode_json
from fm_storage.repositories.model.compound_types import JsonValue
from fm_storage.repositories.model.scalar_types import Refused

_PARTS = (bool, int, float, str, types.NoneType, Any, object, list, dict, Json)


def is_model(bare: Any) -> bool:
    """Return whether *bare* is a class whose instances are JSON objects or arrays."""
    bare = typing.get_origin(bare) or bare
    return isinstance(bare, type) and (
        dataclasses.is_dataclass(bare)
        or (issubclass(bare, tuple) and hasattr(bare, "_fields"))
        or any(
            hasattr(bare, mark)
            for mark in (
                "__pydantic_validator__",
                "__struct_fields__",
                "__attrs_attrs__",
            )
        )
    )


def json_type(annotation: Any) -> JsonValue:
    """Return the column type of a JSON value that is *annotation* in the model.

    Raises:
        TypeError: Nothing can convert it.
    """
    container = typing.get_origin(annotation) or annotation
    if typing.is_typeddict(annotation):
        container = dict
    if _is_plain(annotation):
        return JsonValue(container if container in {dict, list} else None)
    dump, load = _converters(annotation)
    found = JsonValue(dump=functools.partial(_dumped, dump))
    found.decode = load
    return found


def _is_plain(annotation: Any) -> bool:
    """Return whether JSON itself gives back what *annotation* allows."""
    if annotation in _PARTS:
        return True
    if typing.is_typeddict(annotation):
        return all(map(_is_plain, typing.get_type_hints(annotation).values()))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict and arguments[0] not in {str, Any}:
        return False
    return origin in {dict, list, typing.Union, types.UnionType} and all(
        map(_is_plain, arguments)
    )


def _converters(
    annotation: Any,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return _by_msgspec(annotation)
    # By field name, whatever the aliases; without what is computed; from JSON's types.
    load = functools.partial(
        adapter.validate_python, strict=False, by_alias=True, by_name=True
    )
    whole = functools.partial(adapter.dump_python, by_alias=False, round_trip=True)

    def dump(value: Any) -> Any:
        value = adapter.validate_python(value)
        plain = whole(value, mode="json")
        if whole(load(plain)) != whole(value):
            encode_json(plain)  # NaN, which equals nothing, has an error of its own
            raise TypeError("it would not come back as it is, as a secret")
        return plain

    return dump, load


def _by_msgspec(
    annotation: Any,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    name = getattr(annotation, "__name__", repr(annotation))
    refusal = TypeError(
        f"{name} cannot be converted from JSON; use a dataclass, a pydantic model, a "
        "typed dictionary or a named tuple, or with msgspec a struct or attrs class"
    )
    if not any(map(_is_struct, _leaves(annotation))):
        raise refusal
    try:
        import msgspec
    except ImportError:
        raise refusal from None
    load = functools.partial(msgspec.convert, type=annotation)

    def dump(value: Any) -> Any:
        plain = msgspec.to_builtins(value)
        if load(plain) != value:
            raise TypeError("it is not what was annotated")
        return plain

    return dump, load


def _is_struct(leaf: Any) -> bool:
    # Before Python 3.12 pydantic takes no typing.TypedDict; msgspec does.
    marks = ("__struct_fields__", "__attrs_attrs__", "__total__")
    return any(hasattr(leaf, mark) for mark in marks)


def _leaves(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    found = [leaf for each in arguments for leaf in _leaves(each)]
    return found or [annotation]


def _dumped(dump: Callable[[Any], Any], value: Any) -> Any:
    try:
        return dump(value)
    except (ValueError, TypeError, RecursionError) as exc:
        errors = getattr(exc, "errors", None)
        if errors is None:
            raise Refused(f"cannot be written as JSON ({exc}); use JSON types") from exc
        first = errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(
            f"is not what was annotated ({place or 'itself'}: {first['msg']})"
        ) from exc
