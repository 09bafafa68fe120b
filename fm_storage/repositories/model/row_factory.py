"""Making records of rows, and reading their fields: code written for each model.

The hottest code of the room. After each answer of the server the processor's
caches are cold, so every Python frame, loop and look-up shows on the clock; the
code of a model has none but those that its own fields need. It is written as
text, the way ``dataclasses`` writes ``__init__``.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat, starmap
from types import NoneType
from typing import Any, Generic, NamedTuple, TypeVar

from fm_storage.repositories.model.scalar_types import ColumnType, Refused

M = TypeVar("M")


class Decoder(NamedTuple):
    """What makes a stored value the model's.

    Attributes:
        decode: Turns it into the model's, if it needs that.
        condition: Of the values that *decode* is for, in Python; empty: all.
        given: Classes of the values that need no look; empty: any.
        convert: Turns a value of another class into one of those.
        known: What *decode* gives for the values that occur, if these are few.
    """

    decode: Callable[[Any], Any] | None
    condition: str
    given: frozenset[type]
    convert: Callable[[Any], Any]
    known: Mapping[Any, Any] | None = None


def decoder_of(found: ColumnType, *, decodes: bool, field: str) -> Decoder:
    """Return what a field needs; a constructor that *decodes* converts on its own."""
    if decodes:
        decode = found.decode if found.decode_if else None
        return Decoder(decode, found.decode_if, frozenset(), found.convert)

    def convert(value: Any) -> Any:
        try:
            return found.convert(value)
        except Refused as exc:
            raise Refused(f"{field} {exc}") from exc

    return Decoder(found.decode, found.decode_if, found.given, convert, found.known)


_SOURCE = """
def one(row):
    if {odd}:
        row = converted(row)
    try:
{one}
    except Exception as exc:  # whatever the model's own code raises
        raise unreadable(row, exc) from exc
    return record

def many(rows):
    try:
{begun}
{many}
    except Exception:  # whatever it is, this way names the row
        return [one(row) for row in rows]
    return records
"""


# How a list of records begins, and what stands before and behind the lines that
# make one. All empty records at once, then row by row: half the calls.
_ASSIGNED: tuple[list[str], list[str], list[str]] = (
    [
        "records = list(starmap(new, repeat((blank,), len(rows))))",
        "for record, row in zip(records, rows):",
    ],
    ["record = new(blank)"],
    [],
)
_CONSTRUCTED: tuple[list[str], list[str], list[str]] = (
    ["records = []", "append = records.append", "for row in rows:"],
    [],
    ["append(record)"],
)


class RowFactory(Generic[M]):
    """Makes a model's records.

    A value of another class than the field's is converted, or refused.

    Attributes:
        one: Makes the record of a row, whose values stand in the fields' order.
    """

    def __init__(
        self,
        model: type[M],
        construct: Callable[..., M],
        names: Sequence[str],
        decoders: Sequence[Decoder],
        *,
        unreadable: Callable[[Iterable[Any], Exception, str | None], Exception],
        order: Sequence[str] | None = None,
        required: Sequence[str] = (),
    ) -> None:
        """Write the code.

        Args:
            model: Class of the records.
            construct: Makes one of its values, by position.
            names: Its fields, in the order of a row.
            decoders: For each field what its stored values need, if anything.
            unreadable: Gives the error of a row that is no record, and of its field.
            order: The fields in the order in which *construct* takes them
                (default: *names*).
            required: Fields whose NULL makes a row unreadable.
        """
        order = order or names
        known: dict[str, Any] = {
            "construct": construct,
            "model": model,
            "blank": model,
            "new": object.__new__,
            "repeat": repeat,
            "starmap": starmap,
            "converted": self._converted,
            "unreadable": self._refusal,
            "Missing": Refused,
        }
        decoded: dict[int, str] = {}
        looked_up: dict[int, str] = {}
        for at, decoder in enumerate(decoders):
            if decoder.known is not None:
                known[f"known{at}"] = {**decoder.known, None: None}
                looked_up[at] = f"known{at}[value{at}]"
            if decoder.decode is not None:
                known[f"decode{at}"] = decoder.decode
                value = f"value{at}"
                test = f"{value} is None"
                if decoder.condition:
                    test += f" or not {decoder.condition.format(value)}"
                otherwise = value if decoder.condition else "None"
                decoded[at] = f"{otherwise} if {test} else decode{at}({value})"
        looked = [
            (at, decoder.given | {NoneType}, decoder.convert)
            for at, decoder in enumerate(decoders)
            if decoder.given
        ]
        known.update((f"given{at}", given) for at, given, _ in looked)
        odd = [f"row[{at}].__class__ not in given{at}" for at, *_ in looked]
        settled: list[str] = []
        self._assigned = _is_assigned(model, order)
        if self._assigned:
            begun, one, many = _ASSIGNED
            written = functools.partial(_assigned, names, required)
            if _is_frozen(model):
                known["blank"] = _thawed(model)
                settled = ["record.__class__ = model"]
            _lay_out(known["blank"], order)
        else:
            begun, one, many = _CONSTRUCTED
            written = functools.partial(_constructed, names, order)
            if required:
                absent = " or ".join(f"record.{name} is None" for name in required)
                settled = [f"if {absent}: raise Missing"]
        source = _SOURCE.format(
            odd=" or ".join(odd) or "False",
            begun=_indented(begun, 8),
            one=_indented([*one, *written(decoded), *settled], 8),
            many=_indented([*written({**decoded, **looked_up}), *settled, *many], 12),
        )
        _define(f"rows of {model.__name__}", source, known)
        self.one: Callable[[Iterable[Any]], M] = known["one"]
        self._many: Callable[[Sequence[Any]], list[M]] = known["many"]
        self._looked = looked
        self._required = frozenset(required)
        self._fields = tuple(zip(names, decoders, strict=True))
        self._unreadable = unreadable

    def _refusal(self, row: Iterable[Any], exc: Exception) -> Exception:
        """Return the error of a row, with the field that cannot be decoded."""
        field = None
        for (name, decoder), value in zip(self._fields, row, strict=True):
            try:
                if value is None and name in self._required:
                    field, exc = name, Refused(f"{name} is NULL")
                    break
                if decoder.decode is not None and value is not None:
                    decoder.decode(value)
            except Exception:  # whatever a value of another type leads to
                field = name
                break
        return self._unreadable(row, exc, field)

    def _converted(self, row: Iterable[Any]) -> Iterable[Any]:
        """Return the values of a row in the classes that the fields name."""
        values, field = list(row), None
        try:
            for at, given, convert in self._looked:
                field = self._fields[at][0]
                if type(values[at]) not in given:
                    values[at] = convert(values[at])
        except Exception as exc:  # as above
            raise self._unreadable(row, exc, field) from exc
        return values

    def many(self, rows: Sequence[Any]) -> list[M]:
        """Make the records of many rows; the first that is no record is named."""
        for at, given, _ in self._looked:
            # A column's values are all of one class, but for NULL.
            for row in rows:
                if row[at] is not None:
                    if type(row[at]) not in given:
                        return list(map(self.one, rows))
                    break
        # Records hold no cycles yet. Collections would go through them as they come,
        # for a quarter of the time that making them takes.
        collects = self._assigned and gc.isenabled()
        if collects:
            gc.disable()
        try:
            return self._many(rows)
        finally:
            if collects:
                gc.enable()


def as_reason(exc: Exception, field: str | None) -> str:
    """Return why a value is none of its field's, which *exc* may name already."""
    text = f"{type(exc).__name__}: {exc}"
    return text if field is None or str(exc).startswith(field) else f"{field}, {text}"


def reader(name: str) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that reads field *name* of many records.

    The interpreter learns where a field stands in a record when it reads it in
    its own code; ``map(attrgetter(name), records)`` looks it up each time.
    """
    known: dict[str, Any] = {}
    source = f"def read(records): return [record.{name} for record in records]"
    _define(f"field {name}", source, known)
    made: Callable[[Sequence[Any]], list[Any]] = known["read"]
    return made


def _define(title: str, source: str, known: dict[str, Any]) -> None:
    """Run *source*, whose only variable parts are field names, all identifiers."""
    exec(compile(source, f"<{title}>", "exec"), known)  # noqa: S102


def _assigned(
    names: Sequence[str], required: Sequence[str], decoded: dict[int, str]
) -> list[str]:
    """Return code that does what a dataclass's own ``__init__`` does to *record*."""
    places = {
        at: f"value{at}"
        for at, name in enumerate(names)
        if at in decoded or name in required
    }
    targets = [places.get(at, f"record.{name}") for at, name in enumerate(names)]
    absent = [f"value{at} is None" for at in places if names[at] in required]
    return [
        f"{', '.join(targets)}, = row",
        *(f"record.{names[at]} = {decoded.get(at, places[at])}" for at in places),
        *([f"if {' or '.join(absent)}: raise Missing"] if absent else []),
    ]


def _lay_out(blank: type[Any], names: Sequence[str]) -> None:
    """Let *blank* learn its fields before its records are made by the thousand.

    CPython keeps 30 places for what all records of a class share, and each record
    that is made before its fields are known takes one away; once they are used up,
    every record has a dictionary of its own, which takes three times as long.
    """
    if blank.__dictoffset__:
        fields = vars(object.__new__(blank))
        for name in names:
            fields[name] = None


def _constructed(
    names: Sequence[str], order: Sequence[str], decoded: dict[int, str]
) -> list[str]:
    """Return code that calls the model's constructor."""
    if not decoded and list(names) == list(order):
        return ["record = construct(*row)"]
    places = [f"value{at}" for at in range(len(names))]
    given = [decoded.get(at, places[at]) for at in map(names.index, order)]
    return [f"{', '.join(places)}, = row", f"record = construct({', '.join(given)})"]


def _is_assigned(model: type[Any], names: Sequence[str]) -> bool:
    """Return whether making a *model* is nothing but setting its fields.

    So it is for a dataclass whose ``__init__`` is the one that ``dataclasses``
    wrote for just these fields, and which has no ``__post_init__()``. A frozen
    one must take a subclass, too, without being asked: see ``_thawed()``.
    """
    made = vars(model).get("__init__")
    code = getattr(made, "__code__", None)
    return (
        dataclasses.is_dataclass(model)
        and "__dataclass_params__" in vars(model)
        and code is not None
        and code.co_filename == "<string>"
        and {*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]}
        == {*names}
        and not hasattr(model, "__post_init__")
        and model.__new__ is object.__new__
        and not inspect.isabstract(model)
        and not (_is_frozen(model) and _notices_subclasses(model))
    )


def _is_frozen(model: type[Any]) -> bool:
    frozen: bool = vars(model)["__dataclass_params__"].frozen
    return frozen


def _notices_subclasses(model: type[Any]) -> bool:
    own = (vars(base) for base in model.__mro__[:-1])
    return type(model) is not type or any("__init_subclass__" in each for each in own)


def _thawed(model: type[Any]) -> type[Any]:
    """Return a class of the same layout, whose records' fields can be set.

    They become *model*'s after that, three times as fast as its own ``__init__``,
    which calls ``object.__setattr__()`` for each field. Both methods are one slot.
    """
    own = {name: vars(object)[name] for name in ("__setattr__", "__delattr__")}
    return type(model.__name__, (model,), {"__slots__": (), **own})


def _indented(lines: Sequence[str], by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
