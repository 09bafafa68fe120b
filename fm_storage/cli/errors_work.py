"""The commands of ``fm-storage errors`` that work for a while.

Apart from those that only look: they show progress, and may be interrupted.
"""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
)
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    console,
    json_option,
    plain,
    print_json,
    with_storage,
)
from fm_storage.cli.errors_options import MOMENT, SEVERITIES, severity_text

if TYPE_CHECKING:
    from fm_storage.catalog import IngestReport, Report
    from fm_storage.manager import StorageManager
    from fm_storage.repositories import ErrorEntry

__all__ = ["ingest", "purge", "report", "tail"]

_SLICE = 5.0
"""Seconds without a delivery after which the rest is left to the drainer."""


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.option("--source", help="Name of the log; its file name by default.")
@click.option("--module", help="Module of entries that name none.")
@click.option(
    "--severity",
    type=click.Choice(SEVERITIES, case_sensitive=False),
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
    packed with gzip, bzip2 or xz if you like. Interrupted, it keeps what it has. At
    the end the entries are made searchable by similarity.
    """

    async def job(storage: StorageManager) -> None:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(*columns, console=console(), transient=True) as bar:
            task = bar.add_task("reading", total=None)

            def progress(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)

            async with ErrorManager(storage) as manager:
                done = await manager.ingest(
                    log,
                    source=source,
                    module=module,
                    severity=severity,
                    progress=None if as_json else progress,
                )
        _print_report(done, as_json=as_json)
        await _drain(storage, quiet=as_json)

    with_storage(settings, job)


def _print_report(report: IngestReport, *, as_json: bool) -> None:
    if as_json:
        print_json({**dataclasses.asdict(report), "duplicates": report.duplicates})
        return
    out = console()
    out.print(plain(report), soft_wrap=True)
    if report.samples:
        out.print(Text("not recognised, for example:", style="dim"))
        for sample in report.samples:
            out.print(Text("  ") + plain(sample, limit=100))


async def _drain(storage: StorageManager, *, quiet: bool) -> None:
    """Make what was ingested searchable; Ctrl-C leaves that to later."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console(), transient=True, disable=quiet) as bar:
        task = bar.add_task("making searchable", total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        try:
            while (
                await storage.outbox.drain(timeout=_SLICE, progress=progress)
            ).delivered:
                if not await storage.outbox.pending():
                    return
            left = await storage.outbox.pending()
            if left:
                click.echo(
                    f"{left} vectors wait; 'fm-storage outbox status' says for what",
                    err=True,
                )
        except asyncio.CancelledError:
            click.echo(
                "interrupted; the rest becomes searchable with "
                "'fm-storage outbox drain'",
                err=True,
            )
            raise


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as new errors happen.")
@click.option("--lines", "-n", default=10, show_default=True, help="Earlier errors.")
@click.option(
    "--severity",
    type=click.Choice(SEVERITIES, case_sensitive=False),
    help="At least so bad.",
)
@click.option("--module", help="Only this module.")
@click.pass_obj
def tail(
    settings: Settings,
    *,
    follow: bool,
    lines: int,
    severity: str | None,
    module: str | None,
) -> None:
    """Show the latest errors, and with -f every new one as it happens."""

    async def job(storage: StorageManager) -> None:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy
        from fm_storage.catalog.latest import fetch_latest  # noqa: PLC0415 - lazy

        found = await fetch_latest(
            storage.pool, limit=lines, module=module, severity=severity
        )
        for entry in reversed(found):
            _print_line(entry)
        if not follow:
            return
        async with (
            ErrorManager(storage) as manager,
            manager.tail(module=module, severity=severity) as entries,
        ):
            async for entry in entries:
                _print_line(entry)

    with suppress(KeyboardInterrupt):
        with_storage(settings, job, qdrant=None)


def _print_line(entry: ErrorEntry) -> None:
    line = Text(f"{entry.timestamp:%Y-%m-%d %H:%M:%S} ", style="dim")
    line += severity_text(f"{entry.severity:<8} ")
    line += plain(entry.module, limit=32) + Text(" ")
    console().print(line + plain(entry.message, limit=200), soft_wrap=True)


@click.command()
@click.argument("page", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--title", default="Errors", show_default=True)
@click.option("--since", type=MOMENT, help="2h, 7d, or a time.")
@click.option("--until", type=MOMENT, help="2h, 7d, or a time.")
@click.option(
    "--severity",
    type=click.Choice(SEVERITIES, case_sensitive=False),
    help="At least so bad.",
)
@json_option
@click.pass_obj
def report(
    settings: Settings,
    *,
    page: Path | None,
    title: str,
    since: datetime | None,
    until: datetime | None,
    severity: str | None,
    as_json: bool,
) -> None:
    """Write a report as one self-contained HTML PAGE (or JSON).

    What is new, what grows, a timeline, what happens together, similar groups.
    The page loads nothing and runs nothing; send it to anyone.
    """
    if page is None and not as_json:
        raise click.UsageError("name the PAGE to write, or give --json")

    async def job(storage: StorageManager) -> Report:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        async with ErrorManager(storage) as manager:
            return await manager.report(
                title=title, since=since, until=until, severity=severity
            )

    made = with_storage(settings, job)
    if as_json:
        click.echo(made.to_json())
    if page is not None:
        page.write_text(made.to_html(), encoding="utf-8")
        click.echo(
            f"{page}: {made.totals.errors} errors in {made.totals.groups} groups",
            err=as_json,
        )


@click.command()
@click.option(
    "--older-than",
    type=MOMENT,
    required=True,
    metavar="AGE",
    help="Delete errors older than this: 90d, 4w, or a time.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(settings: Settings, *, older_than: datetime, yes: bool) -> None:
    """Delete old errors from both stores, in small batches."""
    if not yes:
        click.confirm(
            f"Delete every error before {older_than:%Y-%m-%d %H:%M}?", abort=True
        )

    async def job(storage: StorageManager) -> int:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        columns = (TextColumn("{task.description}"), TextColumn("{task.completed}"))
        with Progress(*columns, console=console(), transient=True) as bar:
            task = bar.add_task("deleting", total=None)

            def progress(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)

            async with ErrorManager(storage) as manager:
                return await manager.purge(older_than, progress=progress)

    click.echo(f"{with_storage(settings, job)} errors deleted")
