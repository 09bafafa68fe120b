"""How one connection to the server is made: address, TLS, password, set-up.

Pool, lease and listener all connect this way; a pooler between us and the server
is discovered here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from pydantic import SecretStr

from fm_storage.config import mask_dsn
from fm_storage.config.addresses import (
    check_address,
    check_security,
    is_unbound,
    parameters_of,
    passwords_of,
    query_of,
)
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    ServerTooOld,
    StorageError,
)
from fm_storage.postgres.arguments import awaitable
from fm_storage.postgres.connect.codecs import install_codecs
from fm_storage.postgres.connect.internals import (
    DriverConnection,
    mark_unchanged,
    register_types,
    socket_of,
    use_statement_cache,
)
from fm_storage.postgres.errors import translate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fm_storage.config import PostgresConfig
    from fm_storage.postgres.connect.composites import Composite

_log = logging.getLogger("fm_storage.postgres")
_MINIMUM_VERSION = 14
_REFUSED_SETTING = "08P01"
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
        "gssdelegation",
        "max_protocol_version",
        "min_protocol_version",
        "load_balance_hosts",
        "require_auth",
        "sslcertmode",
        "fallback_application_name",
    }
)
"""Parameters libpq acts on itself; the driver would send them to the server."""
_V6 = re.compile("[^/\\[][^:]*:.*:.*")
_WRONG_SETTING = frozenset({"42704", "22023", "55P02"})
"""While connecting: an unknown parameter, a wrong value, one fixed at server start."""
_KEYS = frozenset({"KEY_VALUES_MISMATCH", "NO_START_LINE", "PEM_LIB", "BAD_DECRYPT"})
_UNTRUSTED = (
    "its certificate is not trusted",
    "give the authority with sslrootcert or ssl",
)
_CERTIFICATES = {
    9: ("its certificate is not valid yet", "compare the clocks of both hosts"),
    10: ("its certificate has expired", "renew it on the server"),
    62: (
        "its certificate is for another host",
        "connect by a name in the certificate, or issue one for this name",
    ),
}
"""By code of OpenSSL (X509_V_ERR_…): what is wrong, and the remedy."""
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class Connector:
    """Makes connections; keeps what the first one showed.

    Attributes:
        transaction_pooler: Whether a transaction pooler stands between us and
            the server; None until the first connection.
        server_version: As ``180001``; 0 until the first connection.
        verify: Called with each new connection to the pool's own address.
    """

    def __init__(self, config: PostgresConfig, *, dsn: str | None = None) -> None:
        self._config = config
        self._dsn = _for_driver(dsn or config.dsn)
        self._parameters = parameters_of(dsn or config.dsn)
        if not config.embedded and is_unbound(dsn or config.dsn, config.ssl):
            _log.warning(
                "%s: channel_binding=require: the certificate is verified, but channel "
                "binding itself is not used (the driver does not support it)",
                mask_dsn(dsn or config.dsn),
            )
        self._settings: Mapping[str, str] = config.server_settings
        self.server = mask_dsn(dsn or config.dsn)
        self.composites: list[Composite] = []  # by the pool's register_composite()
        self.transaction_pooler: bool | None = {
            "transaction": True,
            "none": False,
        }.get(config.pooler)
        self.server_version = 0
        self.verify: Callable[[asyncpg.Connection[Any]], Awaitable[None]] | None = None

    async def connect(
        self,
        purpose: str = "",
        *,
        timeout: float | None = None,
        dsn: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> asyncpg.Connection[Any]:
        """Make one connection, within *timeout* (``connect_timeout``).

        If cancelled, nothing stays open.

        Raises:
            ConfigurationInvalid: The address or the TLS settings are wrong.
            ConnectionFailed: No server answered as it should.
            PermissionDenied: The server refused the role or the password.
            ServerTooOld: PostgreSQL older than 14.
        """
        limit = self._config.connect_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await self._connect(purpose, dsn, settings or {})
        except TimeoutError as exc:
            raise ConnectionFailed(
                f"{self.server}: no answer within {limit:.1f} s; check the address "
                "and the network, or raise connect_timeout"
            ) from exc

    async def _connect(
        self, purpose: str, dsn: str | None, settings: Mapping[str, str]
    ) -> asyncpg.Connection[Any]:
        wanted = {**self._settings, **settings}
        raw: asyncpg.Connection[Any] | None = None
        try:
            try:
                raw = await self._dial(purpose, dsn, wanted)
            except asyncpg.PostgresError as exc:
                if exc.sqlstate != _REFUSED_SETTING or not wanted:
                    raise
                raw = await self._dial(purpose, dsn, {})
                self._note_dropped(wanted)
            await self._set_up(raw, foreign=dsn is not None)
        except BaseException as exc:  # close it, then pass the error on
            if raw is not None:
                raw.terminate()
            found = self._failed(exc)
            if found is exc:
                raise
            raise found from exc
        return raw

    def _note_dropped(self, settings: Mapping[str, str]) -> None:
        """Remember that start-up parameters are refused, as PgBouncer does."""
        _log.warning(
            "%s: the pooler refuses start-up parameters, so these are not set: %s; "
            "set them with ALTER ROLE",
            self.server,
            ", ".join(sorted(settings)),
        )
        self._settings = {}

    async def _dial(
        self, purpose: str, dsn: str | None, settings: Mapping[str, str]
    ) -> asyncpg.Connection[Any]:
        config = self._config
        direct = self.transaction_pooler is False or dsn is not None
        wanted = config.target_session_attrs
        if dsn is not None:  # ours was checked with the settings
            check_address(dsn)
            check_security(dsn, config.ssl)
        return await asyncpg.connect(
            _for_driver(dsn) if dsn else self._dsn,
            password=self._password(dsn),
            ssl=config.ssl,
            target_session_attrs=wanted and SessionAttribute(wanted),
            server_settings={
                "application_name": _application_name(config, purpose),
                **settings,
            },
            timeout=config.connect_timeout,
            statement_cache_size=config.statement_cache_size if direct else 0,
            max_cached_statement_lifetime=0,
            connection_class=DriverConnection,
        )

    async def _set_up(self, raw: asyncpg.Connection[Any], *, foreign: bool) -> None:
        version = raw.get_server_version()
        if version.major < _MINIMUM_VERSION:
            raise ServerTooOld(
                self.server,
                version=f"{version.major}.{version.micro}",
                minimum=str(_MINIMUM_VERSION),
            )
        install_codecs(raw)
        _keep_alive(raw)
        register_types(raw, self.composites)
        for composite in self.composites:
            if composite.is_builtin:
                await composite.try_on(raw)
        if foreign:
            return
        if self.verify is not None:
            await self.verify(raw)
        await self.prepare(raw)
        # Since PostgreSQL 10 the driver keeps the minor version in this field.
        self.server_version = version.major * 10_000 + version.micro
        if self.transaction_pooler is None:
            self.transaction_pooler = await self._meets_pooler(raw)
            if not self.transaction_pooler:
                use_statement_cache(raw, self._config.statement_cache_size)

    async def prepare(self, raw: asyncpg.Connection[Any]) -> None:
        """Let the application prepare *raw*: it is new, or was reset.

        Raises:
            ConfigurationInvalid: Its function failed.
        """
        if self._config.on_connect is None:
            return
        try:
            made = self._config.on_connect(raw)
            await awaitable(made, "postgres.on_connect", "make it an async function")
            if raw.is_in_transaction():  # with it, a borrower's write would be undone
                raise ConfigurationInvalid(
                    "postgres.on_connect", "it left a transaction open; end it"
                )
            mark_unchanged(raw)
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError):
            raise
        except ConfigurationInvalid:
            raise
        except Exception as exc:  # on_connect is the application's
            raise ConfigurationInvalid(
                "postgres.on_connect",
                f"it failed on a new connection ({type(exc).__name__}: {exc}); see "
                "the cause",
            ) from exc

    async def _meets_pooler(self, raw: asyncpg.Connection[Any]) -> bool:
        """Find out whether a pooler answers instead of the server.

        A pooler invents the process number it greets with. Its mode cannot be found
        out for sure: by chance, each of our statements may meet the same server. So
        it is taken for a transaction pooler unless ``pooler="none"`` says otherwise.
        """
        if await raw.fetchval("SELECT pg_backend_pid()") == raw.get_server_pid():
            return False
        _log.info(
            "%s: a pooler answers; it is taken for a transaction pooler, without a "
            "statement cache (in session mode, set pooler to none)",
            self.server,
        )
        return True

    def _password(self, dsn: str | None) -> Any:
        password = self._config.password
        if isinstance(password, SecretStr):
            return password.get_secret_value()
        if password is None:
            found = parameters_of(dsn) if dsn else self._parameters
            if found.get("password") or os.environ.get("PGPASSWORD"):
                return None  # which the driver reads as libpq does
            given = passwords_of(found) or [""]
            # The driver asks once for each host, in their order.
            return given[0] if len({*given}) == 1 else iter(given).__next__

        async def ask() -> str:
            try:
                given = password()
                return given if isinstance(given, str) else await given
            except Exception as exc:  # the caller's own may raise anything
                raise ConnectionFailed(
                    f"{self.server}: the function for the password failed "
                    f"({type(exc).__name__}); see the cause"
                ) from exc

        return ask

    def _failed(self, exc: BaseException) -> BaseException:
        """Translate a failure to connect, naming the server."""
        if isinstance(exc, (TimeoutError, StorageError)) or not isinstance(
            exc, Exception
        ):
            return exc
        if isinstance(exc, asyncpg.PostgresError):
            if exc.sqlstate in _WRONG_SETTING:
                return ConfigurationInvalid(
                    "postgres.dsn",
                    f"{exc.args[0]} ({exc.sqlstate}); correct this parameter of the "
                    "address or of postgres.server_settings, or take it out",
                )
            found = translate(exc, owner=self.server)
            if exc.sqlstate != "3D000":
                return found
            return ConnectionFailed(
                f"{self.server}: {exc.args[0]} (3D000); create the database",
                sqlstate="3D000",
                retryable=False,
            )
        if isinstance(exc, ssl.SSLCertVerificationError):  # a ValueError as well
            what, remedy = _CERTIFICATES.get(exc.verify_code, _UNTRUSTED)
            return ConnectionFailed(
                f"{self.server}: {what} ({exc.verify_message}); {remedy}",
                retryable=False,
            )
        if wrong := self._wrong_part(exc):
            return wrong
        if isinstance(exc, (asyncpg.InterfaceError, ValueError)):
            return ConfigurationInvalid("postgres.dsn", f"{exc}; correct the DSN")
        why = exc.strerror if isinstance(exc, OSError) else None
        remedy = "is the server running, and is the address right?"
        if isinstance(exc, socket.gaierror):
            remedy = "is the host's name spelled right, and does it resolve here?"
        if self._config.embedded:
            remedy = (
                "the embedded server has ended; the next manager that opens on its "
                "folder starts it again"
            )
        return ConnectionFailed(
            f"{self.server}: {why or str(exc) or type(exc).__name__}; {remedy}"
        )

    def _wrong_part(self, exc: Exception) -> ConfigurationInvalid | None:
        """Name what of the address cannot be used, or is missing, if that is why."""
        # By getpass.getuser(): KeyError, since Python 3.13 OSError.
        if isinstance(exc, KeyError) or "No username set" in str(exc):
            return ConfigurationInvalid(
                "postgres.dsn",
                "names no user, and the account of this process has no name; write "
                "postgresql://user@…, or set PGUSER",
            )
        if isinstance(exc, ssl.SSLError) and exc.reason in _KEYS:
            return ConfigurationInvalid(
                "postgres.dsn",
                f"sslcert and sslkey cannot be used ({exc.reason}); give a "
                "certificate and the key that belongs to it, in PEM",
            )
        if not isinstance(exc, OSError) or isinstance(exc, ConnectionError):
            return None
        query = query_of(self._dsn)
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
            file = query.get(name) or os.environ.get(f"PG{name.upper()}")
            if not file:
                continue
            try:
                Path(file).open("rb").close()
            except OSError as wrong:
                return ConfigurationInvalid(
                    "postgres.dsn",
                    f"{name}: {file} cannot be read ({wrong.strerror}); correct the "
                    "path, or make the file readable",
                )
        return None


def _keep_alive(raw: asyncpg.Connection[Any]) -> None:
    """Let the kernel notice a peer that went away without a word."""
    sock = socket_of(raw)
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _application_name(config: PostgresConfig, purpose: str) -> str:
    name = config.application_name
    if purpose:
        name = f"{name}/{purpose}"
    return name.encode()[:63].decode(errors="ignore")


def _for_driver(dsn: str) -> str:
    """Write *dsn* so that the driver reads what libpq reads."""
    found = {k: v for k, v in parameters_of(dsn).items() if k not in _LIBPQ_ONLY}
    wanted = found.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    if wanted and wanted not in (words := [each.value for each in SessionAttribute]):
        raise ConfigurationInvalid(
            "postgres.dsn",
            f"has target_session_attrs={wanted}; write one of {', '.join(words)}",
        )
    if found.get("client_encoding") == "auto":
        del found["client_encoding"]
    if address := found.pop("hostaddr", os.environ.get("PGHOSTADDR")):
        found["host"] = address
    if "host" in found:
        # An IPv6 address among several hosts; the driver splits at its colons.
        hosts = found["host"].split(",")
        found["host"] = ",".join(_V6.sub(r"[\g<0>]", host) for host in hosts)
    return f"postgresql://?{urlencode(found, quote_via=quote)}"
