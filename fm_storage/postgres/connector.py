"""How one connection to the server is made: address, TLS, password, set-up.

Apart because the pool, the lease and the listener all connect in this one way,
and because a pooler between us and the server is discovered here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from pydantic import SecretStr

from fm_storage.config import mask_dsn
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    ServerTooOld,
    StorageError,
)
from fm_storage.postgres.codecs import install_codecs
from fm_storage.postgres.errors import translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fm_storage.config import PostgresConfig

__all__ = ["Connector"]

_MINIMUM_VERSION = (14, 0)
_LIBPQ_ONLY = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "gssencmode",
        "channel_binding",
        "sslcompression",
        "sslsni",
        "load_balance_hosts",
        "require_auth",
        "fallback_application_name",
    }
)
"""Parameters libpq acts on itself; the driver would send them to the server."""


class Connector:
    """Makes connections; holds what was learnt from the first one.

    Attributes:
        transaction_pooler: Whether a transaction pooler stands between us and
            the server; None until the first connection.
        server_version: As ``180001``; 0 until the first connection.
    """

    def __init__(self, config: PostgresConfig, *, dsn: str | None, name: str) -> None:
        self._config = config
        self._dsn = _for_driver(dsn or config.dsn)
        self.name = name
        self.server = mask_dsn(self._dsn)
        self.transaction_pooler: bool | None = {
            "transaction": True,
            "none": False,
        }.get(config.pooler)
        self.server_version = 0

    async def connect(
        self,
        purpose: str = "",
        *,
        dsn: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> asyncpg.Connection[Any]:
        """Make one connection, within ``connect_timeout``.

        If cancelled, nothing stays open.

        Raises:
            ConnectionFailed: No server answered as it should.
            PermissionDenied: The server refused the role or the password.
            ServerTooOld: PostgreSQL older than 14.
        """
        config = self._config
        wanted = {"application_name": _application_name(config, purpose)}
        if not self.transaction_pooler:
            wanted |= config.server_settings
        wanted |= settings or {}
        try:
            raw = await asyncpg.connect(
                _for_driver(dsn) if dsn else self._dsn,
                password=self._password(),
                ssl=config.ssl,
                target_session_attrs=config.target_session_attrs,  # type: ignore[arg-type]  # the driver takes words too
                server_settings=wanted,
                timeout=config.connect_timeout,
                statement_cache_size=0
                if self.transaction_pooler
                else config.statement_cache_size,
                max_cached_statement_lifetime=0,
            )
        except Exception as exc:
            raise self._failed(exc) from exc
        try:
            await self._set_up(raw)
        except BaseException:
            raw.terminate()
            raise
        return raw

    async def _set_up(self, raw: asyncpg.Connection[Any]) -> None:
        version = raw.get_server_version()
        if (version.major, version.minor) < _MINIMUM_VERSION:
            raise ServerTooOld(
                self.server,
                version=f"{version.major}.{version.minor}",
                minimum=".".join(map(str, _MINIMUM_VERSION)),
            )
        self.server_version = version.major * 10_000 + version.minor
        install_codecs(raw)
        if self.transaction_pooler is None:
            try:
                pid = await raw.execute(
                    "SELECT 1", timeout=self._config.connect_timeout
                )
                del pid
            except Exception as exc:
                raise self._failed(exc) from exc
            self.transaction_pooler = False

    def _password(self) -> Any:  # noqa: ANN401 - the driver takes a value or a callable
        password = self._config.password
        if isinstance(password, SecretStr):
            return password.get_secret_value()
        return password

    def _failed(self, exc: Exception) -> BaseException:
        """Translate a failure to connect, naming the server."""
        if isinstance(exc, TimeoutError):
            return ConnectionFailed(
                f"{self.server}: no answer within "
                f"{self._config.connect_timeout:.1f} s; check the address and the "
                "network"
            )
        if isinstance(exc, (asyncpg.ClientConfigurationError, ValueError)):
            return ConfigurationInvalid("postgres.dsn", f"{exc}; correct the DSN")
        if isinstance(exc, asyncpg.PostgresError):
            found = translate(exc, owner=self.server)
            if isinstance(found, StorageError) and found.sqlstate == "3D000":
                return ConnectionFailed(
                    f"{self.server}: {exc.args[0]} (3D000); create the database",
                    sqlstate="3D000",
                    retryable=False,
                )
            return found
        if isinstance(exc, OSError):
            return ConnectionFailed(
                f"{self.server}: {exc.strerror or type(exc).__name__}; is the "
                "server running, and is the address right?"
            )
        if isinstance(exc, (asyncpg.InterfaceError, asyncio.IncompleteReadError)):
            return ConnectionFailed(f"{self.server}: {exc}")
        return exc


def _application_name(config: PostgresConfig, purpose: str) -> str:
    name = config.application_name
    if purpose:
        name = f"{name}/{purpose}"
    return name.encode()[:63].decode(errors="ignore")


def _for_driver(dsn: str) -> str:
    """Take out of *dsn* what only libpq understands."""
    parts = urlsplit(dsn)
    if not parts.query:
        return dsn
    kept = [
        (key, value)
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if key not in _LIBPQ_ONLY
    ]
    return urlunsplit(parts._replace(query=urlencode(kept)))
