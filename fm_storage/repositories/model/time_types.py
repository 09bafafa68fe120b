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

_zone = attrgetter("tzinfo")
_INTERVAL = re.compile(r"(-?\d{1,10}) days (\d{1,5})\.(\d{6}) secs")


_INFINITE = (
    dt.datetime.min.replace(tzinfo=dt.UTC),
    dt.datetime.max.replace(tzinfo=dt.UTC),
)
_DRIVERS_INFINITE = tuple(moment.replace(tzinfo=None) for moment in _INFINITE)
_INFINITE_TEXTS: dict[dt.date, str] = {
    _DRIVERS_INFINITE[0]: "-infinity",
    _DRIVERS_INFINITE[1]: "infinity",
    dt.date.min: "-infinity",
    dt.date.max: "infinity",
}
_OF_TEXT = dict(zip(("-infinity", "infinity"), _DRIVERS_INFINITE, strict=True))
_END_YEARS = frozenset({dt.MINYEAR, dt.MAXYEAR})


class Timestamp(Plain):
    """Instants: aware for ``timestamptz``, naive for ``timestamp``.

    ``infinity`` and ``-infinity`` are ``datetime.max`` and ``datetime.min``, in UTC
    where instants are aware.
    """

    wanted = "a datetime"
    exact, accepted = frozenset({dt.datetime}), (dt.datetime,)
    given = exact

    def __init__(self, *, aware: bool = True) -> None:
        self.aware = aware
        self.sql = "timestamptz" if aware else "timestamp"

        if aware:
            self.decode, self.decode_if = _infinite, "{0}.tzinfo is None"

    def encode(self, value: Any) -> Any:
        """Return *value* if it has a time zone, or must not."""
        if (
            self.aware
            and type(value) is dt.datetime
            and isinstance(value.tzinfo, dt.timezone)
            and value.year not in _END_YEARS
        ):
            return value
        moment: dt.datetime = super().encode(value)
        if self.aware and moment in _INFINITE:
            return moment.replace(tzinfo=None)  # the driver's own pair
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
        years = {value.year for value in values if value is not None}
        if not all(isinstance(zone, dt.timezone) for zone in zones) or (
            not years.isdisjoint(_END_YEARS)
        ):
            return self.encode_each(values, nullable=nullable)
        return values

    def to_text(self, value: Any) -> str:
        """Return *value* to the microsecond."""
        infinite = None if value.tzinfo else _INFINITE_TEXTS.get(value)
        return infinite or str(value.isoformat())

    def from_text(self, text: str) -> Any:
        """Return the instant."""
        infinite = _OF_TEXT.get(text)
        return infinite or self.encode(dt.datetime.fromisoformat(text))

    def beyond(self, name: str) -> str:
        """Return the condition of other years than 1 to 9999."""
        return _beyond(name, " 00:00+00" if self.aware else "")


def _beyond(name: str, zone: str = "") -> str:
    return (
        f"(isfinite({name}) AND ({name} < '0001-01-01{zone}' "
        f"OR {name} >= '10000-01-01{zone}'))"
    )


def _infinite(moment: dt.datetime) -> dt.datetime:
    """Return an infinity, which the driver gives without a zone, as aware."""
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


class Date(Plain):
    """Days."""

    sql, wanted, settled = "date", "a date", True
    exact, accepted, refused = frozenset({dt.date}), (dt.date,), (dt.datetime,)
    given = exact

    def to_text(self, value: Any) -> str:
        """Return the day."""
        return _INFINITE_TEXTS.get(value) or str(value)

    def from_text(self, text: str) -> Any:
        """Return the day."""
        if text in _OF_TEXT:
            return _OF_TEXT[text].date()
        return dt.date.fromisoformat(text)

    def beyond(self, name: str) -> str:
        """Return the condition of other years than 1 to 9999."""
        return _beyond(name)


_ZONELESS = re.compile(r"time ?(\(\d\))?( without time zone)?")


class Time(Plain):
    """Times of day; what another type than ``time`` does with a zone is its affair."""

    sql, wanted = "time", "a time"
    exact, accepted = frozenset({dt.time}), (dt.time,)
    given = exact

    def encode(self, value: Any) -> Any:
        """Return *value*, which has no time zone if the column would drop it."""
        if super().encode(value).tzinfo and _ZONELESS.fullmatch(self.sql):
            raise Refused(
                "has a time zone, which time drops; use timetz, declared as "
                'Column(type="timetz")'
            )
        return value

    def encode_many(
        self, values: Sequence[Any], *, nullable: bool = True
    ) -> Sequence[Any]:
        """Look at each one's time zone."""
        return self.encode_each(values, nullable=nullable)

    def from_text(self, text: str) -> Any:
        """Return the time."""
        return dt.time.fromisoformat(text)

    def beyond(self, name: str) -> str:
        """Return the condition of the end of the day."""
        return f"{name}::time = '24:00'"


class TimeWithZone(Time):
    """Times of day with an offset of whole minutes: the driver drops its seconds."""

    sql = "timetz"

    def encode(self, value: Any) -> Any:
        """Return *value* if its offset can be stored."""
        offset = super().encode(value).utcoffset()
        if offset is None:
            raise Refused("has no offset from UTC; give it one, as tzinfo=UTC")
        if offset % _MINUTE or abs(offset) >= 16 * 60 * _MINUTE:
            raise Refused(
                f"is {offset} from UTC; use an offset of whole minutes, below 16 hours"
            )
        return value


_MINUTE = dt.timedelta(minutes=1)


class Interval(Plain):
    """Durations."""

    sql, wanted, settled = "interval", "a timedelta", True
    exact, accepted = frozenset({dt.timedelta}), (dt.timedelta,)
    given = exact

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

    def beyond(self, name: str) -> str:
        """Return the condition of more than 999,999,999 days, months being 30."""
        return f"(NOT isfinite({name}) OR abs(extract(epoch FROM {name})) > 8.64e13)"
