"""Which transactions are run again."""

from __future__ import annotations

from fm_storage.errors import ConnectionFailed, QueryFailed

__all__ = ["is_worth_repeating"]

_REPEATED = frozenset({"40001", "40P01", "25006"})


def is_worth_repeating(error: Exception, *, committing: bool) -> bool:
    """Whether running the whole transaction again is safe and may help.

    A connection lost before COMMIT was sent rolled everything back; lost at
    COMMIT, the outcome is unknown, and only the caller can look.
    """
    if isinstance(error, ConnectionFailed):
        return error.retryable and not committing
    if isinstance(error, QueryFailed):
        return error.sqlstate in _REPEATED or (
            error.sqlstate == "0A000" and error.retryable
        )
    return False
