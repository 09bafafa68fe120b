"""Migrations that did not apply, and schemas that lack some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fm_storage.errors.root import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class MigrationFailed(StorageError):
    """A migration did not apply, roll back or pass its checks.

    Attributes:
        migration: Identifier of the file concerned (``0001_create_x``), if one.
    """

    def __init__(
        self,
        message: str,
        *,
        migration: str | None = None,
        sqlstate: str | None = None,
    ) -> None:
        super().__init__(message)
        self.migration = migration
        self.sqlstate = sqlstate


class SchemaOutOfDate(MigrationFailed):
    """The database lacks migrations that this version needs.

    Attributes:
        missing: Identifiers of the missing migrations, in order.
    """

    def __init__(self, missing: Sequence[str], *, rolled_back: bool = False) -> None:
        self.missing = tuple(missing)
        remedy = "run 'fm-storage migrate', or set migrations.auto_apply"
        if rolled_back:
            remedy = (
                "a rollback took them back, so no start applies them; run "
                "'fm-storage migrate'"
            )
        super().__init__(
            f"schema: {len(self.missing)} migration(s) not applied "
            f"({', '.join(self.missing)}); {remedy}",
            migration=self.missing[0] if self.missing else None,
        )
