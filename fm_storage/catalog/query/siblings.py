"""Which templates are one event: those that differ only where names stand.

The idea of Drain and Brain, on texts whose numbers, hosts and paths are masked
already: templates of one structure are compared word by word. Where a place holds
names (``CamelCase``, ``snake_case``, ``a.b.c``, ``'quoted'``) or values (``key=v``,
``(v)``), a few of them show that it varies; where it holds plain words, many must
stand between equal neighbours, for ``opened`` and ``closed`` are two events. So are
``NotFound`` and ``AccessDenied``, and what stands behind ``code=`` or ``reason:``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

_QUOTED = re.compile(r"""(?<!\w)(["'])([^"'<\n]{1,60}|(?:<\w+>|[^"'<\s]){1,60})\1""")
_EMPTY = re.compile(r"\(\)|\[\]")
_COUNTED = re.compile(r"(<n> [a-z]{3,})s\b")
_SPLIT = re.compile(r"""([\s=:,;()\[\]{}"'|]+)""")
_DIGITS = re.compile(r"\d+")
_SURE = re.compile(r"\x00|<|\w[.$/\\]\w+[.$/\\]\w|^(?:null|None|nil)$")
_NAME = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]{2}|[\w>][_.$/@#\\-]\w")
_SUBJECT = re.compile(r"\w\.\w|^[A-Z](?=\w*[a-z])\w*[A-Z]")
# What happened, no name of a thing: exceptions, codes, members of an enumeration.
_EVENT = re.compile(
    r"(?:Aborted|Busy|Closed|Conflict|Cancell?ed|Denied|Detected|Down|Error|Exceeded"
    r"|Exception|Exhausted|Exists|Expired|Failed|Failure|Fault|Forbidden|Invalid|Limit"
    r"|Lost|Mismatch|Missing|Not[A-Z][a-z]+|Overflow|Refused|Rejected|Required|Reset"
    r"|Throttled|Time[Oo]ut|TimedOut|Unauthori[sz]ed|Unavailable|Unknown|Unreachable"
    r"|Unsupported|Violation|Warning)\W*$"
    r"|\b(?:No|Too)[A-Z]"
    r"|(?:^|[.$])[A-Z]{2,}(?:_[A-Z]+)+$"
)
_EVENT_KEY = re.compile(
    r"(?:msg|message|event|action|err|error|reason|cause|state|status|type|code|op"
    r"|operation|method|cmd|command|result|phase|stage|level|severity|kind)$",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z]{2,}[.!]?")
_ANY = "*"
_NAMES = 3
_VALUES = 4
_WORDS = 6
_ANY_WORDS = 12  # elsewhere verbs may stand: failed to open, to read, to close, …
_BEFORE_NAMES = re.compile(
    r"(?:as|at|by|called|class|column|container|device|domain|for|from|group|host|in"
    r"|index|interface|job|key|locale|module|named|node|of|on|package|partition|pod"
    r"|queue|service|session|table|task|thread|topic|unit|user|via|volume|with)",
    re.IGNORECASE,
)

Row = tuple[str, ...]


def pieces_of(template: str) -> tuple[Row, Row]:
    """Return the words of a template, and the signs between them: its structure.

    Only templates of one structure may be the same event.
    """
    text = _EMPTY.sub(lambda found: "<>".join(found[0]), template)
    text = _QUOTED.sub(
        lambda found: "\x00" + _SPLIT.sub("_", found[2]), _COUNTED.sub(r"\1", text)
    )
    parts = _SPLIT.split(_DIGITS.sub("<n>", text))
    return tuple(parts[0::2]), tuple(parts[1::2])


def shape_of(template: str) -> Row:
    """Return what templates that may be the same event have in common.

    Their structure, and the word in the first place, which varies only if it is
    surely a name.
    """
    words, signs = pieces_of(template)
    return (_ANY if _is_name(words, signs, 0) else words[0], *signs)


def siblings(rows: Sequence[Row], signs: Row) -> list[int]:
    """Return for each row of words the position of the first that is the same event.

    All rows are of one structure, that of *signs*. Which rows are together does not
    depend on their order, and takes time in proportion to their number.
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

    for ats in _equal_but_for_names(rows, signs):
        join(ats)
    seen = list(rows)
    places = range(1, len(rows[0]) if rows else 0)
    for place in [*places, *places]:  # what varies at two places is found twice
        for ats in _equal_but_for_words(seen, place):
            join(ats)
            for at in ats:
                seen[at] = (*seen[at][:place], _ANY, *seen[at][place + 1 :])
    return list(map(first, range(len(rows))))


def _equal_but_for_names(rows: Sequence[Row], signs: Row) -> list[list[int]]:
    """Return rows that are equal but for places in which several names stand."""
    by_rest: defaultdict[Row, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        by_rest[
            tuple(
                _ANY if _is_name(row, signs, i) or _is_value(row, signs, i) else word
                for i, word in enumerate(row)
            )
        ].append(at)
    found: list[list[int]] = []
    for rest, ats in by_rest.items():
        if len(ats) < 2:
            continue
        columns = {
            i: {rows[at][i] for at in ats}
            for i, word in enumerate(rest)
            if word == _ANY
        }
        few = [i for i, words in columns.items() if not _vary(words)]
        varies = set[str]().union(*(columns[i] for i in columns if i not in few))
        least = 1 if all(map(_SURE.search, varies)) else 2
        apart: defaultdict[Row, list[int]] = defaultdict(list)
        for at in ats:
            apart[tuple(rows[at][i] for i in few)].append(at)
        found.extend(
            ours for words, ours in apart.items() if _tells(rest, least - _plain(words))
        )
    return found


def _equal_but_for_words(rows: Sequence[Row], place: int) -> list[list[int]]:
    """Return rows that are equal but for one place, in which many words stand."""
    by_rest: defaultdict[Row, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        by_rest[row[:place] + row[place + 1 :]].append(at)
    return [
        ats
        for rest, ats in by_rest.items()
        if _are_many({rows[at][place] for at in ats}, rest[place - 1]) and _tells(rest)
    ]


def _are_many(words: set[str], before: str) -> bool:
    """Return whether so many words behind *before* show that the place varies."""
    names = sum(_named(word) for word in words)
    likely = _BEFORE_NAMES.fullmatch(before) is not None
    # Where names stand, so are the other words.
    if names * 2 >= len(words) or (names and likely):
        return len(words) >= _NAMES
    return len(words) >= (_WORDS if likely else _ANY_WORDS)


def _vary(words: set[str]) -> bool:
    """Return whether words where names or values stand show that the place varies."""
    if all(map(_SURE.search, words)):
        return True
    return len(words) >= (_NAMES if any(map(_named, words)) else _VALUES)


@lru_cache(maxsize=1 << 14)
def _named(word: str) -> bool:
    return (_SURE.search(word) or _NAME.search(word)) is not None and (
        _EVENT.search(word) is None
    )


def _is_name(words: Row, signs: Row, place: int) -> bool:
    """Return whether the form of a word says that it is a name."""
    word = words[place]
    if place == 0:
        names = _SURE.search(word) or (signs[:1] == (": ",) and _SUBJECT.search(word))
        return bool(names) and _EVENT.search(word) is None
    return _named(word) and not _tells_what(words, signs, place)


def _is_value(words: Row, signs: Row, place: int) -> bool:
    """Return whether the place of a word says that it is a value: k=v, (v), [v]."""
    if place == 0:
        return False
    if signs[place - 1] == "=":
        found = not _tells_what(words, signs, place)
    else:
        found = _encloses(signs, place)
    return found and _EVENT.search(words[place]) is None


def _tells_what(words: Row, signs: Row, place: int) -> bool:
    """Return whether a word says what happened: ``code=NotFound``."""
    return (
        signs[place - 1].strip() in {"=", ":"}
        and "<" not in words[place]
        and _EVENT_KEY.search(words[place - 1]) is not None
    )


def _encloses(signs: Row, place: int) -> bool:
    """Return whether brackets stand around a word; at the beginning it is a level."""
    if place == len(signs) or (place == 1 and signs[0] == "["):
        return False
    return signs[place - 1][-1] + signs[place][0] in {"()", "[]", "{}"}


def _tells(rest: Row, least: int = 2) -> bool:
    """Return whether enough is left that two rows have in common."""
    return _plain(rest) >= least


def _plain(words: Row) -> int:
    return sum(_PLAIN.fullmatch(word) is not None for word in words)


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
