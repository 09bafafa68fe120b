"""``fm-storage sessions``: list temporary views, and drop orphaned ones.

The manager is opened without the background reaper, which would otherwise drop what
``--dry-run`` only shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
from rich.filesize import decimal
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
    from fm_storage.manager import StorageManager
    from fm_storage.sessions import CleanupReport, SessionInfo, ViewInfo

T = TypeVar("T")

_STYLES = {"own": "green", "other": "green", "orphaned": "yellow", "kept": "cyan"}


@click.group(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage sessions list            every view, its owner and its size\n"
        "  fm-storage sessions reap --dry-run  show views of ended processes\n"
        "  fm-storage sessions reap            drop them\n"
        "  fm-storage sessions reap --kept     also views that were kept on purpose\n"
    )
)
def sessions() -> None:
    """List and reap temporary views."""


@sessions.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every registered view: live, orphaned and kept ones."""
    info = _with_sessions(settings, lambda storage: storage.sessions.list())
    if as_json:
        print_json([dataclasses.asdict(view) for view in info.views])
        return
    _show(info)


@sessions.command()
@click.option(
    "--dry-run", is_flag=True, help="Show what would be dropped; drop nothing."
)
@click.option("--kept", is_flag=True, help="Also views that were kept on purpose.")
@json_option
@click.pass_obj
def reap(settings: Settings, *, dry_run: bool, kept: bool, as_json: bool) -> None:
    """Drop the views of ended processes, now.

    Takes a moment if there are any: an owner's lock must be free in two looks, two
    seconds apart (a minute after the server was restarted). Views that could not be
    dropped are listed with the server's reason, and the exit code is 1.
    """
    report = _with_sessions(
        settings, lambda storage: storage.sessions.reap(dry_run=dry_run, kept=kept)
    )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _tell(report, dry_run=dry_run)
    if report.refused:
        raise click.exceptions.Exit(1)


def _with_sessions(
    settings: Settings, job: Callable[[StorageManager], Awaitable[T]]
) -> T:
    quiet = settings.load().session.model_copy(update={"reap_interval": 0.0})
    return with_storage(settings, job, qdrant=None, session=quiet)


def _show(info: SessionInfo) -> None:
    if not info.views:
        console().print("no temporary views")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("standing", "view", "kind", "size", "rows", "age", "owner"):
        table.add_column(
            heading, justify="right" if heading in {"size", "rows"} else "left"
        )
    for view in info.views:
        table.add_row(
            Text(_standing(view), style=_STYLES[view.standing]),
            plain(view),
            view.kind,
            "" if view.size is None else decimal(view.size),
            "" if view.rows is None else f"{view.rows:,}",
            ago(view.created_at),
            plain(f"{view.application_name} {view.host}:{view.pid} ({view.role})"),
        )
    console().print(table)
    live = len(info.own) + len(info.other)
    console().print(
        f"{live} live, {len(info.orphaned)} orphaned, {len(info.kept)} kept; "
        f"{decimal(info.size)}"
    )


def _standing(view: ViewInfo) -> str:
    word = "live" if view.standing in {"own", "other"} else view.standing
    return f"{word}, refused {view.refused}" if view.refused else word


def _tell(report: CleanupReport, *, dry_run: bool) -> None:
    for name in report.dropped:
        console().print(plain(f"{'would drop' if dry_run else 'dropped'} {name}"))
    for name in report.already_gone:
        console().print(plain(f"already gone: {name}"))
    for name in report.forgotten:
        console().print(plain(f"left to its creator: {name}"))
    for refusal in report.refused:
        state = f" ({refusal.sqlstate})" if refusal.sqlstate else ""
        console().print(plain(f"refused{state} {refusal.view}: {refusal.message}"))
    word = "would be dropped" if dry_run else "dropped"
    console().print(f"{len(report.dropped)} {word}, {len(report.refused)} refused")
