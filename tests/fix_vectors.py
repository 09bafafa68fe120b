"""The vector engine under test.

Apart, because the embedded engine is a process of its own per folder, which
must be gone before the folder is.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import QdrantConfig
from tests.support import containers, servers

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

__all__ = ["qdrant", "qdrant_server", "vector_folder"]


@pytest.fixture(scope="session")
def qdrant_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the URL of a Qdrant server; without one, the test is deselected."""
    choice = request.config.stash[servers.CHOICE]
    if choice.qdrant == "given":
        yield choice.qdrant_at
        return
    with containers.started(servers.qdrant_image(), 6333) as (host, port):
        url = f"http://{host}:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5).close()  # noqa: S310 - our own address
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                break
        yield url


@pytest.fixture
def vector_folder(tmp_path: Path) -> Path:
    """Give an empty folder for an embedded vector engine."""
    folder = tmp_path / "vectors"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def qdrant(vector_folder: Path) -> AsyncIterator[QdrantStore]:
    """Give an open vector store on the embedded engine, empty."""
    from fm_storage.vectors import QdrantStore

    # fsync is tested where it matters; everywhere else it only costs time.
    store = QdrantStore(QdrantConfig(durability="process"), folder=vector_folder)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()
