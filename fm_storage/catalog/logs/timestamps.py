"""Timestamps of all log formats.

Zone and year, where a line names none, are the same for a whole log.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

__all__ = ["Clock"]

_MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}  # fmt: skip
_MILLISECONDS = 1e11
_NANOSECONDS = 1e17


class Clock:
    """Reads timestamps; None stands for what is none.

    Args:
        zone: Time zone of timestamps that name none.
        year: Year of timestamps that name none (syslog, klog).
    """

    def __init__(self, zone: tzinfo, year: int) -> None:
        self.year = year
        self._zone = zone
        # Read with the text, a zone costs a third of adding it afterwards.
        self._suffix = "+00:00" if zone is UTC else ""

    def at(self, text: str, zone: str | None = None) -> datetime | None:
        """Read an ISO timestamp, and its zone if that was found separately."""
        if zone and zone[0] in "+-":
            text += zone
        try:
            at = datetime.fromisoformat(text.replace(",", "."))
        except ValueError:
            return None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC if zone else self._zone)
        return at

    def local(self, text: str) -> datetime | None:
        """Read an ISO timestamp without a zone."""
        try:
            at = datetime.fromisoformat(text.replace(",", ".") + self._suffix)
        except ValueError:
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=self._zone)

    def day(
        self, month: str, day: str, clock: str, year: int | None = None
    ) -> datetime | None:
        """Read a day of a month that is named by its first letters."""
        if month not in _MONTHS:
            return None
        year = self.year if year is None else year
        return self.at(f"{year}-{_MONTHS[month]:02}-{int(day):02}T{clock}")

    def any(self, value: object) -> datetime | None:
        """Read a timestamp of JSON: text, or seconds to nanoseconds since 1970."""
        if isinstance(value, str):
            if value.isdigit():
                value = int(value)
            else:
                return self.at(value.replace("/", "-"))
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
