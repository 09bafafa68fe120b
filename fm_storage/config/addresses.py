"""What an address of PostgreSQL must look like, before anything is opened.

Apart because pool and migrations have one each. Only what no server could be
reached by is refused: the rest is libpq's and the driver's to read.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

__all__ = ["check_address"]

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
        message = f"must start with postgresql://{others and f' or {others}'}"
        raise ValueError(message)
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
        message = "has a port that is no number; write host:5432"
        raise ValueError(message)
    if port and not 1 <= int(port) <= _LAST:
        message = f"has port {port}, which is not from 1 to {_LAST}; write host:5432"
        raise ValueError(message)
