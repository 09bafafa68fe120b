"""Timestamps of all log formats.

Zone and year, where a line names none, are the same for a whole log.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

_MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}  # fmt: skip
_MILLISECONDS = 1e11
_NANOSECONDS = 1e17


# Zones that logs name, in hours; where a name has two meanings, the commoner one.
_ZONES = {
    "Z": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2,
    "EET": 2, "EEST": 3, "MSK": 3, "IST": 5.5, "SGT": 8, "HKT": 8, "JST": 9, "KST": 9,
    "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13, "EDT": -4, "EST": -5, "CDT": -5,
    "CST": -6, "MDT": -6, "MST": -7, "PDT": -7, "PST": -8,
}  # fmt: skip
ZONE = rf"(?:{'|'.join(_ZONES)}|[+-]\d\d(?::?\d\d)?)\b"
"""What follows a time of day and names its zone."""

_WEB = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d{4})")
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_LEAP_CYCLE = 8  # years from one 29 February to the next, at most


class Clock:
    """Reads timestamps; None stands for what is none.

    Args:
        zone: Time zone of timestamps that name none.
        now: When the log was last written to. A time that names no year (syslog,
            klog) is the latest such time before it, with a day's tolerance.
    """

    def __init__(self, zone: tzinfo, now: datetime) -> None:
        self._zone = zone
        self._latest = now + _DAY
        # Read with the text, a zone costs a third of adding it afterwards.
        self._suffix = "+00:00" if zone is UTC else ""

    def at(self, text: str, zone: str | None = None) -> datetime | None:
        """Read an ISO timestamp, and its zone if that was found separately."""
        text = text.replace(",", ".")
        if zone and zone[0] in "+-":
            text += zone
        at = _from_iso(text)
        if at is not None and at.tzinfo is None:
            hours = _ZONES.get(zone) if zone else None
            if hours is not None:
                return at.replace(tzinfo=timezone(timedelta(hours=hours)))
            if zone and "/" in zone:
                with contextlib.suppress(ValueError, OSError):
                    return at.replace(tzinfo=ZoneInfo(zone))
            at = at.replace(tzinfo=self._zone)
        return at

    def local(self, text: str) -> datetime | None:
        """Read an ISO timestamp without a zone."""
        at = _from_iso(text.replace(",", ".") + self._suffix)
        if at is None or at.tzinfo is not None:
            return at
        return at.replace(tzinfo=self._zone)

    def day(
        self,
        month: str,
        day: str,
        clock: str,
        year: int | None = None,
        zone: str | None = None,
    ) -> datetime | None:
        """Read a day of a month, which is a number or named by its first letters."""
        number = int(month) if month.isdecimal() else _MONTHS.get(month[:3].title())
        if number is None:
            return None
        rest = f"-{number:02}-{int(day):02}T{clock}"
        if year is not None:
            return self.at(f"{year:04}{rest}", zone)
        newest = self._latest.year
        for one in range(newest, newest - _LEAP_CYCLE - 1, -1):
            at = self.at(f"{one}{rest}", zone)
            if at is not None and at <= self._latest:
                return at
        return None

    def today(self, clock: str) -> datetime | None:
        """Read a time of day without a day: the last such time."""
        newest = (self._latest - _DAY).astimezone(self._zone)
        at = self.at(f"{newest:%Y-%m-%d}T{clock}")
        return at - _DAY if at is not None and at > newest + _SECOND else at

    def any(self, value: object) -> datetime | None:
        """Read a timestamp of JSON: text, or seconds to nanoseconds since 1970."""
        if isinstance(value, str):
            if value.isdecimal():
                value = float(value)
            elif (named := _WEB.fullmatch(value)) is not None:
                day, month, year, clock, zone = named.groups()
                return self.day(month, day, clock, int(year), zone)
            else:
                text, _, zone = value.replace("/", "-").rpartition(" ")
                if zone in _ZONES:
                    return self.at(text, zone)
                return self.at(value.replace("/", "-"))
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError, OSError, ValueError):
                seconds = float(value)
                if seconds > _NANOSECONDS:
                    seconds /= 1e9
                elif seconds > _MILLISECONDS * 1e3:
                    seconds /= 1e6
                elif seconds > _MILLISECONDS:
                    seconds /= 1e3
                return datetime.fromtimestamp(seconds, UTC)
        return None


def _from_iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        if ":60" not in text:
            return None
    with contextlib.suppress(ValueError, OverflowError):  # a leap second
        return datetime.fromisoformat(text.replace(":60", ":59")) + _SECOND
    return None
