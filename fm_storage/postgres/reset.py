"""What a statement may leave behind on its connection, and how it is removed.

The server's answer does not tell: ``SELECT set_config(…, false)``, an advisory
lock and a function that does SET ROLE all answer ``SELECT 1``. So a statement
counts as lean only when this conservative classifier can prove it; everything
else makes the connection *dirty*, and a dirty connection is reset between two
borrowers, off the caller's path.
"""

from __future__ import annotations

from fm_storage.postgres.sql import Sql

__all__ = ["RESET_SQL", "is_lean"]

RESET_SQL = (
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; "
    "RESET SESSION AUTHORIZATION; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
"""DISCARD ALL without DEALLOCATE: the driver's prepared statements stay good."""


def is_lean(sql: str) -> bool:
    """Whether *sql* provably leaves nothing behind on the connection."""
    return type(sql) is Sql
