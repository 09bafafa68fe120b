"""fm_storage: asyncio-native storage on PostgreSQL and Qdrant.

``async with StorageManager() as storage`` opens everything; its docstring, and
the README, describe the rest. Importing this package does no I/O and loads no heavy
client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fm_storage.catalog import (
    Analyzer,
    CatalogMiddleware,
    ErrorGroup,
    ErrorManager,
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
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.postgres import (
    Connection,
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

if TYPE_CHECKING:
    from fm_storage.manager.dependency import storage_of

__version__ = "0.1.0"

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
    "ForeignKeyViolated",
    "ForkedProcess",
    "GroupNotice",
    "Health",
    "IngestReport",
    "IntegratedManager",
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


def __getattr__(name: str) -> Any:
    """Load what needs a web framework when it is asked for."""
    if name == "storage_of":
        from fm_storage.manager.dependency import storage_of

        return storage_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
