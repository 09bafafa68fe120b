"""One check of the arguments that every verb takes, before anything is taken."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from fm_storage.errors import ConfigurationInvalid

T = TypeVar("T")

_LONGEST = 1e8
"""Three years: longer timers overflow somewhere below, and mean for ever."""
_POSITION = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")


def of_kind(
    value: object, kind: type[object] | tuple[type[object], ...], name: str, remedy: str
) -> None:
    """Refuse *value* unless it is a *kind*.

    Raises:
        ConfigurationInvalid: It is none; the message ends in *remedy*.
    """
    if not isinstance(value, kind):
        raise ConfigurationInvalid(name, f"is a {type(value).__name__}; {remedy}")


def function(value: object, name: str) -> None:
    """Refuse *value* unless it can be called.

    Raises:
        ConfigurationInvalid: It cannot.
    """
    if not callable(value):
        raise ConfigurationInvalid(
            name, f"is a {type(value).__name__}; give a function"
        )


def awaitable(made: Awaitable[T], name: str, remedy: str) -> Awaitable[T]:
    """Return *made*, which the function *name* has returned.

    Raises:
        ConfigurationInvalid: It cannot be awaited; the message ends in *remedy*.
    """
    if not inspect.isawaitable(made):
        raise ConfigurationInvalid(
            name, f"it returned a {type(made).__name__}, not an awaitable; {remedy}"
        )
    return made


def names_of(columns: object) -> None:
    """Refuse what is no list of names; one name is none.

    Raises:
        ConfigurationInvalid: See above.
    """
    remedy = "give a list of names"
    of_kind(columns, Iterable, "columns", remedy)
    if isinstance(columns, (str, bytes)):
        raise ConfigurationInvalid("columns", f"is one name; {remedy}")


def seconds(value: float, name: str = "timeout") -> float:
    """Return *value* as a number of seconds; ``math.inf`` is for ever.

    Raises:
        ConfigurationInvalid: It is no number of seconds.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationInvalid(
            name,
            f"is a {type(value).__name__}; give seconds as a number, math.inf for "
            "ever, or None for the default",
        )
    if value != value:  # noqa: PLR0124 - math.isnan() has no room for a long int
        raise ConfigurationInvalid(name, "is not a number (NaN); give seconds")
    return math.inf if value > _LONGEST else float(max(value, -_LONGEST))


def at_least_one(value: int, name: str) -> int:
    """Return *value*, a count.

    Raises:
        ConfigurationInvalid: It is no whole number, or below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationInvalid(
            name, f"is a {type(value).__name__}; give a whole number"
        )
    if value < 1:
        raise ConfigurationInvalid(name, f"{value} is below 1; give at least 1")
    return value


def check_position(value: object) -> None:
    """Refuse what is no place in the server's log.

    Raises:
        ConfigurationInvalid: It is none.
    """
    if not isinstance(value, str) or not _POSITION.fullmatch(value):
        raise ConfigurationInvalid(
            "after", f"{value!r} is no position; give what position() returns"
        )
