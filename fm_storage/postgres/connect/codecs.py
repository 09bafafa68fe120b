"""JSON to and from Python values, as PostgreSQL's json and jsonb want it.

What orjson accepts silently (NaN becomes null) is refused here, once, for every
statement.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson
from pydantic_core import from_json

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.connect.internals import codec_settings, forget_statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import asyncpg

_OIDS = ((114, "json"), (3802, "jsonb"))
_OPTIONS = orjson.OPT_NON_STR_KEYS
_DEEPEST = 500
"""Levels that every parser on the way takes: Python's own stops below 1,000."""


def encode_json(value: Any) -> str:
    """Return *value* as JSON text.

    Raises:
        InvalidRecord: It is no JSON, or holds NaN, an infinity, a NUL or a lone
            surrogate.
    """
    try:
        data = orjson.dumps(value, option=_OPTIONS)
    except TypeError as exc:
        return _encode_slowly(value, exc)
    # orjson writes NaN as null and NUL as \u0000; both are legal inside other
    # values, so only then is the value walked.
    if b"null" in data or b"\\u0000" in data:
        _refuse_unstorable(value)
    return data.decode()


def encode_plain_json(values: Iterable[Any]) -> list[str] | None:
    """Return *values* as JSON texts, looked at all at once, in half the time.

    None if any of them may need the look that ``encode_json()`` takes.
    """
    try:
        texts = list(map(orjson.dumps, values))
    except TypeError:
        return None
    data = b"".join(texts)
    if b"null" in data or (b"\\" in data and b"\\u0000" in data):
        return None
    return [text.decode() for text in texts]


def _encode_slowly(value: Any, cause: TypeError) -> str:
    """Encode what orjson refuses: integers beyond 64 bits, which jsonb keeps."""
    _refuse_unstorable(value)
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRecord(f"JSON value: {cause}; use JSON types") from cause


def _refuse_unstorable(value: Any) -> None:
    """Refuse NaN, infinities, NUL and lone surrogates, wherever they are.

    And what is nested deeper than can be read again; a value that contains itself
    is nested without end.
    """
    open_values = [(value, 0)]
    while open_values:
        item, depth = open_values.pop()
        if depth > _DEEPEST:
            raise InvalidRecord(
                f"JSON value: it is nested more than {_DEEPEST} levels deep, or "
                "contains itself; flatten it"
            )
        if isinstance(item, str):
            if "\0" in item:
                raise InvalidRecord("JSON value: a text holds a NUL; remove it")
            try:
                item.encode()
            except UnicodeEncodeError:
                raise InvalidRecord(
                    "JSON value: a text holds a lone surrogate; use valid text"
                ) from None
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidRecord(
                    f"JSON value: {item} is not a JSON number; use None or text"
                )
        else:
            open_values.extend((part, depth + 1) for part in _parts(item))


def _parts(item: Any) -> Iterable[Any]:
    """Return what a value that orjson writes is made of."""
    if isinstance(item, dict):
        return chain(item, item.values())
    if isinstance(item, (list, tuple)):
        return item
    if dataclasses.is_dataclass(item):
        return [getattr(item, field.name) for field in dataclasses.fields(item)]
    return (item.value,) if isinstance(item, enum.Enum) else ()


def decode_json(text: str) -> Any:
    """Return the value of JSON text; integers of any size are kept exactly."""
    try:
        return from_json(text)
    except ValueError:  # nested deeper than the fast parser goes
        return json.loads(text)


def install_codecs(
    raw: asyncpg.Connection[Any], types: Sequence[tuple[int, str]] = _OIDS
) -> None:
    """Make *raw* exchange json and jsonb as Python values, without I/O.

    ``set_type_codec()`` would ask the server for the types' numbers, which are
    fixed, at the price of round trips on every new connection.
    """
    settings = codec_settings(raw)
    for oid, name in types:
        settings.add_python_codec(
            oid, name, "pg_catalog", [], "scalar", encode_json, decode_json, "text"
        )


@contextmanager
def foreign_codecs(raw: asyncpg.Connection[Any]) -> Iterator[None]:
    """Install our codecs on a connection of the caller's that has none of its own.

    Prepared statements remember the codecs of their time, so the driver's cache
    is dropped when they change.
    """
    settings = codec_settings(raw)
    missing = [
        (oid, name)
        for oid, name in _OIDS
        if settings.get_data_codec(oid, -1) is settings.get_data_codec(oid, -1, True)
    ]
    install_codecs(raw, missing)
    if missing:
        forget_statements(raw)
    try:
        yield
    finally:
        for oid, name in missing:
            settings.remove_python_codec(oid, name, "pg_catalog")
        if missing:
            forget_statements(raw)
