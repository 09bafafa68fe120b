"""Collections, vectors, and a vector store that does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fm_storage.errors.root import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class CollectionNotFound(StorageError, LookupError):
    """The vector store has no collection or alias of this name.

    Attributes:
        collection: The name.
        operation: Name of the method that needed it.
    """

    def __init__(self, collection: str, *, operation: str) -> None:
        super().__init__(_does_not_exist(collection, operation))
        self.collection, self.operation = collection, operation


def _does_not_exist(collection: str, operation: str) -> str:
    return (
        f"collection {collection!r}: it does not exist ({operation}); "
        "create it with ensure_collection_exists()"
    )


class CollectionDamaged(StorageError):
    """The files of a collection of the embedded engine cannot be read.

    Other collections are not affected. ``delete_collection()`` works.

    Attributes:
        collection: Name of the collection.
        file: The file, or the collection's folder.
        operation: Name of the method that failed.
    """

    def __init__(
        self, collection: str, *, file: str, reason: str, operation: str
    ) -> None:
        super().__init__(
            f"collection {collection!r}: its files are damaged ({file}: {reason}); "
            "restore them from a backup, or delete_collection() and write it again "
            "(outbox.rebuild() does both from PostgreSQL)"
        )
        self.collection, self.file, self.operation = collection, file, operation


class CollectionMismatch(StorageError):
    """A collection exists with another definition; nothing was changed.

    Attributes:
        collection: Name of the collection.
        differences: ``{field: (asked for, found)}``.
        operation: Name of the method that failed, where a store's call did.
    """

    operation: str | None = None

    def __init__(
        self,
        collection: str,
        differences: Mapping[str, tuple[object, object]],
    ) -> None:
        self.collection = collection
        self.differences = dict(differences)
        differing = ", ".join(
            f"{field} is {found!r} but {asked!r} was asked for"
            for field, (asked, found) in self.differences.items()
        )
        super().__init__(
            f"collection {collection!r}: {differing}; use another name, or reindex()"
        )


class InvalidVector(StorageError, ValueError):
    """A vector that cannot be stored or searched; nothing was written.

    Attributes:
        collection: Name of the collection.
        index: Position of the point in its batch, None for a query vector.
        field: ``vector`` or the name of the named vector.
        operation: Name of the method that failed, where a store's call did.
    """

    operation: str | None = None

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
        reason = f" ({problem})" if problem else ""
        super().__init__(
            f"point {point_id!r}: set aside because the vector store refuses it"
            f"{reason}; see 'fm-storage outbox quarantine list'"
            if final
            else f"point {point_id!r}: not delivered within {waited:.2f} s{reason}; "
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
        retry_after: Seconds that the store asked to wait, if it did.
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


def name_operation(exc: Exception, operation: str) -> None:
    """Let *exc* name the method that the user called, not a request inside it."""
    if isinstance(
        exc,
        CollectionNotFound
        | CollectionDamaged
        | CollectionMismatch
        | InvalidVector
        | VectorStoreUnavailable,
    ):
        exc.operation = operation
    if isinstance(exc, CollectionNotFound):
        exc.args = (_does_not_exist(exc.collection, operation),)
