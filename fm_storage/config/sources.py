"""Sources of settings: an application's own, the environment, TOML."""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from fm_storage.config.section import nearest_variable, section_of
from fm_storage.errors import ConfigurationInvalid

logger = logging.getLogger("fm_storage.config")

PREFIX = "FM_STORAGE_"


@runtime_checkable
class ConfigManager(Protocol):
    """Anything in which an application keeps its settings.

    ``get`` answers *default* for a key it does not know. The keys are those of
    ``StorageConfig``, dotted: ``postgres.dsn``, ``qdrant.collections``.
    """

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        ...


_UNSET: Any = object()


def ask(manager: ConfigManager, model: type[BaseModel], prefix: str = "") -> Any:
    """Return what *manager* knows of *model*'s settings, nested.

    Raises:
        ConfigurationInvalid: It cannot be asked.
    """
    if not isinstance(manager, ConfigManager):
        raise ConfigurationInvalid(
            "config_manager",
            f"{type(manager).__name__} has no get(key, default) to ask for settings; "
            "give an object that has it, such as EnvironmentConfigManager()",
        )
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section = section_of(field.annotation)
        if section is None:
            value = manager.get(key, _UNSET)
            if value is not _UNSET:
                found[name] = value
            continue
        whole = manager.get(key, _UNSET)
        if whole is _UNSET or isinstance(whole, Mapping):
            inner = {**(whole if isinstance(whole, Mapping) else {})}
            inner |= ask(manager, section, f"{key}.")
            if inner:
                found[name] = inner
        else:
            found[name] = whole
    return found


def from_environment(
    environ: Mapping[str, str], known: Collection[str], prefix: str = PREFIX
) -> dict[str, Any]:
    """Turn ``PREFIX_A__B=value`` into ``{"a": {"b": value}}``, *known* keys only."""
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if not name.upper().startswith(prefix) or not value:
            continue
        path = name[len(prefix) :].lower().split("__")
        if path[0] not in known:
            continue
        at = found
        for part in path[:-1]:
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):
                break
            at = inner
        else:
            at[path[-1]] = _decoded(value)
    return found


# Variables that the project's own tests and CI read.
_OF_THE_TESTS = ("TEST_", "CI_")

_OF_A_SERVICE = re.compile(
    r"(?i)\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)
"""Names that Kubernetes makes of a Service's (``enableServiceLinks``)."""


def _is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes, or a link of Docker, put the variable there.

    ``NAME_PORT=tcp://…`` is known by its value: with a number it is a mistake.
    See https://kubernetes.io/docs/concepts/services-networking/service/.
    """
    return bool(_OF_A_SERVICE.fullmatch(name)) or (
        name.upper().endswith("_PORT") and "://" in value
    )


def refuse_misspelt(environ: Mapping[str, str], model: type[BaseModel]) -> None:
    """Refuse a variable that was meant as a setting; log one that is none of ours.

    Another program may use the prefix (Kubernetes names variables after services),
    so only what is nearly the name of a setting, and not a service's, is a mistake.

    Raises:
        ConfigurationInvalid: Names the variable and the one that was meant.
    """
    for name in sorted(environ):
        given = name.upper().removeprefix(PREFIX)
        if name.upper() == given or not environ[name]:
            continue
        if given.startswith(_OF_THE_TESTS):
            continue
        if given.lower().split("__")[0] in model.model_fields:
            continue
        meant = nearest_variable(given, model)
        if meant and not _is_of_a_service(name, environ[name]):
            raise ConfigurationInvalid(
                name, f"no such variable; did you mean {PREFIX}{meant}?"
            )
        logger.warning(
            "environment: %s is no setting of fm_storage and has no effect", name
        )


def _decoded(value: str) -> Any:
    """Read a JSON object or array; anything else is text, as pydantic wants it."""
    if value[:1] in "{[":
        import json

        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return *base* with *over* on top, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file: its top, or its ``[tool.fm_storage]``.

    Raises:
        ConfigurationInvalid: The file is missing, or is no TOML.
    """
    shown = str(path)
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationInvalid(
            shown, f"cannot be read ({exc.strerror}); name an existing TOML file"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationInvalid(shown, f"is not TOML ({exc}); correct it") from None
    nested = data.get("tool", {})
    if isinstance(nested, dict) and isinstance(nested.get("fm_storage"), dict):
        return dict(nested["fm_storage"])
    return data
