"""From an exception, a message, an entry or a log record to an entry, before masking.

Nothing here does I/O or fails.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from types import ModuleType
from typing import Any
from uuid import UUID

from fm_storage.catalog.record.render import render, text_of
from fm_storage.catalog.record.row import Origin, Prepared, prepare
from fm_storage.errors import InvalidRecord
from fm_storage.repositories import ErrorEntry, Severity

_LEVELS = (
    (logging.CRITICAL, Severity.CRITICAL),
    (logging.ERROR, Severity.ERROR),
    (logging.WARNING, Severity.WARNING),
    (logging.INFO, Severity.INFO),
)
_ALIASES = {
    "FATAL": Severity.CRITICAL, "CRIT": Severity.CRITICAL, "PANIC": Severity.CRITICAL,
    "ALERT": Severity.CRITICAL, "EMERG": Severity.CRITICAL,
    "EMERGENCY": Severity.CRITICAL, "ERR": Severity.ERROR, "SEVERE": Severity.ERROR,
    "EXCEPTION": Severity.ERROR, "WARN": Severity.WARNING, "NOTICE": Severity.INFO,
    "TRACE": Severity.DEBUG, "NOTSET": Severity.DEBUG,
}  # fmt: skip
_STANDARD = frozenset(
    logging.LogRecord("", 0, "", 0, "", (), None).__dict__
) | {"message", "asctime", "taskName"}  # fmt: skip


@dataclass(slots=True)
class Draft:
    """An entry as the application gave it, and what was unclear about it."""

    entry: ErrorEntry
    notes: list[str] = field(default_factory=list)
    origin: Origin | None = None
    _row: Prepared | None = None

    def prepared(self) -> Prepared:
        """Mask and repair, once; an unknown severity is taken as ERROR."""
        if self._row is None:
            self._row = self._prepare()
        return self._row

    def replaced(self, entry: ErrorEntry) -> Draft:
        """Return a draft with another entry, as a hook has changed it."""
        return Draft(entry, self.notes, self.origin)

    def _prepare(self) -> Prepared:
        entry = self.entry
        severity = _known(entry.severity, self.notes)
        trace = entry.stack_trace
        return prepare(
            _text(entry.message),
            module=_text(entry.module),
            error_code=_text(entry.error_code),
            severity=severity,
            stack_trace=None if trace is None else _text(trace),
            context=_mapping(entry.manager_context),
            timestamp=_moment(entry.timestamp, self.notes),
            entry_id=entry.id if isinstance(entry.id, UUID) else None,
            notes=self.notes,
            origin=self.origin,
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
        more = (module, error_code, severity, context, timestamp)
        if any(one is not None for one in more):
            entry = replace(
                error,
                module=_text(module) or error.module,
                error_code=_text(error_code) or error.error_code,
                severity=error.severity if severity is None else level,
                manager_context=_merged(error.manager_context, context),
                timestamp=timestamp or error.timestamp,
            )
    elif isinstance(error, BaseException):
        found = render(error)
        entry = ErrorEntry(
            message=found.message,
            module=_text(module) or module_of(error),
            error_code=_text(error_code) or found.error_code,
            severity=level,
            stack_trace=found.stack_trace,
            manager_context=_merged(context, found.context),
            timestamp=timestamp or datetime.now(UTC),
        )
    else:
        entry = ErrorEntry(
            message=_text(error),
            module=_text(module),
            error_code=_text(error_code),
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
    exc = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if exc is not None:
        found = render(exc)
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


def active_span() -> tuple[str, str] | None:
    """Return the ids of OpenTelemetry's active trace and span.

    Without OpenTelemetry in the process this costs the look-up of a name.
    """
    tracing = sys.modules.get("opentelemetry.trace")
    if tracing is None:
        return None
    try:
        context = tracing.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    except Exception:  # nothing of the application's tracing may keep an error out
        return None
    return None


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


def _known(severity: object, notes: list[str]) -> Severity:
    """Return the severity meant, whatever names it; note what had to be guessed."""
    if isinstance(severity, Severity):
        return severity
    if isinstance(severity, Enum):
        severity = severity.value
    if isinstance(severity, int) and not isinstance(severity, bool):
        known: Severity | None = severity_of_level(severity)
    else:
        name = _text(severity).strip().upper()
        known = _ALIASES.get(name) or Severity.__members__.get(name)
        if known is not None and known.value == name:
            return known
    taken = "is unknown, taken as" if known is None else "taken as"
    known = known or Severity.ERROR
    notes.append(f"severity: {_text(severity)[:40]!r} {taken} {known}")
    return known


def _text(value: object) -> str:
    """Return *value* as text: an enum's value, a module's name."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, Enum):
        return _text(value.value)
    return value.__name__ if isinstance(value, ModuleType) else text_of(value)


def _moment(given: object, notes: list[str]) -> datetime | None:
    """Return when it happened; seconds since 1970 and ISO 8601 are understood."""
    if given is None or isinstance(given, datetime):
        return given
    with contextlib.suppress(Exception):
        if isinstance(given, int | float):
            return datetime.fromtimestamp(given, UTC)
        return datetime.fromisoformat(_text(given))
    notes.append(f"timestamp: {_text(given)[:40]!r} is no time, taken as now")
    return None


def _mapping(value: object) -> Mapping[Any, Any] | None:
    """Return a context as a mapping; anything else becomes its *value*."""
    if value is None or isinstance(value, Mapping):
        return value
    return {"value": value}


def _merged(first: object, second: object) -> dict[Any, Any] | None:
    try:
        return {**(_mapping(first) or {}), **(_mapping(second) or {})} or None
    except Exception:  # a mapping may do anything when it is read
        return {"context": first, "more": second}
