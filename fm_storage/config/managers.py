"""``ConfigManager`` over a mapping, the environment, a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fm_storage.config.sources import PREFIX, from_environment, read_toml
from fm_storage.config.storage import StorageConfig


class MappingConfigManager:
    """A ``ConfigManager`` over a mapping, nested or with dotted keys."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        if key in self._values:
            return self._values[key]
        found: Any = self._values
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return default
            found = found[part]
        return found


class EnvironmentConfigManager(MappingConfigManager):
    """A ``ConfigManager`` over environment variables (``PREFIX_SECTION__KEY``)."""

    def __init__(
        self, environ: Mapping[str, str] | None = None, *, prefix: str = PREFIX
    ) -> None:
        values = os.environ if environ is None else environ
        super().__init__(from_environment(values, StorageConfig.model_fields, prefix))


class TomlConfigManager(MappingConfigManager):
    """A ``ConfigManager`` over a TOML file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(read_toml(path))
