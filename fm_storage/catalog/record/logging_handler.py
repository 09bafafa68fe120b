"""The handler that brings records of ``logging`` into the catalogue."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fm_storage.catalog.record.drafts import Draft, draft_of_log
from fm_storage.catalog.record.render import text_of
from fm_storage.errors import ConfigurationInvalid

_OWN = "fm_storage"


class _Unlocked:
    """A lock that is always free.

    logging allows None until Python 3.12; from 3.13 on it enters ``with handler.lock``
    around every record.
    """

    def acquire(self) -> None:
        """Return at once."""

    release = acquire

    def __enter__(self) -> None:
        """Return at once."""

    def __exit__(self, *exc: object) -> None:
        """Let what was raised through."""


class CatalogHandler(logging.Handler):
    """A handler whose ``emit()`` hands the record on and returns.

    Records of the loggers below ``fm_storage`` are left out: what is logged while
    an error is being stored must not become an error to be stored.

    Args:
        hand_in: Takes a function that makes the draft, in any thread.
        level: Records below it are left out.
        module: Module of the entries; the logger's name if None.
    """

    lock: Any  # a threading.RLock to logging

    def __init__(
        self,
        hand_in: Callable[[Callable[[], Draft]], None],
        level: int,
        *,
        module: str | None = None,
    ) -> None:
        super().__init__(level)
        self._hand_in = hand_in
        self._module = module

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record*; never waits and never raises."""
        if is_own(record.name):
            return
        try:
            # The arguments may change after this call: the text is made now, the
            # trace (which costs a hundred times as much) in the thread.
            message = _message(record)
            self._hand_in(partial(draft_of_log, record, message, module=self._module))
        except Exception:  # as logging's own handlers do
            self.handleError(record)

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Lock nothing: the queue has its own lock, held for an append only."""
        self.lock = _Unlocked()


def level_from(level: int | str) -> int:
    """Return the number of a level of ``logging``.

    Raises:
        ConfigurationInvalid: There is no such level.
    """
    if isinstance(level, int):
        return level
    known = logging.getLevelNamesMapping()
    found = known.get(level.strip().upper()) if isinstance(level, str) else None
    if found is None:
        raise ConfigurationInvalid(
            "level",
            f"{level!r} is no level of logging; use one of {', '.join(known)}, "
            "or a number",
        )
    return found


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a record is never worth an error in the host
        with contextlib.suppress(Exception):
            return f"{record.msg!r} with {record.args!r}"
        given = record.args if isinstance(record.args, tuple) else (record.args,)
        return f"{text_of(record.msg)} with {', '.join(map(text_of, given))}"


def is_own(name: str) -> bool:
    """Return whether a logger is one of this package's: those are left out."""
    return name == _OWN or name.startswith(f"{_OWN}.")
