"""A lexer of SQL, as far as ``$1`` and ``;`` are concerned.

Apart because it follows PostgreSQL's ``scan.l`` and nothing else: what looks like
a parameter inside a string, a quoted name, a dollar-quoted body or a comment is
not one, and neither is the ``$1`` at the end of the name ``a$1``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fm_storage.errors import InvalidRecord

__all__ = ["Statement", "scan"]

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\n\r\f\v]+)
    | (?P<comment>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]')
    | (?P<string>')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
    | (?P<parameter>\$[0-9]+)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | (?P<end>;)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN_END = re.compile(r"[^']*(?:''[^']*)*(?P<close>')?")
_ESCAPED_END = re.compile(r"[^'\\]*(?:(?:''|\\.)[^'\\]*)*(?P<close>')?", re.DOTALL)
# A string goes on behind a line break: 'a'  -- comment \n 'b'.
_CONTINUED = re.compile(
    r"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'"
)
_BLOCK_EDGE = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, cut at its parameters.

    Attributes:
        parts: Text between the parameters, one more than there are parameters.
        parameters: Numbers of the parameters in the order of the text.
    """

    parts: tuple[str, ...]
    parameters: tuple[int, ...]

    @property
    def text(self) -> str:
        """The statement as given, without what followed its last token."""
        return self.filled(lambda number: f"${number}")

    def filled(self, value: Callable[[int], str]) -> str:
        """Return the text with ``value(number)`` in the place of each parameter."""
        pieces = [self.parts[0]]
        for number, part in zip(self.parameters, self.parts[1:], strict=True):
            pieces += (value(number), part)
        return "".join(pieces)


def scan(sql: str, *, standard_strings: bool = True) -> Statement:
    """Find the parameters of *sql*, which must be one statement.

    Trailing semicolons, blanks and comments are cut off.

    Args:
        sql: The text.
        standard_strings: The server's ``standard_conforming_strings``.

    Raises:
        InvalidRecord: There is no statement or a second one, or a string, name or
            comment does not end.
    """
    parts: list[str] = []
    numbers: list[int] = []
    at = start = last = 0
    ended = False
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        kind = match.lastgroup if match else None
        if match is None or kind is None:  # every character is some token
            raise AssertionError(at)
        if kind in {"space", "comment"}:
            at = match.end()
            continue
        if kind == "block":
            at = _block_end(sql, match.end())
            continue
        if kind == "end":
            ended = True
            at = match.end()
            continue
        if ended:
            raise InvalidRecord(
                "view: the SQL holds a second statement; give one SELECT", field="sql"
            )
        if kind == "parameter":
            parts.append(sql[start:at])
            numbers.append(int(match[0][1:]))
            start = match.end()
        at = last = _token_end(sql, match, kind, standard_strings=standard_strings)
    if not last:
        raise InvalidRecord("view: the SQL is empty; give a SELECT", field="sql")
    parts.append(sql[start:last])
    return Statement(tuple(parts), tuple(numbers))


def _token_end(
    sql: str, match: re.Match[str], kind: str, *, standard_strings: bool
) -> int:
    """Return where the token that begins with *match* ends."""
    if kind in {"escaped", "string"}:
        escaped = kind == "escaped" or not standard_strings
        return _string_end(sql, match.end(), _ESCAPED_END if escaped else _PLAIN_END)
    if kind == "dollar":
        end = sql.find(match[0], match.end())
        if end < 0:
            raise _unended(f"the string that begins with {match[0]}")
        return end + len(match[0])
    if kind == "other" and match[0] == '"':
        raise _unended("a quoted name")
    return match.end()


def _string_end(sql: str, at: int, pattern: re.Pattern[str]) -> int:
    while True:
        match = pattern.match(sql, at)
        if match is None or match["close"] is None:
            raise _unended("a string")
        more = _CONTINUED.match(sql, match.end())
        if more is None:
            return match.end()
        at = more.end()


def _block_end(sql: str, at: int) -> int:
    """Return the end of a block comment; PostgreSQL nests them."""
    depth = 1
    while depth:
        match = _BLOCK_EDGE.search(sql, at)
        if match is None:
            raise _unended("a comment")
        depth += 1 if match[0] == "/*" else -1
        at = match.end()
    return at


def _unended(what: str) -> InvalidRecord:
    return InvalidRecord(f"view: {what} in the SQL does not end; close it", field="sql")
