"""A Qdrant server (REST or gRPC), and the client's local mode, as an engine.

Apart from the store, because the client loads for more than a second, speaks in
eight exception types, and has traps that are closed here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from fm_storage.config import QdrantConfig

__all__ = ["ServerEngine"]


class ServerEngine:
    """Placeholder of the next commit; only the embedded engine answers yet."""

    def __init__(self, config: QdrantConfig) -> None:
        message = f"vector store: {config.url} cannot be used yet"
        raise NotImplementedError(message)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method
        raise AttributeError(name)
