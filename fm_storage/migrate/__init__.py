"""Migrations that survive kill −9: files, record, runner, and a safe backend for yoyo.

Importing this room does not load yoyo; a call with something to apply does.
"""

from __future__ import annotations

from fm_storage.migrate.drift import MigrationState, MigrationStatus
from fm_storage.migrate.planned import PlannedMigration, Progress
from fm_storage.migrate.runner import Migrator

__all__ = [
    "MigrationState",
    "MigrationStatus",
    "Migrator",
    "PlannedMigration",
    "Progress",
]
