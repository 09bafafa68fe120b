"""Checks of limits, times and spans, the same for every question."""

from __future__ import annotations

from datetime import datetime, timedelta

from fm_storage.errors import InvalidRecord

_LONGEST = timedelta(days=36_525)


def refuse_unclear(limit: int = 1, **times: datetime | None) -> None:
    """Refuse a number that asks for nothing, and a time of no known zone.

    Raises:
        InvalidRecord: Naming which, and what to give.
    """
    if not isinstance(limit, int) or limit < 1:
        raise InvalidRecord(
            f"limit is {limit!r}; give an integer from 1", field="limit"
        )
    for name, moment in times.items():
        if moment is not None and getattr(moment, "tzinfo", None) is None:
            raise InvalidRecord(
                f"{name} is {moment}, without a zone; give a time with one "
                "(datetime.now(UTC) - timedelta(days=7))",
                field=name,
            )


def span_of(given: timedelta | float, name: str) -> timedelta:
    """Return a span that may be given in seconds.

    Raises:
        InvalidRecord: It is none, not longer than nothing, or longer than a century.
    """
    try:
        span = given if isinstance(given, timedelta) else timedelta(seconds=given)
    except (TypeError, ValueError, OverflowError):
        span = timedelta()
    if not timedelta() < span <= _LONGEST:
        raise InvalidRecord(
            f"{name} is {given!r}; give a timedelta or seconds, above 0 and at most "
            "a century",
            field=name,
        )
    return span
