"""Shared by every command: settings, running, output, errors.

Text from logs and databases is hostile until it has passed ``plain()``: it may
hold rich markup, ANSI escapes or bidirectional overrides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.text import Text

from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid, StorageError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from fm_storage._typing import Progress
    from fm_storage.catalog import ErrorManager
    from fm_storage.manager import StorageManager

T = TypeVar("T")

# C0 and C1 controls but tab and newline, ANSI sequences, and the characters that
# reorder or hide what follows them on a terminal.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)", re.DOTALL
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)

_WIDE = 120


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(
        stderr=stderr, width=width, highlight=False, markup=False, emoji=False
    )


def console() -> Console:
    """Return a console on standard output that takes no markup from text."""
    return _console()


def plain(text: object, *, limit: int | None = None) -> Text:
    """Return *text* as literal text: no markup, no escapes, no controls.

    Args:
        text: Anything; None shows nothing.
        limit: Characters at most, on one line; longer text ends in ``…``.
    """
    shown = "" if text is None else str(text)
    shown = _CONTROL.sub("\ufffd", _ANSI.sub("", shown))
    shown = shown.encode("utf-8", "replace").decode("utf-8")
    if limit is not None:
        shown = " ".join(shown.split())
        if len(shown) > limit:
            shown = shown[: limit - 1] + "…"
    return Text(shown)


def ago(moment: datetime | None) -> str:
    """Return how long ago *moment* (aware) was: ``3 min ago``."""
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 1 else f"{seconds:.0f} s ago"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the settings come from, as the command line specifies."""

    config_file: str | None = None
    env_file: str | None = None

    def load(self) -> StorageConfig:
        """Read them.

        Raises:
            ConfigurationInvalid: A setting is wrong.
        """
        if self.config_file:
            return StorageConfig.from_toml(self.config_file)
        return StorageConfig.from_env(env_file=self.env_file)


def configure_logging(verbose: int) -> None:
    """Log to standard error: errors only, more with each ``-v``."""
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(
        level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # A variable without effect is always reported, whatever the verbosity.
    logging.getLogger("fm_storage.config").setLevel(min(level, logging.WARNING))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main*; SIGTERM and Ctrl-C cancel it, so that everything is closed.

    Raises:
        KeyboardInterrupt: After SIGINT, once *main* has ended.
        SystemExit: With 143 after SIGTERM, once *main* has ended.
    """
    return asyncio.run(_terminable(main))


async def _terminable(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def on_term() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, on_term)
    try:
        return await main
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(128 + signal.SIGTERM) from None
        # Ctrl-C: asyncio.run() makes it one only if nothing else has cancelled the
        # task meanwhile, as a block that ends its own tasks does.
        raise KeyboardInterrupt from None
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGTERM)


def with_storage(
    settings: Settings,
    job: Callable[[StorageManager], Awaitable[T]],
    *,
    migrates: bool = False,
    **overrides: Any,
) -> T:
    """Open a ``StorageManager``, run *job* with it, close it, return the result.

    A command is no start of an application: it applies no migration, and makes
    neither an embedded database nor an embedded vector store.

    Args:
        settings: Where the settings come from.
        job: Called with the opened manager.
        migrates: Whether it may do so all the same, because it writes.
        **overrides: Sections to replace (``qdrant=None`` for a command that
            needs no vectors).
    """

    async def body() -> T:
        from fm_storage.manager import StorageManager

        config = settings.load()
        if overrides:
            config = config.model_copy(update=overrides)
        if not migrates:
            config = _as_it_is(config)
        async with StorageManager(config) as storage:
            return await job(storage)

    return run(body())


def with_errors(
    settings: Settings,
    job: Callable[[StorageManager, ErrorManager], Awaitable[T]],
    *,
    replica: bool = False,
    **overrides: Any,
) -> T:
    """Run *job* with a storage and an ``ErrorManager``, as ``with_storage()`` does.

    Args:
        settings: Where the settings come from.
        job: Called with both.
        replica: Whether it reads from a replica, if there is one.
        **overrides: See ``with_storage()``.
    """

    async def served(storage: StorageManager) -> T:
        from fm_storage.catalog import ErrorManager

        reads = storage.reads if replica else None
        async with ErrorManager(storage, reads=reads) as errors:
            return await job(storage, errors)

    return with_storage(settings, served, **overrides)


def _as_it_is(config: StorageConfig) -> StorageConfig:
    """Return *config* such that opening a manager with it makes nothing.

    Raises:
        ConfigurationInvalid: The embedded database does not exist yet.
    """
    postgres, qdrant = config.postgres, config.qdrant
    if postgres is not None and postgres.embedded:
        folder = config.embedded_folder(postgres.dsn) / "postgres"
        # A file in the way of the folder is named by the part that opens it.
        if not folder.exists() and not any(map(Path.is_file, folder.parents)):
            raise ConfigurationInvalid(
                "postgres.dsn",
                f"names an embedded database, and there is none in {folder} yet; "
                "'fm-storage migrate' makes it, or name a server",
            )
    if (
        qdrant is not None
        and qdrant.embedded
        and not config.embedded_folder(qdrant.url).exists()
    ):
        qdrant = None
    as_they_are = config.migrations.model_copy(update={"auto_apply": False})
    return config.model_copy(update={"migrations": as_they_are, "qdrant": qdrant})


F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A time that ends: no number compares with nan, so the bounds let it pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the number, within the bounds."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return found


SECONDS = Seconds(min=0, max=31_536_000)


def json_option(function: F) -> F:
    """Add ``--json`` (``as_json``), for output that a program reads."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, for programs."
    )(function)


@contextmanager
def progress_bar(
    what: str, count: ProgressColumn | None = None, *, quiet: bool = False
) -> Iterator[Progress]:
    """Show a bar on standard error, if that is a terminal and not *quiet*."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), count or MofNCompleteColumn())
    out = _console(stderr=True)
    hidden = quiet or not out.is_terminal
    with Bar(*columns, console=out, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def confirm(question: str, unasked: str) -> bool:
    """Ask on standard error.

    Args:
        question: What is asked.
        unasked: What ``--yes`` does: ``deletes``.

    Raises:
        click.UsageError: Nobody is there to answer.
    """
    try:
        return click.confirm(question, err=True)
    except click.Abort as exc:
        if isinstance(exc.__context__, EOFError):
            raise click.UsageError(
                f"nobody answered; --yes {unasked} unasked"
            ) from None
        raise


def print_json(value: object) -> None:
    """Print *value* as JSON; dataclasses, UUIDs and times are understood."""
    data = orjson.dumps(
        value,
        default=str,
        option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS,
    )
    click.echo(data.decode())


# The remedies of errors are for programmers; here in terms of commands.
_IN_COMMANDS = (
    (
        "create it with ensure_collection_exists()",
        "see 'fm-storage vectors list', or name it in qdrant.collections",
    ),
    (
        "use another name, or reindex()",
        "correct qdrant.collections, or use another name",
    ),
    ("; use find_by_id() where absence is normal", ""),
    (
        "run the whole transaction again (run_in_transaction())",
        "run the command again",
    ),
    (
        "release connections sooner, or raise max_size or timeout",
        "raise postgres.max_size or postgres.acquire_timeout",
    ),
    (
        "raise the timeout, or make the statement cheaper",
        "raise postgres.command_timeout",
    ),
)

_EXIT_CODES: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((click.Abort, KeyboardInterrupt), 128 + signal.SIGINT),
    ((ConfigurationInvalid,), 2),
    ((StorageError, OSError), 1),
)


def exit_code_of(exc: BaseException) -> int | None:
    """Return the exit code that *exc* stands for; None for a fault of ours."""
    if isinstance(exc, click.exceptions.Exit | click.ClickException):
        return exc.exit_code
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else 1
    if isinstance(exc, BaseExceptionGroup):
        return 1 if exc.split(StorageError)[1] is None else None
    for kinds, code in _EXIT_CODES:
        if isinstance(exc, kinds):
            return code
    return None


def _show_usage(exc: click.ClickException) -> None:
    """Print the usage, as click does, if the command was used wrongly."""
    ctx = exc.ctx if isinstance(exc, click.UsageError) else None
    if ctx is None:
        return
    click.echo(ctx.get_usage(), err=True)
    if ctx.help_option_names:
        click.echo(
            f"Try '{ctx.command_path} {ctx.help_option_names[-1]}' for help.\n",
            err=True,
        )


def report(exc: BaseException) -> None:
    """Print the error on standard error, in one line without a traceback."""
    if isinstance(exc, click.exceptions.Exit | SystemExit):
        return
    if isinstance(exc, BrokenPipeError):
        # The reader (head, less) has gone; nobody is left to read a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        exc.show()
        return
    shown = _console(stderr=True)
    if isinstance(exc, click.Abort | KeyboardInterrupt):
        shown.print("interrupted; what was done so far is kept")
        return
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            report(inner)
        return
    message = str(exc)
    if isinstance(exc, click.ClickException):
        message = exc.format_message()
        _show_usage(exc)
    elif (
        isinstance(exc, OSError) and exc.filename and not isinstance(exc, StorageError)
    ):
        message = f"{exc.filename}: {exc.strerror}"
    for advice, command in _IN_COMMANDS:
        message = message.replace(advice, command)
    shown.print(Text("error: ", style="bold red") + plain(message), soft_wrap=True)
