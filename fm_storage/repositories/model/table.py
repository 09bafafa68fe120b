"""What the server's catalogue says of an entity's table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fm_storage.postgres.executor import Executor
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.scalar_types import Actual, Source

_BUILT_IN = re.compile(
    r"(boolean|smallint|integer|bigint|real|double precision|numeric|text"
    r"|character varying|bpchar|bytea|uuid|date|time without time zone"
    r"|timestamp (with|without) time zone|interval|jsonb?)(\[\])?"
)
_COLUMNS = Sql(
    "SELECT a.attname::text, format_type(t.oid, -1), "
    "format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, -1), "
    "CASE t.typcategory WHEN 'A' THEN coalesce("
    "format_type(nullif(t.typelem, 0), -1), '') "
    "WHEN 'C' THEN '' END, "  # whose rows unnest() would spread over columns
    "(SELECT format_type(nullif(e.typbasetype, 0), -1) FROM pg_type AS e "
    "WHERE e.oid = t.typelem), "
    "c.relkind IN ('r', 'p') AND NOT c.relhasrules "  # which COPY does not run
    "AND NOT row_security_active(c.oid) "
    "AND a.attidentity <> 'a', "  # to which COPY alone writes
    "row_security_active(c.oid), c.relkind <> 'r' OR c.relhasrules "
    "OR EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = c.oid "
    "AND g.tgtype & 7 = 7) "  # before each row's INSERT
    "FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
    "JOIN pg_type AS t ON t.oid = a.atttypid WHERE c.oid = to_regclass($1) "
    "AND a.attnum > 0 AND NOT a.attisdropped"
)


Sources = tuple[Source, ...]


@dataclass(slots=True)
class Table:
    """An entity's table, looked up at the first batch and shared by all copies.

    Attributes:
        sources: For each field of a new row how it travels; None if a column can
            travel alone only, so that rows are written one by one.
        keys: The same of the key.
        copied: Whether COPY can write the table, as the role of now.
        secured: Whether policies decide about its rows, as the role of now.
        suppresses: Whether a new row may be left out, by a trigger or a rule.
    """

    sources: Sources | None = None
    keys: Sources | None = None
    copied: bool = False
    secured: bool = False
    suppresses: bool = False
    known: bool = False

    async def look_up(
        self,
        executor: Executor,
        name: str,
        inserted: Sequence[Stored],
        key: Sequence[Stored],
    ) -> bool:
        """Read the catalogue; return whether anything differs from before."""
        rows = await executor.fetch(_COLUMNS, name)
        actual = {row[0]: Actual(*row[1:5]) for row in rows}
        before = self.sources, self.keys
        self.sources = _sources(inserted, actual)
        self.keys = _sources(key, actual)
        written = {item.column for item in inserted}
        self.copied = (
            bool(rows)
            and all(row[5] for row in rows if row[0] in written)
            and all(_binary(item, actual.get(item.column)) for item in inserted)
        )
        self.secured, self.suppresses = rows[0][6:8] if rows else (False, False)
        self.known = True
        return before != (self.sources, self.keys)


def _sources(fields: Sequence[Stored], actual: dict[str, Actual]) -> Sources | None:
    found = []
    for item in fields:
        source = item.type.source(actual.get(item.column) or _declared(item))
        if source is None:
            return None
        found.append(source)
    return tuple(found)


def _declared(item: Stored) -> Actual:
    """Return the type of the declaration: a column that the catalogue lacks."""
    sql = item.type.sql
    return Actual(sql, sql, sql.removesuffix("[]") if sql.endswith("[]") else None)


def _binary(item: Stored, actual: Actual | None) -> bool:
    """Return whether the driver knows the column's binary form, as COPY needs it."""
    return (
        actual is not None
        and _BUILT_IN.fullmatch(actual.name) is not None
        and item.type.fits(actual)
    )
