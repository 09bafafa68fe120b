"""Names of temporary views: made, checked, and shown with quotes where needed."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Literal

from fm_storage.errors import InvalidName
from fm_storage.postgres import quote_ident, quote_qualified

Kind = Literal["view", "materialized view", "table"]

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_MAX_PREFIX = 63 - 32
"""Bytes left by 32 hexadecimal digits; PostgreSQL would cut a longer name."""

# Every keyword that may not stand everywhere as a name, PostgreSQL 14 to 18
# (pg_get_keywords(), categories C, R and T).
_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization between bigint
    binary bit boolean both case cast char character check coalesce collate
    collation column concurrently constraint create cross current_catalog
    current_date current_role current_schema current_time current_timestamp
    current_user dec decimal default deferrable desc distinct do else end except
    exists extract false fetch float for foreign freeze from full grant greatest
    group grouping having ilike in initially inner inout int integer intersect
    interval into is isnull join json json_array json_arrayagg json_exists
    json_object json_objectagg json_query json_scalar json_serialize json_table
    json_value lateral leading least left like limit localtime localtimestamp
    merge_action national natural nchar none normalize not notnull null nullif
    numeric offset on only or order out outer overlaps overlay placing position
    precision primary real references returning right row select session_user setof
    similar smallint some substring symmetric system_user table tablesample then
    time timestamp to trailing treat trim true union unique user using values
    varchar variadic verbose when where window with xmlattributes xmlconcat
    xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize
    xmltable
"""
_KEYWORDS = frozenset(_WORDS.split())


def shown(name: str) -> str:
    """Return *name* as SQL, quoted only where it must be.

    Raises:
        InvalidName: PostgreSQL cannot hold it as given.
    """
    quoted = quote_ident(name)
    if _PLAIN.fullmatch(name) and name not in _KEYWORDS:
        return name
    return quoted


def shown_qualified(schema: str, name: str) -> str:
    """Return ``schema.name`` as SQL, quoted only where it must be."""
    return f"{shown(schema)}.{shown(name)}"


def generated_name(prefix: str) -> str:
    """Return a name with 128 random bits: it is never made twice.

    Raises:
        InvalidName: *prefix* leaves no room for them in 63 bytes.
    """
    size = len(prefix.encode(errors="replace"))
    if size > _MAX_PREFIX:
        raise InvalidName(
            f"session prefix {prefix!r}: it has {size} bytes, at most {_MAX_PREFIX} "
            "leave room for a unique name; shorten it"
        )
    return prefix + uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class TempView:
    """A temporary view, or table; formatted, it is SQL: ``f"SELECT * FROM {view}"``.

    What ``create_view()`` answers without PostgreSQL has ``oid`` 0, is false, and
    refuses to be formatted.
    """

    schema: str
    name: str
    kind: Kind
    oid: int

    def __str__(self) -> str:
        """Return the name as SQL: qualified, quoted where it must be.

        Raises:
            InvalidName: There is no such view: PostgreSQL was not available.
        """
        return shown_qualified(self.schema, self._made())

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __bool__(self) -> bool:
        return self.oid != 0

    @property
    def sql(self) -> str:
        """The name with every part quoted."""
        return quote_qualified(self.schema, self._made())

    def _made(self) -> str:
        if not self.oid:
            raise InvalidName(
                f"view {self.name!r}: it was not made, PostgreSQL was not available; "
                "look at is_available, or at the view's truth, before you use it"
            )
        return self.name
