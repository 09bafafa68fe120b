"""The command line's frame: exit codes, mistakes, hostile text."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fm_storage.cli import cli, main
from fm_storage.cli.common import (
    Settings,
    ago,
    confirm,
    exit_code_of,
    plain,
    print_json,
    report,
    run,
)
from fm_storage.cli.outbox_text import show_drained
from fm_storage.errors import (
    CollectionNotFound,
    ConfigurationInvalid,
    PoolTimeout,
    QueryFailed,
    RecordNotFound,
    StorageError,
)
from fm_storage.outbox import DrainReport

HOSTILE = (
    "\x1b[31mred\x1b[0m [bold]markup[/] \x1b]0;title\x07 bell\x07 \u202eesrever \x9b"
)


def test_hostile_text_is_shown_as_text():
    """No escape, control or bidirectional override survives; markup is text."""
    shown = plain(HOSTILE).plain

    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\x07" not in shown
    assert "\x9b" not in shown
    assert "[bold]markup[/]" in shown
    assert plain("\ud800").plain == "?"


def test_long_text_is_cut_to_one_line():
    """A limit folds white space and ends in an ellipsis."""
    assert plain("a\n  b\tc", limit=10).plain == "a b c"
    assert plain("x" * 20, limit=10).plain == "x" * 9 + "…"
    assert plain(None).plain == ""


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (click.exceptions.Exit(3), 3),
        (click.UsageError("no"), 2),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit("text"), 1),
        (ConfigurationInvalid("a.b", "no"), 2),
        (QueryFailed("no"), 1),
        (FileNotFoundError("no"), 1),
        (ExceptionGroup("g", [StorageError("a"), QueryFailed("b")]), 1),
        (ExceptionGroup("g", [StorageError("a"), KeyError("b")]), None),
        (ZeroDivisionError(), None),
    ],
)
def test_exit_codes(exc: BaseException, code: int | None):
    """1 failed, 2 wrong use or settings, 130 and 143 interrupted; else a fault."""
    assert exit_code_of(exc) == code


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (StorageError("pool [red]: \x1b[1mno; wait"), "error: pool [red]: no; wait\n"),
        (ExceptionGroup("g", [StorageError("a"), StorageError("b")]), "error: a\n"),
        (KeyboardInterrupt(), "interrupted"),
        (click.UsageError("bad option"), "error: bad option\n"),
        (click.ClickException("no \x1b[1mfile"), "error: no file\n"),
        (FileNotFoundError(2, "No such file", "a.log"), "error: a.log: No such file\n"),
        (PermissionError("just said"), "error: just said\n"),
        (SystemExit(143), ""),
        (RecordNotFound("errors", 7), "error: errors: no record with key 7\n"),
        (CollectionNotFound("c", operation="search"), "'fm-storage vectors list'"),
        (PoolTimeout("p", waited=1, in_use=2, size=2), "raise postgres.max_size or"),
    ],
)
def test_a_mistake_is_one_line(
    exc: BaseException, said: str, capsys: pytest.CaptureFixture[str]
):
    """No traceback, no markup, on standard error."""
    report(exc)

    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_ago_is_short():
    """The largest unit that fits."""
    now = datetime.now(UTC)

    assert ago(None) == "never"
    assert ago(now) == "just now"
    assert ago(now - timedelta(seconds=5)) == "5 s ago"
    assert ago(now - timedelta(minutes=3)) == "3 min ago"
    assert ago(now - timedelta(hours=2)) == "2 h ago"
    assert ago(now - timedelta(days=4)) == "4 d ago"


def test_json_understands_what_commands_print(capsys: pytest.CaptureFixture[str]):
    """Times, paths and unknown things become text."""
    print_json({"at": datetime(2026, 1, 2, tzinfo=UTC), "path": Path("/x")})

    assert '"2026-01-02T00:00:00+00:00"' in capsys.readouterr().out


def test_a_drain_says_that_the_rest_is_another_drainers(
    capsys: pytest.CaptureFixture[str],
):
    """One that was killed holds its batch for as long as its lease."""
    until = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    show_drained(DrainReport(56, 0, 64, leased=64, leased_until=until))
    show_drained(DrainReport(1, 0, 0))

    said = capsys.readouterr().out.splitlines()
    assert said[0] == "56 delivered, 0 set aside, 64 left"
    assert said[1].startswith("64 of them are another drainer's until 03:04:05 UTC: ")
    assert said[2:] == ["1 delivered, 0 set aside, 0 left"]


def test_settings_come_from_where_the_command_line_says(tmp_path: Path):
    """--config reads TOML, --env-file a .env."""
    toml = tmp_path / "s.toml"
    toml.write_text("[postgres]\nmax_size = 3\n")
    env = tmp_path / "s.env"
    env.write_text("FM_STORAGE_POSTGRES__MAX_SIZE=4\n")

    from_toml = Settings(config_file=str(toml)).load().postgres
    from_env = Settings(env_file=str(env)).load().postgres

    assert from_toml is not None
    assert from_toml.max_size == 3
    assert from_env is not None
    assert from_env.max_size == 4


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "Exit codes"),
        (["--version"], 0, "fm-storage"),
        (["no-such-command"], 2, "help.\n\nerror: No such command"),
        (["heath"], 2, "Did you mean 'health'?"),
        (["errors"], 2, "Examples:"),
        (["rollback", "--steps", "0"], 2, "Usage: fm-storage rollback [OPTIONS]\n"),
        (["--config", "a", "--env-file", "b", "health"], 2, "exclude each other"),
        (["--config", "nowhere.toml", "health"], 2, "cannot be read"),
    ],
)
def test_main_leaves_with_an_exit_code(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    """Whatever the user typed, the way out is an exit code and a line."""
    with pytest.raises(SystemExit) as caught:
        main(argv)

    out, err = capsys.readouterr()
    assert caught.value.code == code
    assert said in out + err


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]):
    """``fm-storage X --help`` loads X and shows how to use it."""
    with click.Context(cli) as context:
        names = cli.list_commands(context)
    for name in names:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        said = capsys.readouterr().out
        assert caught.value.code == 0
        assert "Examples:" in said, name


def test_sigterm_cancels_and_ends_with_143():
    """The command's blocks close; the exit code tells the signal."""
    closed = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    with pytest.raises(SystemExit) as caught:
        run(work())

    assert caught.value.code == 143
    assert closed == [True]


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error():
    """``fm-storage … | head -1`` prints no traceback."""
    script = (
        "import click, fm_storage.cli as c\n"
        "@c.cli.command()\n"
        "def flood():\n"
        "    for _ in range(100000): click.echo('x' * 100)\n"
        "c.cli.get_command = lambda ctx, name: flood\n"
        "c.main(['flood'])\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr is not None
    with writer.stderr:
        said = writer.stderr.read()
    writer.wait()

    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("answer", "printed", "code"),
    [
        ("y\n", "True", 0),
        ("n\n", "False", 0),
        ("", "nobody answered; --yes deletes unasked", 2),
    ],
)
def test_a_question_that_nobody_answers_names_the_option(answer, printed, code):
    """Without a terminal it is a wrong use, not an interruption."""

    @click.command()
    def ask() -> None:
        click.echo(str(confirm("Delete it?", "deletes")))

    result = CliRunner().invoke(ask, input=answer)

    assert printed in result.output
    assert result.exit_code == code


@pytest.mark.parametrize("command", ["wait", "health", "outbox drain", "outbox repair"])
@pytest.mark.parametrize("value", ["nan", "-1", "inf", "1e300"])
def test_a_time_to_wait_ends(command: str, value: str):
    """Refused before anything is opened; nan is below no bound and above none."""
    done = CliRunner().invoke(cli, [*command.split(), "--timeout", value])
    assert done.exit_code == 2
    assert "Invalid value for '--timeout'" in done.output
