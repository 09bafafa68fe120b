"""Options and forms that the commands of ``fm-storage errors`` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click
from rich.text import Text

F = TypeVar("F", bound=Callable[..., Any])
SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


class _Moment(click.ParamType[datetime]):
    """An age (``90s``, ``15min``, ``2h``, ``7d``, ``4w``) or an ISO 8601 time.

    *ahead*: the span leads from now into the future instead, and so must a time.
    """

    name = "age or time"

    def __init__(self, *, ahead: bool = False) -> None:
        self._ahead = ahead

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """Return the moment, aware."""
        if isinstance(value, datetime):
            return value
        age = _AGE.fullmatch(value)
        if age is not None:
            try:
                span = timedelta(seconds=float(age[1]) * _UNITS[age[2]])
                return datetime.now(UTC) + (span if self._ahead else -span)
            except OverflowError:
                self.fail(
                    f"{value!r} is beyond all time; give a shorter one", param, ctx
                )
        try:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither an age (90s, 15min, 2h, 7d, 4w) nor a time "
                "(2024-01-31, 2024-01-31T12:00)",
                param,
                ctx,
            )
        if self._ahead and moment <= datetime.now(UTC):
            self.fail(f"{value!r} has passed; give a later time", param, ctx)
        return moment


class _Zone(click.ParamType[tzinfo]):
    """A time zone: ``Europe/Berlin``, ``UTC``, or an offset such as ``+02:00``."""

    name = "zone"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tzinfo:
        """Return the zone."""
        if isinstance(value, tzinfo):
            return value
        try:
            if value[:1] in "+-":
                return datetime.strptime(value, "%z").tzinfo or UTC
            return ZoneInfo(value)
        except (ValueError, OSError, KeyError):
            self.fail(
                f"{value!r} is no time zone; give a name (Europe/Berlin) or an offset "
                "(+02:00)",
                param,
                ctx,
            )


MOMENT = _Moment()
AHEAD = _Moment(ahead=True)
ZONE = _Zone()


def severity_option(text: str = "Minimum severity.") -> Callable[[F], F]:
    """Return the option ``--severity``, explained by *text*."""
    kinds = click.Choice(SEVERITIES, case_sensitive=False)
    return click.option("--severity", type=kinds, help=text)


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--module --severity --since --limit``."""
    for option in (
        click.option(
            "--limit",
            "-n",
            type=click.IntRange(min=1),
            default=20,
            show_default=True,
            help="Maximum number of rows.",
        ),
        click.option("--since", type=MOMENT, help="Beginning: 2h, 7d, or a time."),
        severity_option(),
        click.option("--module", help="Only errors of this module."),
    ):
        function = option(function)
    return function


def severity_text(severity: str) -> Text:
    """Return a severity in its colour."""
    return Text(str(severity), style=_STYLES.get(str(severity), ""))
