"""The look at every value before it is sent: one record, or a batch by columns.

The hottest code of the room, and written for that: after each answer of the
server the processor's caches are cold, and every Python frame costs a microsecond
of the fifteen that a call may cost more than the driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import MAXYEAR, MINYEAR, UTC
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any, Generic, TypeAlias, TypeVar

from fm_storage.errors import InvalidRecord
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.row_factory import reader
from fm_storage.repositories.model.scalar_types import Refused, Text
from fm_storage.repositories.model.time_types import Timestamp

M = TypeVar("M")

_Picker: TypeAlias = Callable[[Sequence[Any]], tuple[Any, ...]]

_PART = 512
_SHAPES = 256
"""Combinations of classes remembered; nullable fields make some."""


class ParameterEncoder(Generic[M]):
    """Turns records into the parameters of an INSERT, or refuses them."""

    def __init__(self, model: type[M], fields: Sequence[Stored]) -> None:
        self._model = model
        self._fields = tuple(fields)
        self._get = getter(item.field for item in fields)
        # Classes of whole records that passed before, with what picks their texts:
        # of a record with the same ones, only what a class does not tell is
        # looked at.
        self._shapes: dict[tuple[type, ...], _Picker] = {}
        texts = [
            (place, item.type)
            for place, item in enumerate(fields)
            if isinstance(item.type, Text) and item.type.choices is None
        ]
        self._texts = [place for place, _ in texts]
        self._limits = tuple(
            (place, text.max_length)
            for place, text in texts
            if text.max_length is not None
        )
        self._moments = tuple(
            place
            for place, item in enumerate(fields)
            if isinstance(item.type, Timestamp) and item.type.aware
        )
        seen = {*self._texts, *self._moments}
        self._others = tuple(
            (place, item)
            for place, item in enumerate(fields)
            if not item.type.settled and place not in seen
        )

    def values(self, record: M, index: int | None = None) -> Sequence[Any]:
        """Return the values of one new row.

        Raises:
            InvalidRecord: One cannot be stored; *record* is no such model.
        """
        try:
            values = self._get(record)
        except AttributeError:
            raise self._stranger(record, index) from None
        texts = self._shapes.get(tuple(map(type, values)))
        if texts is not None:
            text = "".join(texts(values))
            if (
                "\0" not in text
                and (text.isascii() or _encodable(text))
                and self._settled(values)
            ):
                return self._rest(values, index) if self._others else values
        return self._slowly(values, index)

    def _settled(self, values: Sequence[Any]) -> bool:
        """Look at lengths and time zones, of which one is by far the commonest."""
        for place, limit in self._limits:
            text = values[place]
            if text is not None and len(text) > limit:
                return False
        for place in self._moments:
            moment = values[place]
            if moment is not None and (
                moment.tzinfo is not UTC or not MINYEAR < moment.year < MAXYEAR
            ):
                return False
        return True

    def _rest(self, values: Sequence[Any], index: int | None) -> Sequence[Any]:
        """Look at what is neither text nor settled by its class."""
        looked = list(values)
        for place, item in self._others:
            value = looked[place]
            if value is not None:
                try:
                    looked[place] = item.type.encode(value)
                except Refused as exc:
                    raise item.refusal(str(exc), index) from exc
        return looked

    def _slowly(self, values: Sequence[Any], index: int | None) -> Sequence[Any]:
        """Look at every value, and remember the classes if all are good."""
        looked = [
            item.encode(value, index)
            for item, value in zip(self._fields, values, strict=True)
        ]
        shape = tuple(map(type, values))
        if len(self._shapes) < _SHAPES and all(
            found is NoneType or item.type.knows(found)
            for item, found in zip(self._fields, shape, strict=True)
        ):
            self._shapes[shape] = _places(
                [place for place in self._texts if shape[place] is not NoneType]
            )
        return looked

    def columns(self, records: Sequence[M], *, copy: bool = False) -> list[list[Any]]:
        """Return the values of new rows column by column, all of them looked at.

        Args:
            records: The models.
            copy: Whether the values are for COPY, not for arrays.

        Raises:
            InvalidRecord: It names the first wrong record and its field.
        """
        columns: list[list[Any]] = [[] for _ in self._fields]
        ways = [
            (
                reader(item.field),
                item.type.copy_many if copy else item.type.encode_many,
                item.nullable,
                column.extend,
            )
            for item, column in zip(self._fields, columns, strict=True)
        ]
        try:
            # By column, in parts that fit the processor's cache.
            for start in range(0, len(records), _PART):
                part = records[start : start + _PART]
                for get, look, nullable, extend in ways:
                    extend(look(get(part), nullable=nullable))
        except (Refused, AttributeError) as exc:
            for index, record in enumerate(records):
                self.values(record, index)
                self._look_inside(record, index)
            raise InvalidRecord(f"{self._model.__name__}: {exc}") from exc
        return columns

    def _look_inside(self, record: M, index: int) -> None:
        """Find what only the text of a JSON value shows."""
        for item in self._fields:
            value = getattr(record, item.field)
            if value is not None:
                try:
                    item.type.encode_many([value])
                except Refused as exc:
                    raise item.refusal(str(exc), index) from exc

    def _stranger(self, record: object, index: int | None) -> InvalidRecord:
        at = "" if index is None else f"record {index}: "
        return InvalidRecord(
            f"{at}{type(record).__name__} is not a {self._model.__name__}; "
            "give the repository's own model",
            index=index,
        )


def getter(names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads *names* of a record, always as a tuple."""
    wanted = tuple(names)
    if not wanted:
        return lambda _: ()
    if len(wanted) == 1:
        get_one = attrgetter(*wanted)
        return lambda record: (get_one(record),)
    return attrgetter(*wanted)


def _places(places: Sequence[int]) -> _Picker:
    """Return a function that picks *places* of a row, always as a tuple."""
    if not places:
        return lambda _: ()
    if len(places) == 1:
        (place,) = places
        return lambda values: (values[place],)
    return itemgetter(*places)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
