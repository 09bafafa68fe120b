"""Tokens of SQL text, by the rules of the server's scanner.

One tokenizer for everything that must know where a string, a comment or a
statement ends before the server has seen the text: the classifier of statements,
the parameters of a view and the statements of a migration file. It follows
``src/backend/parser/scan.l``: block comments nest, a ``--`` comment ends at a line
feed or a carriage return, every non-ASCII character may be part of a name, names
fold in ASCII only, and a string goes on behind a line break.

``standard_conforming_strings`` is assumed to be on, as it is since PostgreSQL 9.1;
a caller that knows better says so.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import NamedTuple

from fm_storage.errors import InvalidRecord


class Token(NamedTuple):
    """One token of a text.

    Attributes:
        kind: ``word`` (name or keyword), ``quoted`` (name), ``string`` (with its
            prefix and continuations), ``dollar`` (string), ``parameter`` (``$1``),
            ``number``, ``operator``, or ``mark`` (any other character, ``::``,
            ``:=`` and ``..``).
        text: As written.
        start: Index of its first character.
    """

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """Index behind its last character."""
        return self.start + len(self.text)


# Possessive repetitions: no text makes the expression try again in another way. Parts
# of numbers cannot; in such groups Python before 3.11.5 may lose its place.
_TOKEN = re.compile(
    r"""
      (?P<space>(?:[ \t\n\r\f\v]|--[^\n\r]*+)++)
    | (?P<comment>/\*)
    | (?P<string>(?:[eEbBxX]|[uU]&)?')
    | (?P<quoted>(?:[uU]&)?"[^"]*+(?:""[^"]*+)*+")
    | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*+)?\$)
    | (?P<parameter>\$[0-9]++)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*+)
    | (?P<number>
        0[xX](?:_?[0-9A-Fa-f])+ | 0[oO](?:_?[0-7])+ | 0[bB](?:_?[01])+
      | (?:[0-9]+(?:_[0-9]+)*(?:\.(?!\.)(?:[0-9]+(?:_[0-9]+)*)?)?
          | \.[0-9]+(?:_[0-9]+)*)
        (?:[eE][-+]?[0-9]+(?:_[0-9]+)*)?
      )
    | (?P<operator>[~!@\#^&|`?+\-*/%<>=]++)
    | (?P<mark>::|:=|\.\.|[^"])
    | (?P<unended>")
    """,
    re.VERBOSE | re.DOTALL,
)
_BITS_END = re.compile(r"[^']*+'")
_PLAIN_END = re.compile(r"[^']*+(?:''[^']*+)*+'")
_ESCAPED_END = re.compile(r"[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+'", re.DOTALL)
_ENDS = dict.fromkeys("eE", _ESCAPED_END) | dict.fromkeys("bBxX", _BITS_END)
# A string goes on behind a line break: 'a'  -- comment \n 'b'.
_CONTINUED = re.compile(
    r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+[\n\r])*+'"
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PARENTHESES = {"(": 1, ")": -1}
_FUNCTION = re.compile(r"create (or replace )?(function|procedure)\b")
_TELLING = 4
"""Words that show whether a statement makes a function."""
_FOLDED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def tokens(
    sql: str, *, standard_strings: bool = True, owner: str = "statement"
) -> Iterator[Token]:
    """Yield the tokens of *sql* without spaces and comments.

    Args:
        sql: The text.
        standard_strings: The server's ``standard_conforming_strings``; if off, a
            backslash escapes in every string.
        owner: Begins the message of an error.

    Raises:
        InvalidRecord: A string, a quoted name or a comment does not end.

    See https://www.postgresql.org/docs/current/sql-syntax-lexical.html.
    """
    at = 0
    while found := _TOKEN.match(sql, at):
        kind, end = found.lastgroup, found.end()
        if kind == "space":
            at = end
            continue
        if kind == "comment":
            at = _comment_end(sql, end, owner)
            continue
        if kind == "string":
            pattern = _PLAIN_END if standard_strings else _ESCAPED_END
            pattern = _ENDS.get(found[0][0], pattern)
            end = _string_end(sql, end, pattern, owner)
        elif kind == "dollar":
            closing = sql.find(found[0], end)
            if closing < 0:
                raise _unended(owner, f"the string that begins with {found[0]}")
            end = closing + len(found[0])
        elif kind == "operator":
            end = at + _operator_length(found[0])
        elif kind == "unended":
            raise _unended(owner, "a quoted name")
        yield Token(str(kind), sql[at:end], at)
        at = end


def split(sql: str, *, owner: str = "statement") -> list[str]:
    """Split *sql* into statements where psql does.

    A semicolon ends a statement outside parentheses and outside the body of a
    function in SQL, which is ``BEGIN ATOMIC … END``. Each statement goes from its
    first word to its semicolon, without the comments around it.

    Raises:
        InvalidRecord: A string, a quoted name or a comment does not end.
    """
    found: list[str] = []
    start, end, nesting = -1, 0, _Nesting()
    for token in tokens(sql, owner=owner):
        if token.text == ";" and not nesting:
            if start >= 0:
                found.append(sql[start : token.end])
            start, nesting = -1, _Nesting()
            continue
        if start < 0:
            start = token.start
        end = token.end
        nesting.enter(token)
    if start >= 0:
        found.append(sql[start:end])
    return found


class _Nesting:
    """How deep in parentheses, and in blocks of an SQL function, a statement is."""

    def __init__(self) -> None:
        self._parentheses = 0
        self._blocks = 0
        self._words: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._parentheses or self._blocks)

    def enter(self, token: Token) -> None:
        """Count what *token* opens or closes."""
        if token.text in _PARENTHESES:
            self._parentheses = max(self._parentheses + _PARENTHESES[token.text], 0)
        elif token.kind == "word" and not self._parentheses:
            self._enter_word(fold(token.text))

    def _enter_word(self, word: str) -> None:
        if len(self._words) < _TELLING:
            self._words.append(word)
        if not _FUNCTION.match(" ".join(self._words)):
            return
        if word == "begin" or (word == "case" and self._blocks):
            self._blocks += 1
        elif word == "end" and self._blocks:
            self._blocks -= 1


def fold(name: str) -> str:
    """Return the name that the unquoted *name* stands for: ASCII in lower case.

    A server folds other letters only in a database of a single-byte encoding.
    """
    return name.translate(_FOLDED)


def _operator_length(text: str) -> int:
    """Return how much of a run of operator characters is one operator."""
    for comment in ("--", "/*"):
        text = text.partition(comment)[0]
    # Only with one of these characters may an operator end in a sign: 1*-1.
    if not any(mark in text[:-1] for mark in "~!@#^&|`?%"):
        text = text[0] + text[1:].rstrip("+-")
    return len(text)


def _string_end(sql: str, at: int, pattern: re.Pattern[str], owner: str) -> int:
    while True:
        found = pattern.match(sql, at)
        if found is None:
            raise _unended(owner, "a string")
        more = _CONTINUED.match(sql, found.end())
        if more is None:
            return found.end()
        at = more.end()


def _comment_end(sql: str, at: int, owner: str) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, at)
        if edge is None:
            raise _unended(owner, "a comment")
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _unended(owner: str, what: str) -> InvalidRecord:
    return InvalidRecord(
        f"{owner}: {what} in the SQL does not end; close it", field="sql"
    )
