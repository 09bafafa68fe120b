"""Which templates are one event: those that differ only where names stand.

The idea of Drain and Brain, on texts whose numbers, hosts and paths are masked
already: templates of one structure are compared word by word. Where a place holds
names (``CamelCase``, ``snake_case``, ``a.b.c``, ``'quoted'``), two or three of them
show that it varies; where it holds plain words, many must stand between equal
neighbours, for ``opened`` and ``closed`` are two events.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_QUOTED = re.compile(r"""(?<!\w)(["'])([^"'<\n]{1,60})\1""")
_FILLED = re.compile(r"""(["'(\[])<\w+>(["')\]])""")
_COUNTED = re.compile(r"(<n> [a-z]{3,})s\b")
_SPLIT = re.compile(r"""([\s=:,;()\[\]{}"'|]+)""")
_DIGITS = re.compile(r"\d+")
_SURE = re.compile(r"\x00|<|\w[.$/\\]\w+[.$/\\]\w|^(?:null|None|nil)$")
_NAME = re.compile(r"[a-z][A-Z]|[\w>][_.$/@#\\-]\w")
_PLAIN = re.compile(r"[A-Za-z]{2,}[.!]?")
_ANY = "*"
_NAMES = 3
_WORDS = 6
_ANY_WORDS = 12  # elsewhere verbs may stand: failed to open, to read, to close, …
_BEFORE_NAMES = frozenset(
    [
        "for",
        "of",
        "from",
        "by",
        "with",
        "on",
        "in",
        "at",
        "as",
        "via",
        "user",
        "named",
        "called",
        "host",
        "node",
        "device",
    ]
)

Row = tuple[str, ...]


def pieces_of(template: str) -> tuple[Row, Row]:
    """Return the words of a template, and the signs between them: its structure.

    Only templates of one structure may be the same event.
    """
    text = _COUNTED.sub(r"\1", _FILLED.sub(r"\1\2", template))
    text = _QUOTED.sub(lambda found: "\x00" + _SPLIT.sub("_", found[2]), text)
    parts = _SPLIT.split(_DIGITS.sub("<n>", text))
    return tuple(parts[0::2]), tuple(parts[1::2])


def shape_of(template: str) -> Row:
    """Return what templates that may be the same event have in common.

    Their structure, and the word in the first place, which varies only if it is
    surely a name.
    """
    words, signs = pieces_of(template)
    return (_ANY if _SURE.search(words[0]) else words[0], *signs)


def siblings(rows: Sequence[Row]) -> list[int]:
    """Return for each row of words the position of the first that is the same event.

    All rows are of one structure. Which rows are together does not depend on their
    order, and takes time in proportion to their number.
    """
    parents = list(range(len(rows)))

    def first(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    def join(ats: Sequence[int]) -> None:
        roots = sorted(map(first, ats))
        for root in roots:
            parents[root] = roots[0]

    for ats in _equal_but_for_names(rows):
        join(ats)
    seen = list(rows)
    places = range(1, len(rows[0]) if rows else 0)
    for place in [*places, *places]:  # what varies at two places is found twice
        for ats in _equal_but_for_words(seen, place):
            join(ats)
            for at in ats:
                seen[at] = (*seen[at][:place], _ANY, *seen[at][place + 1 :])
    return list(map(first, range(len(rows))))


def _equal_but_for_names(rows: Sequence[Row]) -> list[list[int]]:
    """Return rows that are equal but for places in which several names stand."""
    by_rest: defaultdict[Row, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        by_rest[
            tuple(_ANY if _is_name(word, i) else word for i, word in enumerate(row))
        ].append(at)
    found: list[list[int]] = []
    for rest, ats in by_rest.items():
        if len(ats) < 2 or not _tells(rest):
            continue
        columns = {
            i: {rows[at][i] for at in ats}
            for i, word in enumerate(rest)
            if word == _ANY
        }
        few = [
            i
            for i, names in columns.items()
            if len(names) < _NAMES and not all(map(_SURE.search, names))
        ]
        apart: defaultdict[Row, list[int]] = defaultdict(list)
        for at in ats:
            apart[tuple(rows[at][i] for i in few)].append(at)
        found.extend(apart.values())
    return found


def _equal_but_for_words(rows: Sequence[Row], place: int) -> list[list[int]]:
    """Return rows that are equal but for one place, in which many words stand."""
    by_rest: defaultdict[Row, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        by_rest[row[:place] + row[place + 1 :]].append(at)
    return [
        ats
        for rest, ats in by_rest.items()
        if len({rows[at][place] for at in ats})
        >= (_WORDS if rest[place - 1].lower() in _BEFORE_NAMES else _ANY_WORDS)
        and _tells(rest)
    ]


def _is_name(word: str, place: int) -> bool:
    return _SURE.search(word) is not None or (
        place > 0 and _NAME.search(word) is not None
    )


def _tells(rest: Row) -> bool:
    """Return whether enough is left that two rows have in common."""
    return sum(_PLAIN.fullmatch(word) is not None for word in rest) >= 2


def common(templates: Sequence[str]) -> str:
    """Return what *templates* have in common, ``<*>`` for words in which they differ.

    It is the first of them where their words do not stand side by side.
    """
    if len(templates) < 2:
        return templates[0] if templates else ""
    words = [template.split(" ") for template in templates]
    alike = [row for row in words if len(row) == len(words[0])]
    return " ".join(
        row[0] if len(set(row)) == 1 else "<*>" for row in zip(*alike, strict=True)
    )
