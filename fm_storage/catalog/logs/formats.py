"""The first line of a log entry: which formats are recognised, and how."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any, NamedTuple

import orjson

from fm_storage.catalog.logs import patterns
from fm_storage.catalog.logs.entry import Header
from fm_storage.catalog.logs.fields import header_of_fields
from fm_storage.catalog.logs.levels import (
    SEVERITIES,
    SYSLOG,
    guess_severity,
    severity_of,
)
from fm_storage.catalog.logs.timestamps import Clock

__all__ = ["LineParser"]

_SERVER_ERROR, _CLIENT_ERROR = 500, 400
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


class _Rest(NamedTuple):
    """What may follow a timestamp, and which groups it has."""

    name: str
    match: Callable[[str], re.Match[str] | None]
    has_module: bool
    context: tuple[str, ...]


def _rest_of(name: str, pattern: re.Pattern[str]) -> _Rest:
    groups = pattern.groupindex
    context = tuple(key for key in _CONTEXT_GROUPS if key in groups)
    return _Rest(name, pattern.match, "module" in groups, context)


_RESTS = tuple(_rest_of(name, pattern) for name, pattern in patterns.RESTS)


class LineParser:
    """Recognises headers; remembers which format fitted last and tries it first.

    Args:
        zone: Time zone of timestamps that name none.
        now: When the log was last written to; now if None.
    """

    def __init__(self, *, zone: tzinfo = UTC, now: datetime | None = None) -> None:
        self._clock = Clock(zone, now or datetime.now(UTC))
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
        self._rests = list(_RESTS)
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
        stamp = patterns.PLAIN_STAMP.match(line)
        if stamp is not None:
            at = self._clock.local(stamp["at"])
            return None if at is None else self._rest(line[stamp.end() :], at)
        stamp = patterns.STAMP.match(line)
        if stamp is None:
            return None
        at = self._clock.at(stamp["at"], stamp["zone"])
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
        for place, (name, match, has_module, context) in enumerate(self._rests):
            found = match(rest)
            if found is None:
                continue
            if place and name not in {"near", "plain"}:
                self._rests.insert(0, self._rests.pop(place))
            return Header(
                at,
                SEVERITIES.get(found["level"].lower()),
                found["module"] if has_module else None,
                rest[found.start("message") :],
                context={key: found[key] for key in context if found[key]},
            )
        found = patterns.LOWER_RESTS.match(rest)
        if found is not None:
            level = found["level"] or found["bare"]
            return Header(at, SEVERITIES[level], None, rest[found.start("message") :])
        return Header(at, guess_severity(rest), None, rest)

    def _slashed(self, line: str) -> Header | None:
        found = patterns.SLASHED.match(line)
        if found is None:
            return None
        at = self._clock.at(found["at"].replace("/", "-"))
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
        at = self._clock.day(date[1], date[2], date[3], int(date[4]))
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
        at = self._clock.at(found["at"]) if found["at"] != "-" else None
        severity = SYSLOG[int(found["priority"]) & 7]
        header = self._header(found, at, severity)
        header.module = found["app"] if found["app"] != "-" else None
        header.message = found["message"] or ""
        if found["data"]:
            header.context["data"] = found["data"]
        return header

    def _syslog_3164(self, line: str) -> Header | None:
        found = patterns.SYSLOG_3164.match(line)
        if found is None or found["host"].lower() in SEVERITIES:
            return None
        if found["iso"]:
            at = self._clock.at(found["iso"])
        else:
            month, day, clock = found["at"].split()
            at = self._clock.day(month, day, clock)
        if at is None:
            return None
        severity = SYSLOG[int(found["priority"]) & 7] if found["priority"] else None
        header = self._header(found, at, severity or guess_severity(found["message"]))
        header.module = found["app"]
        header.dated = bool(found["iso"])
        return header

    def _klog(self, line: str) -> Header | None:
        found = patterns.KLOG.match(line)
        if found is None:
            return None
        at = self._clock.day(found["month"], found["day"], found["at"])
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
        return header_of_fields(fields, self._clock)

    def _json(self, line: str) -> Header | None:
        if line[0] != "{":
            return None
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        return (
            header_of_fields(fields, self._clock) if isinstance(fields, dict) else None
        )

    def _header(
        self, found: re.Match[str], at: datetime | None, severity: str | None
    ) -> Header:
        groups = found.groupdict()
        header = Header(at, severity, groups.get("module"), groups["message"] or "")
        for key in _CONTEXT_GROUPS:
            if groups.get(key) and groups[key] != "-":
                header.context[key] = groups[key]
        return header
