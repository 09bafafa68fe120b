"""Lists of errors: a table on a wide terminal, else one error below the other.

A program gets lines: whole texts, tabs between them, so that grep, cut and sort
find what they look for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import ago, console, plain
from fm_storage.cli.errors.options import severity_text
from fm_storage.repositories import ErrorEntry

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorGroup, Origin
    from fm_storage.catalog.query.states import GroupState

_WIDE = 100
_MODULE, _TEXT = 28, 44
"""Characters of a module and of a message in a table."""
_OLD = timedelta(days=60)
_STATES = {"open": "", "resolved": "green", "muted": "dim", "regressed": "bold red"}
_BREAK = re.compile(r"[\t\n]+")

Row = tuple[Text, Text, Text, Text, Text]
"""What it is called first (a count, a time), severity, module, text, id or age."""


def print_rows(
    titles: Sequence[str], rows: Iterable[Row], *, whole: bool = False
) -> None:
    """Print rows under *titles*; *whole*: the last column is never broken."""
    out = console()
    if not out.is_terminal:
        for row in rows:
            cells = (_BREAK.sub(" ", cell.plain).strip() for cell in row)
            click.echo("\t".join(cells))
        return
    if out.width < _WIDE:
        for first, severity, module, text, last in rows:
            head = Text(" ").join((first, severity, module))
            out.print(head, soft_wrap=True)
            out.print(Text("  ") + text, soft_wrap=True)
            out.print(Text("  ") + last, style="dim", soft_wrap=True)
        return
    table = Table(*titles[:4], box=None)
    table.add_column(titles[4], no_wrap=True, min_width=36 if whole else None)
    for first, severity, module, text, last in rows:
        table.add_row(
            first,
            severity,
            plain(module, limit=_MODULE),
            plain(text, limit=_TEXT),
            last,
        )
    out.print(table)


def state_text(group: ErrorGroup | GroupState) -> Text:
    """Return the state of a group, with the end of its muting."""
    until = group.until if isinstance(group, tuple) else group.muted_until
    shown = group.state + (f" until {until:%Y-%m-%d %H:%M}" if until else "")
    return Text(shown, style=_STATES[group.state])


def latest_row(entry: ErrorEntry, state: GroupState | None = None) -> Row:
    """Return the row of one error, with its id and the state of its group."""
    return (
        Text(f"{entry.timestamp:%Y-%m-%d %H:%M:%S}"),
        severity_text(entry.severity),
        plain(entry.module),
        plain(entry.message),
        Text(str(entry.id)) + (Text("  ") + state_text(state) if state else Text()),
    )


def print_entry(entry: ErrorEntry, origin: Origin | None = None) -> None:
    """Print one error with where it came from, its context and trace."""
    out = console()
    names = ("id", "timestamp", "severity", "module", "error_code")
    known = {} if origin is None else origin._asdict()
    for name, value in {**{one: getattr(entry, one) for one in names}, **known}.items():
        if value is not None:
            line = Text(f"{name:<12}", style="dim") + plain(value)
            out.print(line, soft_wrap=True)
    out.print()
    out.print(plain(entry.message), soft_wrap=True)
    for key, value in (entry.manager_context or {}).items():
        out.print(Text("  ") + plain(key) + Text(" = ") + plain(value), soft_wrap=True)
    if entry.stack_trace:
        out.print()
        out.print(plain(entry.stack_trace), soft_wrap=True)


def say_nothing(*, filtered: bool) -> None:
    """Print on standard error why nothing is shown, and what would show something."""
    if filtered:
        text = "no error matches; fewer or wider filters show more"
    else:
        text = (
            "the catalogue is empty; 'fm-storage errors ingest LOG' puts a log into it"
        )
    click.echo(text, err=True)


def when(moment: datetime) -> str:
    """Return how long ago *moment* was, or its date if that is months."""
    if datetime.now(UTC) - moment > _OLD:
        return f"{moment:%Y-%m-%d}"
    return ago(moment)
