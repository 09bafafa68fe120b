"""Text of SQL: identifiers, and the mark of statements that we wrote ourselves.

Every room builds SQL and only this module quotes: a name is quoted, never rewritten,
and a value is put into the text only where the server takes no parameter.
"""

from __future__ import annotations

from typing import Any, Self

from fm_storage._typing import Relation
from fm_storage.errors import InvalidName, InvalidRecord

_MAX_BYTES = 63
"""NAMEDATALEN - 1: PostgreSQL silently cuts longer names, which then collide."""


class NoStatement(InvalidRecord, TypeError):
    """What was given as a statement is no text."""


class Sql(str):
    """SQL that the library itself wrote.

    Promised by who makes one: the text is constant (values travel as
    parameters), and the statement leaves nothing behind on the connection, so
    that it runs on a lean checkout without being classified.

    Attributes:
        text: The same as a plain ``str``, which is what the driver accepts.
    """

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """Mark *text*."""
        sendable(text)
        made = super().__new__(cls, text)
        made.text = "".join(text)
        return made


def quote_ident(name: str) -> str:
    """Quote *name* as one identifier.

    Raises:
        InvalidName: It is no text, empty, holds a NUL or a lone surrogate, or is
            longer than 63 bytes.

    See https://www.postgresql.org/docs/current/sql-syntax-lexical.html.
    """
    if not isinstance(name, str):
        raise InvalidName(f"name {name!r}: it is no text; give a str")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(
            f"name {name!r}: it holds a lone surrogate; use valid text"
        ) from None
    if not name or "\0" in name:
        raise InvalidName(f"name {name!r}: it is empty or holds a NUL; rename it")
    if size > _MAX_BYTES:
        raise InvalidName(
            f"name {name!r}: it has {size} bytes, PostgreSQL keeps "
            f"{_MAX_BYTES}; shorten it"
        )
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote *text* as a string constant, whatever ``standard_conforming_strings``."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def quote_qualified(schema: str | None, name: str | Relation) -> str:
    """Quote *name* with its *schema*, or alone when *schema* is None.

    A relation has its own schema.

    Raises:
        InvalidName: See ``quote_ident()``.
    """
    if not isinstance(name, str) and isinstance(name, Relation):
        return name.sql
    if schema is None:
        return quote_ident(name)
    return f"{quote_ident(schema)}.{quote_ident(name)}"


def quote_type(kind: Any) -> str:
    """Quote the name of a type as the driver describes it."""
    name: str = kind.name
    element = name.removesuffix("[]")
    return quote_qualified(kind.schema, element) + name[len(element) :]


def sendable(sql: str) -> None:
    """Refuse text that ends the connection, or cannot be put on the wire.

    On the wire a statement ends at its first NUL, so the server sees a broken
    message and hangs up.

    Raises:
        InvalidRecord: *sql* is no text, holds a NUL, or a lone surrogate.
    """
    if not isinstance(sql, str):
        raise NoStatement(
            f"statement: it is a {type(sql).__name__}; give its text as a str",
            field="sql",
        )
    at, what = sql.find("\0"), "a NUL"
    if at < 0:
        if sql.isascii():
            return
        try:
            sql.encode()
        except UnicodeEncodeError as exc:
            at, what = exc.start, "a lone surrogate"
        else:
            return
    raise InvalidRecord(
        f"statement: its text holds {what} at character {at + 1}, which PostgreSQL "
        "cannot read; remove it, and pass values as parameters ($1)",
        field="sql",
    )


def plain(sql: str) -> str:
    """Return *sql* as the plain ``str`` that the driver's C code insists on."""
    return sql.text if type(sql) is Sql else sql
