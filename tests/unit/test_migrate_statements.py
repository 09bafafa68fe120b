"""Migration files are cut where psql cuts them."""

from __future__ import annotations

import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.tokens import split


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (" ; -- nothing\n;", []),
        ("SELECT 1", ["SELECT 1"]),
        ("-- a\nSELECT 1; /* b */ SELECT 2 -- c", ["SELECT 1;", "SELECT 2"]),
        ("SELECT ';' || $$;$$ || \";\" /* ; /* ; */ ; */;", None),
        ("DO $$ BEGIN PERFORM 1; END $$;", None),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);", None),
        (
            "CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; END;",
            None,
        ),
        ("create or replace procedure p() begin atomic select 1; end;", None),
        ("CREATE PROCEDURE p() BEGIN ATOMIC SELECT 1; END;", None),
        ("BEGIN; CREATE TABLE begin (a int); END;", ["BEGIN;", None, "END;"]),
        ("SELECT 1 -- one\r; SELECT 2", ["SELECT 1 -- one\r;", "SELECT 2"]),
    ],
)
def test_a_semicolon_ends_a_statement_where_psql_says(text, statements):
    """Not in strings, comments, parentheses, or the body of a function in SQL."""
    found = split(text, owner="file")
    if statements is None:
        assert found == [text]
    else:
        assert len(found) == len(statements)
        assert all(
            want in {None, has} for want, has in zip(statements, found, strict=True)
        )


def test_what_does_not_end_is_refused():
    """The file is named."""
    with pytest.raises(InvalidRecord, match=r"^file: a comment in the SQL"):
        split("SELECT 1; /* /* */", owner="file")
