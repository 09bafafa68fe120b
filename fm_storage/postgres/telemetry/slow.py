"""The log line for a statement that took too long."""

from __future__ import annotations

import logging

from fm_storage.postgres.telemetry.text import QUERIES, described

_log = logging.getLogger("fm_storage.postgres")
_SHOWN = 200


def log_slow(owner: str, sql: str, seconds: float) -> None:
    """Log the start of *sql* and how long it took.

    A query is shown as it was written, so that it is recognised; its values travel
    as parameters. A statement that takes none is shown without its literals.
    """
    operation, text = described(sql)
    _log.warning(
        "%s: a statement took %.2f s: %s",
        owner,
        seconds,
        " ".join((sql if operation in QUERIES else text).split())[:_SHOWN],
    )
