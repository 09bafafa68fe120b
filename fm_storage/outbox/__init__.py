"""Dual write: records in PostgreSQL, their vectors in Qdrant, one truth.

Desired state is written in the same statement as the record, and delivered by
drainers that may be killed at any instant.
"""

from __future__ import annotations

from fm_storage.outbox.delivery.texts import TextOf
from fm_storage.outbox.outbox import Outbox
from fm_storage.outbox.results import (
    CollectionBacklog,
    Difference,
    DrainReport,
    OutboxStatistics,
    OutboxStatus,
    Quarantined,
    Rebuilding,
    RebuildReport,
    RepairReport,
    Verification,
)
from fm_storage.outbox.writer import BoundOutbox
from fm_storage.postgres import Executor
from fm_storage.vector_state import Unembedded

__all__ = [
    "BoundOutbox",
    "CollectionBacklog",
    "Difference",
    "DrainReport",
    "Executor",
    "Outbox",
    "OutboxStatistics",
    "OutboxStatus",
    "Quarantined",
    "RebuildReport",
    "Rebuilding",
    "RepairReport",
    "TextOf",
    "Unembedded",
    "Verification",
]
