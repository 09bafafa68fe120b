"""The schema as data and as a page, read from the catalogue of the database at hand.

The comments live in the database beside what they describe, so the page is never
older than the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Fetch = Callable[..., list[tuple[Any, ...]]]

_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, obj_description(c.oid, 'pg_class')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm')
  AND (n.nspname = 'fm_storage' OR c.oid = to_regclass('project_errors'))
ORDER BY n.nspname <> 'fm_storage' DESC, c.relname
"""

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       CASE WHEN a.attidentity <> '' THEN 'identity'
            ELSE pg_get_expr(d.adbin, d.adrelid) END,
       col_description(a.attrelid, a.attnum)
FROM pg_attribute a
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_INDEXES = """
SELECT pg_get_indexdef(i.indexrelid), i.indisvalid,
       obj_description(i.indexrelid, 'pg_class')
FROM pg_index i WHERE i.indrelid = $1 ORDER BY i.indisprimary DESC, 1
"""

_CONSTRAINTS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = $1 AND contype IN ('f', 'c') ORDER BY contype, conname
"""

_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view"}


@dataclass(frozen=True, slots=True)
class SchemaColumn:
    """A column as the database describes it."""

    name: str
    type: str
    nullable: bool
    default: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class SchemaIndex:
    """An index; one that is not valid was left by an interrupted build."""

    definition: str
    valid: bool
    comment: str | None


@dataclass(frozen=True, slots=True)
class SchemaTable:
    """A table or view of the toolkit, as the database describes it.

    Attributes:
        kind: ``table``, ``view`` or ``materialized view``.
        constraints: Definitions of CHECK and FOREIGN KEY by name.
    """

    schema: str
    name: str
    kind: str
    comment: str | None
    columns: tuple[SchemaColumn, ...]
    indexes: tuple[SchemaIndex, ...]
    constraints: dict[str, str]


def describe(fetch: Fetch) -> list[SchemaTable]:
    """Return every table of the toolkit.

    Args:
        fetch: Runs a query with ``$1`` and returns rows.
    """
    return [
        SchemaTable(
            schema,
            name,
            _KINDS[kind],
            comment,
            columns=tuple(
                SchemaColumn(column, type_, not required, default, meaning)
                for column, type_, required, default, meaning in fetch(_COLUMNS, oid)
            ),
            indexes=tuple(SchemaIndex(*row) for row in fetch(_INDEXES, oid)),
            constraints=dict[str, str](fetch(_CONSTRAINTS, oid)),
        )
        for oid, schema, name, kind, comment in fetch(_TABLES)
    ]


def render(tables: Sequence[SchemaTable]) -> str:
    """Return a Markdown page of *tables*."""
    lines = ["# Schema", ""]
    for table in tables:
        lines += [f"## {table.schema}.{table.name} ({table.kind})", ""]
        if table.comment:
            lines += [table.comment, ""]
        lines += [
            "| column | type | null | default | meaning |",
            "|---|---|---|---|---|",
        ]
        for column in table.columns:
            cells = (
                column.name,
                column.type,
                "yes" if column.nullable else "no",
                column.default or "",
                column.comment or "",
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
        for index in table.indexes:
            comment = f": {index.comment}" if index.comment else ""
            flag = "" if index.valid else " **INVALID**"
            lines.append(f"- `{index.definition}`{flag}{comment}")
        lines += [f"- {name}: `{text}`" for name, text in table.constraints.items()]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
