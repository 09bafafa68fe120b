"""asyncpg's private members are used in two modules, which a new version may break."""

from __future__ import annotations

import ast
from pathlib import Path

import asyncpg
import pytest
from asyncpg import cursor, prepared_stmt, protocol

import fm_storage

ROOT = Path(fm_storage.__file__).parent
ALLOWED = {
    "postgres/connect/internals.py",
    "postgres/connection/driver.py",
}
PRIVATE = {"_aborted", "_addr", "_params", "_stmt_cache", "_transport"} | {
    name
    for owner in (
        asyncpg.Connection,
        cursor.BaseCursor,
        prepared_stmt.PreparedStatement,
        protocol.Protocol,
    )
    for name in dir(owner)
    if name.startswith("_") and not name.endswith("__")
} - {"_cleanup"}  # sessions have one, too


def _used(path: Path) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in PRIVATE
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }


@pytest.mark.lengthy
def test_only_two_modules_use_what_asyncpg_does_not_offer():
    """Everything else goes through them."""
    found = {
        str(path.relative_to(ROOT)): names
        for path in ROOT.rglob("*.py")
        if (names := _used(path))
    }
    assert "_stmt_cache" in found["postgres/connection/driver.py"]
    assert found.keys() == ALLOWED
