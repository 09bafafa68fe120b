"""``fm-storage errors``: look at the catalogue, and put logs into it."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
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
from fm_storage.cli.errors_options import filters, severity_text
from fm_storage.cli.errors_work import ingest, purge, report, tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fm_storage.catalog import ErrorGroup, SimilarEntry
    from fm_storage.manager import StorageManager
    from fm_storage.repositories import ErrorEntry

__all__ = ["errors"]


_EPILOG = """\b
Examples:
  fm-storage errors ingest server.log        put a log into the catalogue
  fm-storage errors groups --since 1d        what happened most since yesterday
  fm-storage errors similar 'read timeout'   errors that look like this text
  fm-storage errors show 01a1ffd8-…          one error, with its trace
  fm-storage errors tail -f --severity error new errors, as they happen
  fm-storage errors report errors.html       one page for a colleague
  fm-storage errors purge --older-than 90d   forget what is old
"""


@click.group(epilog=_EPILOG)
def errors() -> None:
    """List, show, ingest, group and compare recorded errors."""


for _command in (ingest, purge, report, tail):
    errors.add_command(_command)


@errors.command("list")
@filters
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
@filters
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
            severity_text(group.severity),
            plain(group.module, limit=32),
            plain(group.template, limit=60),
            ago(group.last_seen),
        )
    _print_or_say(table, found)


@errors.command()
@click.argument("text")
@filters
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

    async def job(storage: StorageManager) -> tuple[list[SimilarEntry], int]:
        from fm_storage.catalog import ErrorManager  # noqa: PLC0415 - heavy

        question: ErrorEntry | str = text
        if _is_uuid(text):
            question = await storage.error_entries.get_by_id(UUID(text))
        async with ErrorManager(storage) as manager:
            hits = await manager.find_similar(
                question, limit, module=module, severity=severity, since=since
            )
            return hits, await storage.outbox.pending()

    found, pending = with_storage(settings, job)
    if pending:
        click.echo(
            f"{pending} errors are not searchable yet; run 'fm-storage outbox drain'",
            err=True,
        )
    if as_json:
        print_json([dataclasses.asdict(hit) for hit in found])
        return
    table = Table("score", "severity", "module", "message", "when", box=None)
    for hit in found:
        table.add_row(
            f"{hit.score:.3f}",
            severity_text(hit.entry.severity),
            plain(hit.entry.module, limit=32),
            plain(hit.entry.message, limit=60),
            ago(hit.entry.timestamp),
        )
    _print_or_say(table, found)


def _print_entries(found: Sequence[ErrorEntry]) -> None:
    table = Table("when", "severity", "module", "message", box=None)
    table.add_column("id", no_wrap=True, min_width=36)
    for entry in found:
        table.add_row(
            f"{entry.timestamp:%Y-%m-%d %H:%M:%S}",
            severity_text(entry.severity),
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


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
