"""The tokenizer against the server's own scanner.

The server names the place and the text of the token at which a statement goes
wrong. A text that begins behind that token goes wrong at a later one, so that
every token of a text is asked for, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from psycopg import errors as pg

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.tokens import fold, tokens

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# What the scanner treats in its own way, and what another language would.
PIECES = st.sampled_from(
    [
        *("'", "''", "E'", "e'\\'", "U&'", "B'", "x'", "N'", "\\", '"', 'U&"'),
        *("$", "$$", "$a$", "$1", "$é$", "--", "/*", "*/", "/", "*", "\n", "\r"),
        *("\f", "\t", " ", "+", "-", "<", "=", "@", "~", "->", "::", ":=", ":", ".."),
        *(".", "1", "12", "1.5", "1e5", ".5", "9.", "a", "E", "é", "\x85", "\xa0"),
        *("\u2028", "K", "²", "_", "(", ")", ",", ";", "[", "#", "?", "%", "^"),
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)


@pytest.fixture
def connection(empty_dsn: str) -> Iterator[psycopg.Connection[object]]:
    """Give a connection to an empty database."""
    with psycopg.connect(empty_dsn, autocommit=True) as opened:
        yield opened


def complaint(
    connection: psycopg.Connection[object], text: str
) -> tuple[str, int, str]:
    """Return what the server finds wrong with *text*, from where on, and its words."""
    with pytest.raises(pg.Error) as caught:
        # Whatever comes before it: with this, the text is no statement.
        connection.execute((text + "\n)").encode())
    diag = caught.value.diag
    message = diag.message_primary or ""
    what, _, near = message.partition(' at or near "')
    return what, int(diag.statement_position or 0) - 1, near[:-1]


@SETTINGS
@given(TEXTS)
@example("'a'\n'b' 'c' \r 'd'")
@example("'a' -- '\r 'b'")
@example("E'\\'' 'a\\' $a$ $b$ $a$")
@example("1*-1 @- 1 <-- 1 </*'*/ 2 ~+")
@example("1..2 1.5 .5e1 9.. é$1 $1 a$$b")
def test_every_token_is_where_the_server_finds_it(connection, text):
    """The same beginning, the same end, and the same texts do not end."""
    while text:
        what, start, near = complaint(connection, text)
        found = {}
        unended = False
        try:
            for token in tokens(text):
                found[token.start] = token.text
        except InvalidRecord:
            unended = True
        if what.startswith("unterminated"):
            assert unended, text
            return
        if what != "syntax error":  # junk behind a number, an empty name, …
            event(what)
            return
        if start > len(text):
            assert not unended, text
            return
        assert found[start] == near, text
        text = text[start + len(near) :]


def test_names_fold_as_the_server_folds_them(connection):
    """Only ASCII letters become small: the Kelvin sign is no k."""
    for name in ("ABC", "ÄÖ", "K", "İi", "aÉ$1"):
        cursor = connection.execute(f"SELECT 1 AS {name}".encode())
        assert cursor.description is not None
        assert cursor.description[0].name == fold(name)
