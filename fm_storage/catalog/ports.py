"""What the catalogue needs of a storage manager.

The manager lies above this room and is not imported here; a test may put a pool, a
vector store and an outbox together in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fm_storage.config import StorageConfig
    from fm_storage.hooks import ShutdownHooks
    from fm_storage.outbox import Outbox
    from fm_storage.postgres import Pool
    from fm_storage.vectors import QdrantStore


class Storage(Protocol):
    """The parts of ``StorageManager`` that the catalogue uses."""

    @property
    def config(self) -> StorageConfig:
        """The settings; ``qdrant`` None means that there are no vectors."""
        ...

    @property
    def pool(self) -> Pool:
        """The connection pool."""
        ...

    @property
    def qdrant(self) -> QdrantStore:
        """The vector store."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Vectors on their way to the vector store."""
        ...

    @property
    def hooks(self) -> ShutdownHooks:
        """What runs before the parts are closed."""
        ...
