"""``fm-storage health``: how each part is, for people and for probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    console,
    json_option,
    plain,
    print_json,
    with_storage,
)

if TYPE_CHECKING:
    from fm_storage.manager import Health, StorageManager

__all__ = ["health"]

_STYLES = {"ok": "green", "degraded": "yellow", "down": "bold red", "off": "dim"}


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage health            a table for people\n"
        "  fm-storage health --json     for a probe; exit code 1 unless all is well\n"
    )
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that each part may take to answer.",
)
@json_option
@click.pass_obj
def health(settings: Settings, timeout: float, *, as_json: bool) -> None:
    """Ask every part how it is, and how quickly it answers."""

    async def ask(storage: StorageManager) -> Health:
        return await storage.health(timeout=timeout)

    found = with_storage(settings, ask)
    if as_json:
        print_json({"status": found.status, "parts": found.parts})
    else:
        table = Table("part", "status", "answered in", "detail", box=None)
        for part in found.parts:
            latency = "" if part.latency is None else f"{part.latency * 1000:.1f} ms"
            status = Text(part.status, style=_STYLES[part.status])
            table.add_row(part.name, status, latency, plain(part.detail, limit=80))
        console().print(table)
    if not found.ok:
        raise click.exceptions.Exit(1)
