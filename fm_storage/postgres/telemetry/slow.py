"""The log line for a statement that took too long, without its values."""

from __future__ import annotations

import logging

from fm_storage.postgres.telemetry.text import described

__all__ = ["log_slow"]

_log = logging.getLogger("fm_storage.postgres")
_SHOWN = 200


def log_slow(owner: str, sql: str, seconds: float) -> None:
    """Log the start of *sql* and how long it took."""
    _log.warning(
        "%s: a statement took %.2f s: %s",
        owner,
        seconds,
        " ".join(described(sql)[1].split())[:_SHOWN],
    )
