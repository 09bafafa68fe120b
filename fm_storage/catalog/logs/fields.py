"""Entries that name their fields: JSON lines, logfmt, journald."""

from __future__ import annotations

import json
from typing import Any

import orjson

from fm_storage.catalog.logs.entry import Header
from fm_storage.catalog.logs.levels import (
    guess_severity,
    severity_of,
    severity_of_status,
)
from fm_storage.catalog.logs.timestamps import Clock
from fm_storage.catalog.record.frames import frames_of

_DEEPEST = 200
"""Levels of an object beyond which it is no entry: Python's own limit is near."""
_TIMES = (
    "timestamp", "time", "@timestamp", "ts", "datetime", "date", "t.$date", "t",
    "asctime",
    "__REALTIME_TIMESTAMP", "eventTime", "@t", "receiveTimestamp",
    "Timestamp", "timeMillis", "EventTime", "timeUnixNano", "TimeCreated",
    "record.time.timestamp", "time_local", "time_iso8601", "start_time",
    "EdgeStartTimestamp",
)  # fmt: skip
_LEVELS = (
    "level", "severity", "levelname", "lvl", "log.level", "loglevel", "PRIORITY",
    "severityText", "level_name", "error_severity", "@l", "LogLevel", "Level", "s",
    "record.level.name", "@level", "LevelDisplayName",
)  # fmt: skip
_STATUSES = (
    "status", "status_code", "httpRequest.status", "response.status", "response_code",
    "http.status_code", "http.response.status_code", "EdgeResponseStatus",
)  # fmt: skip
_MESSAGES = (
    "record.message", "@message", "message", "msg", "event", "MESSAGE", "text", "@m",
    "@mt", "Message",
    "fields.message", "body.stringValue", "short_message",
    "error.message", "errorMessage", "textPayload", "jsonPayload.message",
    "body", "error", "err", "resultDescription",
    "request", "httpRequest.requestUrl", "uri", "path", "ClientRequestURI",
)  # fmt: skip
_MODULES = (
    "logger", "module", "name", "logger_name", "component", "log.logger",
    "SYSLOG_IDENTIFIER", "service.name", "service", "caller", "loggerName",
    "SourceContext", "Category", "c", "logName", "operationName",
    "target", "_logger", "@module", "ProviderName", "record.name", "context",
)  # fmt: skip
_JOURNAL_MODULES = (
    "SYSLOG_IDENTIFIER", "_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", "_COMM",
)  # fmt: skip
_JOURNAL_NOISE = ("_", "MESSAGE", "PRIORITY", "SYSLOG_")
_TRACES = (
    "stack_trace", "exc_info", "exception", "traceback", "stacktrace", "stack",
    "error.stack_trace", "err.stack", "error.stack", "exc_text", "@x",
    "thrown.extendedStackTrace", "Exception", "stackTrace",
)  # fmt: skip


# Of the fields that the journal adds itself, those that help to find the place.
_JOURNAL = frozenset({
    "_HOSTNAME", "_PID", "_COMM", "_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", "_TRANSPORT",
    "_BOOT_ID", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "UNIT", "ERRNO",
})  # fmt: skip


def header_of_journal(fields: dict[str, Any], clock: Clock) -> Header:
    """Return what an entry of the journal says (``journalctl -o json`` or export)."""
    # Without one it was too long for the JSON, or the entry is a mere mark.
    message = _journal_text(fields.get("MESSAGE")) or "(no message)"
    module = next(
        (
            text
            for name in _JOURNAL_MODULES
            if (text := _journal_text(fields.get(name)))
        ),
        None,
    )
    trace = None
    if "\n" in message and frames_of(message):
        trace = message
        lines = message.splitlines()
        begins = lines[0].startswith("Traceback (most recent")
        message = lines[-1] if begins else lines[0]
    at = fields.get("_SOURCE_REALTIME_TIMESTAMP") or fields["__REALTIME_TIMESTAMP"]
    return Header(
        clock.any(_journal_text(at)),
        severity_of(_journal_text(fields.get("PRIORITY"))) or guess_severity(message),
        module,
        message,
        trace=trace,
        context={
            name: _journal_text(value)
            for name, value in fields.items()
            if name in _JOURNAL or not name.startswith(_JOURNAL_NOISE)
        },
    )


def _journal_text(value: object) -> str | None:
    """Return a field as text: bytes come as a list of numbers, repeats as a list."""
    if isinstance(value, list):
        if value and all(isinstance(one, int) and 0 <= one < 256 for one in value):
            return bytes(value).decode("utf-8", "replace")
        return ", ".join(str(_journal_text(one)) for one in value)
    return None if value is None else str(value)


def json_of(line: str) -> dict[str, Any] | None:
    """Return the object of a line, or None; NaN and lone surrogates are read too."""
    found: Any
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return None
    if line.count("[") + line.count("{") > _DEEPEST and _too_deep(found):
        return None
    return found if isinstance(found, dict) else None


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _instant(value: Any) -> float | None:
    """Return the seconds of log4j2's *instant*."""
    try:
        return float(value["epochSecond"]) + float(value.get("nanoOfSecond", 0)) / 1e9
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def _as_json(value: dict[str, Any]) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a lone surrogate, a number of more than 64 bits, 254 levels
        return str(value)


def _severity_of_answer(status: object) -> str | None:
    """Return the severity of a status of HTTP, or of one that is a word."""
    text = str(status)
    if len(text) == 3 and text.isdecimal():
        return severity_of_status(int(text))
    return severity_of(status) if isinstance(status, str) else None


def header_of_fields(fields: dict[str, Any], clock: Clock) -> Header | None:
    """Return what an object says, or None if it is no entry of a log."""
    if "__REALTIME_TIMESTAMP" in fields:
        return header_of_journal(fields, clock)
    taken: set[str] = set()

    def take(*names: str) -> Any:
        for name in names:
            value: Any = fields
            for part in (name,) if name in fields else name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value not in (None, ""):
                taken.add(name.split(".")[0] if name not in fields else name)
                return value
        return None

    at = clock.any(
        ("instant" in fields and _instant(fields["instant"])) or take(*_TIMES)
    )
    level = take(*_LEVELS) or ("Information" if "@t" in fields else None)  # Serilog's
    message = take(*_MESSAGES)
    module = take(*_MODULES)
    trace = take(*_TRACES)
    severity = severity_of(level) or _severity_of_answer(take(*_STATUSES))
    if message is None and trace is None:
        return None
    if level is None and at is None and severity is None:
        return None
    if isinstance(message, dict):
        message = message.get("message") or _as_json(message)
    if isinstance(trace, list):
        trace = "\n".join(str(line).rstrip("\n") for line in trace)
    trace = _as_json(trace) if isinstance(trace, dict) else trace
    last = ["", *str(trace).strip().splitlines()][-1]
    text = last if message is None else str(message)
    return Header(
        at,
        severity or guess_severity(text),
        str(module) if isinstance(module, str | int) else None,
        text,
        trace=str(trace) if trace is not None else None,
        context={key: value for key, value in fields.items() if key not in taken},
    )
