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
from urllib.parse import parse_qs

__all__ = ["check_address", "check_security", "is_unbound"]

_SCHEMES = ("postgresql://", "postgres://")
_PORT = re.compile(r":([^:\]]*)$")
_LAST = 65_535


def check_address(dsn: str, *, others: str = "") -> None:
    """Refuse what is no address of a server (ValueError, without a secret).

    Args:
        dsn: The address; several hosts with a port each are fine.
        others: What else may begin it, for the message.
    """
    if not dsn.startswith(_SCHEMES):
        raise ValueError(f"must start with postgresql://{others and f' or {others}'}")
    # The last @ ends the user part, whatever the password holds.
    rest = dsn.partition("://")[2].rpartition("@")[2]
    hosts, _, query = rest.partition("?")
    for host in hosts.partition("/")[0].split(","):
        if found := _PORT.search(host):
            _check_port(found[1])
    for ports in parse_qs(query).get("port", []):
        for port in ports.split(","):
            _check_port(port)


def _check_port(port: str) -> None:
    if port and not port.isdecimal():
        # Not shown: in an address without @ it may be the password.
        raise ValueError("has a port that is no number; write host:5432")
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
    query = parse_qs(dsn.partition("?")[2])
    if name in query:
        return query[name][-1], ""
    service = query.get("service", [""])[-1]
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
