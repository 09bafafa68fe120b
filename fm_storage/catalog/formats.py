"""The first line of a log entry: which formats are understood, and how.

Apart from the reading of files, so that a format can be added, and tried on one
line, without knowing how lines become entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any

import orjson

from fm_storage.catalog import patterns

__all__ = ["Header", "LineParser", "severity_of"]

_SEVERITIES = {
    "trace": "DEBUG", "verbose": "DEBUG", "debug": "DEBUG", "fine": "DEBUG",
    "finer": "DEBUG", "finest": "DEBUG", "config": "DEBUG", "v": "DEBUG", "d": "DEBUG",
    "info": "INFO", "information": "INFO", "informational": "INFO", "notice": "INFO",
    "log": "INFO", "i": "INFO", "success": "INFO", "audit": "INFO", "hint": "INFO",
    "detail": "INFO", "statement": "INFO",
    "warn": "WARNING", "warning": "WARNING", "w": "WARNING",
    "err": "ERROR", "error": "ERROR", "severe": "ERROR", "e": "ERROR", "eror": "ERROR",
    "fatal": "CRITICAL", "crit": "CRITICAL", "critical": "CRITICAL", "f": "CRITICAL",
    "alert": "CRITICAL", "emerg": "CRITICAL", "emergency": "CRITICAL",
    "panic": "CRITICAL", "dpanic": "CRITICAL",
}  # fmt: skip
_BUNYAN = ((60, "CRITICAL"), (50, "ERROR"), (40, "WARNING"), (30, "INFO"), (0, "DEBUG"))
_SYSLOG = (
    "CRITICAL",
    "CRITICAL",
    "CRITICAL",
    "ERROR",
    "WARNING",
    "INFO",
    "INFO",
    "DEBUG",
)
_SERVER_ERROR, _CLIENT_ERROR = 500, 400
_MILLISECONDS = 1e11
_NANOSECONDS = 1e17


def severity_of(level: object) -> str | None:
    """Return the ``Severity`` meant by the level of any logging system, or None."""
    if isinstance(level, str):
        known = _SEVERITIES.get(level) or _SEVERITIES.get(level.strip().lower())
        if known is not None or not level.strip().isdigit():
            return known
        level = int(level)
    if isinstance(level, int | float) and not isinstance(level, bool):
        if 0 <= level < len(_SYSLOG):
            return _SYSLOG[int(level)]
        for least, name in _BUNYAN:
            if level >= least:
                return name
    return None


@dataclass(slots=True)
class Header:
    """What the first line of an entry says."""

    timestamp: datetime | None
    severity: str | None
    module: str | None
    message: str
    dated: bool = True
    trace: str | None = None
    context: dict[str, Any] = field(default_factory=dict)


_MONTHS = {
    name: number
    for number, name in enumerate(
        (
            "Jan",
            "Feb",
            "Mar",
            "Apr",
            "May",
            "Jun",
            "Jul",
            "Aug",
            "Sep",
            "Oct",
            "Nov",
            "Dec",
        ),
        start=1,
    )
}
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
_CONTEXT_GROUPS = (
    "pid",
    "tid",
    "thread",
    "request",
    "host",
    "client",
    "function",
    "place",
)


class LineParser:
    """Recognises headers; remembers which format fitted last and tries it first.

    Args:
        zone: Time zone of timestamps that name none.
        year: Year of timestamps that name none (syslog, klog).
    """

    def __init__(self, *, zone: tzinfo = UTC, year: int | None = None) -> None:
        self._zone = zone
        self._year = year or datetime.now(zone).year
        self._formats: list[tuple[str, Callable[[str], Header | None]]] = [
            ("json", self._json),
            ("apache", self._apache),
            ("syslog5424", self._syslog_5424),
            ("syslog3164", self._syslog_3164),
            ("iso", self._iso),
            ("slashed", self._slashed),
            ("klog", self._klog),
            ("access", self._access),
            ("logfmt", self._logfmt),
            ("level", self._bare),
        ]
        self._rests = list(patterns.RESTS)
        self.formats: dict[str, int] = {}

    def parse(self, line: str) -> Header | None:
        """Return what *line* says if it begins an entry, else None."""
        if not line or line[0] in " \t":
            return None
        for at, (name, parse) in enumerate(self._formats):
            header = parse(line)
            if header is not None:
                if at:
                    self._formats.insert(0, self._formats.pop(at))
                self.formats[name] = self.formats.get(name, 0) + 1
                return header
        if " | " in line and (prefix := patterns.COMPOSE.match(line)) is not None:
            header = self.parse(line[prefix.end() :])
            if header is not None:
                header.context.setdefault("service", prefix[0].split()[0])
            return header
        return None

    # --- one method per format

    def _iso(self, line: str) -> Header | None:
        stamp = patterns.STAMP.match(line)
        if stamp is None:
            return None
        at = self._time(stamp["at"], stamp["zone"])
        if at is None:
            return None
        if stamp["zone"] and stamp["at"][10] == "T":
            header = self._syslog_3164(line)
            if header is not None:
                return header
        header = self._rest(line[stamp.end() :], at)
        if stamp["file"]:
            header.context["service" if stamp["bar"] else "file"] = stamp["file"]
        return header

    def _rest(self, rest: str, at: datetime) -> Header:
        for place, (name, pattern) in enumerate(self._rests):
            found = pattern.match(rest)
            if found is None:
                continue
            if place and name not in {"near", "plain"}:
                self._rests.insert(0, self._rests.pop(place))
            groups = found.groupdict()
            message = rest[found.start("message") :]
            module = groups.get("module")
            header = Header(
                at, _SEVERITIES.get(groups["level"].lower()), module, message
            )
            for key in _CONTEXT_GROUPS:
                if groups.get(key):
                    header.context[key] = groups[key]
            return header
        found = patterns.LOWER_RESTS.match(rest)
        if found is not None:
            level = found["level"] or found["bare"]
            return Header(at, _SEVERITIES[level], None, rest[found.start("message") :])
        return Header(at, _guess(rest), None, rest)

    def _slashed(self, line: str) -> Header | None:
        found = patterns.SLASHED.match(line)
        if found is None:
            return None
        at = self._time(found["at"].replace("/", "-"), None)
        if at is None:
            return None
        header = self._rest(found["rest"], at)
        place = patterns.GO_PLACE.match(header.message)
        if place is not None:
            header.module = header.module or place["place"].rsplit(":", 1)[0]
            header.context["place"] = place["place"]
            header.message = place["message"]
        return header

    def _apache(self, line: str) -> Header | None:
        found = patterns.APACHE.match(line)
        if found is None:
            return None
        date = found["at"].split()
        at = self._month_time(date[1], date[2], date[3], int(date[4]))
        return self._header(found, at, severity_of(found["level"].rstrip("012345678")))

    def _access(self, line: str) -> Header | None:
        found = patterns.ACCESS.match(line)
        if found is None:
            return None
        try:
            at = datetime.strptime(found["at"], "%d/%b/%Y:%H:%M:%S %z")
        except ValueError:
            return None
        status = int(found["status"])
        severity = (
            "ERROR" if status >= _SERVER_ERROR
            else "WARNING" if status >= _CLIENT_ERROR
            else "INFO"
        )  # fmt: skip
        message = f'"{found["request"]}" {status}'
        return Header(
            at, severity, "access", message, context={"client": found["client"]}
        )

    def _syslog_5424(self, line: str) -> Header | None:
        found = patterns.SYSLOG_5424.match(line)
        if found is None:
            return None
        at = self._time(found["at"], None) if found["at"] != "-" else None
        severity = _SYSLOG[int(found["priority"]) & 7]
        header = self._header(found, at, severity)
        header.module = found["app"] if found["app"] != "-" else None
        header.message = found["message"] or ""
        if found["data"]:
            header.context["data"] = found["data"]
        return header

    def _syslog_3164(self, line: str) -> Header | None:
        found = patterns.SYSLOG_3164.match(line)
        if found is None or found["host"].lower() in _SEVERITIES:
            return None
        if found["iso"]:
            at = self._time(found["iso"], None)
        else:
            month, day, clock = found["at"].split()
            at = self._month_time(month, day, clock, self._year)
        if at is None:
            return None
        severity = _SYSLOG[int(found["priority"]) & 7] if found["priority"] else None
        header = self._header(found, at, severity or _guess(found["message"]))
        header.module = found["app"]
        header.dated = bool(found["iso"])
        return header

    def _klog(self, line: str) -> Header | None:
        found = patterns.KLOG.match(line)
        if found is None:
            return None
        at = self._time(
            f"{self._year}-{found['month']}-{found['day']}T{found['at']}", None
        )
        header = self._header(found, at, severity_of(found["level"]))
        header.module = found["place"].rsplit(":", 1)[0]
        header.dated = False
        return header

    def _bare(self, line: str) -> Header | None:
        found = patterns.BARE.match(line)
        if found is None:
            return None
        return self._header(found, None, severity_of(found["level"]))

    def _logfmt(self, line: str) -> Header | None:
        if patterns.LOGFMT_START.match(line) is None:
            return None
        fields: dict[str, Any] = {}
        for key, value in patterns.LOGFMT.findall(line):
            fields[key] = (
                value[1:-1].replace('\\"', '"').replace("\\n", "\n")
                if value[:1] == '"'
                else value
            )
        return self._fields(fields)

    def _json(self, line: str) -> Header | None:
        if line[0] != "{":
            return None
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        return self._fields(fields) if isinstance(fields, dict) else None

    def _fields(self, fields: dict[str, Any]) -> Header | None:
        """Read an entry that names its fields (JSON lines, logfmt, journald)."""
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

        at = self._any_time(
            take(*_TIMES)
        )  # fmt: skip
        level = take(*_LEVELS)
        message = take(
            "message", "msg", "event", "MESSAGE", "body", "text", "error", "err"
        )
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
        text = (
            str(message) if message is not None else str(trace).strip().splitlines()[-1]
        )
        return Header(
            at,
            severity_of(level) or _guess(text),
            str(module) if module is not None else None,
            text,
            trace=str(trace) if trace is not None else None,
            context={key: value for key, value in fields.items() if key not in taken},
        )

    # --- times

    def _header(
        self, found: re.Match[str], at: datetime | None, severity: str | None
    ) -> Header:
        groups = found.groupdict()
        header = Header(at, severity, groups.get("module"), groups["message"] or "")
        for key in _CONTEXT_GROUPS:
            if groups.get(key) and groups[key] != "-":
                header.context[key] = groups[key]
        return header

    def _time(self, text: str, zone: str | None) -> datetime | None:
        if zone and zone[0] in "+-":
            text += zone
        try:
            at = datetime.fromisoformat(text.replace(",", "."))
        except ValueError:
            return None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC if zone else self._zone)
        return at

    def _month_time(
        self, month: str, day: str, clock: str, year: int
    ) -> datetime | None:
        if month not in _MONTHS:
            return None
        return self._time(f"{year}-{_MONTHS[month]:02}-{int(day):02}T{clock}", None)

    def _any_time(self, value: object) -> datetime | None:
        if isinstance(value, str):
            if value.isdigit():
                value = int(value)
            else:
                return self._time(value.replace("/", "-"), None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
            if seconds > _NANOSECONDS:
                seconds /= 1e9
            elif seconds > _MILLISECONDS * 1e3:
                seconds /= 1e6
            elif seconds > _MILLISECONDS:
                seconds /= 1e3
            try:
                return datetime.fromtimestamp(seconds, UTC)
            except (OverflowError, OSError, ValueError):
                return None
        return None


def _guess(message: str) -> str:
    """Return a severity for a line that names none, from its words."""
    named = patterns.IN_MESSAGE.match(message)
    if named is not None:
        return _SEVERITIES.get(named["level"].lower(), "INFO")
    return "ERROR" if patterns.SOUNDS_BAD.search(message[:200]) else "INFO"
