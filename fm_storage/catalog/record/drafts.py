"""From an exception, a message, an entry or a log record to an entry, before masking.

Nothing here does I/O or fails.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from fm_storage.catalog.record.render import render
from fm_storage.catalog.record.row import Prepared, prepare
from fm_storage.errors import InvalidRecord
from fm_storage.repositories import ErrorEntry, Severity

__all__ = [
    "Draft",
    "draft_of",
    "draft_of_log",
    "module_of",
    "severity_from",
    "severity_of_level",
]

_LEVELS = (
    (logging.CRITICAL, Severity.CRITICAL),
    (logging.ERROR, Severity.ERROR),
    (logging.WARNING, Severity.WARNING),
    (logging.INFO, Severity.INFO),
)
_STANDARD = frozenset(
    logging.LogRecord("", 0, "", 0, "", (), None).__dict__
) | {"message", "asctime", "taskName"}  # fmt: skip


@dataclass(slots=True)
class Draft:
    """An entry as the application gave it, and what was unclear about it."""

    entry: ErrorEntry
    notes: list[str] = field(default_factory=list)
    _row: Prepared | None = None

    def prepared(self) -> Prepared:
        """Mask and repair, once; an unknown severity is taken as ERROR."""
        if self._row is None:
            self._row = self._prepare()
        return self._row

    def replaced(self, entry: ErrorEntry) -> Draft:
        """Return a draft with another entry, as a hook has changed it."""
        return Draft(entry, self.notes)

    def _prepare(self) -> Prepared:
        entry = self.entry
        severity = _known(entry.severity, self.notes)
        return prepare(
            entry.message,
            module=entry.module,
            error_code=entry.error_code,
            severity=severity,
            stack_trace=entry.stack_trace,
            context=entry.manager_context,
            timestamp=entry.timestamp,
            entry_id=entry.id,
            notes=self.notes,
        )


def draft_of(
    error: BaseException | str | ErrorEntry,
    *,
    module: str | None = None,
    error_code: str | None = None,
    severity: Severity | str | None = None,
    context: Mapping[str, Any] | None = None,
    timestamp: datetime | None = None,
) -> Draft:
    """Return the draft of an exception, a message or an entry.

    An entry that nothing is added to is not copied: prepare it before anyone else
    has it.
    """
    notes: list[str] = []
    level = Severity.ERROR if severity is None else _known(severity, notes)
    if isinstance(error, ErrorEntry):
        entry = error
        if module or error_code or severity or context or timestamp:
            entry = replace(
                error,
                module=module or error.module,
                error_code=error_code or error.error_code,
                severity=error.severity if severity is None else level,
                manager_context=_merged(error.manager_context, context),
                timestamp=timestamp or error.timestamp,
            )
    elif isinstance(error, BaseException):
        found = render(error)
        entry = ErrorEntry(
            message=found.message,
            module=module or module_of(error),
            error_code=error_code or found.error_code,
            severity=level,
            stack_trace=found.stack_trace,
            manager_context=_merged(context, found.context),
            timestamp=timestamp or datetime.now(UTC),
        )
    else:
        entry = ErrorEntry(
            message=str(error),
            module=module or "",
            error_code=error_code or "",
            severity=level,
            manager_context=_merged(context, None),
            timestamp=timestamp or datetime.now(UTC),
        )
    return Draft(entry, notes)


def draft_of_log(
    record: logging.LogRecord, message: str, *, module: str | None = None
) -> Draft:
    """Return the draft of a log record whose message was already put together."""
    context: dict[str, Any] = {
        "place": f"{record.pathname}:{record.lineno}",
        "function": record.funcName,
        "thread": record.threadName,
        "process": record.process,
    }
    context |= {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and not name.startswith("_")
    }
    trace, code = None, ""
    if record.exc_info and record.exc_info[1] is not None:
        found = render(record.exc_info[1])
        trace, code = found.stack_trace, found.error_code
        context.update(found.context)
    elif record.exc_text:
        trace = record.exc_text
    elif record.stack_info:
        trace = record.stack_info
    return Draft(
        ErrorEntry(
            message=message,
            module=module or record.name,
            error_code=code,
            severity=severity_of_level(record.levelno),
            stack_trace=trace,
            manager_context=context,
            timestamp=datetime.fromtimestamp(record.created, UTC),
        )
    )


def severity_of_level(level: int) -> Severity:
    """Return the severity of a level of ``logging``."""
    for least, known in _LEVELS:
        if level >= least:
            return known
    return Severity.DEBUG


def module_of(exc: BaseException) -> str:
    """Return the module whose code raised *exc*."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(exc).__module__
    return str(trace.tb_frame.f_globals.get("__name__", "unknown"))


def severity_from(severity: Severity | str | None) -> Severity | None:
    """Return the severity that a caller named, in any case; None stays None.

    Raises:
        InvalidRecord: There is no such severity.
    """
    if severity is None or isinstance(severity, Severity):
        return severity
    try:
        return Severity(severity.upper())
    except (ValueError, AttributeError):
        raise InvalidRecord(
            f"severity {severity!r} is unknown; use one of {', '.join(Severity)}",
            field="severity",
        ) from None


def _known(severity: Severity | str, notes: list[str]) -> Severity:
    try:
        return severity_from(severity) or Severity.ERROR
    except InvalidRecord:
        notes.append(f"severity: {str(severity)[:40]!r} is unknown, taken as ERROR")
        return Severity.ERROR


def _merged(
    first: Mapping[Any, Any] | None, second: Mapping[Any, Any] | None
) -> dict[Any, Any] | None:
    if not first and not second:
        return None
    return {**(first or {}), **(second or {})}
