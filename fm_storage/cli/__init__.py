"""The command line ``fm-storage``: the group, and where each command lives.

Commands are loaded when they are asked for, so that ``--help`` and completion
answer at once and a command pays only for the rooms that it uses.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

__all__ = ["cli", "main"]

_COMMANDS = {
    "demo": ("demo", "Run the whole system once, on errors that really happen."),
    "errors": ("errors", "List, show, ingest, group and compare errors."),
    "health": ("health", "Show the state of each part and its response time."),
    "migrate": ("migrate", "Apply migrations, or write a new one."),
    "outbox": ("outbox", "Deliver vectors to Qdrant; compare and repair both stores."),
    "rollback": ("migrate", "Roll back the last migrations."),
    "schema": ("migrate", "Describe every table and column of the database."),
    "sessions": ("sessions", "List and reap temporary views."),
    "status": ("migrate", "Show which migrations are applied."),
    "wait": ("wait", "Wait until the database answers, or is migrated."),
    "vectors": ("vectors", "List, search, export and import collections."),
}

_EPILOG = """\b
Examples:
  fm-storage demo                      the whole system once, on real errors
  fm-storage errors ingest server.log  import a log file into the catalogue
  fm-storage errors similar 'timeout'  errors that look like this text
  fm-storage health --json             for a monitoring probe

Settings come from FM_STORAGE_… variables (FM_STORAGE_POSTGRES__DSN), a TOML file
(--config) or a .env file (--env-file). With none, embedded engines keep their data
under ./.fm_storage.

Exit codes: 0 done, 1 failed, 2 wrong use or settings, 130 and 143 interrupted.
"""


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help page."""
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name*; None lets click report the mistake."""
        if cmd_name not in _COMMANDS:
            # click itself looks only among commands that are loaded.
            if close := difflib.get_close_matches(cmd_name, _COMMANDS, 1):
                meant = f"No such command {cmd_name!r}. Did you mean {close[0]!r}?"
                raise click.UsageError(meant, ctx)
            return None
        module = importlib.import_module(f"fm_storage.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self._names()])

    @staticmethod
    def _names() -> list[str]:
        return sorted(_COMMANDS)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False),
    help="TOML file to read settings from.",
)
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False),
    help=".env file to read settings from.",
)
@click.option(
    "-v", "--verbose", count=True, help="Log more: -v for INFO, -vv for DEBUG."
)
@click.version_option(package_name="fm-storage", prog_name="fm-storage")
@click.pass_context
def cli(
    ctx: click.Context,
    config_file: str | None,
    env_file: str | None,
    verbose: int,
) -> None:
    """Manage rows in PostgreSQL and vectors in Qdrant."""
    from fm_storage.cli.common import Settings, configure_logging

    if config_file and env_file:
        raise click.UsageError("--config and --env-file exclude each other; give one")
    configure_logging(verbose)
    ctx.obj = Settings(config_file=config_file, env_file=env_file)


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and leave with its exit code.

    A user's mistake is one line on standard error, never a traceback.
    """
    from fm_storage.cli.common import exit_code_of, report

    try:
        code = cli.main(args=argv, prog_name="fm-storage", standalone_mode=False)
    except BaseException as exc:  # every way out ends here, as an exit code
        code = exit_code_of(exc)
        if code is None:
            raise
        report(exc)
    sys.exit(code if isinstance(code, int) else 0)
