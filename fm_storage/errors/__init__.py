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
    │   └── InvalidCursor                       no cursor of this page: answer 400
    ├── CollectionNotFound (LookupError)
    ├── CollectionMismatch                      exists with another definition
    ├── CollectionDamaged                       its files cannot be read
    ├── InvalidVector (ValueError)              not finite, not a vector
    │   └── DimensionMismatch                   a vector of another length
    ├── NotSynced (TimeoutError)                a point has not been delivered yet
    └── VectorStoreUnavailable (ConnectionError)
        └── RateLimited                         the vector store asks for patience

Messages read *owner: fact with numbers; remedy* and never hold a secret.
"""

from __future__ import annotations

from fm_storage.errors.connections import (
    ConnectionBusy,
    ConnectionFailed,
    ConnectionReleased,
    EmbeddedFailed,
    ForkedProcess,
    PoolClosed,
    PoolTimeout,
    ServerTooOld,
    StorageClosed,
    WrongLoop,
)
from fm_storage.errors.queries import (
    CheckViolated,
    DeadlockDetected,
    DuplicateRecord,
    ForeignKeyViolated,
    InvalidCursor,
    InvalidName,
    InvalidRecord,
    LockTimeout,
    NotNullViolated,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    RecordNotFound,
    SerializationFailed,
    SessionLost,
    StaleRecord,
)
from fm_storage.errors.root import (
    ConfigurationInvalid,
    StorageError,
)
from fm_storage.errors.schema import (
    MigrationFailed,
    SchemaOutOfDate,
)
from fm_storage.errors.vectors import (
    CollectionDamaged,
    CollectionMismatch,
    CollectionNotFound,
    DimensionMismatch,
    InvalidVector,
    NotSynced,
    RateLimited,
    VectorStoreUnavailable,
)

__all__ = [
    "CheckViolated",
    "CollectionDamaged",
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
    "InvalidCursor",
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

# Known by where they are imported from, also in pickles, whichever file they are in.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
