"""Masking of passwords in addresses, for messages."""

from __future__ import annotations

import re

_SECRET_PARAMETERS = re.compile(
    r"(?s)([?&](?i:password|sslpassword)=).*?(?=&[a-z_]+=|$)"
)
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
    masked = _SECRET_PARAMETERS.sub(r"\1***", masked)
    if "://" not in dsn:
        masked = _KEYWORD_PASSWORD.sub(r"\1***", masked)
    return masked
