"""Entries that name their fields: JSON lines, logfmt, journald.

Apart from the formats that are told by their shape: here only names count.
"""

from __future__ import annotations

from typing import Any

import orjson

from fm_storage.catalog.header import Header
from fm_storage.catalog.levels import guess_severity, severity_of
from fm_storage.catalog.times import Clock

__all__ = ["header_of_fields"]

_TIMES = (
    "timestamp", "time", "@timestamp", "ts", "datetime", "date", "t", "asctime",
    "__REALTIME_TIMESTAMP", "eventTime",
)  # fmt: skip
_LEVELS = (
    "level", "severity", "levelname", "lvl", "log.level", "loglevel", "PRIORITY",
    "severityText", "level_name",
)  # fmt: skip
_MESSAGES = ("message", "msg", "event", "MESSAGE", "body", "text", "error", "err")
_MODULES = (
    "logger", "module", "name", "logger_name", "component", "log.logger",
    "SYSLOG_IDENTIFIER", "service.name", "service", "caller",
)  # fmt: skip
_TRACES = (
    "stack_trace", "exc_info", "exception", "traceback", "stacktrace", "stack",
    "error.stack_trace", "err.stack", "error.stack", "exc_text",
)  # fmt: skip


def header_of_fields(fields: dict[str, Any], clock: Clock) -> Header | None:
    """Return what an object says, or None if it is no entry of a log."""
    taken: set[str] = set()

    def take(*names: str) -> Any:  # noqa: ANN401 - any JSON value
        for name in names:
            value: Any = fields
            for part in (name,) if name in fields else name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value not in (None, ""):
                taken.add(name.split(".")[0] if name not in fields else name)
                return value
        return None

    at = clock.any(take(*_TIMES))
    level = take(*_LEVELS)
    message = take(*_MESSAGES)
    module = take(*_MODULES)
    trace = take(*_TRACES)
    if message is None and trace is None:
        return None
    if level is None and at is None:
        return None
    if isinstance(message, dict):
        message = message.get("message") or orjson.dumps(message).decode()
    if isinstance(trace, list):
        trace = "\n".join(map(str, trace))
    trace = orjson.dumps(trace).decode() if isinstance(trace, dict) else trace
    text = str(message) if message is not None else str(trace).strip().splitlines()[-1]
    return Header(
        at,
        severity_of(level) or guess_severity(text),
        str(module) if module is not None else None,
        text,
        trace=str(trace) if trace is not None else None,
        context={key: value for key, value in fields.items() if key not in taken},
    )
