"""The pages that users read, and the examples in them.

An example is a fenced block. An HTML comment right before it, which readers do
not see, may say what it needs and what runs first; one right after it, what must
hold then::

    <!-- example storage errors
    exc = ValueError("no such invoice")
    -->
    ```python
    recorded = await errors.record(exc, module="billing")
    ```
    <!-- then
    assert recorded.durable
    -->

The words after ``example``: ``storage errors pool store session`` are opened and
given under that name; ``continues`` goes on with the names of the example before;
``program`` is run in a process of its own; ``exits=1`` is the exit code that the
last command of a console block has.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Example", "chains", "examples", "pages", "without_comments"]

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^<!-- example(?P<words>[^\n]*?)(?:\n(?P<before>(?:(?!-->).)*))?-->\n+)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n+<!-- then\n(?P<after>(?:(?!-->).)*)-->)?",
    re.DOTALL | re.MULTILINE,
)
_COMMENT = re.compile(r"^<!--.*?-->\n?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """One fenced block of a page.

    Attributes:
        page: Path of the page, from the project's root.
        line: Line of the page on which the code begins.
        words: What the block needs.
        before: Code that runs first.
        after: Code that runs last, and asserts.
    """

    page: str
    line: int
    language: str
    code: str
    words: tuple[str, ...] = ()
    before: str = ""
    after: str = ""


def pages() -> list[Path]:
    """Return every page of the project."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    for folder in (".docs", ".github", "fm_storage", "migrations", "tests"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return found


def without_comments(text: str) -> str:
    """Return a page as readers see it."""
    return _COMMENT.sub("", text)


def examples(page: Path) -> list[Example]:
    """Return the blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Example(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            textwrap.dedent(found["code"]),
            tuple((found["words"] or "").split()),
            found["before"] or "",
            found["after"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def chains(page: Path, *languages: str) -> list[list[Example]]:
    """Return the examples in these languages, those that continue with the first."""
    found: list[list[Example]] = []
    for example in examples(page):
        if example.language not in languages:
            continue
        if "continues" in example.words:
            found[-1].append(example)
        else:
            found.append([example])
    return found
