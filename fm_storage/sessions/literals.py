"""Values of a view's parameters, written into its text by the server itself.

DDL takes no parameters: the server infers their types, receives the values as
parameters of a SELECT, and answers with typed literals. Nothing is quoted on this
side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Connection, Sql
from fm_storage.postgres.errors import translate
from fm_storage.postgres.sql import sendable
from fm_storage.postgres.tokens import tokens

__all__ = ["Statement", "rendered", "scan"]

# A typmod of -1 rather than NULL: format_type(1042, NULL) is "character", which
# as a cast means character(1) and would cut the value.
_TYPE_NAMES = Sql(
    "SELECT pg_catalog.format_type(t.oid, -1) AS name"
    " FROM pg_catalog.unnest($1::oid[]) WITH ORDINALITY AS t (oid, place)"
    " ORDER BY t.place"
)


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
    start = last = 0
    ended = False
    for token in tokens(sql, standard_strings=standard_strings, owner="view"):
        if token.text == ";":
            ended = True
            continue
        if ended:
            raise InvalidRecord(
                "view: the SQL holds a second statement; give one SELECT", field="sql"
            )
        last = token.end
        if token.kind == "parameter":
            parts.append(sql[start : token.start])
            numbers.append(int(token.text[1:]))
            start = last
    if not last:
        raise InvalidRecord("view: the SQL is empty; give a SELECT", field="sql")
    parts.append(sql[start:last])
    return Statement(tuple(parts), tuple(numbers))


async def rendered(connection: Connection, sql: str, args: Sequence[Any]) -> str:
    """Return *sql* as one statement with *args* written in as typed literals.

    Raises:
        InvalidRecord: The parameters and *args* do not match, a value does not fit
            its parameter's type, or *sql* is not one statement.
        QueryFailed: The server cannot parse *sql*, or infer a type.
    """
    raw = connection.raw
    statement = scan(
        sql,
        standard_strings=getattr(
            raw.get_settings(), "standard_conforming_strings", "on"
        )
        != "off",
    )
    wanted = max(statement.parameters, default=0)
    if 0 in statement.parameters or wanted != len(args):
        raise InvalidRecord(
            f"view: its SQL has {_up_to(wanted)}, but {len(args)} value(s) were "
            "given; give one for each",
            field=f"${min(wanted, len(args)) + 1}",
        )
    if not args:
        return statement.text
    try:
        sendable(statement.text)
        prepared = await raw.prepare(statement.text)
    except Exception as exc:  # whatever the driver says becomes ours
        error = translate(exc, owner="session")
        if error is exc:
            raise
        raise error from exc
    oids = [kind.oid for kind in prepared.get_parameters()]
    names = [row["name"] for row in await connection.fetch(_TYPE_NAMES, oids)]
    columns = ", ".join(
        # format() uses the type's output function, where ::text could use a cast.
        f"pg_catalog.format('(%L::%s)', ${n}::{name}, ${n + len(names)}::text)"
        for n, name in enumerate(names, 1)
    )
    row = await connection.fetchrow(f"SELECT {columns}", *args, *names)
    if row is None:
        raise AssertionError(columns)
    literals = list(row.values())
    return statement.filled(lambda number: str(literals[number - 1]))


def _up_to(wanted: int) -> str:
    return f"parameters up to ${wanted}" if wanted else "no parameters"
