"""The first line of a log entry: which formats are recognised, and how."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any, NamedTuple, overload

from fm_storage.catalog.logs import patterns
from fm_storage.catalog.logs.entry import Header
from fm_storage.catalog.logs.fields import header_of_fields, json_of
from fm_storage.catalog.logs.levels import (
    SEVERITIES,
    SYSLOG,
    guess_severity,
    severity_of,
    severity_of_status,
)
from fm_storage.catalog.logs.patterns import Format
from fm_storage.catalog.logs.timestamps import Clock
from fm_storage.errors import InvalidRecord

_DATES = frozenset({"at", "year", "epoch"})
_TIMES = _DATES | {"month", "day", "clock", "hour", "minute", "second", "half"}
_TAKEN = _TIMES | {"zone", "level", "priority", "module", "app", "message", "status"}
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


def pattern_from(given: re.Pattern[str] | str | None) -> re.Pattern[str] | None:
    """Return the pattern of an application's own format.

    Raises:
        InvalidRecord: It is no regular expression, or has no group *message*.
    """
    if given is None:
        return None
    try:
        pattern = re.compile(given)
    except re.error as exc:
        raise InvalidRecord(
            f"format {given!r}: it is no regular expression ({exc})", field="format"
        ) from None
    if "message" not in pattern.groupindex:
        raise InvalidRecord(
            f"format {pattern.pattern!r}: it has no group 'message'; write "
            "(?P<message>.*) where the message is",
            field="format",
        )
    return pattern


class LineParser:
    """Recognises headers; remembers which format fitted last and tries it first.

    Args:
        zone: Time zone of timestamps that name none.
        now: When the log was last written to; now if None.
        format: A pattern of the application's own, tried first; see ``Format``.
    """

    def __init__(
        self,
        *,
        zone: tzinfo = UTC,
        now: datetime | None = None,
        format: re.Pattern[str] | None = None,
    ) -> None:
        self._clock = Clock(zone, now or datetime.now(UTC))
        given = () if format is None else (Format("given", format, ""),)
        self._given = format
        telling = [*given, *patterns.FORMATS]
        self._formats: list[tuple[str, Callable[[str], Header | None]]] = [
            *[(one.name, partial(self._match, one)) for one in telling],
            ("json", self._json),
            ("syslog5424", self._syslog_5424),
            ("syslog3164", self._syslog_3164),
            ("iso", self._iso),
            ("dated", self._dated),
            ("logfmt", self._logfmt),
            ("level", self._bare),
        ]
        self._rests = list(_RESTS)
        self.formats: dict[str, int] = {}

    def time(self, text: str) -> datetime | None:
        """Return the time that the runtime of a container gives to a line."""
        return self._clock.any(text)

    def parse(self, line: str) -> Header | None:
        """Return what *line* says if it begins an entry, else None."""
        if not line or line[0] in " \t":
            if (indent := patterns.INDENTED.match(line)) is None:
                return None
            line = line[indent.end() :]
        for at, (name, parse) in enumerate(self._formats):
            header = parse(line)
            if not at and header is None and not self._may_begin(line):
                break
            if header is not None:
                if at:
                    self._formats.insert(0, self._formats.pop(at))
                self.formats[name] = self.formats.get(name, 0) + 1
                return header
        if (" | " in line or line.startswith("[pod/")) and (
            prefix := patterns.COMPOSE.match(line)
        ) is not None:
            header = self.parse(line[prefix.end() :])
            if header is not None:
                header.context.setdefault("service", prefix["service"] or prefix["pod"])
            return header
        return None

    def _may_begin(self, line: str) -> bool:
        if patterns.HEADERS.match(line) is not None:
            return True
        return self._given is not None and self._given.match(line) is not None

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

    @overload
    def _rest(self, rest: str, at: datetime) -> Header: ...
    @overload
    def _rest(self, rest: str, at: datetime, *, level: bool) -> Header | None: ...
    def _rest(self, rest: str, at: datetime, *, level: bool = False) -> Header | None:
        """Return what follows a time; None if it has no *level* and must have one."""
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
            severity = SEVERITIES[(found["level"] or found["bare"]).lower()]
            return Header(at, severity, None, rest[found.start("message") :])
        return None if level else Header(at, guess_severity(rest), None, rest)

    def _dated(self, line: str) -> Header | None:
        for pattern, alone in patterns.STAMPS:
            found = pattern.match(line)
            if found is None:
                continue
            groups = {key: value for key, value in found.groupdict().items() if value}
            at = self._time(groups)
            if at is None:
                continue
            header = self._rest(line[found.end() :], at, level=not alone)
            if header is None:
                continue
            header.dated = not _DATES.isdisjoint(groups)
            if "pid" in groups:
                header.context["pid"] = groups["pid"]
            place = patterns.GO_PLACE.match(header.message)
            if place is not None:
                header.module = header.module or place["place"].rsplit(":", 1)[0]
                header.context["place"] = place["place"]
                header.message = place["message"]
            return header
        return None

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
        if found is None or (found["host"] or "").lower() in SEVERITIES:
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
        fields = json_of(line)
        return None if fields is None else header_of_fields(fields, self._clock)

    def _match(self, one: Format, line: str) -> Header | None:
        found = one.pattern.match(line)
        if found is None:
            return None
        groups = {key: value for key, value in found.groupdict().items() if value}
        at = self._time(groups)
        if at is None and not _TIMES.isdisjoint(groups):
            return None  # only looked like a time
        status = groups.get("status")
        message = groups.pop("message", "")
        if status is not None and not message:
            message = f'"{groups.pop("request", "")}" {status}'
        if "level" in groups:
            severity = severity_of(groups["level"].rstrip("012345678"))
        elif "priority" in groups:
            severity = SYSLOG[int(groups["priority"]) & 7]
        elif status is not None:
            severity = severity_of_status(int(status))
        else:
            severity = guess_severity(message) if message else None
        module = groups.get("module") or groups.get("app")
        return Header(
            at,
            severity,
            module or ("access" if status is not None else None),
            message,
            dated=at is not None and not _DATES.isdisjoint(groups),
            context={key: groups[key] for key in groups.keys() - _TAKEN},
        )

    def _time(self, groups: dict[str, str]) -> datetime | None:
        zone = groups.get("zone")
        if "at" in groups:
            return self._clock.at(groups["at"].replace("/", "-"), zone)
        if "epoch" in groups:
            return self._clock.any(float(groups["epoch"]))
        if "hour" not in groups and "clock" not in groups:
            return None
        clock = groups.get("clock") or ":".join(
            groups[part].zfill(2) for part in ("hour", "minute", "second")
        )
        hour, _, rest = clock.partition(":")
        if half := groups.get("half"):
            hour = str(int(hour) % 12 + 12 * (half == "PM"))
        if "month" not in groups:
            return self._clock.today(f"{hour.zfill(2)}:{rest}")
        year = groups.get("year")
        full = None if year is None else int(year) + 2000 * (len(year) < 4)
        clock = f"{hour.zfill(2)}:{rest}"
        return self._clock.day(groups["month"], groups["day"], clock, full, zone)

    def _header(
        self, found: re.Match[str], at: datetime | None, severity: str | None
    ) -> Header:
        groups = found.groupdict()
        header = Header(at, severity, groups.get("module"), groups["message"] or "")
        for key in _CONTEXT_GROUPS:
            if groups.get(key) and groups[key] != "-":
                header.context[key] = groups[key]
        return header
