"""The record of applied migrations: its tables, and how to read them.

Separate from the backend that writes them, because every start reads the record,
through whatever connection is at hand, and only a start with something pending
loads the engine. The tables lie in schema ``fm_storage``, so an application's
own yoyo tables are never mistaken for ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LOCK_KEY = 0x666D5F6D69677261
"""Key of the advisory lock that one migrating process holds (``fm_migra``)."""

ABSENT_STATES = frozenset({"42P01", "3F000"})
"""No such table, no such schema: nothing was ever applied here."""

READ_LEDGER = (
    "SELECT migration_id, checksum, source, release, applied_at, applied_by, seq "
    "FROM fm_storage.migrations ORDER BY seq"
)

CREATE_LEDGER = """
DO $$
BEGIN
    -- IF NOT EXISTS would ask for the right to create schemas even if it exists.
    IF to_regnamespace('fm_storage') IS NULL THEN
        CREATE SCHEMA fm_storage;
        COMMENT ON SCHEMA fm_storage IS
            'Tables of the toolkit fm_storage; made and changed by migrations only.';
    END IF;
END
$$;
CREATE TABLE fm_storage.migrations (
    migration_hash varchar(64) PRIMARY KEY,
    migration_id varchar(255) NOT NULL UNIQUE,
    applied_at_utc timestamp NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by name NOT NULL DEFAULT session_user,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    checksum varchar(64),
    source text,
    release text
);
COMMENT ON TABLE fm_storage.migrations IS
    'One row per applied migration, written in the transaction that applied it.';
COMMENT ON COLUMN fm_storage.migrations.migration_hash IS
    'SHA-256 of migration_id; the key of the engine yoyo.';
COMMENT ON COLUMN fm_storage.migrations.migration_id IS
    'File name without its ending.';
COMMENT ON COLUMN fm_storage.migrations.applied_at_utc IS
    'When it was applied, UTC without zone; for the engine yoyo.';
COMMENT ON COLUMN fm_storage.migrations.applied_at IS
    'When it was applied.';
COMMENT ON COLUMN fm_storage.migrations.applied_by IS
    'Role that applied it.';
COMMENT ON COLUMN fm_storage.migrations.seq IS
    'Order of application; rollback goes backwards through it.';
COMMENT ON COLUMN fm_storage.migrations.checksum IS
    'SHA-256 of the file as it was applied; another value now means it was edited.';
COMMENT ON COLUMN fm_storage.migrations.source IS
    'Folder or package the file came from; fm_storage for the toolkit''s own.';
COMMENT ON COLUMN fm_storage.migrations.release IS
    'Version of fm_storage that applied it.';
CREATE TABLE fm_storage.migration_log (
    id varchar(36) PRIMARY KEY,
    migration_hash varchar(64),
    migration_id varchar(255),
    operation varchar(10),
    username varchar(255),
    hostname varchar(255),
    comment varchar(255),
    created_at_utc timestamp
);
COMMENT ON TABLE fm_storage.migration_log IS
    'What was done to migrations, and by whom; never read by the toolkit.';
COMMENT ON COLUMN fm_storage.migration_log.id IS 'Identity of the entry.';
COMMENT ON COLUMN fm_storage.migration_log.migration_hash IS
    'As in fm_storage.migrations.';
COMMENT ON COLUMN fm_storage.migration_log.migration_id IS
    'File name without its ending.';
COMMENT ON COLUMN fm_storage.migration_log.operation IS
    'apply, rollback, mark or unmark.';
COMMENT ON COLUMN fm_storage.migration_log.username IS
    'User of the operating system.';
COMMENT ON COLUMN fm_storage.migration_log.hostname IS 'Machine it ran on.';
COMMENT ON COLUMN fm_storage.migration_log.comment IS 'Free text.';
COMMENT ON COLUMN fm_storage.migration_log.created_at_utc IS
    'When, UTC without zone.';
CREATE TABLE fm_storage.migration_steps (
    migration_id varchar(255) NOT NULL,
    direction varchar(10) NOT NULL,
    step integer NOT NULL,
    checksum varchar(64) NOT NULL,
    done boolean NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration_id, direction, step)
);
COMMENT ON TABLE fm_storage.migration_steps IS
    'How far a file marked "transactional: false" has come; empty between runs.';
COMMENT ON COLUMN fm_storage.migration_steps.migration_id IS
    'File name without its ending.';
COMMENT ON COLUMN fm_storage.migration_steps.direction IS 'apply or rollback.';
COMMENT ON COLUMN fm_storage.migration_steps.step IS
    'Position of the statement in the file, from 0.';
COMMENT ON COLUMN fm_storage.migration_steps.checksum IS
    'SHA-256 of the statement, so that a corrected file resumes behind what it kept.';
COMMENT ON COLUMN fm_storage.migration_steps.done IS
    'False while the statement runs, or if it was interrupted.';
COMMENT ON COLUMN fm_storage.migration_steps.at IS 'When it was begun.';
"""


HELD = "(rolled back)"
"""Source of the marks of rollbacks; to an older release it is a foreign one."""

HOLD = (
    "INSERT INTO fm_storage.migrations "
    "(migration_hash, migration_id, applied_at_utc, source) "
    "VALUES (encode(sha256(convert_to($1 || $2, 'UTF8')), 'hex'), "
    f"left($1 || ' ' || $2, 255), now() AT TIME ZONE 'UTC', '{HELD}') "
    "ON CONFLICT DO NOTHING"
)
"""Note that a migration of source $2 was rolled back; $1 is ``HELD``."""

FORGET = "DELETE FROM fm_storage.migrations WHERE migration_id = $1 AND checksum = $2"

RELEASE_HOLDS = f"DELETE FROM fm_storage.migrations WHERE source = '{HELD}'"


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of the record."""

    id: str
    checksum: str | None
    source: str | None
    release: str | None
    applied_at: datetime
    applied_by: str
    seq: int

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Applied:
        """Build from a row of ``READ_LEDGER``."""
        return cls(*row)

    @property
    def is_hold(self) -> bool:
        """Whether this is the mark of a rollback, not a migration."""
        return self.source == HELD


def held_sources(rows: Sequence[Applied]) -> set[str]:
    """Return the sources of which a migration was rolled back."""
    return {row.id.removeprefix(HELD).strip() for row in rows if row.is_hold}
