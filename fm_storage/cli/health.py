"""``fm-storage health``: the state of each part, for people and for probes."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import (
    Seconds,
    Settings,
    console,
    json_option,
    plain,
    print_json,
    run,
    with_storage,
)
from fm_storage.errors import (
    ConfigurationInvalid,
    MigrationFailed,
    StorageError,
    VectorStoreUnavailable,
)

if TYPE_CHECKING:
    from fm_storage.manager import Health, StorageManager

_LONGEST = 400
"""Characters of a detail: its remedy comes last, and a table folds it."""
_STYLES = {"ok": "green", "degraded": "yellow", "down": "bold red", "off": "dim"}


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage health            a table for people\n"
        "  fm-storage health --json     for probes; exit code 1 unless all are ok\n"
        "  fm-storage health --budget --processes 8\n"
        "                               whether 8 processes have enough connections\n"
    )
)
@click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True, max=86_400),
    default=5.0,
    show_default=True,
    help="Maximum number of seconds for each part to answer.",
)
@click.option(
    "--budget",
    is_flag=True,
    help="Show how many connections a process needs, and what the servers allow.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Number of processes for --budget.  [default: 1]",
)
@json_option
@click.pass_obj
def health(
    settings: Settings,
    timeout: float,
    *,
    budget: bool,
    processes: int | None,
    as_json: bool,
) -> None:
    """Show the state of every part, and how quickly it answers."""
    if budget:
        return _budget(settings, processes or 1, as_json=as_json)
    if processes is not None:
        raise click.UsageError("--processes goes with --budget")

    async def ask(storage: StorageManager) -> Health:
        return await storage.health(timeout=timeout)

    try:
        found = with_storage(settings, ask)
    except ConfigurationInvalid:
        raise
    except (StorageError, OSError) as exc:
        # It could not open, which is a state to be shown as well.
        found = run(_without_manager(settings, exc, timeout))
    if as_json:
        print_json({"status": found.status, "parts": found.parts})
    else:
        table = Table("part", "status", "answered in", "detail", box=None)
        for part in found.parts:
            latency = "" if part.latency is None else f"{part.latency * 1000:.1f} ms"
            status = Text(part.status, style=_STYLES[part.status])
            table.add_row(
                part.name, status, latency, plain(part.detail, limit=_LONGEST)
            )
        console().print(table)
    if not found.ok:
        raise click.exceptions.Exit(1)
    return None


def _budget(settings: Settings, processes: int, *, as_json: bool) -> None:
    """Show the connections of one process, and of all at each server."""
    from fm_storage.manager.budget import Budget, connection_budget

    config = settings.load()

    async def ask(storage: StorageManager) -> Budget:
        return await connection_budget(config, storage.pool, storage.reads, processes)

    found = with_storage(settings, ask, qdrant=None)
    if as_json:
        print_json(found)
    else:
        table = Table("server", "connections of a process", "at most", "held", box=None)
        for need in found.needs:
            table.add_row(need.server, need.purpose, str(need.connections), need.held)
        console().print(table)
        for one in found.servers:
            allowed = "not asked"
            if one.allowed is not None:
                allowed = (
                    f"{one.allowed} allowed ({one.max_connections} max_connections, "
                    f"{one.reserved} reserved, {one.others} of other programs)"
                )
            click.echo(
                f"{one.name}: {processes} process(es) need {one.needed}, {allowed}"
            )
            if one.remedy:
                click.echo(f"warning: {one.name}: {one.remedy}", err=True)
    if not found.fits:
        raise click.exceptions.Exit(1)


async def _without_manager(
    settings: Settings, exc: StorageError | OSError, timeout: float
) -> Health:
    """Return which part kept the manager from opening, and ask the vector store."""
    from fm_storage.manager.health import PARTS, Health, PartHealth, probe
    from fm_storage.vectors import QdrantStore

    at_fault = "postgres"
    if isinstance(exc, MigrationFailed):
        at_fault = "migrations"
    elif isinstance(exc, VectorStoreUnavailable):
        at_fault = "qdrant"
    parts = {
        name: PartHealth(name, "down", detail=f"not asked: {at_fault} is down")
        for name in PARTS
    }
    config = settings.load()
    if config.postgres is None or config.postgres.read_dsn is None:
        parts["replica"] = PartHealth("replica", "off", detail="switched off")
    qdrant = config.qdrant
    if qdrant is None:
        parts["qdrant"] = PartHealth("qdrant", "off", detail="switched off")
    elif qdrant.embedded and not config.embedded_folder(qdrant.url).exists():
        parts["qdrant"] = PartHealth("qdrant", "off", detail="nothing is there yet")
    elif at_fault != "qdrant":
        folder = config.embedded_folder(qdrant.url) if qdrant.embedded else None
        until = monotonic() + 0.9 * timeout

        async def ask() -> tuple[str, str]:
            async with QdrantStore(qdrant, folder=folder) as store:
                # What loading the client took is gone from its time.
                left = max(until - monotonic(), 0.1)
                return "ok", await store.ready(timeout=left)

        parts["qdrant"] = await probe("qdrant", ask, timeout=timeout)
    parts[at_fault] = PartHealth(at_fault, "down", detail=str(exc))
    return Health(tuple(parts.values()))
