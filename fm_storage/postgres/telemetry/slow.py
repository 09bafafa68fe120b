"""The log line for a statement that took too long, without its parameters."""

from __future__ import annotations

import logging

__all__ = ["log_slow"]

_log = logging.getLogger("fm_storage.postgres")
_SHOWN = 200


def log_slow(owner: str, sql: str, seconds: float) -> None:
    """Log the start of *sql* and how long it took."""
    _log.warning(
        "%s: a statement took %.2f s: %s",
        owner,
        seconds,
        " ".join(sql.split())[:_SHOWN],
    )
