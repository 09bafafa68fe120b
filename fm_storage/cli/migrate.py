"""``fm-storage migrate``, ``rollback``, ``status``, ``schema``.

They open the server alone: opening the manager would apply the migrations that
these commands are asked to show, to stop before, or to roll back.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    confirm,
    console,
    json_option,
    plain,
    print_json,
    run,
)
from fm_storage.errors import ConfigurationInvalid, StorageError

if TYPE_CHECKING:
    from fm_storage.config import PostgresConfig, StorageConfig
    from fm_storage.migrate import Migrator, PlannedMigration, Progress

T = TypeVar("T")

_STYLES = {"applied": "green", "pending": "yellow", "newer": "cyan", "foreign": "dim"}

_source_option = click.option(
    "--source",
    "sources",
    multiple=True,
    help="Additional folder, or package:NAME:FOLDER; NAME=FOLDER gives it a name.",
)


@click.group(
    invoke_without_command=True,
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage migrate                     apply pending migrations\n"
        "  fm-storage migrate --dry-run           show the SQL, change nothing\n"
        "  fm-storage migrate --to 3              stop after number 0003\n"
        "  fm-storage migrate new 'add invoices'  create both files from the template\n"
        "  fm-storage migrate baseline --to 0002  record what exists already\n"
    ),
)
@click.option(
    "--to",
    help="Last migration to apply: its number, name, or a beginning of it.",
)
@click.option("--dry-run", is_flag=True, help="Show the SQL; change nothing.")
@_source_option
@json_option
@click.pass_context
def migrate(
    ctx: click.Context,
    *,
    to: str | None,
    dry_run: bool,
    sources: tuple[str, ...],
    as_json: bool,
) -> None:
    """Apply pending migrations; if interrupted, run it again."""
    if ctx.invoked_subcommand is not None:
        return
    done = _with_migrator(ctx.obj, lambda it: it.apply(to=to, dry_run=dry_run), sources)
    _show(done, "applied", dry_run=dry_run, as_json=as_json)


@migrate.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write to; the first configured source, else ./migrations.",
)
@click.pass_obj
def new(settings: Settings, *, name: str, folder: Path | None) -> None:
    """Write a migration and its rollback file from the template."""
    from fm_storage.migrate import Migrator
    from fm_storage.migrate.files import named

    config = settings.load().migrations
    folders = [s for s in config.sources if not s.startswith("package:")]
    chosen = folder or Path(named(folders[0])[1] if folders else "migrations")
    for path in Migrator("", config).new_migration(name, chosen):
        click.echo(click.format_filename(path))
    if not _is_source(chosen, tuple(config.sources)):
        shown = click.format_filename(chosen)
        where = json.dumps([*config.sources, str(chosen)])
        click.echo(
            f"note: {shown} is not in migrations.sources, so it is not applied yet;\n"
            f"  set FM_STORAGE_MIGRATIONS__SOURCES='{where}' (or the same in the TOML "
            f"file),\n  or give --source {shown} to migrate, status and rollback",
            err=True,
        )


def _is_source(folder: Path, configured: Sequence[str]) -> bool:
    """Whether what lies in *folder* is applied, ours or a configured one."""
    from fm_storage.migrate.files import find_sources

    try:
        sources = find_sources(configured)
    except StorageError:  # another one is missing, which the next command will say
        return True
    return any(source.folder.resolve() == folder.resolve() for source in sources)


@migrate.command()
@click.option(
    "--to",
    help="Last migration to record: its number, name, or a beginning of it.",
)
@_source_option
@json_option
@click.pass_obj
def baseline(
    settings: Settings, *, to: str | None, sources: tuple[str, ...], as_json: bool
) -> None:
    """Record migrations as applied without running them."""
    done = _with_migrator(settings, lambda it: it.baseline(to), sources)
    if as_json:
        print_json(done)
        return
    for name in done:
        console().print(Text("recorded ", style="green"), plain(name), sep="")
    if not done:
        console().print("nothing to record")


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage rollback              roll back the last migration\n"
        "  fm-storage rollback --steps 3    the last three, newest first\n"
        "  fm-storage rollback --dry-run    show the SQL, change nothing\n"
    )
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of migrations.",
)
@click.option("--dry-run", is_flag=True, help="Show the SQL; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_source_option
@json_option
@click.pass_obj
def rollback(
    settings: Settings,
    *,
    steps: int,
    dry_run: bool,
    yes: bool,
    sources: tuple[str, ...],
    as_json: bool,
) -> None:
    """Roll back the last migrations; refused for one without a rollback file."""
    if not (dry_run or yes):
        _confirm(settings, steps, sources)
    done = _with_migrator(
        settings, lambda it: it.rollback(steps=steps, dry_run=dry_run), sources
    )
    _show(done, "taken back", dry_run=dry_run, as_json=as_json)
    if done and not dry_run:
        click.echo("no start applies them again; 'fm-storage migrate' does", err=True)


def _confirm(settings: Settings, steps: int, sources: tuple[str, ...]) -> None:
    """Ask before anything is dropped, with what would be."""
    planned = _with_migrator(
        settings, lambda it: it.rollback(steps=steps, dry_run=True), sources
    )
    if not planned:
        return
    for one in planned:
        click.echo(plain(f"{one.id} (of {one.source}):").plain, err=True)
        for line in one.sql.splitlines():
            if line.lstrip().upper().startswith("DROP "):
                click.echo(plain(f"  {line.strip()}").plain, err=True)
    click.echo(
        "With the tables goes what is in them. The vector store is not changed: its "
        "points stay,\nand 'fm-storage outbox repair' removes those that have no "
        "record any more.",
        err=True,
    )
    if not confirm(f"Roll back {len(planned)} migration(s)?", "rolls back"):
        raise click.Abort


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage status           one line per migration\n"
        "  fm-storage status --json    for programs\n\n"
        "Exit code 1 if files and database disagree.\n"
    )
)
@_source_option
@json_option
@click.pass_obj
def status(settings: Settings, *, sources: tuple[str, ...], as_json: bool) -> None:
    """Show every migration: applied, pending or drifted, and since when."""
    found = _with_migrator(settings, lambda it: it.status(), sources)
    if as_json:
        print_json(found)
    else:
        table = Table("migration", "state", "applied at", "by", "source", box=None)
        for one in found:
            table.add_row(
                plain(one.id),
                Text(one.state, style=_STYLES.get(one.state, "bold red")),
                f"{one.applied_at:%Y-%m-%d %H:%M:%S %Z}" if one.applied_at else "",
                plain(one.applied_by),
                plain(one.source),
            )
        console().print(table)
        for one in found:
            if one.detail:
                console().print(plain(f"{one.id}: {one.detail}"), soft_wrap=True)
    if any(one.state.drifted for one in found):
        raise click.exceptions.Exit(1)


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage schema > SCHEMA.md\n"
        "  fm-storage schema --json | jq '.[].columns[].name'\n"
    )
)
@json_option
@click.pass_obj
def schema(settings: Settings, *, as_json: bool) -> None:
    """Print the schema as a Markdown page, read from the live database."""
    if as_json:
        print_json(_with_migrator(settings, lambda it: it.schema()))
    else:
        click.echo(_with_migrator(settings, lambda it: it.schema_page()))


def _with_migrator(
    settings: Settings,
    job: Callable[[Migrator], Awaitable[T]],
    sources: tuple[str, ...] = (),
) -> T:
    """Run *job* with a migrator on the configured server, embedded or not."""

    async def body() -> T:
        from fm_storage.migrate import Migrator

        config = settings.load()
        migrations = config.migrations.model_copy(
            update={"sources": (*config.migrations.sources, *sources)}
        )
        report = _Reporter()
        if migrations.dsn is not None:
            return await job(Migrator.for_server(None, migrations, progress=report))
        postgres = _postgres(config)
        if not postgres.embedded:
            return await job(Migrator.for_server(postgres, migrations, progress=report))
        from fm_storage.postgres.embedded.embedded import (
            EmbeddedPostgres,
        )

        folder = config.embedded_folder(postgres.dsn) / "postgres"
        async with EmbeddedPostgres(folder, bin_dir=config.embedded_bin_dir) as dsn:
            return await job(Migrator(dsn, migrations, progress=report))

    return run(body())


def _postgres(config: StorageConfig) -> PostgresConfig:
    if config.postgres is None:
        raise ConfigurationInvalid(
            "postgres", "is switched off; name a server to migrate"
        )
    return config.postgres


class _Reporter:
    """Prints on standard error what takes long, waits, or was cleaned up."""

    def __init__(self) -> None:
        self._last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        last, self._last = self._last, progress
        same = last is not None and (last.what, last.name, last.step) == (
            progress.what,
            progress.name,
            progress.step,
        )
        if progress.what == "statement":
            if same:
                self._print(
                    f"{progress.name}: statement {progress.step} of "
                    f"{progress.steps} still runs, {progress.elapsed:.0f} s so far"
                )
        elif progress.what == "waiting":
            self._print(f"waiting for {progress.name}, which migrates")
        elif progress.what == "blocked":
            self._print(f"{progress.name}: a table is in use; trying again")
        elif progress.what == "invalid index":
            self._print(f"dropping {progress.name}, left by an interrupted build")

    @staticmethod
    def _print(text: str) -> None:
        click.echo(plain(text).plain, err=True)


def _show(
    done: list[PlannedMigration], what: str, *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        print_json(done)
        return
    if not done:
        click.echo(f"nothing to be {what}" if what != "applied" else "nothing pending")
        return
    for one in done:
        if dry_run:
            click.echo(plain(f"-- {one.id}\n{one.sql.rstrip()}\n").plain)
        else:
            click.echo(plain(f"{what} {one.id} in {one.seconds or 0.0:.2f} s").plain)
