"""What all sections have in common, and how a wrong setting is told.

Apart because the sections derive from it, and pydantic's own report would show
neither dotted keys nor a remedy, but perhaps a secret.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fm_storage.errors import ConfigurationInvalid

__all__ = [
    "EMBEDDED",
    "PositiveSeconds",
    "Section",
    "explained",
    "nearest_variable",
    "section_of",
]

EMBEDDED = "embedded:"
_NEAR = 0.7
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

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - pydantic validates
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raised = explained(exc, type(self), self.section)
            raised.section = self.section
            raise raised from None


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
    """Turn pydantic's report into ours: dotted keys, remedies, no input values."""
    problems: list[tuple[str, str]] = []
    for error in exc.errors(include_input=False, include_url=False):
        path = [str(part) for part in error["loc"]]
        key = ".".join(([prefix] if prefix else []) + path) or prefix or "config"
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConfigurationInvalid):
            outer = ".".join(([prefix] if prefix else []) + path)
            problems += [
                (outer + k.removeprefix(cause.section), p) for k, p in cause.problems
            ]
        elif error["type"] == "extra_forbidden":
            problems.append((key, _unknown(path, model)))
        else:
            problems.append((key, error["msg"].removeprefix("Value error, ")))
    return ConfigurationInvalid(*problems[0], *problems[1:])


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
