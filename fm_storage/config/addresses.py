"""Addresses of PostgreSQL: what is refused before anything is opened.

Refused are addresses by which no server could be reached, and demands of security
that the driver would drop in silence. The rest is libpq's and the driver's to read.
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from fm_storage.errors import ConfigurationInvalid

_SCHEME = re.compile(r"(postgres(?:ql)?)(?:\+\w+)?://")
_PORT = re.compile(r":([^:\]]*)$")
_LAST = 65_535

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
    "prepared_statement_cache_size": "set postgres.statement_cache_size",
    "schema": "write search_path=…",
    "ssl": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    "sslaccept": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    "statement_cache_size": "set postgres.statement_cache_size",
}
"""Parameters of other drivers, and what to write instead."""


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
    elif re.search("%(?![0-9A-Fa-f]{2})", user + hosts + path + query):
        problem = "%", "%25 for %"
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
    if options := os.environ.get("PGOPTIONS"):
        found.setdefault("options", options)
    return found


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
    if dsn.strip().lower() in {"none", "null", "off"}:
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
    "sslcertmode": "require",
}
"""Demands of libpq that the driver does not know: the word that makes it one, or ""."""

_REMEDIES = {
    "channel_binding": "verify the server's certificate instead (sslmode=verify-full "
    "and sslrootcert), or take channel_binding out",
    "gssencmode": "use TLS (sslmode=verify-full), or take gssencmode out",
    "require_auth": "let pg_hba.conf of the server and sslmode=verify-full decide, and "
    "take require_auth out",
    "sslcertmode": "give the certificate with sslcert and sslkey, and take sslcertmode "
    "out",
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


def _stated(dsn: str, name: str) -> tuple[str, str]:
    """Return the value of a parameter of libpq, and where it stands, for a message.

    The address is stronger than the service file, that than the environment.
    """
    query = query_of(dsn)
    if name in query:
        return query[name], ""
    service, services = _service(query)
    if service and (value := services.get(service, name, fallback="")):
        return value, f" (in service {service})"
    variable = "PG" + name.upper().replace("_", "")
    return os.environ.get(variable, ""), f" (in {variable})"


def _service(query: Mapping[str, str]) -> tuple[str, configparser.RawConfigParser]:
    """Return the service of an address, or "", and the file that defines it.

    The user's own file is asked first, then the system's; one that is missing or
    broken defines nothing.
    """
    found = configparser.RawConfigParser(strict=False)
    service = query.get("service") or os.environ.get("PGSERVICE", "")
    own = query.get("servicefile") or os.environ.get("PGSERVICEFILE")
    for file in (
        Path(own) if own else Path.home() / ".pg_service.conf",
        Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common"))
        / "pg_service.conf",
    ):
        if not found.has_section(service):
            try:
                found.read(file)
            except (configparser.Error, UnicodeDecodeError):
                found.clear()
    return service, found
