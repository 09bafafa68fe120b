"""Keyset pages: a page begins where the last one ended, not at a row number.

OFFSET reads and throws away everything before the page, and skips or repeats rows
when others are written meanwhile; a keyset page does neither.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import orjson

from fm_storage.errors import InvalidCursor, InvalidName
from fm_storage.repositories.model.compound_types import Array, JsonValue
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.scalar_types import Refused
from fm_storage.repositories.query.filters import Parameters
from fm_storage.repositories.query.ordering import Order

M = TypeVar("M")

_FORMAT = 1
_DIGEST = 8
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """Some records in order, and where the next ones begin.

    Attributes:
        items: The records.
        next_cursor: What ``page(cursor=…)`` takes for the page after this one,
            None after the last.
        total: Number of records on all pages, if it was asked for.
    """

    items: list[M]
    next_cursor: str | None
    total: int | None = None

    @property
    def has_more(self) -> bool:
        """Whether there was at least one more record behind this page."""
        return self.next_cursor is not None


def page_order(entity: Entity[Any], steps: Sequence[Order]) -> tuple[Order, ...]:
    """Return *steps* with the key behind them, so that no two records tie.

    The key turns the way of the last step: then one index serves all of it.

    Raises:
        InvalidName: A field cannot be ordered in pages.
    """
    for step in steps:
        if isinstance(entity.field(step.field).type, JsonValue | Array):
            raise InvalidName(
                f"{entity.name}: field {step.field!r} is JSON or an array and "
                "cannot order pages"
            )
    named = {step.field for step in steps}
    down = steps[-1].descending if steps else False
    rest = (Order(name, down) for name in entity.key_names if name not in named)
    return (*steps, *rest)


def keyset(
    entity: Entity[Any],
    steps: Sequence[Order],
    values: Sequence[Any],
    parameters: Parameters,
) -> str:
    """Return the condition of the rows after the one with *values*."""
    items = [entity.field(step.field) for step in steps]
    down = {step.descending for step in steps}
    if len(down) == 1 and not any(item.nullable for item in items):
        # A row comparison is what a multi-column index can seek to.
        left = ", ".join(item.quoted for item in items)
        right = ", ".join(parameters.add(value) for value in values)
        return f"({left}) {'<' if down == {True} else '>'} ({right})"
    places = [None if value is None else parameters.add(value) for value in values]
    ways = []
    for at, step in enumerate(steps):
        after = _after(items[at], step, places[at])
        if after is None:
            continue
        same = [_same(items[i], places[i]) for i in range(at)]
        ways.append(f"({' AND '.join([*same, after])})")
    reach = _reach(items[0], steps[0], places[0])
    return f"({reach}({' OR '.join(ways) or 'FALSE'}))"


def _after(item: Stored, step: Order, place: str | None) -> str | None:
    """Return the condition of a field behind the last one's value, if any can be."""
    if place is None:
        return f"{item.quoted} IS NOT NULL" if step.nulls_first else None
    beyond = f"{item.quoted} {'<' if step.descending else '>'} {place}"
    if item.nullable and not step.nulls_first:
        return f"({beyond} OR {item.quoted} IS NULL)"
    return beyond


def _same(item: Stored, place: str | None) -> str:
    return f"{item.quoted} IS NULL" if place is None else f"{item.quoted} = {place}"


def _reach(item: Stored, step: Order, place: str | None) -> str:
    """Return a bound on the first field alone, which an index can start from."""
    if place is None or (item.nullable and not step.nulls_first):
        return ""
    return f"{item.quoted} {'<=' if step.descending else '>='} {place} AND "


def encode_cursor(
    entity: Entity[Any], steps: Sequence[Order], condition: str, record: object
) -> str:
    """Return the opaque place after *record*."""
    values: list[str | None] = []
    for step in steps:
        item = entity.field(step.field)
        value = item.encode(getattr(record, step.field))
        values.append(None if value is None else item.type.to_text(value))
    body = orjson.dumps([_FORMAT, *values])
    digest = _digest(entity, steps, condition, body)
    return base64.urlsafe_b64encode(digest + body).decode().rstrip("=")


def decode_cursor(
    entity: Entity[Any], steps: Sequence[Order], condition: str, cursor: object
) -> list[Any]:
    """Return the values that the page begins after.

    Raises:
        InvalidCursor: It is no cursor, was changed, or belongs to another table,
            order or set of filters.
    """
    if not isinstance(cursor, str) or len(cursor) > _LONGEST:
        raise _refusal("it is no text of a page's next_cursor")
    try:
        data = base64.b64decode(
            cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True
        )
    except (binascii.Error, ValueError):
        raise _refusal("it is not one that page() gave") from None
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if digest != _digest(entity, steps, condition, body):
        raise _refusal(
            "it was changed, or belongs to another table, order or set of filters"
        )
    try:
        form, *texts = orjson.loads(body)
        if form != _FORMAT or len(texts) != len(steps):
            raise _refusal("it was made by another version")
        return [
            _value(entity.field(step.field), text)
            for step, text in zip(steps, texts, strict=True)
        ]
    except (ValueError, KeyError, TypeError, Refused) as exc:
        if isinstance(exc, InvalidCursor):
            raise
        raise _refusal("its values do not fit the order") from exc


def _value(item: Stored, text: str | None) -> Any:
    if text is None:
        if not item.nullable:
            raise Refused("is None")
        return None
    return item.type.from_text(text)


def _digest(
    entity: Entity[Any], steps: Sequence[Order], condition: str, body: bytes
) -> bytes:
    """Return a check value; a mistake is caught, a secret is not needed.

    A forged cursor gains nothing: its values travel as parameters and only choose
    where a page begins.
    """
    hashed = blake2b(digest_size=_DIGEST)
    hashed.update(repr((entity.name, tuple(steps), condition)).encode())
    hashed.update(body)
    return hashed.digest()


def _refusal(why: str) -> InvalidCursor:
    return InvalidCursor(f"cursor: {why}; begin again without a cursor")
