"""The manager: one awaitable object in front of every part."""

from __future__ import annotations

from fm_storage.manager.health import Health, PartHealth
from fm_storage.manager.integrated import IntegratedManager
from fm_storage.manager.probes import Probes
from fm_storage.manager.storage import StorageManager, StorageStatistics
from fm_storage.manager.sync import Blocking, blocking
from fm_storage.manager.transaction import StorageTransaction

__all__ = [
    "Blocking",
    "Health",
    "IntegratedManager",
    "PartHealth",
    "Probes",
    "StorageManager",
    "StorageStatistics",
    "StorageTransaction",
    "blocking",
]
