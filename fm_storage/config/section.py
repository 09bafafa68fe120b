"""The base of all sections, and the errors for wrong settings.

Pydantic's own report would show neither dotted keys nor a remedy, but perhaps a
secret; it is translated here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from fm_storage.config.masking import mask_dsn
from fm_storage.config.messages import broken_json, placed, refused
from fm_storage.errors import ConfigurationInvalid

EMBEDDED = "embedded:"
_NEAR = 0.7
_ADDRESSES = frozenset({"dsn", "url"})
"""Settings that hold a password where they are no address at all."""
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Common to the sections: frozen, strict about names, secret-safe."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    section: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raised = explained(exc, type(self), self.section)
            raised.section = self.section
            raise raised from None

    @field_validator("*")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        # It ends a text on its way to a server, or in the name of a file.
        if _holds_nul(value):
            raise ValueError("it holds a NUL character; remove that")
        return value

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [
            (name, mask_dsn(value) if name in _ADDRESSES and value else value)
            for name, value in super().__repr_args__()
        ]


def _holds_nul(value: object) -> bool:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Mapping):
        value = (*value, *value.values())
    if isinstance(value, tuple | list):
        return any(map(_holds_nul, value))
    return isinstance(value, str | Path) and "\0" in str(value)


def section_of(annotation: object) -> type[Section] | None:
    """Return the section class named by a field's annotation, if it is one."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def explained(
    exc: ValidationError, model: type[BaseModel], prefix: str
) -> ConfigurationInvalid:
    """Turn pydantic's report into ours: dotted keys, remedies, no secret."""
    problems: list[tuple[str, str]] = []
    for error in exc.errors(include_url=False):
        path = [str(part) for part in error["loc"]]
        outer = ".".join(([prefix] if prefix else []) + path)
        cause = error.get("ctx", {}).get("error")
        field = model.model_fields.get(path[0]) if path else None
        if isinstance(cause, ConfigurationInvalid):
            problems += [
                (outer + k.removeprefix(cause.section), p) for k, p in cause.problems
            ]
        elif error["type"] == "extra_forbidden":
            problems.append((outer, _unknown(path, model)))
        elif field is None or error["type"] in {"value_error", "missing"}:
            problem = error["msg"].removeprefix("Value error, ")
            if error["type"] == "missing":
                problem = "is missing; set it"
            problems.append((outer or "config", problem))
        else:
            below, accepted = placed(field, error["loc"][1:])
            key = ".".join([*([prefix] if prefix else []), path[0], *below])
            secret = _is_secret(path[0], field)
            problem = refused(error["input"], accepted, secret=secret)
            problems.append((key, problem))
    problems = list(dict.fromkeys(problems))  # a union reports each branch
    return ConfigurationInvalid(*problems[0], *problems[1:])


def _is_secret(name: str, field: FieldInfo) -> bool:
    """Return whether a setting's value must not be shown."""
    return not field.repr or name in _ADDRESSES


def located(
    exc: ConfigurationInvalid,
    environ: Mapping[str, str],
    keywords: Mapping[str, Any],
    prefix: str,
) -> ConfigurationInvalid:
    """Add to each problem the variable that it comes from, if it is one."""
    names = {name.upper(): name for name, value in environ.items() if value}
    problems: list[tuple[str, str]] = []
    for key, problem in exc.problems:
        parts = key.split(".")
        ends = range(0 if _holds(keywords, parts) else len(parts), 0, -1)
        variables = [prefix + "__".join(parts[:end]).upper() for end in ends]
        found = next((names[name] for name in variables if name in names), None)
        problems.append((key, f"{problem} (in {found})" if found else problem))
    return ConfigurationInvalid(*problems[0], *problems[1:])


def _holds(keywords: Mapping[str, Any], parts: Sequence[str]) -> bool:
    """Return whether a keyword, which is stronger than a variable, sets *parts*."""
    at: Any = keywords
    for part in parts:
        if not isinstance(at, Mapping):
            return at is not None
        if part not in at:
            return False
        at = at[part]
    return True


def explained_json(
    exc: BaseException, model: type[BaseModel], environ: Mapping[str, str], prefix: str
) -> ConfigurationInvalid:
    """Return the error for the variable whose JSON the parser could not read."""
    text = getattr(exc, "doc", None)
    name = next((name for name, value in environ.items() if value == text), None)
    if name is None:
        return ConfigurationInvalid(
            "config", "a variable holds JSON that cannot be read; correct it"
        )
    path = name.upper().removeprefix(prefix).lower().split("__")
    field, at = model.model_fields[path[0]], model
    below = 1
    while below < len(path) and (section := section_of(field.annotation)) is not None:
        at = section
        if path[below] not in at.model_fields:
            break
        field = at.model_fields[path[below]]
        below += 1
    names, accepted = placed(field, path[below:])
    problem = broken_json(exc, accepted, secret=_is_secret(path[below - 1], field))
    key = ".".join([*path[:below], *names])
    return ConfigurationInvalid(key, f"{problem} (in {name})")


def _unknown(path: list[str], model: type[BaseModel]) -> str:
    known = model
    for part in path[:-1]:
        field = known.model_fields.get(part)
        section = section_of(field.annotation) if field else None
        if section is None:
            break
        known = section
    close = difflib.get_close_matches(path[-1], known.model_fields, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else "remove it"
    prefix = str(known.model_config.get("env_prefix", ""))
    if prefix and path[-1].upper().startswith(prefix):  # a line of a .env file
        meant = nearest_variable(path[-1].upper().removeprefix(prefix), known)
        remedy = f"did you mean {prefix}{meant}?" if meant else "remove it"
    return f"unknown setting; {remedy}"


def nearest_variable(given: str, model: type[BaseModel]) -> str | None:
    """Return the variable, without its prefix, that *given* is nearly, or None."""
    known: list[str] = []
    for name, field in model.model_fields.items():
        known.append(name.upper())
        if (section := section_of(field.annotation)) is not None:
            known += [f"{name}__{key}".upper() for key in section.model_fields]
    return next(iter(difflib.get_close_matches(given.upper(), known, 1, _NEAR)), None)
