"""Addresses of PostgreSQL: what is refused before anything is opened.

Refused are addresses by which no server could be reached, and demands of security
that the driver would drop in silence. The rest is libpq's and the driver's to read.
"""

from __future__ import annotations

import configparser
import getpass
import logging
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from fm_storage.errors import ConfigurationInvalid

_log = logging.getLogger("fm_storage.config")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""What libpq's ``sslmode`` may be."""

_SCHEME = re.compile(r"(postgres(?:ql)?)(?:\+\w+)?://")
_PORT = re.compile(r":([^:\]]*)$")
_LAST = 65_535
_FIELD = re.compile(r"((?:\\.|[^:\\])*)(?::|$)")
_PASSFILE = (
    "~/.pgpass" if os.name == "posix" else r"~\AppData\Roaming\postgresql\pgpass.conf"
)
_LOCAL = frozenset(
    {"", "/tmp", "/run/postgresql", "/var/run/postgresql"}  # noqa: S108 - sockets are there
)
"""Hosts, besides its own name, that "localhost" of a password file stands for."""

_FOREIGN = {
    "async_fallback": "take it out",
    "command_timeout": "set postgres.command_timeout",
    "connection_limit": "set postgres.max_size",
    "currentschema": "write search_path=…",
    "max_size": "set postgres.max_size",
    "min_size": "set postgres.min_size",
    "pgbouncer": "take it out: a pooler is recognised (see postgres.pooler)",
    "pool_size": "set postgres.max_size",
    "pool_timeout": "set postgres.acquire_timeout",
    "requiressl": "write sslmode=require",
    "prepared_statement_cache_size": "set postgres.statement_cache_size",
    "schema": "write search_path=…",
    "ssl": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    "sslaccept": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    "statement_cache_size": "set postgres.statement_cache_size",
}
"""Parameters of other drivers, and what to write instead."""
_VARIABLES = {
    "datestyle": "PGDATESTYLE",
    "geqo": "PGGEQO",
    "options": "PGOPTIONS",
    "timezone": "PGTZ",
}
"""Variables of libpq that the driver does not read, by what they set."""


def _split(dsn: str) -> tuple[str, str, str, str]:
    """Split a URI as libpq does: user part, hosts, path, query; nothing is decoded.

    The first @ ends the user part, if no / stands before it: so a password may hold
    ``#``, ``?`` and ``[``, which Python's ``urlsplit()`` misreads.
    See ``conninfo_uri_parse_options()`` in PostgreSQL's fe-connect.c.
    """
    rest = dsn.partition("://")[2]
    user, at, after = rest.partition("@")
    if not at or "/" in user:
        user, after = "", rest
    place, _, query = after.partition("?")
    hosts, _, path = place.partition("/")
    return user, hosts, path, query


def query_of(dsn: str) -> dict[str, str]:
    """Return the parameters of an address; the last of equal names counts."""
    pairs = (one.partition("=") for one in _split(dsn)[3].split("&") if one)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def parameters_of(dsn: str) -> dict[str, str]:
    """Return all parameters of an address as libpq reads them, nothing encoded.

    Its own are stronger than those of its service (else ``PGSERVICE``), and these than
    ``PGOPTIONS``; the other variables are the driver's to read. A driver's name in the
    scheme (``postgresql+asyncpg://``, as SQLAlchemy writes it) is passed over.

    Raises:
        ConfigurationInvalid: libpq would not read the address either.
    """
    user, hosts, path, query = _split(dsn)
    problem = None
    if "@" in hosts + path:
        problem = "@ or /", "%40 for @ and %2F for /"
    elif re.search("%(?!(?!00)[0-9A-Fa-f]{2})", user + hosts + path + query):
        problem = "% (or a zero byte)", "%25 for %"
    if problem:
        raise ConfigurationInvalid(
            "postgres.dsn",
            f"has {problem[0]} that is not percent-encoded; write {problem[1]} in a "
            "password, or give it as postgres.password",
        )
    if any("=" not in one for one in query.split("&") if one) or (
        hosts.count("[") != hosts.count("]")
    ):
        raise ConfigurationInvalid(
            "postgres.dsn",
            "has a parameter without a value, or a bracket that is not closed; write "
            "postgresql://user@host:5432/database?name=value or [::1]:5432",
        )
    name, _, password = user.partition(":")
    parts = {"user": name, "password": password, "dbname": path, **_hosts(hosts)}
    found = {key: unquote(value) for key, value in parts.items() if value}
    found |= query_of(dsn)
    service, services = _service(found)
    if service and not services.has_section(service):
        raise ConfigurationInvalid(
            "postgres.dsn",
            f"names the service {service!r}, which no service file defines; define it "
            "in ~/.pg_service.conf or in the file that PGSERVICEFILE names",
        )
    if service:
        found = dict(services[service]) | found
    for word in ("service", "servicefile"):
        found.pop(word, None)
    for name, variable in _VARIABLES.items():
        if value := os.environ.get(variable):
            found.setdefault(name, value)
    return found


def passwords_of(found: Mapping[str, str]) -> list[str]:
    """Return what the password file has for each host of an address, "" for nothing.

    As libpq: an entry's host is the one that was named, and a backslash escapes. See
    https://www.postgresql.org/docs/current/libpq-pgpass.html.

    Args:
        found: What ``parameters_of()`` returned.
    """
    entries: list[list[str]] = []
    try:
        own = found.get("passfile") or os.environ.get("PGPASSFILE") or _PASSFILE
        file = Path(own).expanduser()
        if os.name == "posix" and file.stat().st_mode & 0o077 and file.is_file():
            _log.warning("%s: others may read it, so it is not used; chmod 600", file)
        elif file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                fields = _FIELD.findall(line.removesuffix("\r"))
                if not line.startswith("#"):
                    entries.append([re.sub(r"\\(.)", r"\1", one) for one in fields])
    except (OSError, RuntimeError):  # no such file, no home
        pass
    if not entries:
        return []
    user = _or_variable(found, "user", "PGUSER") or getpass.getuser()
    database = _or_variable(found, "dbname", "PGDATABASE") or user
    hosts = _or_variable(found, "host", "PGHOST").split(",")
    ports = (_or_variable(found, "port", "PGPORT") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [
        next(
            (
                password
                for *at, password in (entry[:5] for entry in entries)
                if len(at) == 4 and all(map(_fits, at, (host, port, database, user)))
            ),
            "",
        )
        for host, port in zip(hosts, ports, strict=False)
    ]


def _fits(pattern: str, value: str) -> bool:
    return pattern in {"*", value} or (pattern == "localhost" and value in _LOCAL)


def _or_variable(found: Mapping[str, str], name: str, variable: str) -> str:
    return found.get(name) or os.environ.get(variable, "")


def _hosts(hosts: str) -> dict[str, str]:
    """Split ``host:port,[::1]:port`` into the parameters ``host`` and ``port``."""
    found = [_PORT.split(host) for host in hosts.split(",")]
    ports = [(*port, "")[0] for _, *port in found]
    names = [host for host, *_ in found]
    if len(names) > 1:
        names = [host or "localhost" for host in names]
    return {
        "host": ",".join(names),
        "port": ",".join(port or "5432" for port in ports) if any(ports) else "",
    }


def check_address(dsn: str, *, others: str = "") -> None:
    """Refuse what is no address of a server (ValueError, without a secret).

    Args:
        dsn: The address; several hosts with a port each are fine.
        others: What else may begin it, for the message.
    """
    if dsn.strip() != dsn:
        raise ValueError(
            "begins or ends with white space, such as the last line break of a file; "
            "take it out"
        )
    if dsn.lower() in {"none", "null", "off"}:
        raise ValueError(
            "is no address; to do without PostgreSQL set postgres to None "
            "(FM_STORAGE_POSTGRES=none)"
        )
    if not _SCHEME.match(dsn):
        raise ValueError(f"must start with postgresql://{others and f' or {others}'}")
    # The last @ ends the user part here, so that no part of a password is taken for
    # a port; parameters_of() has the rest of libpq's rules.
    hosts = re.split("[/?]", dsn.partition("://")[2].rpartition("@")[2], maxsplit=1)[0]
    for host in hosts.split(","):
        if found := _PORT.search(host):
            _check_port(found[1])
    for name, value in query_of(dsn).items():
        if name == "port":
            for port in value.split(","):
                _check_port(port)
        if remedy := _FOREIGN.get(name.lower()):
            raise ValueError(f"has {name}=, which is no parameter of libpq; {remedy}")


def _check_port(port: str) -> None:
    if port and not port.isdecimal():
        # Not shown: in an address without @ it may be the password.
        raise ValueError(
            "has a port that is no number; write host:5432, and %2F for a / in a "
            "password"
        )
    if port and not 1 <= int(port) <= _LAST:
        raise ValueError(
            f"has port {port}, which is not from 1 to {_LAST}; write host:5432"
        )


_DEMANDS = {
    "channel_binding": "require",
    "gssencmode": "require",
    "require_auth": "",
    "requirepeer": "",
    "requiressl": "1",
    "sslcertmode": "require",
    "sslcrldir": "",
}
"""Demands of libpq that the driver does not know: the word that makes it one, or ""."""

_REMEDIES = {
    "channel_binding": "verify the server's certificate instead (sslmode=verify-full "
    "and sslrootcert), or take channel_binding out",
    "gssencmode": "use TLS (sslmode=verify-full), or take gssencmode out",
    "require_auth": "let pg_hba.conf of the server and sslmode=verify-full decide, and "
    "take require_auth out",
    "requirepeer": "let the folder of the socket belong to the server's account, and "
    "take requirepeer out",
    "requiressl": "write sslmode=require, and take requiressl out",
    "sslcertmode": "give the certificate with sslcert and sslkey, and take sslcertmode "
    "out",
    "sslcrldir": "give one file with sslcrl, and take sslcrldir out",
}


def check_security(dsn: str, tls: object = None) -> None:
    """Refuse a demand of security that the driver cannot meet (ValueError).

    Demands stand in the address, in the service that it names, or in the environment
    (``PGCHANNELBINDING``, …), as for libpq. Binding a channel keeps an attacker with
    another certificate out; ``sslmode=verify-full`` does so as well, and is let pass.

    Args:
        dsn: The address.
        tls: ``postgres.ssl``: a word of libpq, an ``ssl.SSLContext``, a bool or None.
    """
    for name, word in _DEMANDS.items():
        value, where = _stated(dsn, name)
        if not value or (word and value != word):
            continue
        if name == "channel_binding" and _is_verified(dsn, tls):
            continue
        raise ValueError(
            f"{name}={value}{where} is a demand on the server that the driver "
            f"(asyncpg) does not check; {_REMEDIES[name]}"
        )
    if _stated(dsn, "hostaddr")[0] and _is_verified(dsn, tls):
        raise ValueError(
            "hostaddr beside sslmode=verify-full is a demand that the driver (asyncpg) "
            "cannot meet: it would verify the certificate for the number; give host "
            "alone"
        )


def is_unbound(dsn: str, tls: object = None) -> bool:
    """Whether channel binding is demanded and a verified certificate stands for it."""
    demanded = _stated(dsn, "channel_binding")[0] == "require"
    return demanded and _is_verified(dsn, tls)


def _is_verified(dsn: str, tls: object) -> bool:
    """Whether only a server with a trusted certificate of its name is talked to."""
    if isinstance(tls, ssl.SSLContext):
        return tls.check_hostname and tls.verify_mode is ssl.CERT_REQUIRED
    if tls is None:
        tls = _stated(dsn, "sslmode")[0]
    return tls is True or tls == "verify-full"


def stated_in(dsn: str) -> dict[str, str]:
    """Return which settings of the pool an address states, or libpq's variables."""
    given = {
        "application_name": _stated(dsn, "application_name", "PGAPPNAME")[0][:63],
        "connect_timeout": _stated(dsn, "connect_timeout", "PGCONNECT_TIMEOUT")[0],
    }
    return {name: value for name, value in given.items() if value.strip("0")}


def _stated(dsn: str, name: str, variable: str = "") -> tuple[str, str]:
    """Return the value of a parameter of libpq, and where it stands, for a message.

    The address is stronger than the service file, that than the environment.
    """
    query = query_of(dsn)
    if name in query:
        return query[name], ""
    service, services = _service(query)
    if service and (value := services.get(service, name, fallback="")):
        return value, f" (in service {service})"
    variable = variable or "PG" + name.upper().replace("_", "")
    return os.environ.get(variable, ""), f" (in {variable})"


def _service(query: Mapping[str, str]) -> tuple[str, configparser.RawConfigParser]:
    """Return the service of an address, or "", and the file that defines it.

    The user's own file is asked first, then the system's; one that is missing or
    broken defines nothing.
    """
    found = configparser.RawConfigParser(strict=False)
    service = query.get("service") or os.environ.get("PGSERVICE", "")
    own = query.get("servicefile") or os.environ.get("PGSERVICEFILE")
    system = os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common")
    for file in (own or "~/.pg_service.conf", f"{system}/pg_service.conf"):
        if not found.has_section(service):
            try:
                found.read(Path(file).expanduser())
            except (configparser.Error, UnicodeDecodeError, RuntimeError):
                found.clear()  # RuntimeError: there is no home
    return service, found
