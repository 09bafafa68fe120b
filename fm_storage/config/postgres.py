"""The settings of PostgreSQL: the server and its pool, migrations, sessions."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic.json_schema import WithJsonSchema

from fm_storage.config.addresses import (
    SSL_MODES,
    check_address,
    check_security,
    stated_in,
)
from fm_storage.config.masking import mask_dsn
from fm_storage.config.section import EMBEDDED, PositiveSeconds, Section

if TYPE_CHECKING:
    Sources = tuple[str, ...] | Mapping[str, str]
else:  # a mapping is kept as texts
    Sources = tuple[str, ...]

_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")

_FUNCTION = WithJsonSchema({"type": "function"})
Password = SecretStr | Annotated[Callable[[], str | Awaitable[str]], _FUNCTION]


def _checked(dsn: str) -> str:
    check_address(dsn)
    return dsn


Address = Annotated[str, AfterValidator(_checked)]
"""Address of a server, and never an embedded one."""


class PostgresConfig(Section):
    """PostgreSQL: where it is, and the bounds of the pool. Times in seconds.

    Attributes:
        dsn: ``postgresql://…`` (several hosts allowed), or ``embedded:`` /
            ``embedded:PATH`` for a server of our own.
        password: Overrides the one in the DSN; a value, or a function, sync or
            async, called for every new connection.
        ssl: ``sslmode`` word of libpq, True, False, or an ``ssl.SSLContext``.
        target_session_attrs: Which of several hosts may be used.
        read_dsn: Address of replicas for ``storage.reads``, several hosts allowed
            (standbys are preferred); None reads from ``dsn``.
        read_wait: How long a read waits for a replica to have what was written
            (``after=``) before the primary answers.
        read_max_lag: A replica that is further behind is not used; None uses it
            however late it is.
        min_size: Connections kept open while idle.
        max_size: Connections at most.
        application_name: By default the address's (else ``PGAPPNAME``).
        acquire_timeout: How long a caller waits for a connection.
        connect_timeout: How long one attempt to connect may take; by default the
            address's (else ``PGCONNECT_TIMEOUT``).
        command_timeout: How long a statement may run; None is for ever.
        close_timeout: How long closing waits for borrowers.
        max_lifetime: Age at which a connection is replaced (less 10 % jitter).
        max_idle: How long an unused connection above *min_size* is kept.
        check_after: A connection idle for longer is checked before it is used again.
        check_timeout: How long that check may take.
        leak_after: A connection borrowed for longer is reported once, with the
            borrower's stack; None reports only at closing.
        reset: ``tracked`` resets a connection only after statements that may
            have left something behind; ``always`` after every use.
        pooler: ``auto`` detects PgBouncer and the like; ``transaction`` and
            ``none`` state it.
        on_connect: Async function that prepares each new connection, and again after
            a reset, which takes back what it set: it is given asyncpg's connection.
        slow_acquire: Waiting longer than this is logged.
        slow_query: A statement running longer than this is logged; None never.
    """

    section = "postgres"
    dsn: str = EMBEDDED
    password: Password | None = Field(default=None, repr=False)
    ssl: Any = Field(default=None, repr=False)
    target_session_attrs: (
        Literal[
            "any", "primary", "standby", "read-write", "read-only", "prefer-standby"
        ]
        | None
    ) = None
    read_dsn: Address | None = Field(default=None, repr=False)
    read_wait: PositiveSeconds = 1.0
    read_max_lag: PositiveSeconds | None = None
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
    on_connect: Annotated[Callable[[Any], Awaitable[object]], _FUNCTION] | None = Field(
        default=None, repr=False
    )
    slow_acquire: PositiveSeconds = 2.0
    slow_query: PositiveSeconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _stated_in_the_address(cls, given: Any) -> Any:
        dsn = given.get("dsn") if isinstance(given, Mapping) else None
        if isinstance(dsn, str) and not dsn.startswith(EMBEDDED):
            return {**stated_in(dsn), **given}
        return given

    @field_validator("dsn")
    @classmethod
    def _known_scheme(cls, dsn: str) -> str:
        if not dsn.startswith(EMBEDDED):
            check_address(dsn, others=EMBEDDED)
        return dsn

    @field_validator("ssl")
    @classmethod
    def _known_ssl(cls, given: Any) -> Any:
        # Something else would be taken for yes, or for no.
        if given is None or isinstance(given, bool | SSLContext) or given in SSL_MODES:
            return given
        raise ValueError(
            f"it is neither one of {', '.join(SSL_MODES)} nor an ssl.SSLContext; "
            "give one of those"
        )

    @model_validator(mode="after")
    def _demands_are_met(self) -> Self:
        if not self.embedded:
            check_security(self.dsn, self.ssl)
        if self.read_dsn is not None:
            check_security(self.read_dsn, self.ssl)
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(
                f"min_size {self.min_size} is above max_size {self.max_size}; "
                "lower min_size or raise max_size"
            )
        return self

    @property
    def embedded(self) -> bool:
        """Whether the server is one of our own."""
        return self.dsn.startswith(EMBEDDED)

    @property
    def safe_dsn(self) -> str:
        """The DSN with its password masked, for messages."""
        return mask_dsn(self.dsn)


class EmbeddedConfig(Section):
    """The embedded PostgreSQL: which one it is.

    Attributes:
        bin_dir: Folder with ``postgres``, ``initdb`` and ``pg_ctl`` of a server that
            is installed; None takes the wheel's, else looks for one.
    """

    section = "embedded"
    bin_dir: Path | None = None


class MigrationsConfig(Section):
    """Migrations: who may change the schema, and when.

    Attributes:
        dsn: DSN of the role that owns the schema; None uses ``postgres.dsn``.
        auto_apply: Apply missing migrations when the manager opens.
        sources: Further folders, or ``package:NAME:FOLDER``, of the application;
            with names (``{"shop": "sql"}``, kept as ``shop=sql``) where several
            share a database.
        lock_timeout: How long one statement waits for a lock before it is
            retried, so that readers are never queued behind it for longer.
        wait_timeout: How long to wait for another process that is migrating.
    """

    section = "migrations"
    dsn: Address | None = None
    auto_apply: bool = True
    sources: Sources = ()
    lock_timeout: PositiveSeconds = 1.0
    wait_timeout: PositiveSeconds = 600.0

    @field_validator("sources", mode="before")
    @classmethod
    def _with_names(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if not _SOURCE_NAME.fullmatch(str(name)) or name == "fm_storage":
                raise ValueError(
                    f"name {name!r} of a source is taken or has other characters "
                    "than letters, digits, _ and -; give another"
                )
        return tuple(f"{name}={folder}" for name, folder in given.items())


class SessionConfig(Section):
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
    dsn: Address | None = Field(default=None, repr=False)
    grace: PositiveSeconds = 2.0
    restart_grace: PositiveSeconds = 60.0
    reap_interval: float = Field(default=1.0, ge=0)
    lock_timeout: PositiveSeconds = 2.0
    cleanup_timeout: PositiveSeconds = 30.0
    batch_size: int = Field(default=200, ge=1, le=200)
