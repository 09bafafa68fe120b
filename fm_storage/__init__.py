"""fm_storage: asyncio-native storage on PostgreSQL and Qdrant.

``async with StorageManager() as storage`` opens everything; its docstring, and
the README, describe the rest. Importing this package does no I/O; each name is loaded
when it is first asked for.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing and what it loads would take ten times as long
if TYPE_CHECKING:
    from typing import Any

    from fm_storage.catalog import (
        Analyzer,
        CatalogMiddleware,
        ErrorGroup,
        ErrorManager,
        GroupMember,
        GroupNotice,
        IngestReport,
        Recorded,
        Report,
        SimilarEntry,
        WatcherStatus,
    )
    from fm_storage.config import (
        CollectionConfig,
        ConfigManager,
        EnvironmentConfigManager,
        MappingConfigManager,
        MigrationsConfig,
        OutboxConfig,
        PostgresConfig,
        QdrantConfig,
        SessionConfig,
        SparseVectorConfig,
        StorageConfig,
        TomlConfigManager,
        VectorConfig,
    )
    from fm_storage.errors import (
        CheckViolated,
        CollectionDamaged,
        CollectionMismatch,
        CollectionNotFound,
        ConfigurationInvalid,
        ConnectionBusy,
        ConnectionFailed,
        ConnectionReleased,
        DeadlockDetected,
        DimensionMismatch,
        DuplicateRecord,
        EmbeddedFailed,
        ForeignKeyViolated,
        ForkedProcess,
        InvalidCursor,
        InvalidName,
        InvalidRecord,
        InvalidVector,
        LockTimeout,
        MigrationFailed,
        NotNullViolated,
        NotSynced,
        PermissionDenied,
        PoolClosed,
        PoolTimeout,
        QueryFailed,
        QueryTimeout,
        RateLimited,
        RecordNotFound,
        SchemaOutOfDate,
        SerializationFailed,
        ServerTooOld,
        SessionLost,
        StaleRecord,
        StorageClosed,
        StorageError,
        VectorStoreUnavailable,
        WrongLoop,
    )
    from fm_storage.hooks import ShutdownHooks
    from fm_storage.manager import (
        Health,
        IntegratedManager,
        PartHealth,
        StorageManager,
        StorageStatistics,
        blocking,
    )
    from fm_storage.manager import (
        StorageTransaction as Transaction,
    )
    from fm_storage.manager.dependency import storage_of
    from fm_storage.outbox import Outbox, Unembedded
    from fm_storage.postgres import (
        Connection,
        Executor,
        Notification,
        Pool,
        PoolStatistics,
    )
    from fm_storage.repositories import (
        Column,
        ErrorEntry,
        ErrorEntryRepository,
        Page,
        Repository,
        Severity,
        asc,
        desc,
        uuid7,
        where,
    )
    from fm_storage.sessions import (
        CleanupReport,
        PostgresSessionManager,
        SessionInfo,
        TempView,
    )
    from fm_storage.vectors import (
        Embedding,
        LexicalVectorizer,
        Point,
        QdrantStore,
        ScoredPoint,
        SparseVector,
        Vectorizer,
    )

__all__ = [
    "Analyzer",
    "CatalogMiddleware",
    "CheckViolated",
    "CleanupReport",
    "CollectionConfig",
    "CollectionDamaged",
    "CollectionMismatch",
    "CollectionNotFound",
    "Column",
    "ConfigManager",
    "ConfigurationInvalid",
    "Connection",
    "ConnectionBusy",
    "ConnectionFailed",
    "ConnectionReleased",
    "DeadlockDetected",
    "DimensionMismatch",
    "DuplicateRecord",
    "EmbeddedFailed",
    "Embedding",
    "EnvironmentConfigManager",
    "ErrorEntry",
    "ErrorEntryRepository",
    "ErrorGroup",
    "ErrorManager",
    "Executor",
    "ForeignKeyViolated",
    "ForkedProcess",
    "GroupMember",
    "GroupNotice",
    "Health",
    "IngestReport",
    "IntegratedManager",
    "InvalidCursor",
    "InvalidName",
    "InvalidRecord",
    "InvalidVector",
    "LexicalVectorizer",
    "LockTimeout",
    "MappingConfigManager",
    "MigrationFailed",
    "MigrationsConfig",
    "NotNullViolated",
    "NotSynced",
    "Notification",
    "Outbox",
    "OutboxConfig",
    "Page",
    "PartHealth",
    "PermissionDenied",
    "Point",
    "Pool",
    "PoolClosed",
    "PoolStatistics",
    "PoolTimeout",
    "PostgresConfig",
    "PostgresSessionManager",
    "QdrantConfig",
    "QdrantStore",
    "QueryFailed",
    "QueryTimeout",
    "RateLimited",
    "RecordNotFound",
    "Recorded",
    "Report",
    "Repository",
    "SchemaOutOfDate",
    "ScoredPoint",
    "SerializationFailed",
    "ServerTooOld",
    "SessionConfig",
    "SessionInfo",
    "SessionLost",
    "Severity",
    "ShutdownHooks",
    "SimilarEntry",
    "SparseVector",
    "SparseVectorConfig",
    "StaleRecord",
    "StorageClosed",
    "StorageConfig",
    "StorageError",
    "StorageManager",
    "StorageStatistics",
    "TempView",
    "TomlConfigManager",
    "Transaction",
    "Unembedded",
    "VectorConfig",
    "VectorStoreUnavailable",
    "Vectorizer",
    "WatcherStatus",
    "WrongLoop",
    "__version__",
    "asc",
    "blocking",
    "desc",
    "storage_of",
    "uuid7",
    "where",
]

__version__ = "0.1.0"

_ROOMS = (
    *("errors", "config", "hooks", "postgres", "repositories", "sessions", "vectors"),
    *("outbox", "catalog", "manager", "migrate", "testing"),
)
_OTHERWISE = {  # not in a room's __all__ by this name
    "Transaction": ("manager", "StorageTransaction"),
    "storage_of": ("manager.dependency", "storage_of"),
}


def __getattr__(name: str) -> Any:
    """Load the room that has *name*, once it is asked for."""
    if name in _ROOMS:
        return importlib.import_module(f"fm_storage.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    places = [(room, name) for room in _ROOMS]
    for room, its in [_OTHERWISE[name]] if name in _OTHERWISE else places:
        found = importlib.import_module(f"fm_storage.{room}")
        if hasattr(found, its):
            return globals().setdefault(name, getattr(found, its))
    raise AssertionError(name)  # test_public_api holds that there is none


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS]
