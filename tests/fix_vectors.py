"""The vector engine under test.

Apart, because the embedded engine is a process of its own per folder, which
must be gone before the folder is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import QdrantConfig

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

__all__ = ["qdrant", "vector_folder"]


@pytest.fixture
def vector_folder(tmp_path: Path) -> Path:
    """Give an empty folder for an embedded vector engine."""
    folder = tmp_path / "vectors"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def qdrant(vector_folder: Path) -> AsyncIterator[QdrantStore]:
    """Give an open vector store on the embedded engine, empty."""
    from fm_storage.vectors import QdrantStore  # noqa: PLC0415 - only where used

    # fsync is tested where it matters; everywhere else it only costs time.
    store = QdrantStore(QdrantConfig(durability="process"), folder=vector_folder)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()
