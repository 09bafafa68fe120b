"""Masking of passwords in addresses, for messages."""

from __future__ import annotations

import re
from urllib.parse import unquote

_NAME = re.compile("[?&]([^=&?]*)=")
_NEXT = re.compile("&(?:[a-z_]|%[0-9A-Fa-f]{2})+=")
_SECRET_NAME = re.compile("(?i)pass(?!file)|pwd|secret|token|(?<!ssl)key")
"""Whose value is a secret, ours or another driver's; sslkey is a file."""
_SECRET_USERINFO = re.compile(r"(?s)(://[^:/@]*:)(.*)(@)")
_SECRET_PORT = re.compile(r"(://[^:/@,\s]*:)(?!\d*(?:[,/?\s]|$))[^,/?@\s]+")
"""No @ follows: the host was forgotten, and the port is the password."""
_KEYWORD_PASSWORD = re.compile(
    r"(?i)(\b(?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)"
)


def mask_dsn(dsn: str) -> str:
    """Return *dsn* with every password in it replaced by ``***``.

    Safe on anything, also on a string that is no DSN at all. The last ``@``
    ends the user part, so that a password holding ``@`` or ``/`` is masked
    whole.
    """
    masked = _SECRET_USERINFO.sub(r"\1***\3", dsn)
    masked = _SECRET_PORT.sub(r"\1***", masked)
    masked = _without_parameters(masked)
    if "://" not in dsn:
        masked = _KEYWORD_PASSWORD.sub(r"\1***", masked)
    return masked


def _without_parameters(dsn: str) -> str:
    kept, at = "", 0
    for found in _NAME.finditer(dsn):
        # A name may be percent-encoded, too, for libpq.
        if found.start() >= at and _SECRET_NAME.search(unquote(found[1])):
            kept += f"{dsn[at : found.end()]}***"
            after = _NEXT.search(dsn, found.end())
            at = after.start() if after else len(dsn)
    return kept + dsn[at:]
