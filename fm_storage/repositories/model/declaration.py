"""Reading a declaration: dataclasses, pydantic models and msgspec structs.

Neither pydantic nor msgspec is imported to recognise theirs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import operator
import pathlib
import re
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NewType, Union

from fm_storage._typing import Json
from fm_storage.errors import ConfigurationInvalid, InvalidName
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.sql import quote_ident
from fm_storage.repositories.model import compound_types, scalar_types, time_types
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.nested import is_model, json_type


@dataclass(frozen=True, slots=True)
class Column:
    """How a field is stored, where its annotation leaves it open.

    Given in ``columns={"total": Column(type="numeric(12,2)")}`` or in the model:
    ``code: Annotated[str, Column(max_length=100)]``.

    Attributes:
        name: The column's name (default: the field's).
        type: The column's PostgreSQL type (default: from the annotation).
        max_length: Characters that a text column holds.
        generated: Whether the server gives the value of a new row (identity,
            default, generated column); the model's value is not sent.
    """

    name: str | None = None
    type: str | None = None
    max_length: int | None = None
    generated: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no length.

        Raises:
            ConfigurationInvalid: It is no whole number from 1.
        """
        length = self.max_length
        if length is not None and (not isinstance(length, int) or length < 1):
            raise ConfigurationInvalid(
                "Column.max_length", f"is {length!r}; give a whole number from 1"
            )


@dataclass(frozen=True, slots=True)
class Model:
    """A model's fields and how one is made from values in their order.

    Attributes:
        fields: In the model's order.
        construct: Called with one value for each field, by position.
        decodes: Whether *construct* itself turns stored values into the model's.
    """

    fields: tuple[Stored, ...]
    construct: Callable[..., Any]
    decodes: bool = False


def read_model(model: type[Any], columns: Mapping[str, str | Column]) -> Model:
    """Return what *model* declares.

    Raises:
        ConfigurationInvalid: It is none of the three, or a field cannot be stored.
        InvalidName: *columns* names a field that the model has not.
    """
    given, model = model, typing.get_origin(model) or model
    if dataclasses.is_dataclass(model):
        described, construct, decodes = _read_dataclass(model)
    elif hasattr(model, "__pydantic_validator__"):
        described, construct, decodes = _read_pydantic(model)
    elif hasattr(model, "__struct_fields__"):
        described, construct, decodes = _read_msgspec(model)
    elif hasattr(model, "__attrs_attrs__"):
        described, construct, decodes = _read_attrs(model)
    elif isinstance(model, type) and is_model(model):
        described, construct, decodes = _hints(model), model, False
    else:
        raise ConfigurationInvalid(
            getattr(model, "__name__", repr(model)),
            "is no dataclass, pydantic model, msgspec struct, attrs class or "
            "NamedTuple; declare it as one",
        )
    of_kind(columns, Mapping, "columns", "give names or Columns by field")
    meant = _type_arguments(given)
    for name in columns:
        if name not in described:
            known = ", ".join(described)
            raise InvalidName(f"{model.__name__}: no field {name!r}; it has {known}")
    fields = tuple(
        _declared(model, name, _meant(annotation, meant), _column(columns.get(name)))
        for name, annotation in described.items()
    )
    if not fields:
        raise ConfigurationInvalid(model.__name__, "has no fields; declare some")
    stored = [item.column for item in fields]
    if twice := {name for name in stored if stored.count(name) > 1}:
        raise ConfigurationInvalid(
            model.__name__,
            f"stores two fields in one column ({', '.join(twice)}); name another",
        )
    return Model(fields, construct, decodes)


_Described = tuple[dict[str, Any], Callable[..., Any], bool]


def _read_dataclass(model: type[Any]) -> _Described:
    hints = _hints(model)
    fields = dataclasses.fields(model)
    _refuse_uninitialized(model, fields)
    described = {field.name: hints[field.name] for field in fields}
    if any(field.kw_only for field in fields):
        return described, _by_keyword(model, tuple(described)), False
    return described, model, False


def _refuse_uninitialized(model: type[Any], fields: Sequence[Any]) -> None:
    for field in fields:
        if not field.init:
            raise ConfigurationInvalid(
                f"{model.__name__}.{field.name}",
                "is not a parameter of __init__; drop init=False",
            )


def _read_msgspec(model: type[Any]) -> _Described:
    hints = _hints(model)
    names: tuple[str, ...] = tuple(model.__struct_fields__)
    described = {name: hints[name] for name in names}
    parameters = inspect.signature(model).parameters.values()
    if any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters):
        return described, _by_keyword(model, names), False
    return described, model, False


def _read_attrs(model: type[Any]) -> _Described:
    hints = _hints(model)
    fields = model.__attrs_attrs__
    _refuse_uninitialized(model, fields)
    described = {field.name: hints.get(field.name, Any) for field in fields}
    return described, _by_keyword(model, [field.alias for field in fields]), False


def _read_pydantic(model: type[Any]) -> _Described:
    described: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        for extra in field.metadata:
            annotation = Annotated[annotation, extra]
        described[name] = annotation
    names = tuple(described)
    validate = model.__pydantic_validator__.validate_python

    def construct(*values: Any) -> Any:
        # A stored value is not what a strict model wants: an enum's is its text.
        found = dict(zip(names, values, strict=True))
        return validate(found, strict=False, by_alias=False, by_name=True)

    return described, construct, True


def _by_keyword(model: type[Any], names: Sequence[str]) -> Callable[..., Any]:
    def construct(*values: Any) -> Any:
        return model(**dict(zip(names, values, strict=True)))

    return construct


def _hints(model: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(model, include_extras=True)
    except (NameError, TypeError) as exc:
        raise ConfigurationInvalid(
            model.__name__,
            f"an annotation cannot be resolved ({exc}); declare the model at the "
            "top of a module that imports what it names at run time",
        ) from exc


def _type_arguments(model: Any) -> dict[Any, Any]:
    """Return what stands for the type variables of a generic model and its bases."""
    found: dict[Any, Any] = {}
    unread = [model]
    while unread:
        each = unread.pop()
        origin = typing.get_origin(each) or each
        variables = getattr(origin, "__parameters__", ())
        arguments = [_meant(one, found) for one in typing.get_args(each)]
        found.update(zip(variables, arguments, strict=False))
        unread += getattr(origin, "__orig_bases__", ())
    return found


def _meant(annotation: Any, found: Mapping[Any, Any]) -> Any:
    """Return *annotation* with its type variables replaced."""
    if isinstance(annotation, typing.TypeVar):
        return found.get(annotation, annotation)
    variables = getattr(annotation, "__parameters__", ())
    if not variables or isinstance(annotation, type):
        return annotation
    return annotation[tuple(found.get(one, one) for one in variables)]


def _column(given: str | Column | None) -> Column:
    if given is None:
        return Column()
    of_kind(given, (str, Column), "columns", "give a column's name, or a Column")
    return Column(name=given) if isinstance(given, str) else given


def _declared(model: type[Any], name: str, annotation: Any, column: Column) -> Stored:
    bare, extras = _unwrap(annotation)
    bare, nullable = _optional(bare)
    bare, inner = _unwrap(bare)
    extras += inner
    for extra in extras:
        if isinstance(extra, Column):
            column = Column(
                column.name or extra.name,
                column.type or extra.type,
                column.max_length or extra.max_length,
                column.generated or extra.generated,
            )
    length = column.max_length or next(
        (n for e in extras if isinstance(n := getattr(e, "max_length", None), int)),
        None,
    )
    try:
        stored_as = _typed(bare, column.type, length)
    except TypeError as exc:
        raise ConfigurationInvalid(
            f"{model.__name__}.{name}",
            str(exc)
            if ";" in str(exc)
            else f"{exc} has no column type; name one with Column(type=...)",
        ) from None
    in_table = column.name or name
    return Stored(
        name, in_table, quote_ident(in_table), stored_as, nullable, column.generated
    )


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Take ``Annotated``, ``Final`` and ``NewType`` off, wherever ``| None`` stands."""
    extras: list[Any] = []
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation, *more = typing.get_args(annotation)
            extras += more
        elif typing.get_origin(annotation) is Final:
            (annotation,) = typing.get_args(annotation)
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, typing.TypeVar):
            annotation = annotation.__bound__ or Any
        else:
            return annotation, extras


def _optional(annotation: Any) -> tuple[Any, bool]:
    """Return the annotation without ``| None``, and whether that was there."""
    if annotation in (Any, Json):
        return annotation, True
    values = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal and len(values) > 1 and None in values:
        return Literal[tuple(one for one in values if one is not None)], True
    if typing.get_origin(annotation) in (Union, types.UnionType):
        rest = [
            part for part in typing.get_args(annotation) if part is not types.NoneType
        ]
        nullable = len(rest) < len(typing.get_args(annotation))
        if len(rest) == 1:
            bare, inner = _optional(rest[0])
            return bare, nullable or inner
        return functools.reduce(operator.or_, rest), nullable
    return annotation, False


_SCALARS: Mapping[type, Callable[[], scalar_types.ColumnType]] = {
    bool: scalar_types.Boolean,
    int: scalar_types.Integer,
    float: scalar_types.Float,
    decimal.Decimal: scalar_types.Numeric,
    bytes: scalar_types.Bytes,
    uuid.UUID: scalar_types.Uuid,
    dt.datetime: time_types.Timestamp,
    dt.date: time_types.Date,
    dt.time: time_types.Time,
    dt.timedelta: time_types.Interval,
}
_CONVERTED: Mapping[Any, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    pathlib.Path: (pathlib.PurePath, str, pathlib.Path),
    pathlib.PurePath: (pathlib.PurePath, str, pathlib.PurePath),
    zoneinfo.ZoneInfo: (zoneinfo.ZoneInfo, str, zoneinfo.ZoneInfo),
}
_TYPE_NAME = re.compile(r'[\w."][\w." ]*(\([\w, -]+\)[\w ]*)?(\[\])*')
_LENGTH = re.compile(r"(?:varchar|character varying|char|character)\((\d+)\)")
_JSON_PARTS = frozenset({bool, int, float, str, list, dict, Any})


def _typed(bare: Any, sql: str | None, length: int | None) -> scalar_types.ColumnType:
    """Return the column type of an annotation.

    Raises:
        TypeError: It has none; the message is the annotation.
    """
    if sql is None:
        return _inferred(bare, length)
    sql = " ".join(sql.split()).lower() if '"' not in sql else sql
    if not _TYPE_NAME.fullmatch(sql):
        raise TypeError(f"Column(type={sql!r})")
    name = sql.partition("(")[0]
    sized = _LENGTH.fullmatch(sql)
    if sized is not None:
        return _inferred(str if bare is Any else bare, length or int(sized[1]))
    known = compound_types.named_type(sql, bare) if length is None else None
    if known is not None:
        return known
    if name in {"json", "jsonb"}:
        found: scalar_types.ColumnType = json_type(bare)
    else:
        try:
            if sql.endswith("[]") and typing.get_origin(bare) in {set, frozenset}:
                container = typing.get_origin(bare)
                found = _sequence(bare, container, typing.get_args(bare))
            else:
                found = _inferred(bare, length)
        except TypeError:
            if isinstance(bare, enum.EnumType):
                raise
            found = compound_types.Other(sql)
    found.sql = sql
    return found


def _inferred(bare: Any, length: int | None) -> scalar_types.ColumnType:
    origin = typing.get_origin(bare)
    arguments = typing.get_args(bare)
    if bare is str:
        return scalar_types.Text(length)
    if origin is Literal:
        return _choice(arguments, length)
    if bare in _SCALARS:
        return _SCALARS[bare]()
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return compound_types.Enumeration(bare, _enum_values(bare, length))
    if bare in _CONVERTED:
        return compound_types.Converted(scalar_types.Text(length), *_CONVERTED[bare])
    if bare in scalar_types.ADDRESSES:
        return scalar_types.Address(bare)
    if origin in {list, tuple}:
        return _sequence(bare, origin, arguments)
    if {bare, origin} & {dict, list} or typing.is_typeddict(bare) or is_model(bare):
        return json_type(bare)
    if (
        origin in {Union, types.UnionType}
        and {typing.get_origin(a) or a for a in arguments} <= _JSON_PARTS
    ):
        return compound_types.JsonValue()
    raise TypeError(getattr(bare, "__name__", repr(bare)))


def _choice(values: tuple[Any, ...], length: int | None) -> scalar_types.ColumnType:
    kinds = set(map(type, values))
    if kinds == {str}:
        return scalar_types.Text(length, choices=frozenset(values))
    if len(kinds) > 1:
        raise TypeError("a Literal of several types")
    return compound_types.Choice(_inferred(kinds.pop(), length), values)


def _enum_values(
    members: type[enum.Enum], length: int | None
) -> scalar_types.ColumnType:
    kinds = {type(member.value) for member in members}
    if len(kinds) == 1 and kinds <= {str, *_SCALARS}:
        return _inferred(kinds.pop(), length)
    raise TypeError(
        f"{members.__name__} has values of several types, or of none that a column "
        "holds; give them one, or store them as jsonb"
    )


def _sequence(
    bare: Any, origin: type, arguments: tuple[Any, ...]
) -> scalar_types.ColumnType:
    """Return an array of scalars, or JSON when the elements are none."""
    element = arguments[0] if arguments else Any
    if origin is tuple and len({element, *arguments} - {...}) != 1:
        raise TypeError(f"tuple{list(arguments)}")
    try:
        found = _inferred(_optional(_unwrap(element)[0])[0], None)
    except TypeError:
        found = compound_types.JsonValue()
    if isinstance(found, (compound_types.JsonValue, compound_types.Array)):
        return json_type(bare)
    return compound_types.Array(found, origin)
