"""The commands of ``fm-storage errors`` that show progress and may be interrupted."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from rich.progress import DownloadColumn, TextColumn
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    confirm,
    console,
    json_option,
    plain,
    print_json,
    progress_bar,
    with_errors,
    with_storage,
)
from fm_storage.cli.errors.options import MOMENT, ZONE, severity_option, severity_text
from fm_storage.cli.errors.stdin import read_stdin
from fm_storage.cli.errors.tables import say_nothing

if TYPE_CHECKING:
    from fm_storage.catalog import IngestReport
    from fm_storage.manager import StorageManager
    from fm_storage.repositories import ErrorEntry

_STDOUT = Path("-")
_SAMPLE = 1000
_SLICE = 5.0
"""Seconds without a delivery after which the rest is left to the drainer."""


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--source", help="Name of the log; by default its file's, or stdin.")
@click.option("--module", help="Module of entries that name none.")
@severity_option("Leave out entries below this severity.")
@click.option(
    "--zone",
    type=ZONE,
    default="UTC",
    show_default=True,
    help="Time zone of timestamps that name none.",
)
@click.option(
    "--format",
    metavar="PATTERN",
    help="Regular expression of entries that no known format fits: "
    "'(?P<at>\\S+) (?P<level>\\w+) (?P<message>.*)'.",
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
    zone: tzinfo,
    format: str | None,
    as_json: bool,
) -> None:
    """Put the entries of LOG (- is standard input) into the catalogue.

    The same log again adds nothing. Timestamped lines of the common formats,
    multi-line traces, JSON lines, syslog; packed with gzip, bzip2 or xz if you like.
    Interrupted, it keeps what it has. At the end the entries are made searchable by
    similarity.
    """

    async def job(storage: StorageManager) -> None:
        from fm_storage.catalog import ErrorManager

        with progress_bar("reading", DownloadColumn(), quiet=as_json) as progress:
            async with ErrorManager(storage) as manager:
                done = await manager.ingest(
                    await read_stdin() if log == "-" else log,
                    source=source or ("stdin" if log == "-" else None),
                    module=module,
                    severity=severity,
                    zone=zone,
                    format=format,
                    progress=progress,
                )
        _print_report(done, as_json=as_json)
        await _drain(storage, quiet=as_json)
        if done.incomplete:
            raise click.ClickException(f"{log}: {done.incomplete}")

    with_storage(settings, job, migrates=True)


@click.command()
@click.argument("sample", type=click.Path(exists=True, dir_okay=False), required=False)
@json_option
def formats(*, sample: str | None, as_json: bool) -> None:
    """List the formats of log lines that are read, or try them on SAMPLE.

    Nothing is stored. Of SAMPLE it is shown which formats were recognised, how often,
    and the first lines that no format fits.
    """
    from fm_storage.catalog.logs.opening import open_log
    from fm_storage.catalog.logs.patterns import FORMATS
    from fm_storage.catalog.logs.reading import LogReader

    if sample is None:
        found = {one.name: one.example for one in FORMATS}
    else:
        log = open_log(sample)
        reader = LogReader(log.lines(), source="sample", now=log.modified)
        for _ in reader.batches(_SAMPLE):
            pass
        log.close()
        counts = {name: str(count) for name, count in reader.report.formats.items()}
        counts["(no format)"] = str(reader.report.unparsed)
        found = counts | {"for example": "\n".join(reader.report.samples)}
    if as_json:
        print_json(found)
        return
    out = console()
    for name, text in found.items():
        out.print(Text(f"{name:<18} ") + plain(text), soft_wrap=True)


def _print_report(report: IngestReport, *, as_json: bool) -> None:
    if as_json:
        print_json({**dataclasses.asdict(report), "duplicates": report.duplicates})
        return
    out = console()
    out.print(plain(report), soft_wrap=True)
    for refusal in report.refusals:
        out.print(Text("  ") + plain(refusal, limit=200), soft_wrap=True)
    if report.samples:
        out.print(Text("not recognised, for example:", style="dim"))
        for sample in report.samples:
            out.print(Text("  ") + plain(sample, limit=100))


async def _drain(storage: StorageManager, *, quiet: bool) -> None:
    """Make what was ingested searchable; Ctrl-C leaves that to later."""
    if storage.config.qdrant is None:
        return
    with progress_bar("making searchable", quiet=quiet) as progress:
        try:
            while (
                await storage.outbox.drain(timeout=_SLICE, progress=progress)
            ).delivered:
                if not await storage.outbox.pending():
                    return
            left = await storage.outbox.pending()
            if left:
                click.echo(
                    f"{left} vectors wait; 'fm-storage outbox status' shows why",
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
@click.option("-f", "--follow", is_flag=True, help="Continue as new errors happen.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Number of earlier errors.",
)
@severity_option()
@click.option("--module", help="Only errors of this module.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_obj
def tail(
    settings: Settings,
    *,
    follow: bool,
    lines: int,
    severity: str | None,
    module: str | None,
    as_json: bool,
) -> None:
    """Show the latest errors, and with -f every new one as it happens.

    Ctrl-C ends it. A server that restarts does not: what was recorded meanwhile is
    shown when it is back.
    """
    show = _print_json_line if as_json else _print_line

    async def job(storage: StorageManager) -> None:
        from fm_storage.catalog import ErrorManager
        from fm_storage.catalog.query.latest import fetch_latest

        found = await fetch_latest(
            storage.pool, limit=lines, module=module, severity=severity
        )
        for entry in reversed(found):
            show(entry)
        if not follow:
            if lines and not found:
                say_nothing(filtered=bool(module or severity))
            return
        async with (
            ErrorManager(storage) as manager,
            manager.tail(module=module, severity=severity) as entries,
        ):
            async for entry in entries:
                show(entry)

    with suppress(KeyboardInterrupt):
        with_storage(settings, job, qdrant=None)


def _print_line(entry: ErrorEntry) -> None:
    line = Text(f"{entry.timestamp:%Y-%m-%d %H:%M:%S} ", style="dim")
    line += severity_text(f"{entry.severity:<8} ")
    line += plain(entry.module, limit=32) + Text(" ")
    console().print(line + plain(entry.message, limit=200), soft_wrap=True)


def _print_json_line(entry: ErrorEntry) -> None:
    click.echo(orjson.dumps(dataclasses.asdict(entry), default=str))


@click.command()
@click.argument(
    "page",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    required=False,
)
@click.option("--title", default="Errors", show_default=True)
@click.option("--since", type=MOMENT, help="Beginning: 2h, 7d, or a time.")
@click.option("--until", type=MOMENT, help="End: 2h, 7d, or a time.")
@severity_option("Minimum severity; by default WARNING.")
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
    """Write a report as one self-contained HTML PAGE (- is standard output).

    What came back, is new, grows, happens together; each group once, all in a list.
    The page loads nothing and runs nothing; send it to anyone.
    """
    if page is None and not as_json:
        raise click.UsageError("name the PAGE to write (errors.html), or give --json")
    if as_json and page == _STDOUT:
        raise click.UsageError(
            "--json and a page on standard output would be mixed; name a file, or "
            "leave one of them out"
        )
    if since is not None and until is not None and until <= since:
        raise click.UsageError("--until must be later than --since")
    if page is not None:
        _check_writable(page)

    made = with_errors(
        settings,
        lambda _, errors: errors.report(
            title=title, since=since, until=until, severity=severity
        ),
        replica=True,
        qdrant=None,
    )
    if as_json:
        click.echo(made.to_json())
    if page == _STDOUT:
        click.echo(made.to_html())
    elif page is not None:
        page.write_text(made.to_html(), encoding="utf-8")
        if not made.totals.errors:
            say_nothing(filtered=bool(since or until or severity or made.left_out))
        click.echo(
            f"{plain(page)}: {made.totals.errors} errors in "
            f"{made.totals.groups} groups",
            err=as_json,
        )


def _check_writable(page: Path) -> None:
    """Refuse a page that cannot be written before the work for it is done."""
    if page == _STDOUT:
        return
    folder = page.parent
    if not folder.is_dir():
        raise click.BadParameter(
            f"the folder {str(folder)!r} does not exist; create it, or name a page "
            "elsewhere",
            param_hint="PAGE",
        )
    if not os.access(page if page.exists() else folder, os.W_OK):
        raise click.BadParameter(
            f"{str(page)!r} may not be written; name a page elsewhere",
            param_hint="PAGE",
        )


@click.command()
@click.option(
    "--older-than",
    type=MOMENT,
    required=True,
    metavar="AGE",
    help="Delete errors older than this: 90d, 4w, or a time.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def purge(settings: Settings, *, older_than: datetime, yes: bool) -> None:
    """Delete old errors from both stores, in small batches."""
    if not yes:
        _confirm(settings, older_than)

    with progress_bar("deleting", TextColumn("{task.completed}")) as progress:
        count = with_errors(
            settings, lambda _, errors: errors.purge(older_than, progress=progress)
        )
    click.echo(f"{count:,} errors deleted")


def _confirm(settings: Settings, older_than: datetime) -> None:
    """Ask before anything is deleted, with the number of errors that would go."""

    async def job(storage: StorageManager) -> int:
        from fm_storage.catalog.query.retention import count_older

        return await count_older(storage.pool, older_than)

    count = with_storage(settings, job, qdrant=None)
    before = f"{older_than:%Y-%m-%d %H:%M}"
    if not count:
        click.echo(f"no error is from before {before}; nothing is deleted")
        raise click.exceptions.Exit(0)
    if not confirm(f"Delete {count:,} errors from before {before}?", "deletes"):
        click.echo("nothing is deleted")
        raise click.exceptions.Exit(1)
