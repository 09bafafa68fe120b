"""How the report spells times and spans.

Apart, because the page and its charts spell them alike.
"""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = ["spell_span", "spell_time"]

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def spell_time(moment: datetime, step: timedelta | None = None) -> str:
    """Return a time as exactly as *step* (the distance to the next one) asks."""
    if step and step >= _DAY:
        return f"{moment:%Y-%m-%d}"
    if step and step >= _MINUTE:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def spell_span(span: timedelta) -> str:
    """Return a span in the largest unit of which there are two, or exactly one."""
    seconds = span.total_seconds()
    for size, unit in _UNITS:
        if seconds >= 2 * size or seconds == size:
            number = round(seconds / size)
            return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
    return f"{seconds:.3g} seconds"
