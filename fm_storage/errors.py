"""Every error that fm_storage raises on its own behalf.

The tree is drawn here and nowhere else; drivers' errors are translated into it
once, in the room that imports the driver::

    StorageError
    ├── ConfigurationInvalid (ValueError)       a setting is wrong
    ├── ConnectionFailed (ConnectionError)      no server answered as it should
    │   └── ServerTooOld                        older than PostgreSQL 14
    ├── EmbeddedFailed                          an embedded engine cannot run
    ├── StorageClosed                           a manager used outside its life
    │   ├── PoolClosed                          a pool used outside its life
    │   └── ConnectionReleased                  a connection used after its block
    ├── PoolTimeout (TimeoutError)              no connection became free in time
    ├── ConnectionBusy                          two tasks on one connection
    ├── WrongLoop                               used from another event loop
    ├── ForkedProcess                           used in a forked child
    ├── MigrationFailed                         a migration did not apply
    │   └── SchemaOutOfDate                     migrations are missing
    ├── RecordNotFound (LookupError)            no row has this key
    ├── StaleRecord                             someone else changed the row
    ├── QueryFailed                             the server refused a statement
    │   ├── DuplicateRecord
    │   ├── ForeignKeyViolated
    │   ├── CheckViolated
    │   ├── NotNullViolated
    │   ├── PermissionDenied (PermissionError)
    │   ├── SerializationFailed                 run the transaction again
    │   ├── DeadlockDetected                    run the transaction again
    │   ├── LockTimeout (TimeoutError)
    │   └── QueryTimeout (TimeoutError)
    ├── SessionLost                             the temporary views are gone
    ├── InvalidName (ValueError)                not a column, table or view name
    ├── InvalidRecord (ValueError)              a value that cannot be stored
    ├── CollectionNotFound (LookupError)
    ├── CollectionMismatch                      exists with another definition
    ├── InvalidVector (ValueError)              not finite, not a vector
    │   └── DimensionMismatch                   a vector of another length
    ├── NotSynced (TimeoutError)                a point has not been delivered yet
    └── VectorStoreUnavailable (ConnectionError)
        └── RateLimited                         the vector store asks for patience

Messages read *owner: fact with numbers; remedy* and never hold a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CheckViolated",
    "CollectionMismatch",
    "CollectionNotFound",
    "ConfigurationInvalid",
    "ConnectionBusy",
    "ConnectionFailed",
    "ConnectionReleased",
    "DeadlockDetected",
    "DimensionMismatch",
    "DuplicateRecord",
    "EmbeddedFailed",
    "ForeignKeyViolated",
    "ForkedProcess",
    "InvalidName",
    "InvalidRecord",
    "InvalidVector",
    "LockTimeout",
    "MigrationFailed",
    "NotNullViolated",
    "NotSynced",
    "PermissionDenied",
    "PoolClosed",
    "PoolTimeout",
    "QueryFailed",
    "QueryTimeout",
    "RateLimited",
    "RecordNotFound",
    "SchemaOutOfDate",
    "SerializationFailed",
    "ServerTooOld",
    "SessionLost",
    "StaleRecord",
    "StorageClosed",
    "StorageError",
    "VectorStoreUnavailable",
    "WrongLoop",
]


class StorageError(Exception):
    """Root of the tree.

    Attributes:
        retryable: Whether the same call, made again later and unchanged, may
            succeed. For a transaction that means the whole body.
        sqlstate: PostgreSQL's five-character code, where the server gave one.
        constraint: Name of the violated constraint, where the server gave one.
        table: Name of the table concerned, where the server gave one.
        column: Name of the column concerned, where the server gave one.
    """

    retryable: bool = False
    sqlstate: str | None = None
    constraint: str | None = None
    table: str | None = None
    column: str | None = None


class ConfigurationInvalid(StorageError, ValueError):
    """A setting is missing, unknown or wrong.

    Attributes:
        key: Dotted key of the first wrong setting (``postgres.max_size``).
        problems: Every wrong setting as ``(key, what is wrong and the remedy)``.
        section: The keys' common start, which a surrounding section replaces.
    """

    def __init__(self, key: str, problem: str, *more: tuple[str, str]) -> None:
        self.key = key
        self.problems = ((key, problem), *more)
        self.section = ""
        super().__init__("; ".join(f"{k}: {p}" for k, p in self.problems))


class ConnectionFailed(StorageError, ConnectionError):
    """No connection could be made, or one broke while a statement ran."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.retryable = retryable


class ServerTooOld(ConnectionFailed):
    """The server's version is below the oldest that is supported."""

    def __init__(self, server: str, *, version: str, minimum: str) -> None:
        super().__init__(
            f"{server}: version {version} is older than {minimum}; "
            "upgrade the server or use an older fm_storage",
            retryable=False,
        )
        self.version, self.minimum = version, minimum


class EmbeddedFailed(StorageError):
    """An embedded engine could not be installed, started or reached."""


class StorageClosed(StorageError):
    """A manager, or a part of it, was used before opening or after closing."""


class PoolClosed(StorageClosed):
    """A pool was used before it was opened or after it was closed."""

    def __init__(self, pool: str, *, state: str = "closed") -> None:
        super().__init__(
            f"pool {pool!r}: it is {state}; use it inside 'async with' or "
            "between open() and aclose()"
        )


class ConnectionReleased(StorageClosed):
    """A connection was used after its block had given it back."""


class PoolTimeout(StorageError, TimeoutError):
    """No connection became free in time."""

    retryable = True

    def __init__(
        self,
        pool: str,
        *,
        waited: float,
        in_use: int,
        size: int,
        waiting: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(
            f"pool {pool!r}: no connection within {waited:.2f} s "
            f"({in_use} of {size} in use, {waiting} waiting); "
            "release connections sooner, or raise max_size or timeout"
            + (f"; {detail}" if detail else "")
        )
        self.waited, self.in_use, self.size = waited, in_use, size
        self.waiting = waiting


class ConnectionBusy(StorageError):
    """A second task used a connection while a statement was running on it."""


class WrongLoop(StorageError):
    """An object was used from an event loop other than the one it opened on."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"{owner}: it was opened on another event loop; open one per loop, "
            "or hand the call over with asyncio.run_coroutine_threadsafe()"
        )


class ForkedProcess(StorageError):
    """An object was used in a child process that inherited it by fork."""

    def __init__(self, owner: str) -> None:
        super().__init__(
            f"{owner}: it was opened in the parent process and a forked child "
            "cannot share its sockets; open a new one in the child"
        )


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

    def __init__(self, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"schema: {len(self.missing)} migration(s) not applied "
            f"({', '.join(self.missing)}); run 'fm-storage migrate', or set "
            "migrations.auto_apply",
            migration=self.missing[0] if self.missing else None,
        )


class RecordNotFound(StorageError, LookupError):
    """No row has the key that was asked for."""

    def __init__(self, table: str, key: object) -> None:
        super().__init__(
            f"{table}: no record with key {key!r}; use find_by_id() where "
            "absence is normal"
        )
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


class CollectionNotFound(StorageError, LookupError):
    """The vector store has no collection or alias of this name."""

    def __init__(self, collection: str, *, operation: str) -> None:
        super().__init__(
            f"collection {collection!r}: it does not exist ({operation}); "
            "create it with ensure_collection_exists()"
        )
        self.collection, self.operation = collection, operation


class CollectionMismatch(StorageError):
    """A collection exists with another definition; nothing was changed.

    Attributes:
        differences: ``{field: (asked for, found)}``.
    """

    def __init__(
        self,
        collection: str,
        differences: Mapping[str, tuple[object, object]],
    ) -> None:
        self.collection = collection
        self.differences = dict(differences)
        said = ", ".join(
            f"{field} is {found!r} but {asked!r} was asked for"
            for field, (asked, found) in self.differences.items()
        )
        super().__init__(
            f"collection {collection!r}: {said}; use another name, or reindex()"
        )


class InvalidVector(StorageError, ValueError):
    """A vector that cannot be stored or searched; nothing was written.

    Attributes:
        collection: Name of the collection.
        index: Position of the point in its batch, None for a query vector.
        field: ``vector`` or the name of the named vector.
    """

    def __init__(
        self,
        message: str,
        *,
        collection: str,
        index: int | None = None,
        field: str = "vector",
    ) -> None:
        super().__init__(message)
        self.collection, self.index, self.field = collection, index, field


class DimensionMismatch(InvalidVector):
    """A vector's length is not the collection's; nothing was written."""

    def __init__(
        self,
        collection: str,
        *,
        expected: int,
        got: int,
        index: int | None = None,
        field: str = "vector",
    ) -> None:
        at = "" if index is None else f" of point {index}"
        super().__init__(
            f"collection {collection!r}: {field}{at} has {got} dimensions, "
            f"not {expected}; use the embedding model the collection was made for",
            collection=collection,
            index=index,
            field=field,
        )
        self.expected, self.got = expected, got


class NotSynced(StorageError, TimeoutError):
    """A point's committed state has not reached the vector store; it stays queued.

    Attributes:
        point_id: The point that was waited for.
        waited: Seconds.
        problem: Why its last delivery failed, if one did.
    """

    def __init__(
        self,
        point_id: object,
        *,
        waited: float,
        problem: str | None = None,
        final: bool = False,
    ) -> None:
        said = f" ({problem})" if problem else ""
        super().__init__(
            f"point {point_id!r}: set aside because the vector store refuses it"
            f"{said}; see 'fm-storage outbox quarantine list'"
            if final
            else f"point {point_id!r}: not delivered within {waited:.2f} s{said}; "
            "it stays queued, see 'fm-storage outbox status'"
        )
        self.point_id, self.waited, self.problem = point_id, waited, problem
        self.retryable = not final


class VectorStoreUnavailable(StorageError, ConnectionError):
    """The vector store did not answer, or answered with an internal failure.

    Attributes:
        operation: Name of the method that failed.
        collection: Name of the collection, where one was concerned.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        collection: str | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(message)
        self.operation, self.collection = operation, collection
        self.retryable = retryable


class RateLimited(VectorStoreUnavailable):
    """The vector store asked for patience for longer than the deadline allows.

    Attributes:
        retry_after: Seconds the store asked to wait, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        collection: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, operation=operation, collection=collection)
        self.retry_after = retry_after
