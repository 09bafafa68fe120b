"""Addresses of PostgreSQL: what is refused before anything is opened.

Refused are addresses by which no server could be reached, and demands of security
that the driver would drop in silence. The rest is libpq's and the driver's to read.
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
from pathlib import Path
from urllib.parse import quote, unquote

from fm_storage.errors import ConfigurationInvalid

_SCHEME = re.compile(r"(postgres(?:ql)?)(?:\+\w+)?://")
_PORT = re.compile(r":([^:\]]*)$")
_LAST = 65_535
_RAW = re.compile(r"[^!$&-.0-;=A-Z_a-z~%]")
"""Characters of a name or password that libpq takes as they are and the driver not."""

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


def normalized(dsn: str) -> str:
    """Return *dsn* so that every reader of URIs understands what libpq does.

    A driver's name in the scheme (``postgresql+asyncpg://``, as SQLAlchemy writes it)
    is dropped; what stands raw in the user part is percent-encoded.

    Raises:
        ConfigurationInvalid: libpq would not read the address either.
    """
    scheme = _SCHEME.match(dsn)
    if scheme is None:
        return dsn
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
    after = dsn[scheme.end() + len(user) :].replace("#", "%23")
    if "," in hosts and "[" in hosts:
        # urlsplit() takes a bracket for the begin of the only host.
        place, _, query = after.removeprefix("@").partition("?")
        at = "@" if after.startswith("@") else ""
        after = f"{at}{place.removeprefix(hosts)}?host={hosts}&{query}".rstrip("&")
    return f"{scheme[1]}://{_RAW.sub(lambda raw: quote(raw[0]), user)}{after}"


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
    # a port; normalized() has the rest of libpq's rules.
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
    service = query.get("service", "")
    if service and (value := _services().get(service, name, fallback="")):
        return value, f" (in service {service})"
    variable = "PG" + name.upper().replace("_", "")
    return os.environ.get(variable, ""), f" (in {variable})"


def _services() -> configparser.RawConfigParser:
    """Read the service file that the driver reads; empty if it is missing or broken."""
    found = configparser.RawConfigParser(strict=False)
    path = os.environ.get("PGSERVICEFILE")
    file = Path(path) if path else Path.home() / ".pg_service.conf"
    try:
        found.read(file)
    except (configparser.Error, UnicodeDecodeError):
        found.clear()
    return found
