"""For tests: a Qdrant that misbehaves on request, and fixtures for pytest."""

from __future__ import annotations

from fm_storage.testing.app import QdrantApp
from fm_storage.testing.faults import Fault, Faults, Seen
from fm_storage.testing.server import QdrantTestServer

__all__ = ["Fault", "Faults", "QdrantApp", "QdrantTestServer", "Seen"]
