"""Every example of every page, run as it stands on real engines.

How a page says what its examples need is reported in ``tests/support/pages.py``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shlex
import sys
import types
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from fm_storage import ErrorManager, StorageManager
from fm_storage.config import StorageConfig
from tests.support.pages import ROOT, Example, chains, examples, pages

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(300)

# One interpreter for all commands of a block: starting one takes longer than most.
_COMMANDS = """
import json, sys
from fm_storage.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as exc:
        codes.append(exc.code)
    print(end="\\0", flush=True)
print(codes)
"""

LANGUAGES = {"python", "console", "toml", "sql", "text", "yaml"}


def _cases(*languages: str) -> list[Any]:
    return [
        pytest.param(chain, id=f"{chain[0].page}:{chain[0].line}")
        for page in pages()
        for chain in chains(page, *languages)
    ]


@pytest.fixture
def environment(
    storage_config: StorageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_variables: None,
) -> dict[str, str]:
    """Lead this process, and those that it starts, to this test's servers."""
    del no_variables
    assert storage_config.postgres is not None
    assert storage_config.qdrant is not None
    variables = {
        "FM_STORAGE_POSTGRES__DSN": storage_config.postgres.dsn,
        "FM_STORAGE_QDRANT__URL": storage_config.qdrant.url,
        "FM_STORAGE_DATA_DIR": str(tmp_path / "data"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Names:
    """The names that examples use; what they need is opened when it is asked for."""

    def __init__(self, dsn: str, folder: Path, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._module = types.ModuleType("example")
        self.all = self._module.__dict__
        self.all |= {"dsn": dsn, "folder": folder}

    def __enter__(self) -> Self:
        sys.modules["example"] = self._module
        return self

    def __exit__(self, *_: object) -> None:
        del sys.modules["example"]

    async def need(self, word: str) -> None:
        """Open what *word* names."""
        if word in self.all or word in {"continues", "program"} or "=" in word:
            return
        if word != "storage":
            await self.need("storage")
        storage = self.all.get("storage")
        opened: Any
        if word == "storage":
            opened = await self._stack.enter_async_context(StorageManager())
        elif word == "errors":
            opened = await self._stack.enter_async_context(ErrorManager(storage))
        elif word == "session":
            opened = await self._stack.enter_async_context(storage.session())
        else:
            opened = {"pool": storage.pool, "store": storage.qdrant}[word]
        self.all[word] = opened

    async def run(self, code: str, file: str, line: int) -> None:
        """Run *code*, which may await."""
        tree = ast.increment_lineno(ast.parse(code), line - 1)
        made = eval(  # noqa: S307 - our own examples
            compile(tree, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), self.all
        )
        if inspect.isawaitable(made):
            await made


@pytest.fixture
async def names(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[Names]:
    """Give the names that examples use, closed at the end."""
    async with AsyncExitStack() as stack:
        with Names(environment["FM_STORAGE_POSTGRES__DSN"], tmp_path, stack) as made:
            yield made


@pytest.mark.parametrize("chain", _cases("python"))
@pytest.mark.lengthy
async def test_a_python_example_runs(
    chain: list[Example], names: Names, environment: dict[str, str], tmp_path: Path
):
    """As it stands; what its page promises holds afterwards."""
    for example in chain:
        for word in example.words:
            await names.need(word)
        await names.run(example.before, f"{example.page} (before)", example.line)
        if "program" in example.words:
            names.all["output"] = await _run(
                [sys.executable, "-W", "error", "-c", example.code],
                environment,
                tmp_path,
            )
        else:
            await names.run(example.code, example.page, example.line)
        await names.run(example.after, f"{example.page} (then)", example.line)


@pytest.mark.parametrize("chain", _cases("console"))
async def test_a_command_of_a_page_runs(
    chain: list[Example], names: Names, environment: dict[str, str], tmp_path: Path
):
    """Commands of fm-storage are run; make, pip and pytest are given what exists."""
    for example in chain:
        for word in example.words:
            await names.need(word)
        await names.run(example.before, f"{example.page} (before)", example.line)
        commands = [
            shlex.split(line, comments=True)
            for line in re.findall(r"^\$ (.+)$", example.code, re.MULTILINE)
        ]
        assert commands, f"{example.page}:{example.line} has no line that begins with $"
        for words in commands:
            _check(words, f"{example.page}:{example.line}")
        ours = [words[1:] for words in commands if words[0] == "fm-storage"]
        if ours:
            out = await _run(
                [sys.executable, "-c", _COMMANDS, json.dumps(ours)],
                environment,
                tmp_path,
            )
            *outputs, codes = out.split("\0")
            exits = [int(word[6:]) for word in example.words if word[:6] == "exits="]
            assert json.loads(codes) == [0] * (len(ours) - len(exits)) + exits, out
            names.all["outputs"] = outputs
        await names.run(example.after, f"{example.page} (then)", example.line)


@pytest.mark.parametrize("chain", _cases("toml"))
def test_a_settings_file_is_accepted(
    chain: list[Example], tmp_path: Path, no_variables
):
    """Every key is a setting, every value allowed."""
    del no_variables
    for example in chain:
        file = tmp_path / "storage.toml"
        file.write_text(example.code, "utf-8")
        StorageConfig.from_toml(file)


def test_every_block_is_of_a_kind_that_is_run():
    """A block in another language would be an example that nothing runs."""
    kinds = {example.language for page in pages() for example in examples(page)}

    assert kinds <= LANGUAGES


async def _run(words: list[str], environment: dict[str, str], folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{words}\n{out.decode()}\n{err.decode()}"
    return out.decode()


def _check(words: list[str], place: str) -> None:
    """Refuse a command that names what is not there."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "make":
        targets = set(
            re.findall(
                r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
            )
        )
        given = {word for word in words[1:] if "=" not in word}
        assert given <= targets, f"{place}: {given - targets}"
    elif words[0] in {"pip", "git", "cd", "python", "pytest", "lint-imports"}:
        for word in words[1:]:
            if word.startswith(("tests/", "fm_storage/", "migrations/")):
                assert (ROOT / word.partition("::")[0]).exists(), f"{place}: {word}"
    elif words[0] != "fm-storage":
        pytest.fail(f"{place}: nothing runs {words[0]!r}")
