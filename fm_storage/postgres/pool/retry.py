"""Which transactions are run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fm_storage.errors import ConnectionFailed, QueryFailed
from fm_storage.postgres.errors import OUTDATED

if TYPE_CHECKING:
    from fm_storage.postgres.connection.entry import PoolEntry

_REPEATED = frozenset({"40001", "40P01", "25006"})


def is_worth_repeating(
    error: BaseException, entry: PoolEntry | None, *, committing: bool
) -> bool:
    """Whether running the whole transaction again is safe and may help.

    Only for an error of its own connection: what else the body raises is the
    caller's, whatever it is called. A connection lost before COMMIT was sent rolled
    everything back; lost at COMMIT, the outcome is unknown, and only the caller can
    look.

    Args:
        error: What left the transaction's block.
        entry: Its connection; None if there was none yet.
        committing: Whether the body had ended.
    """
    if entry is not None and not _comes_from(error, entry.failure):
        return False
    if isinstance(error, ConnectionFailed):
        sent = committing and not (entry is not None and entry.nothing_sent)
        return error.retryable and not sent
    if isinstance(error, QueryFailed):
        return error.sqlstate in _REPEATED or (
            error.sqlstate in OUTDATED and error.retryable
        )
    return False


def _comes_from(error: BaseException | None, failure: BaseException | None) -> bool:
    """Whether *error* is *failure*, or was raised because of it."""
    while error is not None:
        if error is failure:
            return True
        error = error.__cause__ or error.__context__
    return False
