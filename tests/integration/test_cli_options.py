"""Every option and argument of every command, with every kind of wrong value.

The options are the parser's own, so that a new one is tried as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fm_storage.cli import cli, main

# What people, scripts and attackers type; none is right everywhere, few anywhere.
VALUES = (
    *(
        "",
        " \n\t",
        "é☃",
        "\udcff.log",
        "\x1b[31m[bold]%s{}",
        "x" * 5000,
        "-1",
        "0",
        "nan",
    ),
    *("inf", "9" * 30, "2147483648", "/", "nowhere/at/all", "/dev/null", "~nobody/x"),
    *('{"must": [{"key": "a"}]}', '[1, "a"]', "[1, 2]", "null", "(?P<", "\\", "'; --"),
    *("0001-01-01", "9999-12-31T23:59:59", "1000000d", "+99:99", "../etc/passwd"),
    *("f" * 16, "package:nope:nope", "=", "a=b=c", "--"),
)
_LEFT_OUT = {("demo",)}
"""It starts servers of its own; ``test_cli_demo`` has its wrong values."""

_RIGHT = {  # makes the rest of the line right, so that the wrong value is reached
    "collection": "docs",
    "error_id": "01a1ffd8",
    "file": "points.jsonl",
    "log": "shop.log",
    "name": "add shops",
    "older_than": "90d",
    "query": "[1, 0]",
    "table": "project_errors",
    "text": "message",
}


def _leaves(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _leaves(inner, (*path, name))


PLACES = [
    (path, parameter.name)
    for path, command in _leaves(cli)
    if path not in _LEFT_OUT
    for parameter in command.params
    if not getattr(parameter, "is_flag", False) and not parameter.is_eager
]


def _line(path: tuple[str, ...], wrong: str | None, value: str) -> list[str]:
    """Return a command line that is right but for one value."""
    command = dict(_leaves(cli))[path]
    options, arguments = [*path], []
    for parameter in command.params:
        if parameter.name == wrong:
            given = value
        elif parameter.required:
            given = _RIGHT.get(str(parameter.name), "f" * 16)
        else:
            if parameter.name == "yes":
                options.append("--yes")
            continue
        if isinstance(parameter, click.Argument):
            arguments.append(given)
        elif parameter.opts[0].startswith("--"):
            options.append(f"{parameter.opts[0]}={given}")
        else:
            options += [parameter.opts[0], given]
    return [*options, "--", *arguments] if arguments else options


@pytest.fixture
def commands(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the commands, and the folder in which they run."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", ":memory:")
    monkeypatch.setenv("FM_STORAGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "shop.log").write_text("2024-01-02 03:04:05 ERROR shop: lost\n")
    (folder / "\udcff.log").write_text("2024-01-02 03:04:05 ERROR shop: lost\n")
    (folder / "points.jsonl").write_text('{"id": 1, "vector": [1, 0]}\n')
    monkeypatch.chdir(folder)


def ended(argv: list[str]) -> Any:
    """Run the command line; return its exit code, or the exception it died of."""
    try:
        main(argv)
    except SystemExit as exc:
        return exc.code
    except BaseException as exc:
        return exc
    return "main() returned"


@pytest.mark.usefixtures("no_variables", "commands")
@pytest.mark.parametrize(
    ("path", "name"), PLACES, ids=[f"{'-'.join(p)}-{n}" for p, n in PLACES]
)
def test_a_wrong_value_is_no_traceback(
    path: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]
):
    """Whatever stands in one place: exit code 0, 1 or 2, a message, no traceback."""
    wrong = {}
    for value in VALUES:
        code = ended(_line(path, name, value))
        out, err = capsys.readouterr()
        silent = code in {1, 2} and not out + err
        if silent or code not in {0, 1, 2} or "Traceback" in out + err:
            wrong[value] = repr(code)
    assert not wrong
