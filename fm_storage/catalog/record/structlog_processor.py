"""The processor that brings events of structlog into the catalogue.

structlog is not imported: a processor is any callable with three arguments.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fm_storage.catalog.record.drafts import Draft, severity_of_level
from fm_storage.catalog.record.logging_handler import is_own
from fm_storage.catalog.record.render import render, text_of
from fm_storage.repositories import ErrorEntry

_logger = logging.getLogger("fm_storage.catalog")

_LEVELS = {
    "notset": 0, "debug": 10, "info": 20, "msg": 20, "warn": 30, "warning": 30,
    "err": 40, "error": 40, "exception": 40, "critical": 50, "fatal": 50,
}  # fmt: skip
_TAKEN = frozenset({"event", "exc_info", "stack_info", "exception", "stack", "level"})


class CatalogProcessor:
    """A processor that hands errors on and returns the event as it was.

    Never waits and never raises; what it cannot hand on is logged.

    Args:
        hand_in: Takes a function that makes the draft, in any thread.
        level: Events below it are left out.
        module: Module of the entries; the event's logger if None.
    """

    def __init__(
        self,
        hand_in: Callable[[Callable[[], Draft]], None],
        level: int,
        *,
        module: str | None = None,
    ) -> None:
        self._hand_in = hand_in
        self._level = level
        self._module = module

    def __call__(
        self,
        logger: object,
        method_name: str,
        event_dict: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """Queue the event if it is bad enough; see structlog's *Processors*."""
        try:
            level = _LEVELS.get(str(event_dict.get("level", method_name)).lower(), 20)
            module = event_dict.get("logger") or getattr(logger, "name", None)
            if level >= self._level and not is_own(str(module)):
                self._hand_in(
                    partial(
                        draft_of_event,
                        dict(event_dict),  # later processors change it
                        level,
                        self._module or str(module or "structlog"),
                        _exception(event_dict.get("exc_info")),
                        datetime.now(UTC),
                    )
                )
        except Exception:  # logging must never fail its caller
            _logger.exception("an event of structlog could not be recorded")
        return event_dict


def _exception(given: object) -> BaseException | None:
    """Return the exception that ``exc_info`` means; True means the one at hand."""
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        return given[1] if len(given) > 1 else None
    return sys.exc_info()[1] if given else None


def draft_of_event(
    event: Mapping[str, Any],
    level: int,
    module: str,
    exc: BaseException | None,
    at: datetime,
) -> Draft:
    """Return the draft of an event; its other keys become the context."""
    context = {key: value for key, value in event.items() if key not in _TAKEN}
    trace, code = event.get("exception") or event.get("stack"), ""
    if exc is not None:
        found = render(exc)
        trace, code = found.stack_trace, found.error_code
        context.update(found.context)
    return Draft(
        ErrorEntry(
            message=text_of(event.get("event", "")) or "(no event)",
            module=module,
            error_code=code,
            severity=severity_of_level(level),
            stack_trace=str(trace) if trace else None,
            manager_context=context or None,
            timestamp=at,
        )
    )
