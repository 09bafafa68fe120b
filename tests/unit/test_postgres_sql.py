"""Identifiers are quoted and never rewritten; our own SQL is marked."""

from __future__ import annotations

import pickle

import pytest

from fm_storage.errors import InvalidName
from fm_storage.postgres import Sql, quote_ident, quote_qualified
from fm_storage.postgres.sql import plain


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("plain", '"plain"'), ('a"b', '"a""b"'), ("Mixed Case", '"Mixed Case"')],
)
def test_a_name_is_quoted_as_it_is(name, quoted):
    """A name keeps every character."""
    assert quote_ident(name) == quoted


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "é" * 32, "\ud800"])
def test_a_name_that_cannot_be_is_refused(name):
    """Empty, NUL, too long in bytes and lone surrogates are InvalidName."""
    with pytest.raises(InvalidName):
        quote_ident(name)


def test_a_name_of_63_bytes_is_accepted():
    """PostgreSQL's limit is ours."""
    assert quote_ident("x" * 63) == '"' + "x" * 63 + '"'


def test_a_schema_is_optional():
    """quote_qualified() quotes each part."""
    assert quote_qualified("s", "t") == '"s"."t"'
    assert quote_qualified(None, "t") == '"t"'


def test_sql_is_text_that_the_driver_takes_as_plain_text():
    """Sql compares as text, and plain() gives an exact str."""
    marked = Sql("SELECT 1")
    assert marked == "SELECT 1"
    assert type(plain(marked)) is str
    assert plain("SELECT 2") == "SELECT 2"
    assert pickle.loads(pickle.dumps(marked)) == marked
