"""The schema as a page, read from the catalogue of the database at hand.

The comments live in the database beside what they describe, so the page is never
older than the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["render"]

Fetch = Callable[..., list[tuple[Any, ...]]]

_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind, obj_description(c.oid, 'pg_class')
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
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_INDEXES = """
SELECT pg_get_indexdef(i.indexrelid), i.indisvalid,
       obj_description(i.indexrelid, 'pg_class')
FROM pg_index i WHERE i.indrelid = %s ORDER BY i.indisprimary DESC, 1
"""

_CONSTRAINTS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = %s AND contype IN ('f', 'c') ORDER BY contype, conname
"""

_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view"}


def render(fetch: Fetch) -> str:
    """Return a Markdown page of every table of the toolkit.

    Args:
        fetch: Runs a query with ``%s`` parameters and returns rows.
    """
    lines = ["# Schema", ""]
    for oid, schema, name, kind, comment in fetch(_TABLES):
        lines += [f"## {schema}.{name} ({_KINDS[kind]})", ""]
        if comment:
            lines += [comment, ""]
        lines += [
            "| column | type | null | default | meaning |",
            "|---|---|---|---|---|",
        ]
        for column, kind_of, required, default, meaning in fetch(_COLUMNS, oid):
            cells = (
                column,
                kind_of,
                "no" if required else "yes",
                default or "",
                meaning or "",
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
        for definition, valid, meaning in fetch(_INDEXES, oid):
            said = f": {meaning}" if meaning else ""
            lines.append(f"- `{definition}`{'' if valid else ' **INVALID**'}{said}")
        for constraint, definition in fetch(_CONSTRAINTS, oid):
            lines.append(f"- {constraint}: `{definition}`")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
