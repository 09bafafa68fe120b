"""What a statement may leave behind on its connection, and how it is removed.

The server's answer does not tell: ``SELECT set_config(…, false)``, an advisory
lock and a function that does SET ROLE all answer ``SELECT 1``. So a statement
counts as lean only when this conservative classifier can prove it from the
text; everything else makes the connection *dirty*, and a dirty connection is
reset between two borrowers, off the caller's path.
"""

from __future__ import annotations

from enum import IntEnum

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.connection.vocabulary import (
    HARMLESS_WRITERS,
    READERS,
    SIZED_TYPES,
    STARTS,
    SYNTAX,
    WRITERS,
)
from fm_storage.postgres.sql import Sql, sendable
from fm_storage.postgres.tokens import fold, tokens

__all__ = ["RESET_SQL", "Effect", "classify", "is_lean"]

RESET_SQL = (
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; "
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
"""DISCARD ALL without DEALLOCATE: the driver's prepared statements stay good.

See https://www.postgresql.org/docs/current/sql-discard.html."""


class Effect(IntEnum):
    """What a statement can do beyond answering; false when anything."""

    ANYTHING = 0
    WRITES = 1
    """Changes rows, leaves nothing on the connection."""
    READS = 2
    """Changes nothing at all: harmless to run again."""


_LONGEST = 20_000
_REMEMBERED = 2_000
_VALUES = frozenset({"string", "dollar", "number", "parameter"})
_known: dict[str, Effect] = {}


def is_lean(sql: str) -> bool:
    """Whether *sql* leaves nothing behind on the connection."""
    return type(sql) is Sql or classify(sql) is not Effect.ANYTHING


def classify(sql: str) -> Effect:
    """Return what *sql* can do, ANYTHING when that cannot be told.

    Raises:
        InvalidRecord: It cannot be sent; see ``sendable()``.
    """
    effect = _known.get(sql)
    if effect is None:
        sendable(sql)
        if len(_known) >= _REMEMBERED:
            _known.clear()
        effect = _classify(sql)
        if len(sql) <= _LONGEST:
            _known[sql if type(sql) is str else str(sql)] = effect
    return effect


def _classify(sql: str) -> Effect:
    words = _words(sql)
    if not words or (words[0] not in STARTS and words[0] not in WRITERS):
        return Effect.ANYTHING
    least = Effect.READS
    before = ""
    for at, word in enumerate(words):
        least = min(least, _effect_of(words, at, before))
        before = word
    return least


def _effect_of(words: list[str], at: int, before: str) -> Effect:
    word = words[at]
    if word in {";", "?"} or (word == "into" and before not in {"insert", "merge"}):
        return Effect.ANYTHING  # several statements; SELECT INTO makes a table
    if word in WRITERS:
        return Effect.READS if _locks_rows(before) else Effect.WRITES
    if words[at + 1 : at + 2] == ["("] and _is_name(word):
        return _called(words, at)
    return Effect.READS


def _locks_rows(before: str) -> bool:
    """Whether an UPDATE after *before* is that of FOR [NO KEY] UPDATE."""
    return before in {"for", "key"}


def _is_name(word: str) -> bool:
    return word[0].isalpha() or word[0] in '_"' or not word.isascii()


def _called(words: list[str], at: int) -> Effect:
    """Judge the name at *at*, which stands before a parenthesis."""
    word = words[at]
    before = words[at - 1] if at else ""
    if before == ".":
        schema = words[at - 2] if at > 1 else ""
        if _follows_into(words, at):
            return Effect.READS
        if schema != "pg_catalog" or words[at - 3 : at - 2] == ["."]:
            return Effect.ANYTHING
    elif before in {"into", "as", "with", "recursive"} or word in SYNTAX:
        return Effect.READS  # a table or an alias with its columns; syntax
    elif word in SIZED_TYPES:
        return Effect.READS
    if word in READERS:
        return Effect.READS
    return Effect.WRITES if word in HARMLESS_WRITERS else Effect.ANYTHING


def _follows_into(words: list[str], at: int) -> bool:
    """Whether ``schema.name`` or ``db.schema.name`` at *at* follows INTO."""
    start = at
    while start >= len(("schema", ".")) and words[start - 1] == ".":
        start -= 2
    return start > 0 and words[start - 1] == "into"


def _words(sql: str) -> list[str]:
    """Split into lower-case words and marks; ``?`` stands for what is unclear.

    A backslash makes an ordinary string unclear: its meaning depends on
    standard_conforming_strings.
    """
    words: list[str] = []
    if len(sql) > _LONGEST:
        return words
    try:
        for kind, text, _ in tokens(sql):
            if kind == "word":
                words.append(fold(text))
            elif kind == "string" and "\\" in text and text[0] not in "eE":
                return ["?"]
            else:
                words.append("0" if kind in _VALUES else text)
    except InvalidRecord:
        return ["?"]
    while words and words[-1] == ";":
        words.pop()
    return words
