"""Types of moments and spans: what Python and PostgreSQL mean by a time.

A time zone is where the two disagree: the driver would silently take a naive
moment for the machine's local time.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from fm_storage.repositories.model.scalar_types import Plain, Refused, classes

__all__ = ["Date", "Interval", "Time", "Timestamp"]

_zone = attrgetter("tzinfo")
_INTERVAL = re.compile(r"(-?\d{1,10}) days (\d{1,5})\.(\d{6}) secs")


class Timestamp(Plain):
    """Instants: aware for ``timestamptz``, naive for ``timestamp``."""

    wanted = "a datetime"
    exact, accepted = frozenset({dt.datetime}), (dt.datetime,)

    def __init__(self, *, aware: bool = True) -> None:
        self.aware = aware
        self.sql = "timestamptz" if aware else "timestamp"

    def encode(self, value: Any) -> Any:
        """Return *value* if it has a time zone, or must not."""
        if (
            self.aware
            and type(value) is dt.datetime
            and isinstance(value.tzinfo, dt.timezone)
        ):
            return value
        moment: dt.datetime = super().encode(value)
        if self.aware and moment.utcoffset() is None:
            raise Refused(
                "has no time zone, and the driver would take the machine's; "
                "use datetime.now(UTC)"
            )
        if not self.aware and moment.tzinfo is not None:
            raise Refused("has a time zone, which timestamp drops; use timestamptz")
        return moment

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Look at the time zones, mostly one and the same object."""
        if not self.aware or not classes(values, nullable=nullable) <= self.exact:
            return self.encode_each(values, nullable=nullable)
        try:
            zones = set(map(_zone, values))
        except AttributeError:
            zones = set(map(_zone, (value for value in values if value is not None)))
        if not all(isinstance(zone, dt.timezone) for zone in zones):
            return self.encode_each(values, nullable=nullable)
        return values

    def to_text(self, value: Any) -> str:
        """Return *value* to the microsecond."""
        return str(value.isoformat())

    def from_text(self, text: str) -> Any:
        """Return the instant."""
        return self.encode(dt.datetime.fromisoformat(text))


class Date(Plain):
    """Days."""

    sql, wanted, settled = "date", "a date", True
    exact, accepted, refused = frozenset({dt.date}), (dt.date,), (dt.datetime,)

    def from_text(self, text: str) -> Any:
        """Return the day."""
        return dt.date.fromisoformat(text)


class Time(Plain):
    """Times of day without a zone."""

    sql, wanted, settled = "time", "a time", True
    exact, accepted = frozenset({dt.time}), (dt.time,)

    def from_text(self, text: str) -> Any:
        """Return the time."""
        return dt.time.fromisoformat(text)


class Interval(Plain):
    """Durations."""

    sql, wanted, settled = "interval", "a timedelta", True
    exact, accepted = frozenset({dt.timedelta}), (dt.timedelta,)

    def to_text(self, value: Any) -> str:
        """Return days and seconds, as PostgreSQL reads them."""
        return f"{value.days} days {value.seconds}.{value.microseconds:06d} secs"

    def from_text(self, text: str) -> Any:
        """Return the duration."""
        found = _INTERVAL.fullmatch(text)
        if found is None:
            raise Refused("is not a duration")
        try:
            return dt.timedelta(*map(int, found.groups()))
        except OverflowError:
            raise Refused("is too long") from None
