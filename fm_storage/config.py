"""Settings: every number that can be changed, complete and frozen.

Apart from the parts they configure, so that a wrong value is refused before
anything is opened. Sources, strongest first: keywords, the environment
(``FM_STORAGE_POSTGRES__DSN`` is ``postgres.dsn``), a ``.env`` or TOML file that
was named explicitly. A ``ConfigManager`` is a source of its own.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, runtime_checkable
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fm_storage.errors import ConfigurationInvalid

__all__ = [
    "CollectionConfig",
    "ConfigManager",
    "EnvironmentConfigManager",
    "MappingConfigManager",
    "MigrationsConfig",
    "OutboxConfig",
    "PostgresConfig",
    "QdrantConfig",
    "SessionConfig",
    "SparseVectorConfig",
    "StorageConfig",
    "TomlConfigManager",
    "VectorConfig",
    "mask_dsn",
]

_PREFIX = "FM_STORAGE_"
_EMBEDDED = "embedded:"
_SECRET_PARAMETERS = re.compile(r"(?i)([?&](?:password|sslpassword)=)[^&]*")
_SECRET_USERINFO = re.compile(r"(://[^:/@?#\s]*:)(.*)(@)")
_KEYWORD_PASSWORD = re.compile(
    r"(?i)(\b(?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)"
)

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Password = SecretStr | Callable[[], str | Awaitable[str]]
Distance = Literal["Cosine", "Euclid", "Dot", "Manhattan"]


def mask_dsn(dsn: str) -> str:
    """Return *dsn* with every password in it replaced by ``***``.

    Safe on anything, also on a string that is no DSN at all. The last ``@``
    ends the user part, so that a password holding ``@`` or ``/`` is masked
    whole.
    """
    masked = _SECRET_USERINFO.sub(r"\1***\3", dsn)
    masked = _SECRET_PARAMETERS.sub(r"\1***", masked)
    if "://" not in dsn:
        masked = _KEYWORD_PASSWORD.sub(r"\1***", masked)
    return masked


class _Section(BaseModel):
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
            raised = _explain(exc, type(self), self.section)
            raised.section = self.section
            raise raised from None


class VectorConfig(_Section):
    """One dense vector of a collection: ``size`` components, a distance."""

    section = "vector"
    size: int = Field(gt=0, le=65_535)
    distance: Distance = "Cosine"
    on_disk: bool | None = None
    hnsw: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None


class SparseVectorConfig(_Section):
    """One sparse vector of a collection; ``modifier="idf"`` makes it BM25."""

    section = "sparse_vector"
    modifier: Literal["none", "idf"] = "none"
    on_disk: bool | None = None


class CollectionConfig(_Section):
    """Definition of a collection; passed through to Qdrant's own engine.

    Give ``size`` (and ``distance``) for one unnamed dense vector, or
    ``vectors`` / ``sparse_vectors`` for named ones. ``payload_indexes`` maps a
    payload field to its type (``"keyword"``, ``"integer"``, ``"datetime"``, …) or
    to Qdrant's own options (``{"type": "keyword", "is_tenant": True}``).
    """

    section = "collection"
    size: int | None = Field(default=None, gt=0, le=65_535)
    distance: Distance = "Cosine"
    vectors: dict[str, VectorConfig] = Field(default_factory=dict)
    sparse_vectors: dict[str, SparseVectorConfig] = Field(default_factory=dict)
    payload_indexes: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    shard_number: int | None = Field(default=None, gt=0)
    replication_factor: int | None = Field(default=None, gt=0)
    write_consistency_factor: int | None = Field(default=None, gt=0)
    sharding_method: Literal["auto", "custom"] | None = None
    on_disk: bool | None = None
    on_disk_payload: bool | None = None
    hnsw: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_a_vector(self) -> Self:
        if self.size is None and not self.vectors and not self.sparse_vectors:
            message = "no vector is defined; give size, vectors or sparse_vectors"
            raise ValueError(message)
        if self.size is not None and self.vectors:
            message = "size and vectors exclude each other; name every dense vector"
            raise ValueError(message)
        return self


class PostgresConfig(_Section):
    """PostgreSQL: where it is, and the bounds of the pool. Times in seconds.

    Attributes:
        dsn: ``postgresql://…`` (several hosts allowed), or ``embedded:`` /
            ``embedded:PATH`` for a server of our own.
        password: Overrides the one in the DSN; a value, or a function, sync or
            async, called for every new connection.
        ssl: ``sslmode`` word of libpq, or an ``ssl.SSLContext``.
        target_session_attrs: Which of several hosts may be used.
        min_size: Connections kept open while idle.
        max_size: Connections at most.
        acquire_timeout: How long a caller waits for a connection.
        connect_timeout: How long one attempt to connect may take.
        command_timeout: How long a statement may run; None is for ever.
        close_timeout: How long closing waits for borrowers.
        max_lifetime: Age at which a connection is replaced (less 10 % jitter).
        max_idle: How long an unused connection above *min_size* is kept.
        check_after: A connection idle for longer is checked before it is lent.
        check_timeout: How long that check may take.
        leak_after: A connection borrowed for longer is reported once, with the
            borrower's stack; None reports only at closing.
        reset: ``tracked`` resets a connection only after statements that may
            have left something behind; ``always`` after every use.
        pooler: ``auto`` detects PgBouncer and the like; ``transaction`` and
            ``none`` say it outright.
        slow_acquire: Waiting longer than this is logged.
        slow_query: A statement running longer than this is logged; None never.
    """

    section = "postgres"
    dsn: str = _EMBEDDED
    password: Password | None = Field(default=None, repr=False)
    ssl: Any = Field(default=None, repr=False)
    target_session_attrs: (
        Literal[
            "any", "primary", "standby", "read-write", "read-only", "prefer-standby"
        ]
        | None
    ) = None
    application_name: str = Field(default="fm_storage", max_length=63)
    server_settings: dict[str, str] = Field(default_factory=dict)
    min_size: int = Field(default=0, ge=0)
    max_size: int = Field(default=10, ge=1)
    acquire_timeout: PositiveSeconds = 30.0
    connect_timeout: PositiveSeconds = 10.0
    command_timeout: PositiveSeconds | None = 60.0
    close_timeout: PositiveSeconds = 10.0
    max_lifetime: PositiveSeconds = 3600.0
    max_idle: PositiveSeconds = 600.0
    check_after: float = Field(default=1.0, ge=0)
    check_timeout: PositiveSeconds = 1.0
    leak_after: PositiveSeconds | None = None
    statement_cache_size: int = Field(default=100, ge=0)
    reset: Literal["tracked", "always"] = "tracked"
    pooler: Literal["auto", "transaction", "none"] = "auto"
    slow_acquire: PositiveSeconds = 2.0
    slow_query: PositiveSeconds | None = None

    @field_validator("dsn")
    @classmethod
    def _known_scheme(cls, dsn: str) -> str:
        if dsn.startswith((_EMBEDDED, "postgresql://", "postgres://")):
            return dsn
        message = "must start with postgresql:// or embedded:"
        raise ValueError(message)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            message = (
                f"min_size {self.min_size} is above max_size {self.max_size}; "
                "lower min_size or raise max_size"
            )
            raise ValueError(message)
        return self

    @property
    def embedded(self) -> bool:
        """Whether the server is one of our own."""
        return self.dsn.startswith(_EMBEDDED)

    @property
    def safe_dsn(self) -> str:
        """The DSN with its password masked, for messages."""
        return mask_dsn(self.dsn)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [
            (name, mask_dsn(value) if name == "dsn" else value)
            for name, value in super().__repr_args__()
        ]


class QdrantConfig(_Section):
    """Qdrant: where it is, and the bounds of a call. Times in seconds.

    Attributes:
        url: ``http(s)://…`` of a server, ``embedded:`` / ``embedded:PATH`` for
            Qdrant's own engine on this machine, or ``:memory:`` for the
            client's local mode (tests only).
        durability: Of the embedded engine: ``fsync`` survives a power cut,
            ``process`` survives kill −9.
        collections: Ensured when the manager opens.
        timeout: Deadline of one call, retries included.
        max_batch_bytes: Bytes of one request at most; larger batches are split.
        max_concurrency: Requests under way at once for one bulk call.
        index_threshold: Points above which the embedded engine builds an index.
    """

    section = "qdrant"
    url: str = _EMBEDDED
    api_key: SecretStr | None = Field(default=None, repr=False)
    prefer_grpc: bool = False
    grpc_port: int = Field(default=6334, ge=1, le=65_535)
    ca_file: Path | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout: PositiveSeconds = 60.0
    durability: Literal["fsync", "process"] = "fsync"
    max_batch_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    max_batch_points: int = Field(default=1000, ge=1)
    max_concurrency: int = Field(default=4, ge=1)
    index_threshold: int = Field(default=20_000, ge=1)
    collections: dict[str, CollectionConfig] = Field(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url == ":memory:" or url.startswith(_EMBEDDED):
            return url
        if url.startswith(("http://", "https://")):
            parts = urlsplit(url)
            if not parts.hostname:
                message = "has no host; write http://host:6333"
                raise ValueError(message)
            if parts.username or parts.password:
                message = "holds credentials; put the key into qdrant.api_key"
                raise ValueError(message)
            return url
        message = "must start with http://, https:// or embedded:"
        raise ValueError(message)

    @property
    def embedded(self) -> bool:
        """Whether the engine is one of our own."""
        return self.url.startswith(_EMBEDDED)


class MigrationsConfig(_Section):
    """Migrations: who may change the schema, and when.

    Attributes:
        dsn: DSN of the role that owns the schema; None uses ``postgres.dsn``.
        auto_apply: Apply missing migrations when the manager opens.
        sources: Further folders, or ``package:NAME:FOLDER``, of the application.
        lock_timeout: How long one statement waits for a lock before it is
            retried, so that readers are never queued behind it for longer.
        wait_timeout: How long to wait for another process that is migrating.
    """

    section = "migrations"
    dsn: str | None = None
    auto_apply: bool = True
    sources: tuple[str, ...] = ()
    lock_timeout: PositiveSeconds = 1.0
    wait_timeout: PositiveSeconds = 600.0

    @field_validator("dsn")
    @classmethod
    def _known_scheme(cls, dsn: str | None) -> str | None:
        if dsn is None or dsn.startswith(("postgresql://", "postgres://")):
            return dsn
        message = "must start with postgresql://"
        raise ValueError(message)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [
            (name, mask_dsn(value) if name == "dsn" and value else value)
            for name, value in super().__repr_args__()
        ]


class SessionConfig(_Section):
    """Sessions: where temporary views live and how they are reaped.

    Attributes:
        schema_name: Schema of the views (``session.schema`` as a setting).
        prefix: Start of every generated view name.
        dsn: Direct address of the server when ``postgres.dsn`` is a pooler.
        grace: How long a lock must stay free before its views are reaped.
        restart_grace: The same after the server itself has restarted.
        reap_interval: Pause between two looks of the reaper; 0 switches it off.
        lock_timeout: How long a DROP waits behind an open reader.
        cleanup_timeout: How long closing a session may take; the rest is left
            to the reaper.
        batch_size: Views dropped in one transaction.
    """

    section = "session"
    schema_name: str = Field(default="filtermate_temp", min_length=1)
    prefix: str = Field(default="fm_view_", max_length=24)
    dsn: str | None = Field(default=None, repr=False)
    grace: PositiveSeconds = 2.0
    restart_grace: PositiveSeconds = 60.0
    reap_interval: float = Field(default=1.0, ge=0)
    lock_timeout: PositiveSeconds = 2.0
    cleanup_timeout: PositiveSeconds = 30.0
    batch_size: int = Field(default=200, ge=1, le=200)


class OutboxConfig(_Section):
    """Outbox: how vectors travel from PostgreSQL to Qdrant. Times in seconds.

    Attributes:
        drain: Whether this process delivers; others may deliver for it.
        batch_size: Points delivered in one call.
        lease: How long a batch belongs to one drainer.
        poll_interval: Longest pause before the queue is looked at again.
        notify_interval: Shortest pause between two NOTIFYs of this process.
        flush_timeout: How long closing waits for the queue to empty.
        max_backoff: Longest pause after failures.
    """

    section = "outbox"
    drain: bool = True
    batch_size: int = Field(default=500, ge=1, le=10_000)
    lease: PositiveSeconds = 120.0
    poll_interval: PositiveSeconds = 5.0
    notify_interval: PositiveSeconds = 0.05
    flush_timeout: float = Field(default=5.0, ge=0)
    max_backoff: PositiveSeconds = 30.0


def _off(value: object) -> object:
    """Let the environment and files say None, which they have no word for."""
    if isinstance(value, str) and value.strip().lower() in {"none", "null", "off"}:
        return None
    return value


_keywords_only: ContextVar[bool] = ContextVar("_keywords_only", default=False)
_env_file: ContextVar[Path | None] = ContextVar("_env_file", default=None)


class StorageConfig(BaseSettings):
    """All settings of one ``StorageManager``; frozen.

    Keywords win over the environment. With nothing said, both engines are
    embedded and keep their data under ``./.fm_storage``.

    Attributes:
        postgres: None switches PostgreSQL off.
        qdrant: None switches Qdrant off. With a server as ``postgres.dsn`` it
            must be set or None: otherwise every host would fill a vector store
            of its own.
        data_dir: Folder of the embedded engines and of the spool.
        embedded: ``never`` forbids embedded engines (production hosts).

    Raises:
        ConfigurationInvalid: A setting is unknown or wrong; the message names
            its key, what is wrong and the remedy, and no secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
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
    data_dir: Path = Path(".fm_storage")
    embedded: Literal["auto", "never"] = "auto"

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - pydantic validates
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise _explain(exc, type(self), "") from None
        except SettingsError as exc:
            # Said of a variable whose JSON is broken, by the section it belongs to.
            found = re.search(r'field "(\w+)"', str(exc))
            raise ConfigurationInvalid(
                found[1] if found else "config",
                "a variable of this section holds JSON that cannot be read; mend it",
            ) from None
        self._refuse_halves()

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
        data = _read_toml(path)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(_PREFIX) and value
        }
        return cls._build(_merged(data, _from_environment(environment)))

    @classmethod
    def from_config_manager(cls, manager: ConfigManager) -> Self:
        """Ask *manager* for every dotted key (``postgres.dsn``); nothing else is read.

        Raises:
            ConfigurationInvalid: A value is wrong.
        """
        return cls._build(_ask(manager, cls))

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
                "fill a vector store of its own); set it, or qdrant=None to do "
                "without vectors",
            )
        if self.embedded == "never":
            for key, part in (("postgres.dsn", postgres), ("qdrant.url", qdrant)):
                if part is not None and part.embedded:
                    raise ConfigurationInvalid(
                        key,
                        "is embedded, which FM_STORAGE_EMBEDDED=never forbids; "
                        "name a server",
                    )

    def embedded_folder(self, value: str) -> Path:
        """Folder meant by an ``embedded:`` or ``embedded:PATH`` address."""
        path = value.removeprefix(_EMBEDDED)
        return Path(path).expanduser() if path else self.data_dir


@runtime_checkable
class ConfigManager(Protocol):
    """Whatever an application keeps its settings in.

    ``get`` answers *default* for a key it does not know. The keys are those of
    ``StorageConfig``, dotted: ``postgres.dsn``, ``qdrant.collections``.
    """

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - any value
        """Return the value of *key*, or *default*."""
        ...


class MappingConfigManager:
    """A ``ConfigManager`` over a mapping, nested or with dotted keys."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - any value
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
        self, environ: Mapping[str, str] | None = None, *, prefix: str = _PREFIX
    ) -> None:
        values = os.environ if environ is None else environ
        super().__init__(_from_environment(values, prefix))


class TomlConfigManager(MappingConfigManager):
    """A ``ConfigManager`` over a TOML file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(_read_toml(path))


_UNSET: Any = object()


def _ask(manager: ConfigManager, model: type[BaseModel], prefix: str = "") -> Any:  # noqa: ANN401 - nested values
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section = _section_of(field.annotation)
        if section is None:
            value = manager.get(key, _UNSET)
            if value is not _UNSET:
                found[name] = value
            continue
        whole = manager.get(key, _UNSET)
        if whole is _UNSET or isinstance(whole, Mapping):
            inner = {**(whole if isinstance(whole, Mapping) else {})}
            inner |= _ask(manager, section, f"{key}.")
            if inner:
                found[name] = inner
        else:
            found[name] = whole
    return found


def _section_of(annotation: object) -> type[_Section] | None:
    """Return the section class named by a field's annotation, if it is one."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, _Section):
            return candidate
    return None


def _from_environment(
    environ: Mapping[str, str], prefix: str = _PREFIX
) -> dict[str, Any]:
    """Turn ``PREFIX_A__B=value`` into ``{"a": {"b": value}}``, known keys only."""
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if not name.upper().startswith(prefix) or not value:
            continue
        path = name[len(prefix) :].lower().split("__")
        if path[0] not in StorageConfig.model_fields:
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


def _decoded(value: str) -> Any:  # noqa: ANN401 - JSON or text
    """Read a JSON object or array; anything else is text, as pydantic wants it."""
    if value[:1] in "{[":
        import json  # noqa: PLC0415 - rarely needed

        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    shown = str(path)
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationInvalid(
            shown, f"cannot be read ({exc.strerror}); name an existing TOML file"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationInvalid(shown, f"is not TOML ({exc}); mend it") from None
    nested = data.get("tool", {})
    if isinstance(nested, dict) and isinstance(nested.get("fm_storage"), dict):
        return dict(nested["fm_storage"])
    return data


def _explain(
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
        section = _section_of(field.annotation) if field else None
        if section is None:
            break
        known = section
    close = difflib.get_close_matches(path[-1], known.model_fields, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else "remove it"
    return f"unknown setting; {remedy}"
