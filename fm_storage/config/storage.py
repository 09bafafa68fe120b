"""All settings together, and the rules between the sections."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fm_storage.config.catalog import CatalogConfig
from fm_storage.config.postgres import (
    EmbeddedConfig,
    MigrationsConfig,
    PostgresConfig,
    SessionConfig,
)
from fm_storage.config.qdrant import OutboxConfig, QdrantConfig
from fm_storage.config.section import EMBEDDED, explained, explained_json, located
from fm_storage.config.sources import (
    PREFIX,
    ask,
    from_environment,
    merged,
    read_toml,
    refuse_misspelt,
)
from fm_storage.errors import ConfigurationInvalid

if TYPE_CHECKING:
    from fm_storage.config.sources import ConfigManager

logger = logging.getLogger("fm_storage.config")


def _off(value: object) -> object:
    """Read the words by which the environment and files write None."""
    if isinstance(value, str) and value.strip().lower() in {"none", "null", "off"}:
        return None
    return value


_DATABASE_URL = re.compile(r"postgres(ql)?(\+\w+)?://")
_keywords_only: ContextVar[bool] = ContextVar("_keywords_only", default=False)
_env_file: ContextVar[Path | None] = ContextVar("_env_file", default=None)


class StorageConfig(BaseSettings):
    """All settings of one ``StorageManager``; frozen.

    Keywords win over the environment. With nothing set, both engines are
    embedded and keep their data under ``./.fm_storage``.

    Attributes:
        postgres: None switches PostgreSQL off.
        qdrant: None switches Qdrant off. With a server as ``postgres.dsn`` it
            must be set or None: otherwise every host would fill a vector store
            of its own.
        data_dir: Folder of the embedded engines and of the spool.
        embedded: ``never`` forbids embedded engines (production hosts);
            ``{"bin_dir": …}`` names the PostgreSQL that serves as the embedded one.

    Raises:
        ConfigurationInvalid: A setting is unknown or wrong; the message names
            its key, what is wrong and the remedy, and no secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    postgres: Annotated[PostgresConfig | None, BeforeValidator(_off)] = Field(
        default_factory=PostgresConfig
    )
    qdrant: Annotated[QdrantConfig | None, BeforeValidator(_off)] = Field(
        default_factory=QdrantConfig
    )
    migrations: MigrationsConfig = Field(default_factory=MigrationsConfig)
    session: SessionConfig = Field(default_factory=SessionConfig)
    outbox: OutboxConfig = Field(default_factory=OutboxConfig)
    catalog: CatalogConfig = Field(default_factory=CatalogConfig)
    data_dir: Path = Path(".fm_storage")
    embedded: Literal["auto", "never"] | EmbeddedConfig = "auto"

    def __init__(self, **values: Any) -> None:
        if not _keywords_only.get():
            refuse_misspelt(os.environ, type(self))
        try:
            super().__init__(**values)
        except ValidationError as exc:
            found = explained(exc, type(self), "")
            raise located(found, self._variables(), values, PREFIX) from None
        except SettingsError as exc:
            # A variable holds broken JSON; its section explains it.
            why = exc.__cause__ or exc
            raise explained_json(why, type(self), self._variables(), PREFIX) from None
        self._refuse_halves()
        if "postgres" not in self.model_fields_set and _DATABASE_URL.match(
            os.environ.get("DATABASE_URL", "")
        ):
            logger.warning(
                "environment: DATABASE_URL is not read, and the server is embedded; "
                "set FM_STORAGE_POSTGRES__DSN (to the same, if it is meant)"
            )

    @classmethod
    def _variables(cls) -> Mapping[str, str]:
        """Return what the settings at hand were read from, strongest last."""
        if _keywords_only.get():
            return {}
        file = _env_file.get()
        below = DotEnvSettingsSource(cls, env_file=file).env_vars if file else {}
        return {**{name: value or "" for name, value in below.items()}, **os.environ}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Choose the sources; a ``.env`` counts only when it was named."""
        del settings_cls, file_secret_settings
        if _keywords_only.get():
            return (init_settings,)
        if _env_file.get() is not None:
            return (init_settings, env_settings, dotenv_settings)
        return (init_settings, env_settings)

    @classmethod
    def from_env(cls, *, env_file: str | os.PathLike[str] | None = None) -> Self:
        """Read the environment, and *env_file* below it when one is named.

        Raises:
            ConfigurationInvalid: A setting is wrong, or *env_file* is missing.
        """
        if env_file is None:
            return cls()
        path = Path(env_file)
        if not path.is_file():
            raise ConfigurationInvalid(
                "env_file", f"{str(path)!r} is not a file; create it or drop the option"
            )
        token = _env_file.set(path)
        try:
            return cls(_env_file=path)
        finally:
            _env_file.reset(token)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file; the environment wins over it.

        The tables are the sections (``[postgres]``, ``[qdrant]``, …), at the top
        or under ``[tool.fm_storage]``.

        Raises:
            ConfigurationInvalid: The file is missing, is no TOML, or a setting
                is wrong.
        """
        data = read_toml(path)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(PREFIX) and value
        }
        refuse_misspelt(environment, cls)
        given = from_environment(environment, cls.model_fields)
        try:
            return cls._build(merged(data, given))
        except ConfigurationInvalid as exc:
            raise located(exc, environment, {}, PREFIX) from None

    @classmethod
    def from_config_manager(cls, manager: ConfigManager) -> Self:
        """Ask *manager* for every dotted key (``postgres.dsn``); nothing else is read.

        Raises:
            ConfigurationInvalid: A value is wrong, or *manager* has no ``get()``.
        """
        return cls._build(ask(manager, cls))

    @classmethod
    def _build(cls, data: Mapping[str, Any]) -> Self:
        token = _keywords_only.set(True)
        try:
            return cls(**data)
        finally:
            _keywords_only.reset(token)

    def _refuse_halves(self) -> None:
        """Refuse what would work on one machine and lose data on two."""
        postgres, qdrant = self.postgres, self.qdrant
        if (
            postgres is not None
            and not postgres.embedded
            and qdrant is not None
            and "url" not in qdrant.model_fields_set
        ):
            raise ConfigurationInvalid(
                "qdrant.url",
                "not set although postgres.dsn names a server (every host would "
                "fill a vector store of its own); set it, or set qdrant to None "
                "(FM_STORAGE_QDRANT=none) to do without vectors",
            )
        if self.embedded == "never":
            for key, part in (("postgres.dsn", postgres), ("qdrant.url", qdrant)):
                if part is not None and part.embedded:
                    raise ConfigurationInvalid(
                        key,
                        "is embedded, which FM_STORAGE_EMBEDDED=never forbids; "
                        "name a server",
                    )

    @property
    def embedded_bin_dir(self) -> Path | None:
        """Folder of the programs of the PostgreSQL that serves as the embedded one."""
        return getattr(self.embedded, "bin_dir", None)

    def embedded_folder(self, value: str) -> Path:
        """Folder meant by an ``embedded:`` or ``embedded:PATH`` address."""
        path = value.removeprefix(EMBEDDED)
        return Path(path).expanduser() if path else self.data_dir
