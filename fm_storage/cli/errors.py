"""``fm-storage errors``: look at the catalogue, and put logs into it."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    ago,
    console,
    json_option,
    plain,
    print_json,
    with_storage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fm_storage.catalog import ErrorGroup, IngestReport, SimilarEntry
    from fm_storage.manager import StorageManager
    from fm_storage.repositories import ErrorEntry

__all__ = ["errors"]

_SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}

_EPILOG = """\b
Examples:
  fm-storage errors ingest server.log        put a log into the catalogue
  fm-storage errors groups --since 1d        what happened most since yesterday
  fm-storage errors similar 'read timeout'   errors that look like this text
  fm-storage errors show 01a1ffd8-…          one error, with its trace
"""


class _Moment(click.ParamType[datetime]):
    """An age (``90s``, ``15min``, ``2h``, ``7d``, ``4w``) or an ISO 8601 time."""

    name = "age or time"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click calls it
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
            self.fail(f"{value!r} is neither an age (2h, 7d) nor a time", param, ctx)
        return moment if moment.tzinfo else moment.astimezone()


_MOMENT = _Moment()


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--module --severity --since --limit``."""
    for option in (
        click.option("--limit", "-n", default=20, show_default=True, help="At most."),
        click.option("--since", type=_MOMENT, help="2h, 7d, or a time."),
        click.option(
            "--severity",
            type=click.Choice(_SEVERITIES, case_sensitive=False),
            help="At least so bad.",
        ),
        click.option("--module", help="Only this module."),
    ):
        function = option(function)
    return function


@click.group(epilog=_EPILOG)
def errors() -> None:
    """List, show, ingest, group and compare recorded errors."""


@errors.command("list")
@_filters
@json_option
@click.pass_obj
def list_errors(
    settings: Settings,
    *,
    module: str | None,
    severity: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the latest errors, newest first."""

    async def job(storage: StorageManager) -> list[ErrorEntry]:
        from fm_storage.catalog.latest import fetch_latest  # noqa: PLC0415 - lazy

        return await fetch_latest(
            storage.pool, limit=limit, module=module, severity=severity, since=since
        )

    found = with_storage(settings, job, qdrant=None)
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in found])
        return
    _print_entries(found)


@errors.command()
@click.argument("error_id", type=click.UUID)
@json_option
@click.pass_obj
def show(
    settings: Settings,
    *,
    error_id: UUID,
    as_json: bool,
) -> None:
    """Show one error with its context and trace."""

    async def job(storage: StorageManager) -> ErrorEntry:
        return await storage.error_entries.get_by_id(error_id)

    entry = with_storage(settings, job, qdrant=None)
    if as_json:
        print_json(dataclasses.asdict(entry))
        return
    out = console()
    for name in ("id", "timestamp", "severity", "module", "error_code"):
        out.print(Text(f"{name:<11}", style="dim") + plain(getattr(entry, name)))
    out.print()
    out.print(plain(entry.message))
    for key, value in (entry.manager_context or {}).items():
        out.print(Text("  ") + plain(key) + Text(" = ") + plain(value))
    if entry.stack_trace:
        out.print()
        out.print(plain(entry.stack_trace))


@errors.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.option("--source", help="Name of the log; its file name by default.")
@click.option("--module", help="Module of entries that name none.")
@click.option(
    "--severity",
    type=click.Choice(_SEVERITIES, case_sensitive=False),
    help="Leave out entries that are less bad.",
)
@json_option
@click.pass_obj
def ingest(
    settings: Settings,
    *,
    log: str,
    source: str | None,
    module: str | None,
    severity: str | None,
    as_json: bool,
) -> None:
    """Put the entries of LOG into the catalogue; again adds nothing.

    Timestamped lines of the common formats, multi-line traces, JSON lines, syslog;
    packed with gzip, bzip2 or xz if you like. Interrupted, it keeps what it has.
    """

    async def job(storage: StorageManager) -> IngestReport:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(*columns, console=console(), transient=True) as bar:
            task = bar.add_task("reading", total=None)

            def progress(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)

            async with ErrorManager(storage) as manager:
                return await manager.ingest(
                    log,
                    source=source,
                    module=module,
                    severity=severity,
                    progress=None if as_json else progress,
                )

    report = with_storage(settings, job)
    if as_json:
        print_json({**dataclasses.asdict(report), "duplicates": report.duplicates})
        return
    out = console()
    out.print(plain(report), soft_wrap=True)
    if report.samples:
        out.print(Text("not recognised, for example:", style="dim"))
        for sample in report.samples:
            out.print(Text("  ") + plain(sample, limit=100))


@errors.command()
@_filters
@click.option(
    "--order",
    type=click.Choice(("count", "last_seen", "first_seen")),
    default="count",
    show_default=True,
)
@json_option
@click.pass_obj
def groups(
    settings: Settings,
    *,
    module: str | None,
    severity: str | None,
    since: datetime | None,
    limit: int,
    order: Any,  # noqa: ANN401 - one of the choices
    as_json: bool,
) -> None:
    """List groups of equal errors, the commonest first."""

    async def job(storage: StorageManager) -> list[ErrorGroup]:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        async with ErrorManager(storage) as manager:
            return await manager.groups(
                module=module, severity=severity, since=since, limit=limit, order=order
            )

    found = with_storage(settings, job, qdrant=None)
    if as_json:
        print_json([dataclasses.asdict(group) for group in found])
        return
    table = Table("count", "severity", "module", "message", "last", box=None)
    for group in found:
        table.add_row(
            Text(str(group.count), justify="right"),
            _severity(group.severity),
            plain(group.module, limit=32),
            plain(group.template, limit=60),
            ago(group.last_seen),
        )
    _print_or_say(table, found)


@errors.command()
@click.argument("text")
@_filters
@json_option
@click.pass_obj
def similar(
    settings: Settings,
    *,
    text: str,
    module: str | None,
    severity: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List errors like TEXT, which may also be the id of an error."""

    async def job(storage: StorageManager) -> list[SimilarEntry]:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        question: ErrorEntry | str = text
        if _is_uuid(text):
            question = await storage.error_entries.get_by_id(UUID(text))
        async with ErrorManager(storage) as manager:
            return await manager.find_similar(
                question, limit, module=module, severity=severity, since=since
            )

    found = with_storage(settings, job)
    if as_json:
        print_json([dataclasses.asdict(hit) for hit in found])
        return
    table = Table("score", "severity", "module", "message", "when", box=None)
    for hit in found:
        table.add_row(
            f"{hit.score:.3f}",
            _severity(hit.entry.severity),
            plain(hit.entry.module, limit=32),
            plain(hit.entry.message, limit=60),
            ago(hit.entry.timestamp),
        )
    _print_or_say(table, found)


def _print_entries(found: Sequence[ErrorEntry]) -> None:
    table = Table("when", "severity", "module", "message", "id", box=None)
    for entry in found:
        table.add_row(
            f"{entry.timestamp:%Y-%m-%d %H:%M:%S}",
            _severity(entry.severity),
            plain(entry.module, limit=28),
            plain(entry.message, limit=44),
            str(entry.id),
        )
    _print_or_say(table, found)


def _print_or_say(table: Table, found: Sequence[object]) -> None:
    if found:
        console().print(table)
    else:
        console().print(Text("none", style="dim"))


def _severity(severity: str) -> Text:
    return Text(str(severity), style=_STYLES.get(str(severity), ""))


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
