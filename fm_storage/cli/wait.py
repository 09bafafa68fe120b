"""``fm-storage wait``: for start-up scripts, init containers and migration jobs."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Literal

import click

from fm_storage.cli.common import SECONDS, Settings, run
from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import ConfigurationInvalid, StorageError

if TYPE_CHECKING:
    from fm_storage.config import StorageConfig

_ATTEMPT = 5.0
"""Seconds that one attempt may take to connect."""


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage wait                  until the database answers, migrated\n"
        "  fm-storage wait --for migrated   as the role that migrates\n\n"
        "Exit code 0 if it is so, 1 if not within --timeout seconds.\n"
    )
)
@click.option(
    "--for",
    "goal",
    type=click.Choice(("ready", "migrated")),
    default="ready",
    show_default=True,
    help="ready: the application can connect, and every migration is applied.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Maximum number of seconds to wait.",
)
@click.pass_obj
def wait(
    settings: Settings, *, goal: Literal["ready", "migrated"], timeout: float
) -> None:
    """Wait until the database answers and every migration is applied.

    Nothing is created, applied or changed.
    """
    config = settings.load()
    if config.postgres is None or config.postgres.embedded:
        raise ConfigurationInvalid(
            "postgres.dsn", "names no server to wait for; set it to postgresql://…"
        )
    problem = run(_until(config, goal, timeout))
    if problem:
        raise click.ClickException(f"not {goal} within {timeout:g} s: {problem}")
    click.echo(goal)


async def _until(config: StorageConfig, goal: str, timeout: float) -> str:
    """Look until there is no problem left; return the last one after *timeout*."""
    deadline = monotonic() + timeout
    pauses = Backoff(0.1, 2.0)
    while True:
        problem = await _problem(config, goal)
        left = deadline - monotonic()
        if not problem or left <= 0:
            return problem
        await asyncio.sleep(min(pauses.next(), left))


async def _problem(config: StorageConfig, goal: str) -> str:
    from fm_storage.manager.probes import ask_migrated
    from fm_storage.migrate import Migrator
    from fm_storage.postgres import Pool

    postgres = config.postgres
    assert postgres is not None
    quick = {"connect_timeout": _ATTEMPT, "acquire_timeout": _ATTEMPT, "min_size": 0}
    migrator = Migrator.for_server(postgres, config.migrations)
    try:
        if goal == "migrated":
            return (await ask_migrated(migrator))[1]
        async with Pool(postgres.model_copy(update=quick)) as pool:
            return (await ask_migrated(migrator, pool))[1]
    except ConfigurationInvalid:
        raise
    except (StorageError, OSError) as exc:
        return str(exc)
