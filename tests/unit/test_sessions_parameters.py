"""A view's parameters, against texts of which it is known where the parameters are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_storage.errors import InvalidRecord
from fm_storage.sessions.creating import scan
from fm_storage.sessions.names import TempView, shown

# Pieces without a parameter, whatever they hold; each ends what it begins.
OPAQUE = st.one_of(
    st.text(st.sampled_from("$1';\"\\-/* ab\n"), max_size=8).map(
        lambda text: "'" + text.replace("'", "''") + "'"
    ),
    st.text(st.sampled_from("$1';\"\\-/* ab\n"), max_size=8).map(
        lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    ),
    st.text(st.sampled_from("$1';\\-/* ab\n"), min_size=1, max_size=8).map(
        lambda text: f'"{text}"'
    ),
    st.text(st.sampled_from("1';\"\\-/* ab\n"), max_size=8).map(
        lambda text: f"$tag${text}$tag$"
    ),
    st.text(st.sampled_from("1';\"\\- ab\n"), max_size=8).map(
        lambda text: f"$${text}$$"
    ),
    st.text(st.sampled_from("$1';\"\\-/* ab"), max_size=8).map(
        lambda text: f"--{text}\n"
    ),
    st.text(st.sampled_from("$1';\"\\- ab\n"), max_size=8).map(
        lambda text: f"/*{text}/*{text}*/ $9 */"
    ),
    st.sampled_from(["a$1", "_x$2y", "SELECT", "é$3", "12", "+", "::", "(", "- -"]),
)
PARAMETER = st.integers(1, 12)


@given(st.lists(st.one_of(OPAQUE, PARAMETER), min_size=1, max_size=12))
def test_exactly_the_parameters_are_found(pieces):
    """Whatever stands around them, in whatever order."""
    text = "x , " + " , ".join(
        f"${piece}" if isinstance(piece, int) else piece for piece in pieces
    )
    statement = scan(text)
    assert list(statement.parameters) == [p for p in pieces if isinstance(p, int)]
    assert text.startswith(statement.text)
    filled = statement.filled(lambda number: f"<{number}>")
    assert filled.count("<") == len(statement.parameters)


@pytest.mark.slow
@given(st.text(max_size=60))
def test_any_text_is_scanned_or_refused(text):
    """No text makes it fail otherwise, or go on for ever."""
    for standard in (True, False):
        refused = None
        try:
            found = scan(text, standard_strings=standard).text
        except InvalidRecord as exc:
            refused, found = exc.field, ""
        assert refused in {None, "sql"}
        assert found in text


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("SELECT 'a'\n  'b$1' || $2", (2,)),
        ("SELECT E'a' -- $1 '\n '\\'$2' || $3", (3,)),
        ("SELECT 'a' 'b' || $1", (1,)),
        ("SELECT e'\\\\' || $1", (1,)),
        ("SELECT nameE'\\' || $1", (1,)),
        ("SELECT $a$ $b$ $1 $b$ $a$ || $2", (2,)),
        ("SELECT $1::int[] @> ARRAY[$2,$10]", (1, 2, 10)),
        ("SELECT 1 -$1 /*$2*/ */$3", (1, 3)),
    ],
)
def test_corners_of_the_language(text, parameters):
    """Continued strings, escapes, nested quotes, operators that look like comments."""
    assert scan(text).parameters == parameters


def test_the_servers_old_string_syntax_is_respected():
    """With standard_conforming_strings off a backslash escapes in every string."""
    text = r"SELECT 'it\'s $1' || $2"
    assert scan(text, standard_strings=False).parameters == (2,)
    with pytest.raises(InvalidRecord):
        scan(text)


def test_what_follows_the_statement_is_cut():
    """Semicolons, blanks and comments at the end are not part of a view."""
    assert scan("SELECT 1 ; ; -- end\n /* x */ ").text == "SELECT 1"
    with pytest.raises(InvalidRecord, match="second statement"):
        scan("SELECT 1; SELECT 2")


def test_names_are_shown_quoted_where_they_must_be():
    """Plain lower-case names as they are; keywords and everything else quoted."""
    assert [shown(name) for name in ("plain_1", "user", "Ab", 'a"b', "1a")] == [
        "plain_1",
        '"user"',
        '"Ab"',
        '"a""b"',
        '"1a"',
    ]
    view = TempView("s", "Table", "view", 7)
    assert (str(view), f"{view:>12}", view.sql) == (
        's."Table"',
        '   s."Table"',
        '"s"."Table"',
    )
    assert view
    assert not TempView("s", "x", "view", 0)
