"""Statements that the server refused, rows, and names and values it cannot have."""

from __future__ import annotations

from typing import ClassVar

from fm_storage.errors.root import StorageError


class RecordNotFound(StorageError, LookupError):
    """No row, group or point has the key that was asked for."""

    def __init__(
        self,
        table: str,
        key: object,
        remedy: str = "use find_by_id() where absence is normal",
    ) -> None:
        super().__init__(f"{table}: no record with key {key!r}; {remedy}")
        self.table = table
        self.key = key


class StaleRecord(StorageError):
    """The row changed, or went, since it was read (optimistic lock)."""

    def __init__(self, table: str, key: object, *, version: object) -> None:
        super().__init__(
            f"{table}: record {key!r} is no longer at version {version!r}; "
            "read it again and repeat the change"
        )
        self.table = table
        self.key = key
        self.version = version


class QueryFailed(StorageError):
    """The server refused a statement.

    Subclasses name the conditions that programs react to; everything else is
    this class with its ``sqlstate``.
    """

    default_retryable: ClassVar[bool] = False
    index: int | None = None
    """Position of the record in a batch, where it was found out."""

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        constraint: str | None = None,
        table: str | None = None,
        column: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint
        self.table = table
        self.column = column
        self.retryable = self.default_retryable if retryable is None else retryable


class DuplicateRecord(QueryFailed):
    """A unique or exclusion constraint refused the row (23505, 23P01)."""


class ForeignKeyViolated(QueryFailed):
    """A foreign key refused the change (23503, 23001)."""


class CheckViolated(QueryFailed):
    """A check constraint refused the row (23514)."""


class NotNullViolated(QueryFailed):
    """A column that must have a value has none (23502)."""


class PermissionDenied(QueryFailed, PermissionError):
    """The role may not log in or may not do this (42501, class 28)."""


class SerializationFailed(QueryFailed):
    """Concurrent transactions cannot be ordered (40001); run the body again."""

    default_retryable = True


class DeadlockDetected(QueryFailed):
    """Two transactions waited for each other (40P01); run the body again."""

    default_retryable = True


class LockTimeout(QueryFailed, TimeoutError):
    """A lock was not granted within ``lock_timeout`` (55P03)."""

    default_retryable = True


class QueryTimeout(QueryFailed, TimeoutError):
    """A statement did not end within its timeout and was cancelled."""


class SessionLost(StorageError):
    """The session's temporary views were reaped while its lease was lost."""


class InvalidName(StorageError, ValueError):
    """A name that is no column, table, view or collection, or too long."""


class InvalidRecord(StorageError, ValueError):
    """A value that cannot be stored; nothing was sent.

    Attributes:
        field: Name of the field (or parameter, ``$2``) concerned.
        index: Position of the record in a batch, if there was one.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.index = index


class InvalidCursor(InvalidRecord):
    """A page's cursor was changed, or belongs to another query; nothing was sent.

    Cursors come back from clients: to one, answer 400 Bad Request, or begin again
    without a cursor.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, field="cursor")
