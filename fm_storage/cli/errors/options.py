"""Options and forms that the commands of ``fm-storage errors`` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.text import Text

__all__ = ["MOMENT", "SEVERITIES", "filters", "severity_text"]

SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


class _Moment(click.ParamType[datetime]):
    """An age (``90s``, ``15min``, ``2h``, ``7d``, ``4w``) or an ISO 8601 time."""

    name = "age or time"

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
            return datetime.now(UTC) - timedelta(seconds=float(age[1]) * _UNITS[age[2]])
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither an age (90s, 15min, 2h, 7d, 4w) nor a time "
                "(2024-01-31, 2024-01-31T12:00)",
                param,
                ctx,
            )
        return moment if moment.tzinfo else moment.astimezone()


MOMENT = _Moment()


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
        click.option(
            "--severity",
            type=click.Choice(SEVERITIES, case_sensitive=False),
            help="Minimum severity.",
        ),
        click.option("--module", help="Only errors of this module."),
    ):
        function = option(function)
    return function


def severity_text(severity: str) -> Text:
    """Return a severity in its colour."""
    return Text(str(severity), style=_STYLES.get(str(severity), ""))
